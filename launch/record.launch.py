"""Starts the recorder beside a robot that runs already: one MCAP bag an episode, as `recorder/start` and
`recorder/stop` say.

ros2 launch molmoact2_ros record.launch.py robot:=yam directory:=/data/bags
"""

from __future__ import annotations

from launch import LaunchDescription

from molmoact2_ros.bringup.launch_actions import record_launch


def generate_launch_description() -> LaunchDescription:
    """Return the launch description; ROS calls this."""
    return record_launch()
