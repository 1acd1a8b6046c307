"""Emulators of the real buses, so that the real, unmodified drivers run without hardware; each with fault switches."""
