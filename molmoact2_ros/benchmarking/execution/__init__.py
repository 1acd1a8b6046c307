"""How chunks are played, ours against others, and what the command loop costs."""
