"""What keeps depth and what drops it, through the policy that the node opens (backend torch).

Pins: a reset, another task, another image size and a gap in time predict every cell anew; the gap, drift-safe
comparison and refreshes are what the options say; the mask and the forwards are part of the prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.policy import InferenceOptions, Observation, Policy, Prediction, open_policy

SECOND = 1_000_000_000
TAG = ROBOT.norm_tag


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("depth"), seed=2)


def opened(directory: Path, said: list[str] | None = None, max_gap_s: float = 2.0, **options: Any) -> Policy:
    log = (said if said is not None else []).append
    return open_policy(
        directory,
        ROBOT,
        TAG,
        backend="torch",
        device="cpu",
        options=InferenceOptions(**options),
        max_gap_s=max_gap_s,
        log=log,
    )


def picture(seed: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def ask(policy: Policy, at_s: float, task: str = "pick up the red cube", image: np.ndarray | None = None) -> Prediction:
    stamp = round(at_s * SECOND)
    images = {"front": picture(1) if image is None else image, "wrist": picture(2)}
    return policy.infer(Observation(images, dict.fromkeys(images, stamp), ROBOT.rest_position, stamp, task))


def anew(prediction: Prediction) -> int:
    assert prediction.depth_updated is not None and prediction.depth_updated.shape == (3, 3)
    assert prediction.depth_codes is not None and prediction.forwards is not None and prediction.forwards >= 1
    return int(prediction.depth_updated.sum())


def test_what_begins_anew_predicts_every_cell(directory: Path) -> None:
    said: list[str] = []
    policy = opened(directory, said)
    assert anew(ask(policy, 1.0)) == 9, "the first frame"
    assert anew(ask(policy, 1.2)) == 0
    assert anew(ask(policy, 1.4, "put it down")) == 9, "another task"
    assert anew(ask(policy, 1.6, "put it down")) == 0
    policy.reset()
    assert anew(ask(policy, 1.8, "put it down")) == 9, "a new episode"
    assert anew(ask(policy, 2.0, "put it down", picture(1, (64, 80)))) == 9, "another camera picture"
    assert "main camera changed" in said[-1]
    assert anew(ask(policy, 2.2, "put it down", picture(1, (64, 80)))) == 0
    assert anew(ask(policy, 4.3, "put it down", picture(1, (64, 80)))) == 9, "a gap"
    assert "2.10 s since the last prediction" in said[-1]
    assert anew(ask(policy, 4.1, "put it down", picture(1, (64, 80)))) == 9, "a clock that was set back"


def test_the_gap_is_an_option(directory: Path) -> None:
    policy = opened(directory, max_gap_s=0.3)
    ask(policy, 1.0)
    assert anew(ask(policy, 1.25)) == 0
    assert anew(ask(policy, 1.6)) == 9


def test_a_set_of_cameras_that_is_not_the_checkpoints_is_refused(directory: Path) -> None:
    policy = opened(directory)
    stamp = SECOND
    images = {"front": picture(1)}
    with pytest.raises(ValueError, match="needs the cameras front, wrist, got front"):
        policy.infer(Observation(images, {"front": stamp}, ROBOT.rest_position, stamp, "pick up the red cube"))


def test_slow_drift_is_noticed_when_asked(directory: Path) -> None:
    low = np.random.default_rng(3).integers(0, 255, (6, 8, 3)).astype(float)
    high = np.random.default_rng(4).integers(0, 255, (6, 8, 3)).astype(float)
    counts = {}
    for drift_safe in (False, True):
        policy = opened(directory, drift_safe=drift_safe)
        found = []
        for step in range(60):
            image = np.kron(low + (high - low) * step / 59, np.ones((10, 10, 1))).astype(np.uint8)
            found.append(anew(ask(policy, 1.0 + 0.1 * step, image=image)))
        counts[drift_safe] = sum(found[1:])
    assert counts[False] == 0 and counts[True] >= 9


def test_refreshes_come_in_time_and_full_mode_asks_always(directory: Path) -> None:
    policy = opened(directory, refresh_every=3)
    assert [anew(ask(policy, 1.0 + 0.1 * index)) for index in range(7)] == [9, 0, 0, 9, 0, 0, 9]
    trained = opened(Path("so101_cell"), depth_mode="full")
    for index in range(2):
        found = ask(trained, 1.0 + 0.1 * index)
        assert found.depth_updated is not None and found.depth_updated.all()
