"""ROS 2 nodes, one a file. With `bringup.py` and the launch files, the only places that know ROS."""
