"""Where the files go that ROS looks up by package name; the rest is in setup.cfg."""

import configparser
import shutil
from glob import glob
from pathlib import Path

from setuptools import setup

PACKAGE = "molmoact2_ros"
EXECUTABLES = Path("build/ros2_run")
SOURCE = Path(__file__).resolve().parent
"""colcon --symlink-install runs a link to this file in its build folder, where only what it knows of is linked, too."""


def files(*patterns: str) -> list[str]:
    """Return every file that one of the glob patterns names, sorted."""
    return sorted(path for pattern in patterns for path in glob(pattern))


def executables() -> list[str]:
    """Make one file for each console script: `ros2 run` looks in lib/<package>, and pip puts scripts into bin/ only."""
    config = configparser.ConfigParser()
    config.read(SOURCE / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    EXECUTABLES.mkdir(parents=True, exist_ok=True)
    return [
        shutil.copy(SOURCE / "scripts/run_console_script", EXECUTABLES / line.partition("=")[0].strip()).as_posix()
        for line in lines
    ]


setup(
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", files("launch/*.launch.py")),
        (f"share/{PACKAGE}/config", files("config/*.yaml", "config/*.xml", "config/*.rviz")),
        (f"share/{PACKAGE}/urdf", files("urdf/*.urdf", "urdf/*.xacro")),
        (f"lib/{PACKAGE}", executables()),
    ],
)
