"""Playing what was recorded: an episode of a dataset or a bag as a motion, and how well an arm followed it."""
