"""What a call of the policy costs, and what it changes."""
