"""MuJoCo cells that stand where the hardware would: joint targets in, encoder readings and camera frames out."""
