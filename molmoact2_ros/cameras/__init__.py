"""Frame sources: each gives RGB images with the time of their capture. Knows nothing of ROS."""
