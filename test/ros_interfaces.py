"""Interface packages that have no wheel, generated and built for tests from the wire facts: names and types of fields.

The generators are those of the rosidl wheels; each package becomes one extension module. What is built is kept in the
temporary directory under a name made of the definitions and of the rosidl version, so it is built once a machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path


def _fields(kind: str, names: str) -> str:
    return "".join(f"{kind} {name}\n" for name in names.split())


ERRORS = (
    *("joint_position_limits_violation", "cartesian_position_limits_violation", "self_collision_avoidance_violation"),
    *("joint_velocity_violation", "cartesian_velocity_violation", "force_control_safety_violation", "joint_reflex"),
    *("cartesian_reflex", "max_goal_pose_deviation_violation", "max_path_pose_deviation_violation"),
    *("cartesian_velocity_profile_safety_violation", "joint_position_motion_generator_start_pose_invalid"),
    *("joint_motion_generator_position_limits_violation", "joint_motion_generator_velocity_limits_violation"),
    *("joint_motion_generator_velocity_discontinuity", "joint_motion_generator_acceleration_discontinuity"),
    *("cartesian_position_motion_generator_start_pose_invalid", "cartesian_motion_generator_elbow_limit_violation"),
    *("cartesian_motion_generator_velocity_limits_violation", "cartesian_motion_generator_velocity_discontinuity"),
    *("cartesian_motion_generator_acceleration_discontinuity", "cartesian_motion_generator_elbow_sign_inconsistent"),
    "cartesian_motion_generator_start_elbow_invalid",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    *("cartesian_position_motion_generator_invalid_frame", "force_controller_desired_force_tolerance_violation"),
    *("controller_torque_discontinuity", "start_elbow_sign_inconsistent", "communication_constraints_violation"),
    *("power_limit_violation", "joint_p2p_insufficient_torque_for_planning", "tau_j_range_violation"),
    "instability_detected",
)
FIELDS = "float64 position\nfloat64 effort\nbool stalled\nbool reached_goal\n"
PACKAGES: Mapping[str, Mapping[str, str]] = {
    "control_msgs": {
        "msg/GripperCommand.msg": "float64 position\nfloat64 max_effort\n",
        "action/GripperCommand.action": f"GripperCommand command\n---\n{FIELDS}---\n{FIELDS}",
        "action/ParallelGripperCommand.action": (
            "sensor_msgs/JointState command\n---\nsensor_msgs/JointState state\nbool stalled\nbool reached_goal\n---\n"
            "sensor_msgs/JointState state\n"
        ),
    },
    "franka_msgs": {
        "action/ErrorRecovery.action": "---\n---\n",
        "action/Homing.action": "---\nbool success\nstring error\n---\nfloat64 current_width\n",
        "msg/Errors.msg": "".join(f"bool {name}\n" for name in ERRORS),
        "msg/CollisionIndicators.msg": (
            "".join(
                f"geometry_msgs/Vector3 is_cartesian_{kind}\n"
                for kind in ("linear_collision", "angular_collision", "linear_contact", "angular_contact")
            )
            + "float64[7] is_joint_collision\nfloat64[7] is_joint_contact\n"
        ),
        "msg/Elbow.msg": _fields(
            "float64[2]",
            "position desired_position commanded_position commanded_velocity commanded_acceleration",
        ),
        "msg/FrankaRobotState.msg": (
            "std_msgs/Header header\nCollisionIndicators collision_indicators\n"
            + _fields("sensor_msgs/JointState", "measured_joint_state desired_joint_state measured_joint_motor_state")
            + _fields("float64[7]", "ddq_d dtau_j")
            + "sensor_msgs/JointState tau_ext_hat_filtered\nElbow elbow\n"
            + _fields("geometry_msgs/WrenchStamped", "k_f_ext_hat_k o_f_ext_hat_k")
            + _fields("geometry_msgs/InertiaStamped", "inertia_ee inertia_load inertia_total")
            + _fields("geometry_msgs/PoseStamped", "o_t_ee o_t_ee_d o_t_ee_c f_t_ee ee_t_k")
            + _fields("geometry_msgs/TwistStamped", "o_dp_ee_d o_dp_ee_c")
            + "geometry_msgs/AccelStamped o_ddp_ee_c\n"
            + _fields("float64", "time control_command_success_rate")
            + "uint8 robot_mode\n"
            + _fields("Errors", "current_errors last_motion_errors")
        ),
        "msg/GraspEpsilon.msg": "float64 inner\nfloat64 outer\n",
        "action/Grasp.action": (
            "float64 width\nGraspEpsilon epsilon\nfloat64 speed\nfloat64 force\n---\nbool success\nstring error\n---\n"
            "float64 current_width\n"
        ),
        "action/Move.action": (
            "float64 width\nfloat64 speed\n---\nbool success\nstring error\n---\nfloat64 current_width\n"
        ),
    },
}
SUPPORT = "rosidl_typesupport_fastrtps_c"
INTROSPECTION = "rosidl_typesupport_introspection_c"
DEPENDENCIES = (
    *("action_msgs", "builtin_interfaces", "geometry_msgs", "sensor_msgs", "service_msgs", "std_msgs"),
    "unique_identifier_msgs",
)


def interfaces() -> Path:
    """Directory for PYTHONPATH and LD_LIBRARY_PATH, from which `control_msgs` and `franka_msgs` can be imported.

    They are built if needed.

    Raises:
        RuntimeError: there is no C++ compiler, or it failed; the message has its output.
    """
    text = repr(PACKAGES) + version("ros-rosidl-generator-py") + sys.version + Path(__file__).read_text()
    place = Path(tempfile.gettempdir()) / f"molmoact2_interfaces_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with Path(f"{place}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").is_file():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for package, files in PACKAGES.items():
                _build(place, package, files)
            (place / "done").touch()
    return place


def load_interfaces() -> Path:
    """Make them importable in this process, which was started without them; returns their directory."""
    place = interfaces()
    if str(place) not in sys.path:
        sys.path.append(str(place))
        for library in sorted(place.glob("lib*.so")):
            ctypes.CDLL(str(library))
    return place


def _build(place: Path, package: str, files: Mapping[str, str]) -> None:
    out = place / "generated" / package
    idl = [_translated(out, package, name, text) for name, text in files.items()]
    inside = place / "introspection" / package  # its files have the names of others
    _generate(out, inside, package, idl)
    found = [*sorted(out.rglob("*")), *sorted(inside.rglob("*"))]
    sources = [path for path in found if path.suffix in (".c", ".cpp")]
    entry = next(path for path in sources if path.name == f"_{package}_s.ep.rosidl_typesupport_c.c")
    sources = [path for path in sources if ".ep." not in path.name] + [entry]
    module = place / package
    shutil.copytree(
        out, module, ignore=shutil.ignore_patterns("*.c", "*.cpp", "*.h", "*.hpp", "*.json", "detail", "tmp")
    )
    extension = module / f"{package}_s__rosidl_typesupport_c.so"
    _compile(sources, [out.parent, inside.parent], extension)
    for support in (SUPPORT, INTROSPECTION):
        # The middleware looks for a library of each kind of type support; all are in the one extension.
        name = f"lib{package}__{support}.so"
        _run(["g++", "-shared", f"-Wl,-soname,{name}", "-Wl,--no-as-needed", "-o", str(place / name), str(extension)])


def _translated(out: Path, package: str, name: str, text: str) -> str:
    """Write a definition and its IDL; returns the IDL as `base:relative`."""
    from rosidl_adapter.action import convert_action_to_idl
    from rosidl_adapter.msg import convert_msg_to_idl

    source = out / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    convert = convert_action_to_idl if name.endswith(".action") else convert_msg_to_idl
    convert(out, package, Path(name), source.parent)
    return f"{out}:{Path(name).with_suffix('.idl')}"


def _generate(out: Path, inside: Path, package: str, idl: Sequence[str]) -> None:
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    share = [str(Path(sys.prefix) / "share" / name) for name in DEPENDENCIES]
    hashes = HashTypeDescription("c").generate_type_hashes(package, list(idl), share, out)
    for kind in ("msg", "action"):
        # The generator pairs a definition with its hash by name alone, and a message and an action may share one.
        here, described = (
            [path for path in paths if Path(str(path).rpartition(":")[2]).parent.name == kind]
            for paths in (idl, hashes)
        )
        GenerateC("c").generate(package, here, share, out, type_description_files=described)
    GenerateFastRTPSCTypesupport("c").generate(package, list(idl), share, out)
    GenerateIntrospectionCTypesupport("c").generate(package, list(idl), share, inside)
    GenerateCTypesupport("c", typesupport_implementations=[SUPPORT, INTROSPECTION]).generate(
        package, list(idl), share, out
    )
    GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c"]).generate(package, list(idl), share, out)


def _compile(sources: Sequence[Path], include: Sequence[Path], target: Path) -> None:
    import numpy as np

    prefix = Path(sys.prefix)
    flags = ["-O0", "-fPIC", "-w", "-fvisibility=default"]
    flags += [f"-I{path}" for path in (*include, sysconfig.get_path("include"), np.get_include())]
    headers = prefix / "include"
    flags += [f"-I{path}" for path in (headers, *sorted(headers.iterdir())) if path.is_dir()]

    def compiled(source: Path) -> Path:
        compiler = ["g++", "-std=c++17"] if source.suffix == ".cpp" else ["gcc", "-std=gnu11"]
        found = source.with_name(source.name + ".o")
        _run([*compiler, *flags, "-c", str(source), "-o", str(found)])
        return found

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compiled, sources))
    libraries = [
        *(
            f"{name}__{kind}"
            for name in DEPENDENCIES
            for kind in ("rosidl_generator_c", "rosidl_generator_py", "rosidl_typesupport_c", SUPPORT)
        ),
        *(f"{name}__{INTROSPECTION}" for name in DEPENDENCIES),
        *(
            INTROSPECTION,
            "rosidl_runtime_c",
            "rosidl_typesupport_c",
            SUPPORT,
            "rosidl_typesupport_fastrtps_cpp",
            "fastcdr",
            "rcutils",
        ),
    ]
    names = [name for name in libraries if (prefix / "lib" / f"lib{name}.so").exists()]
    link = [f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}", *(f"-l{name}" for name in names)]
    _run(["g++", "-shared", "-o", str(target), *map(str, objects), *link])


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]} is not installed; the interface packages of the tests need it") from None
    if done.returncode:
        said = re.sub(r"\n\s*\n", "\n", done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command[-3:])} failed:\n{said}")
