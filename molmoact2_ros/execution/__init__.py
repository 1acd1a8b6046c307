"""What the arm may do: chunk timeline, splice, limits, supervisor -> one safe set-point a tick. No ROS, no torch."""
