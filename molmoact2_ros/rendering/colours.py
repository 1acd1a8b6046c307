"""What colour stands for what, in every picture and scene: overlay, film and RViz read it here."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

WHITE: Colour = (245, 245, 245)
DIM: Colour = (165, 170, 180)
DARK: Colour = (18, 20, 24)

EXECUTED = WHITE
"""Where the tip has been."""
EARLIER: Colour = (150, 175, 205)
"""What earlier chunks said of the time that is still to come, and how far they lie apart."""
COMMANDED: Colour = (255, 180, 60)
"""The arm as it was commanded, beside the measured one."""
WORKSPACE: Colour = (120, 135, 155)
LIMIT: Colour = (255, 75, 75)
"""A limit that is touched: of a joint, or of the workspace."""
CHANGED: Colour = (255, 225, 90)
"""Depth cells that were predicted again."""

# From now to the end of the horizon. None of these is the colour of wood, of a red cube or of an orange finger.
_RAMP = np.array([[0, 255, 220], [40, 140, 255], [225, 60, 255]], dtype=np.float64)
_STATES: dict[str, Colour] = {
    "TRACKING": (70, 215, 110),
    "HOLDING": (90, 170, 255),
    "DISARMED": (160, 165, 172),
    "UNCONFIGURED": (160, 165, 172),
    "STOPPING": (255, 180, 60),
    "FAULT": LIMIT,
    "ESTOPPED": LIMIT,
}


def ramp(fraction: float) -> Colour:
    """Colour of a row at `fraction` of the horizon, 0 now to 1 its end."""
    position = min(max(fraction, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(position), len(_RAMP) - 2)
    r, g, b = _RAMP[low] + (position - low) * (_RAMP[low + 1] - _RAMP[low])
    return int(r), int(g), int(b)


def state_colour(state: str) -> Colour:
    """Colour that stands for a state of the executor."""
    return _STATES.get(state.upper(), DIM)
