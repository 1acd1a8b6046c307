"""Starts what a Franka in the DROID set-up needs: the nodes and parameters of `molmoact2 sim`, since both read
`bringup/specs.py`.

ros2 launch molmoact2_ros franka.launch.py policy:=expert
ros2 launch molmoact2_ros franka.launch.py sim:=false checkpoint:=allenai/MolmoAct2-DROID robot_ip:=172.16.0.2
"""

from __future__ import annotations

from launch import LaunchDescription

from molmoact2_ros.bringup.launch_actions import robot_launch


def generate_launch_description() -> LaunchDescription:
    """Return the launch description; ROS calls this."""
    return robot_launch("franka")
