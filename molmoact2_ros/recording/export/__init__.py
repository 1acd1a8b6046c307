"""From bags to a LeRobotDataset: what the policy would have seen, and what the arm was told, at an even rate."""
