"""MolmoAct2 in closed loop on a robot arm, over ROS 2."""

__version__ = "0.1.0"
