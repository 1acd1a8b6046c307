"""How large the installation of a robot's own computer is: requirements/robot.txt in an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NEEDED = (
    "import molmoact2_ros.nodes.policy_node, molmoact2_ros.policy.remote.policy, sys; print('torch' in sys.modules)"
)


@dataclass(frozen=True)
class Installed:
    """Size of the robot's packages, MB, and how many; of this environment, MB. `works`: the policy node imports."""

    robot_mb: float
    packages: int
    here_mb: float
    works: bool


def measure() -> Installed | None:
    """Install it, look at it, and remove it; None without uv or requirements/."""
    root = Path(__file__).parents[3]
    requirements, uv = root / "requirements" / "robot.txt", shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None or not requirements.is_file():
        return None
    with tempfile.TemporaryDirectory() as scratch:
        environment = Path(scratch) / "venv"
        python = environment / "bin" / "python"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--link-mode", "copy", "--python", str(python)]
        subprocess.run([*install, "-r", str(requirements)], check=True)
        size = _megabytes(environment)
        ran = subprocess.run(
            [str(python), "-c", NEEDED],
            cwd=root,
            env={"PATH": str(python.parent), "AMENT_PREFIX_PATH": str(environment)},
            capture_output=True,
            text=True,
        )
    packages = sum(1 for line in requirements.read_text().splitlines() if "==" in line)
    works = ran.returncode == 0 and ran.stdout.strip() == "False"
    return Installed(size, packages, _megabytes(Path(sys.prefix)), works)


def _megabytes(folder: Path) -> float:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) / 1e6
