"""One bag an episode: rosbag2 MCAP, messages as they came, an audit at the end, readable after a kill."""
