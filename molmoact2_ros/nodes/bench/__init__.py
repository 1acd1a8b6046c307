"""Nodes that measure: they stand in for an arm, a policy or a listener."""
