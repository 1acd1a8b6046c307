"""Which joint frame an SO arm's checkpoint is in, from what its files declare and what its statistics show.

The released SO checkpoint was trained in an old frame of LeRobot's (`ModelFrame.TRAINING`); what is fine-tuned with
lerobot today is in the arm's own degrees (`ModelFrame.ARM`). The wrong one drives the arm the wrong way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import ModelFrame
from molmoact2_ros.embodiments.so101 import OFFSETS, SIGNS
from molmoact2_ros.policy.checkpoints.settings import CheckpointError

LIFT, ELBOW = 1, 2
OWN_REACH = 112.0
"""No arm's lift or elbow goes further than this from the middle of its travel, deg; the old frame puts them there."""
OLD_REACH = -24.0
"""And none goes below this in the old frame, deg: it has the same travel, turned by 90."""
FRAMES = {"auto": None, "arm": ModelFrame.ARM, "released": ModelFrame.TRAINING}
"""What a user may say, where the statistics fit both."""


def declared_transform(signs: object, offsets: object, where: object) -> bool:
    """Whether a frame transform is the published one (True) or none at all (False).

    Raises:
        CheckpointError: it is another one.
    """
    if signs is None and offsets is None:
        return False
    try:
        mine = np.asarray(signs, dtype=np.float64), np.asarray(offsets, dtype=np.float64)
        known = all(a.shape == b.shape and np.allclose(a, b) for a, b in zip(mine, (SIGNS, OFFSETS), strict=True))
        none = bool(np.all(mine[0] == 1.0) and np.all(mine[1] == 0.0))
    except (TypeError, ValueError):
        known = none = False
    if not (known or none):
        raise CheckpointError(
            f"{where}: joint_signs {signs} and joint_offsets {offsets} are not the published SO transform "
            f"({SIGNS.tolist()}, {OFFSETS.tolist()}); check which robot this checkpoint was converted for"
        )
    return known


def frame_of(
    bounds: NDArray[np.float64],
    median: Sequence[float] | None,
    layout: str,
    transform: bool,
    said: ModelFrame | None,
    notes: list[str],
) -> ModelFrame:
    """The frame of a checkpoint's vectors.

    Args:
        bounds: of the training states, (2, 6), deg. median: of the same (6,), where the file has it.
        layout: "released" or "lerobot". transform: the files carry the published transform.
        said: the user's word for it.
        notes: takes a line for what was inferred.

    Raises:
        CheckpointError: what the files declare, what the statistics show and what the user says do not agree, or
            nothing tells.
    """
    low, high = bounds[:, [LIFT, ELBOW]]
    middle = None if median is None else np.asarray(median, dtype=np.float64)[[LIFT, ELBOW]]
    shown = (
        f"shoulder_lift from {low[0]:.0f} to {high[0]:.0f} and elbow_flex from {low[1]:.0f} to {high[1]:.0f} deg"
        if middle is None
        else f"a median shoulder_lift of {middle[0]:.1f} and elbow_flex of {middle[1]:.1f} deg"
    )
    own = bool(np.any(low < OLD_REACH)) or (middle is not None and bool(np.any(middle < 0.0)))
    old = bool(np.any(high > OWN_REACH))
    if layout == "released" or transform:
        if own:
            raise CheckpointError(
                f"the training states have {shown}, but in the frame of the released SO checkpoint "
                f"{'(which its processors transform to) ' if transform else ''}both are positive. This checkpoint was "
                "trained in another frame; using it would drive the arm the wrong way"
            )
        found = ModelFrame.TRAINING
    elif own and old:
        raise CheckpointError(
            f"the training states have {shown}: that fits neither an arm's own degrees nor the frame of the released "
            "SO checkpoint; was the arm calibrated, and recorded with use_degrees?"
        )
    elif own or old:
        found = ModelFrame.ARM if own else ModelFrame.TRAINING
        notes.append(f"joint frame: {_named(found)}, from the training states ({shown})")
    elif said is None:
        raise CheckpointError(
            f"the training states have {shown}, which an arm can have in its own degrees and in the frame of the "
            "released SO checkpoint; say which it was recorded in: joint_frame arm (lerobot 0.5 and later), or released"
        )
    else:
        notes.append(f"joint frame: {_named(said)}, as you say")
        return said
    if said is not None and said is not found:
        raise CheckpointError(
            f"joint_frame: you say {_named(said)}, but the checkpoint is in {_named(found)} ({shown})"
        )
    return found


def _named(frame: ModelFrame) -> str:
    return "the arm's own degrees" if frame is ModelFrame.ARM else "the released SO checkpoint's"
