"""The policy for robots elsewhere: sessions, fair turns, and the two protocols that clients speak. No ROS."""
