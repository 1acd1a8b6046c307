"""Import hygiene: which rooms may load what, seen in every module's text and in what a fresh process has loaded."""

import ast
import os
import subprocess
import sys
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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_nodes_and_bringup_know_ros(path: Path):
    if room(path) == "nodes" or path.name in ("bringup.py", "launching.py"):
        return
    found = {name for name in roots(path) if name in ROS or name.endswith(MESSAGES)}
    assert not found, f"{name_of(path)} imports {sorted(found)}"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in ("execution", "embodiments")], ids=name_of)
def test_execution_and_embodiments_load_nothing_heavy(path: Path):
    assert not roots(path) & HEAVY


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) != "nodes"], ids=name_of)
def test_no_room_reaches_up_into_the_nodes(path: Path):
    assert not {name for name in imports(path) if name.startswith("molmoact2_ros.nodes")}


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


def test_the_command_line_shows_its_help_without_loading_anything_heavy():
    code = "from molmoact2_ros.cli import parser\nparser().format_help()"
    assert not loaded(code) & (HEAVY | {"rclpy", "numpy", "rich"})


def test_the_control_process_loads_neither_torch_nor_lerobot():
    assert not loaded("import molmoact2_ros.nodes.executor_node") & HEAVY
