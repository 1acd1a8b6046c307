"""Where the files go that ROS looks up by package name; the rest is in setup.cfg."""

from glob import glob

from setuptools import setup

PACKAGE = "molmoact2_ros"


def files(*patterns: str) -> list[str]:
    """Return every file that one of the glob patterns names, sorted."""
    return sorted(path for pattern in patterns for path in glob(pattern))


setup(
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", files("launch/*.launch.py")),
        (f"share/{PACKAGE}/config", files("config/*.yaml", "config/*.xml", "config/*.rviz")),
        (f"share/{PACKAGE}/urdf", files("urdf/*.urdf", "urdf/*.xacro")),
        # `ros2 run` looks here; pip puts console scripts into bin/ only.
        (f"lib/{PACKAGE}", files("scripts/*")),
    ],
)
