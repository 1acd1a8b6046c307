"""Starts what two YAM arms needs: the nodes and parameters of `molmoact2 sim`, since both read `bringup/specs.py`.

ros2 launch molmoact2_ros yam.launch.py policy:=expert
ros2 launch molmoact2_ros yam.launch.py sim:=false checkpoint:=allenai/MolmoAct2-BimanualYAM ports:=can_left,can_right
"""

from __future__ import annotations

from launch import LaunchDescription

from molmoact2_ros.bringup.launch_actions import robot_launch


def generate_launch_description() -> LaunchDescription:
    """Return the launch description; ROS calls this."""
    return robot_launch("yam")
