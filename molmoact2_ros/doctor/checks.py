"""Checks of the machine itself, and the list of all checks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.doctor.calibration import calibration
from molmoact2_ros.doctor.finding import Cell, Finding, sound
from molmoact2_ros.doctor.hardware import cameras, can, packages, ports
from molmoact2_ros.doctor.probe import Machine
from molmoact2_ros.policy.backends.tensorrt_library import RTX, library_of
from molmoact2_ros.policy.options import BackendMissingError

MIN_DISK_MB_S, MIN_FREE_GB = 60.0, 20.0
"""Three 640x480 cameras at 30 Hz are 83 MB/s raw, about half of it compressed; an hour fills 150 GB."""
EXECUTOR_PRIORITY = 10


def _card(machine: Machine) -> tuple[int, list[str]]:
    """The status of nvidia-smi and what it says of the first GPU: name, driver, memory, compute capability."""
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    status, out = machine.run("nvidia-smi", query, "--format=csv,noheader")
    said = out.strip().splitlines()[:1]
    fields = [part.strip() for line in said for part in line.split(",")]
    return (status, fields) if status != 0 or len(fields) >= 4 else (1, fields)


def gpu(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """NVIDIA driver and card, and whether torch can use it."""
    status, fields = _card(machine)
    if status != 0:
        why = "nvidia-smi is not installed" if status == 127 else f"nvidia-smi fails: {', '.join(fields) or 'no words'}"
        yield Finding(
            "GPU",
            Level.WARN,
            f"no NVIDIA GPU ({why}); the released checkpoints need one, the simulated cell's does not",
            "sudo ubuntu-drivers install && sudo reboot",
        )
        return
    name, driver, memory = fields[:3]
    gib = float(re.sub(r"[^0-9.]", "", memory) or 0) / 1024
    if gib < 12:
        yield Finding("GPU", Level.WARN, f"{name} has {gib:.0f} GiB; the released checkpoints need about 12 in bf16")
    else:
        yield sound("GPU", f"{name}, {gib:.0f} GiB, driver {driver}")
    usable, said = machine.torch_cuda()
    if usable:
        yield sound("CUDA", f"torch uses {said}")
    else:
        yield Finding(
            "CUDA",
            Level.ERROR,
            f"there is a GPU, but {said}; torch is of another CUDA than driver {driver}, or a build for the CPU",
            "pip install --force-reinstall torch==2.11.0 torchvision==0.26.0",
        )


def tensorrt(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """Which TensorRT this GPU takes, and whether it is there; it is optional, and builds for others without a GPU."""
    status, fields = _card(machine)
    if status != 0:
        ahead = next((version for name in RTX.packages if (version := machine.version(name))), "")
        builds = f"{RTX.name} {ahead} builds engines for other machines" if ahead else "not installed"
        yield sound("TensorRT", f"{builds}; there is no GPU here that would run them")
        return
    major, _, minor = fields[3].partition(".")
    cuda = "12" if machine.version("nvidia-cuda-runtime-cu12") else "13"
    try:
        library = library_of((int(major), int(minor or 0)), cuda, machine.architecture() == "aarch64")
    except BackendMissingError as error:
        yield Finding("TensorRT", Level.WARN, str(error))
        return
    version = next((version for name in library.packages if (version := machine.version(name))), "")
    if version:
        yield sound("TensorRT", f"{library.name} {version}, which a GPU of capability {fields[3]} takes")
    else:
        yield Finding(
            "TensorRT",
            Level.WARN,
            f"{library.name}, which a GPU of capability {fields[3]} takes, is not installed; backend torch works, more "
            "slowly",
            library.install,
        )


def ros(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """One ROS 2 Jazzy, and one only."""
    rclpy = machine.origin("rclpy")
    distro = machine.environment("ROS_DISTRO")
    if not rclpy:
        if machine.exists("/opt/ros/jazzy/setup.bash"):
            yield Finding(
                "ROS", Level.ERROR, "ROS 2 Jazzy is installed but not sourced", "source /opt/ros/jazzy/setup.bash"
            )
        else:
            yield Finding("ROS", Level.ERROR, "rclpy is not installed", "sudo apt install ros-jazzy-ros-base")
    elif distro and distro != "jazzy":
        yield Finding(
            "ROS",
            Level.ERROR,
            f"ROS 2 {distro} is sourced, this package is for jazzy",
            "source /opt/ros/jazzy/setup.bash",
        )
    else:
        yield sound("ROS", f"rclpy from {rclpy.partition('/rclpy/')[0]}")
    rmw = machine.environment("RMW_IMPLEMENTATION")
    if rmw and rmw != "rmw_fastrtps_cpp":
        yield Finding(
            "ROS middleware",
            Level.WARN,
            f"{rmw}: the shared-memory profile for images is for Fast DDS; check with ros2 topic hz on a camera",
            "unset RMW_IMPLEMENTATION",
        )
    segments = machine.listed("/dev/shm", "fastrtps_*")
    if len(segments) > 400:
        yield Finding(
            "ROS middleware", Level.WARN, f"{len(segments)} segments left by killed nodes", "fastdds shm clean"
        )


def numpy(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """The numpy of apt's ROS against the one that lerobot needs."""
    path, version = machine.origin("numpy"), machine.version("numpy")
    leak = [
        p for p in machine.environment("PYTHONPATH").split(":") if p.startswith(("/opt/ros", "/usr/lib/python3/dist"))
    ]
    if not path:
        yield Finding("numpy", Level.ERROR, "not installed", "pip install -r requirements/runtime.txt")
    elif "dist-packages" in path or version.startswith("1."):
        yield Finding(
            "numpy",
            Level.ERROR,
            f"numpy {version} of {path.partition('/numpy/')[0]} comes first (apt's ROS brings it); lerobot needs 2.x",
            "deactivate; unset PYTHONPATH; . .venv/bin/activate; source /opt/ros/jazzy/setup.bash; "
            "export PYTHONPATH=$VIRTUAL_ENV/lib/python3.12/site-packages:$PYTHONPATH",
        )
    elif leak and machine.version("ros-jazzy-rclpy"):
        yield Finding(
            "numpy",
            Level.WARN,
            f"PYTHONPATH names another ROS ({leak[0]}) beside the one in this environment; the nodes leave it out, "
            "other programs load both",
            "unset PYTHONPATH",
        )
    else:
        yield sound("numpy", f"{version} from {path.partition('/numpy/')[0]}")
    if not machine.origin("lerobot"):
        yield Finding("lerobot", Level.ERROR, "not installed", "pip install -r requirements/runtime.txt")


def realtime(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """Whether the command loop may be scheduled in real time."""
    limit = machine.realtime_limit()
    if limit >= EXECUTOR_PRIORITY:
        yield sound("real time", f"priorities up to {limit} are permitted")
    else:
        yield Finding(
            "real time",
            Level.ERROR if cell.robot == "franka" else Level.WARN,
            f"priority {EXECUTOR_PRIORITY} is not permitted (limit {limit}); the command loop will be less even",
            'echo "$USER - rtprio 99" | sudo tee /etc/security/limits.d/99-molmoact2.conf  # then log in again',
        )
    if cell.robot == "franka" and machine.read("/sys/kernel/realtime") != "1":
        yield Finding(
            "real time",
            Level.WARN,
            "no real-time kernel; Franka's control box stops on late packets",
            "sudo pro enable realtime-kernel",
        )
    governors = {
        machine.read(path) for path in machine.listed("/sys/devices/system/cpu", "cpu*/cpufreq/scaling_governor")
    }
    if governors - {"performance", ""}:
        yield Finding(
            "real time",
            Level.WARN,
            f"processor governor {', '.join(sorted(governors))}",
            "sudo cpupower frequency-set -g performance",
        )


def disk(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """Speed and space where the bags go."""
    speed, free = machine.write_mb_s(cell.record_dir), machine.free_gb(cell.record_dir)
    if speed < MIN_DISK_MB_S:
        yield Finding(
            "disk",
            Level.WARN,
            f"{cell.record_dir} takes {speed:.0f} MB/s, raw images need {MIN_DISK_MB_S:.0f}",
            "molmoact2 sim --record /path/on/a/faster/disk",
        )
    elif free < MIN_FREE_GB:
        yield Finding("disk", Level.WARN, f"{free:.0f} GB are free for bags", f"du -sh {cell.record_dir}/* | sort -h")
    else:
        yield sound("disk", f"{speed:.0f} MB/s, {free:.0f} GB free")


def clock(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """Whether this machine's clock follows a reference, since stamps of several machines are compared."""
    status, out = machine.run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if status == 0 and out.strip() == "yes":
        yield sound("clock", "synchronised")
    elif status == 0:
        yield Finding(
            "clock", Level.WARN, "not synchronised; stamps of two machines will differ", "sudo timedatectl set-ntp true"
        )
    else:
        yield Finding(
            "clock", Level.WARN, "cannot tell whether it is synchronised (no timedatectl)", "chronyc tracking"
        )
    source = machine.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source and source not in ("tsc", "kvm-clock", "arch_sys_counter"):
        yield Finding(
            "clock",
            Level.WARN,
            f"slow clock source {source}; each look at the time takes microseconds",
            "dmesg | grep -i tsc",
        )


Check = Callable[[Machine, Cell], Iterable[Finding]]
CHECKS: tuple[Check, ...] = (
    gpu,
    tensorrt,
    ros,
    numpy,
    packages,
    cameras,
    calibration,
    ports,
    can,
    realtime,
    disk,
    clock,
)


def checks_before(policy: bool, hardware: bool, recorded: bool) -> tuple[Check, ...]:
    """The checks that concern one run, quick ones first.

    Args:
        policy: a model runs. hardware: the arm and its cameras are real. recorded: bags are written.
    """
    chosen: tuple[Check, ...] = (ros, numpy, packages)
    chosen += (cameras, ports, can, realtime) if hardware else ()
    return chosen + ((gpu,) if policy and hardware else ()) + ((disk,) if recorded else ())


def examine(machine: Machine, cell: Cell, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Make every one of `checks`; one that breaks is itself a finding."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(machine, cell)
        except Exception as error:  # the doctor goes on with the rest
            found.append(Finding(check.__name__, Level.WARN, f"could not be checked: {error!r}"))
    return found
