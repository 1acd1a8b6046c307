"""Frame sources: each gives RGB pictures with the time of their capture. Knows nothing of ROS."""
