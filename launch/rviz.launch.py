"""Starts RViz and the robot's model beside a robot that runs already, on this or another machine.

ros2 launch molmoact2_ros rviz.launch.py robot:=franka namespace:=left_cell
"""

from __future__ import annotations

from launch import LaunchDescription

from molmoact2_ros.bringup.launch_actions import rviz_launch


def generate_launch_description() -> LaunchDescription:
    """Return the launch description; ROS calls this."""
    return rviz_launch()
