"""Looks at this machine as a robot's workcell: what is wrong, and the command that mends it."""
