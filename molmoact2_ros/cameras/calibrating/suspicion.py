"""When the views do not fit together: what explains it. Each suspicion is a fit of its own, and counts only when it
explains most of what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.bundle import BOARDS, CAMERAS, SCALE, ZEROS, Bundle
from molmoact2_ros.cameras.calibrating.collection import View
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

EXPLAINED = 0.5
"""A suspicion that leaves more than this share of the error explains nothing."""
_PRIOR_DEG = 3.0
"""What the zero of a joint is taken to be off at most, roughly: it keeps those at zero of which the views say
nothing."""


@dataclass(frozen=True, eq=False)
class Loose:
    """A fit with more freedom than the truth should need.

    Attributes:
        rms: reprojection error, pixels. scale: size of the board over the nominal one, with its standard deviation.
        offsets_deg: what to add to each joint's reading, (dof,).
    """

    rms: float
    scale: float
    scale_deviation: float
    offsets_deg: Array


def loose_fit(bundle: Bundle, zeros: bool) -> Loose:
    """Fit the board's size, and with `zeros` the zeros of the joints too, beside the poses."""
    noise = dict.fromkeys(bundle.names[0], max(0.1, bundle.rms()))
    sought = {CAMERAS, BOARDS, SCALE} | ({ZEROS} if zeros else set())
    found, known = bundle.solved(sought, pixels=noise, priors={ZEROS: np.radians(_PRIOR_DEG)})
    offsets = found.zeros if len(found.zeros) else np.zeros(bundle.robot.dof)
    # The corners of a view share the error of its joints: ten of them count as one.
    return Loose(found.rms(), found.scale, np.sqrt(10.0) * known.scale(), np.degrees(offsets))


def swapped_arms(robot: Embodiment, joints: Array) -> Array:
    """`joints` (..., dof) with the two arms' values exchanged."""
    out = np.array(joints)
    (one, other) = robot.arms
    out[..., one], out[..., other] = joints[..., other], joints[..., one]
    return out


def exchanged(views: Sequence[View], names: tuple[str, str]) -> list[View]:
    """The views as if the two cameras' names were exchanged."""
    other = dict(zip(names, names[::-1], strict=True))
    return [replace(view, camera=other.get(view.camera, view.camera)) for view in views]


def pairs_of_cameras(bundle: Bundle) -> list[tuple[str, str]]:
    """Cameras on different links, which somebody may have taken for each other."""
    names = sorted({view.camera for view in bundle.views})
    return [(a, b) for a, b in combinations(names, 2) if bundle.mounts[a] != bundle.mounts[b]]
