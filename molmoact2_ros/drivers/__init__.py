"""Real arms: SO-100/101 (lerobot), YAM (i2rt), Franka without ROS. Fresh readings or a fault; no ROS in this room."""
