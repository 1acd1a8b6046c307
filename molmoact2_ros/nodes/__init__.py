"""ROS 2 nodes, one a file. With the launch files and `bringup/launch_actions.py`, the only places that know ROS."""

from molmoact2_ros.early import quiet_until_ready

quiet_until_ready("_node")
