"""`molmoact2 bench remote`: what a policy on another machine costs."""
