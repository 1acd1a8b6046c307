"""Starts what an SO-100/101 needs: the nodes and parameters of `molmoact2 sim`, since both read `bringup/specs.py`.

ros2 launch molmoact2_ros so101.launch.py task:="pick up the red cube"
ros2 launch molmoact2_ros so101.launch.py sim:=false checkpoint:=/path/to/checkpoint ports:=/dev/serial/by-id/...
"""

from __future__ import annotations

from launch import LaunchDescription

from molmoact2_ros.bringup.launch_actions import robot_launch


def generate_launch_description() -> LaunchDescription:
    """Return the launch description; ROS calls this."""
    return robot_launch("so101")
