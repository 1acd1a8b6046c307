"""Import hygiene: which rooms may load what, seen in every module's text and in what a fresh process has loaded."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "molmoact2_ros"
ROS = {"rclpy", "launch", "launch_ros", "ament_index_python"}
MESSAGES = ("_msgs", "_srvs", "_interfaces")
HEAVY = {"torch", "torchvision", "lerobot", "transformers", "mujoco", "mink", "cv2", "tensorrt", "pyrealsense2", "i2rt"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Top-level names that the module imports; with `top_only` those that its own import loads."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree)
    if top_only:
        inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        inner |= {id(n) for guard in guards for n in ast.walk(guard)}
        nodes = (n for n in ast.walk(tree) if id(n) not in inner)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the house style is absolute imports"
            names.add(node.module or "")
    return names


def roots(path: Path, top_only: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, top_only)}


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


ORDER = (
    {"share", "diagnostics", "early"},
    {"parameter_files"},
    {"embodiments"},
    {"execution", "cameras"},
    {"drivers", "rendering", "policy"},
    {"recording"},
    {"simulation", "serving", "teleoperation"},
    {"training", "doctor"},
    {"bringup"},
    {"panel"},
    {"nodes"},
    {"benchmarking"},
    {"cli"},
)
"""Rooms from the ground up: a room imports those below it only. What nothing but itself may import stands on top."""
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
ROS_ROOMS = ("nodes", "bringup/launch_actions.py")
STARTED_ONLY = {"nodes"}
"""Rooms that are started as programs: nobody imports them, so that no process has ROS that did not ask for it."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {module_of(path) for path in MODULES}


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that `path` imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in KNOWN else node.module for name in full}
    return (found & KNOWN) - {module_of(path)}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_nodes_and_launch_actions_know_ros(path: Path):
    if str(path.relative_to(PACKAGE)).startswith(ROS_ROOMS):
        return
    found = {name for name in roots(path) if name in ROS or name.endswith(MESSAGES)}
    assert not found, f"{name_of(path)} imports {sorted(found)}"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in ("execution", "embodiments")], ids=name_of)
def test_execution_and_embodiments_load_nothing_heavy(path: Path):
    assert not roots(path) & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_room_reaches_up(path: Path):
    own = room_of(module_of(path))
    others = {module for module in imported_modules(path) if room_of(module) not in ("", own)}
    if not own:
        assert not others
    wrong = {module for module in others if FLOOR[room_of(module)] >= FLOOR[own] or room_of(module) in STARTED_ONLY}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}"


def test_every_room_has_its_floor():
    assert {room_of(module) for module in KNOWN} - {""} == set(FLOOR)


def test_no_modules_import_each_other_in_a_circle():
    graph = TopologicalSorter({module_of(path): imported_modules(path) for path in MODULES})
    graph.prepare()  # raises CycleError with the circle in it


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "ros"], ids=name_of)
def test_what_nodes_share_imports_no_node(path: Path):
    assert not {module for module in imported_modules(path) if module.endswith("_node")}


LIGHT = {
    "embodiments": HEAVY | {"rclpy"},
    "execution": HEAVY | {"rclpy"},
    "cameras": HEAVY | {"rclpy"},
    "recording": HEAVY | {"rclpy"},
    "rendering": HEAVY - {"cv2"} | {"rclpy"},
}
"""What importing every module of a room must not have loaded."""


def loaded(code: str) -> set[str]:
    """Top-level modules that are loaded after running `code` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_importing_a_light_room_loads_nothing_heavy(name: str):
    modules = [str(p.relative_to(ROOT).with_suffix("")).replace("/", ".") for p in MODULES if room(p) == name]
    assert modules, f"room {name} is empty"
    found = loaded("\n".join(f"import {module.removesuffix('.__init__')}" for module in modules)) & LIGHT[name]
    assert not found, f"importing {name}/ loads {sorted(found)}"


def test_a_node_that_moves_nothing_in_space_pays_for_no_scipy():
    """It takes a good part of a second in each of seven processes."""
    code = "from molmoact2_ros.embodiments import EMBODIMENTS\n[robot.limits for robot in EMBODIMENTS.values()]"
    assert "scipy" not in loaded(code)


def test_the_command_line_shows_its_help_without_loading_anything_heavy():
    code = "from molmoact2_ros.cli import parser\nparser().format_help()"
    assert not loaded(code) & (HEAVY | {"rclpy", "numpy", "rich"})


def test_a_policy_on_another_machine_loads_no_model_here():
    """The robot's computer has none of it (requirements/robot.txt); test_remote_policy_node runs it without."""
    modules = [module for module in KNOWN if module.startswith("molmoact2_ros.policy.remote")]
    code = "\n".join(f"import {module}" for module in ("molmoact2_ros.nodes.policy_node", *modules))
    assert len(modules) > 4
    assert not loaded(code) & (HEAVY | {"safetensors", "tokenizers", "huggingface_hub", "fastapi", "uvicorn"})


def test_the_control_process_loads_neither_torch_nor_lerobot():
    assert not loaded("import molmoact2_ros.nodes.executor_node") & HEAVY
