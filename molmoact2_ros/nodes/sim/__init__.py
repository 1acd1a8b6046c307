"""Nodes of the simulated cell: the cell, its expert, its episodes, its film."""
