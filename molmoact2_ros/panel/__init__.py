"""The operator's panel in a browser: what it shows, its page, who may see it. Knows nothing of ROS."""
