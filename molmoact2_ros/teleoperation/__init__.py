"""Leader arms, gamepads and keyboards: a person's set-points for the executor, in the robot's own joints."""
