"""The joint frame of an SO arm's checkpoint is told by its file, or it is refused: the wrong one drives it away."""

from __future__ import annotations

import numpy as np
import pytest
from lerobot_checkpoints import ARM_HIGH, ARM_LOW
from released_statistics import QUANTILES

from molmoact2_ros.embodiments import ModelFrame
from molmoact2_ros.policy import CheckpointError, Choices
from molmoact2_ros.policy.checkpoints.frame import declared_transform, frame_of

OLD = np.array([QUANTILES["so101"][key] for key in ("q01", "q99")])
OWN = np.stack((ARM_LOW, ARM_HIGH))
NARROW = np.array([[-40.0, 10.0, 12.0, 5.0, -60.0, 1.0], [40.0, 80.0, 88.0, 80.0, 40.0, 44.0]])
"""Lift and elbow where both frames have them."""
SIGNS, OFFSETS = [1, -1, 1, 1, 1, 1], [0, 90, 90, 0, 0, 0]


def frame(bounds: np.ndarray, layout: str = "lerobot", transform: bool = False, said: ModelFrame | None = None) -> str:
    notes: list[str] = []
    found = frame_of(bounds, None, layout, transform, said, notes)
    assert (len(notes) == 1) == (layout == "lerobot" and not transform), "what was inferred is told, and nothing else"
    return found.value


def test_a_fine_tune_is_in_the_frame_that_its_statistics_show() -> None:
    assert frame(OWN) == "arm"
    assert frame(OLD) == "training"


def test_statistics_that_fit_both_are_refused_until_the_user_says_which() -> None:
    with pytest.raises(CheckpointError, match="say which it was recorded in: joint_frame arm"):
        frame(NARROW)
    assert frame(NARROW, said=ModelFrame.ARM) == "arm"
    assert frame(NARROW, said=ModelFrame.TRAINING) == "training"


@pytest.mark.parametrize(
    ("bounds", "said"), [(OWN, ModelFrame.TRAINING), (OLD, ModelFrame.ARM)], ids=["own degrees", "old frame"]
)
def test_a_user_does_not_overrule_what_the_statistics_show(bounds: np.ndarray, said: ModelFrame) -> None:
    with pytest.raises(CheckpointError, match="you say"):
        frame(bounds, said=said)


def test_statistics_that_fit_neither_are_refused() -> None:
    with pytest.raises(CheckpointError, match="fits neither"):
        frame(np.stack((OWN[0], OLD[1])))


def test_a_declared_transform_must_fit_the_statistics() -> None:
    assert frame(OLD, transform=True) == "training"
    with pytest.raises(CheckpointError, match="another frame"):
        frame(OWN, transform=True)


def test_released_statistics_are_in_the_released_frame_or_refused() -> None:
    assert frame(OLD, layout="released") == "training"
    assert frame(NARROW, layout="released") == "training"
    with pytest.raises(CheckpointError, match="another frame"):
        frame(OWN, layout="released")


def test_only_the_published_transform_is_known() -> None:
    assert declared_transform(SIGNS, OFFSETS, "here")
    assert not declared_transform(None, None, "here")
    assert not declared_transform([1] * 6, [0] * 6, "here")
    for signs, offsets in (([1] * 6, OFFSETS), (SIGNS, None), (SIGNS[:5], OFFSETS[:5]), ("x", "y")):
        with pytest.raises(CheckpointError, match="not the published SO transform"):
            declared_transform(signs, offsets, "here")


def test_an_unknown_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, arm, released"):
        Choices(joint_frame="old")
