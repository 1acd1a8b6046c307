"""Measures where cameras are and what they see, on a ChArUco board: the sheet, the pictures, the solution, its
check."""
