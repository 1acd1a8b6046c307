"""Real-time chunking inside the flow: each step is drawn towards the rows that the arm will have executed anyway.

At time t the velocity v points at the chunk x + (1 - t) v. Where that chunk misses the prefix, the error, weighted by
row, is added to the velocity: v + g(t) * weights * (prefix - chunk). The derivative of the chunk by x is taken as one,
so nothing is differentiated and a step stays one call of the velocity, in every backend. lerobot's `RTCProcessor`
computes the same: it asks for the velocity before it asks for gradients, so its derivative is one as well. Its time
runs the other way (1 - t, velocity negated).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


def guidance_weight(time: float, limit: float) -> float:
    """g(t) for `time` in 0 .. 1: (1 - t) / t * ((1 - t)^2 + t^2) / (1 - t)^2, and never more than `limit`."""
    left = 1.0 - time
    if time <= 0.0 or left <= 0.0:
        return limit
    return min((left**2 + time**2) / (time * left), limit)


@dataclass(frozen=True)
class Guidance:
    """What the flow is drawn towards.

    Attributes:
        prefix: (1, horizon, width) in the flow's scale. Finite; where its weight is zero its value is of no account.
        weights: (1, horizon, width), 0 for rows and dimensions that nothing is known of.
        max_weight: bound of g(t). Above the number of steps a step overshoots the prefix.
    """

    prefix: torch.Tensor
    weights: torch.Tensor
    max_weight: float

    @classmethod
    def of_rows(
        cls, rows: NDArray[np.float32], weights: NDArray[np.float32], max_weight: float, first: int, like: torch.Tensor
    ) -> Guidance:
        """Guidance of the shape of `like` (1, horizon, width) towards `rows` (n, dof), whose row 0 is the flow's row
        `first`, with `weights` (n,)."""
        prefix, weight = torch.zeros_like(like), torch.zeros_like(like)
        n, dof = min(len(rows), like.shape[1] - first), rows.shape[1]
        prefix[0, first : first + n, :dof] = torch.as_tensor(rows[:n]).to(like)
        weight[0, first : first + n, :dof] = torch.as_tensor(weights[:n, None]).to(like)
        return cls(prefix, weight, max_weight)

    def velocity(self, x: torch.Tensor, velocity: torch.Tensor, time: float) -> torch.Tensor:
        """The guided velocity at `x` and `time`, shapes (1, horizon, width)."""
        error = (self.prefix - x - (1.0 - time) * velocity) * self.weights
        return velocity + guidance_weight(time, self.max_weight) * error


def integrate(
    noise: torch.Tensor,
    velocity: Callable[[torch.Tensor, int], torch.Tensor],
    steps: int,
    masked: Callable[[torch.Tensor], torch.Tensor],
    guidance: Guidance | None = None,
) -> torch.Tensor:
    """Euler steps of `noise` (1, horizon, width) from time 0 to 1: the chunk in the flow's scale, same shape.

    Args:
        velocity: of x at a step, which is at time step / steps.
        masked: zeroes what the robot does not have, as the reference does before and after every step.
    """
    x = masked(noise)
    for step in range(steps):
        change = masked(velocity(x, step))
        if guidance is not None:
            change = guidance.velocity(x, change, step / steps)
        x = masked(x + (1.0 / steps) * change)
    return x
