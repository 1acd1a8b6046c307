"""Episodes of datasets and bags as motions: whose layout it is, what is refused, and how far an arm was from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from export_bags import ROBOT, START_NS, Story, silent, swing, write_bag

from molmoact2_ros.embodiments import ModelFrame, embodiment
from molmoact2_ros.policy.checkpoints.settings import CheckpointError
from molmoact2_ros.recording.export.dataset import write_part
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions
from molmoact2_ros.recording.replay.lerobot_data import from_dataset
from molmoact2_ros.recording.replay.playback import Playback, followed
from molmoact2_ros.recording.replay.trajectory import ReplayError, Trajectory, from_bag

OPTIONS = ExportOptions("so101", videos=False)
FRANKA, YAM = embodiment("franka"), embodiment("yam")


def write_dataset(
    root: Path, columns: dict[str, np.ndarray], names: dict[str, Any] | None = None, version: str = "v3.0"
) -> Path:
    """A dataset as lerobot lays it out, of two episodes with the same rows; no images."""
    count = len(next(iter(columns.values())))
    features = {
        key: {"dtype": "float32", "shape": list(values.shape[1:]), "names": (names or {}).get(key)}
        for key, values in columns.items()
    }
    info = {
        "codebase_version": version,
        "fps": 15,
        "features": features,
        "total_episodes": 2,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    }
    table: dict[str, Any] = {key: [*values.tolist(), *values.tolist()] for key, values in columns.items()}
    table |= {"episode_index": [0] * count + [1] * count, "frame_index": [*range(count), *range(count)]}
    episodes = {
        "episode_index": [0, 1],
        "data/chunk_index": [0, 0],
        "data/file_index": [0, 0],
        "length": [count, count],
        "tasks": [["wipe"], ["wave"]],
    }
    for path, values in (("data/chunk-000/file-000", table), ("meta/episodes/chunk-000/file-000", episodes)):
        file = (root / path).with_suffix(".parquet")
        file.parent.mkdir(parents=True)
        parquet.write_table(arrow.table(values), file)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


def path_of(robot: Any, count: int = 40) -> np.ndarray:
    """A motion within the limits of a robot, all joints."""
    phase = np.linspace(0.0, np.pi, count)[:, None] + np.arange(robot.dof)
    return np.clip(robot.rest_position + 0.1 * np.sin(phase), robot.limits.lower, robot.limits.upper)


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_an_export_is_played_as_it_was_commanded(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag")
    for frame in ("arm", "released"):
        write_part(path, tmp_path / frame, replace(OPTIONS, frame=frame))
        # A part has no provenance of its own: the frame is derived from the statistics, as of a foreign dataset.
        found = from_dataset(tmp_path / frame, 0, ROBOT)
        moved = np.array([swing(START_NS + round(i * 1e9 / 30)) for i in range(len(found.rows) + 10)])
        first = int(np.argmin(np.abs(moved - found.rows[0]).sum(1)))
        np.testing.assert_allclose(found.rows, moved[first : first + len(found.rows)], atol=0.05)
        assert found.rate_hz == 30 and found.task == "pick up the red cube"
        assert "joint frame" in found.notes[0]


def test_droids_layout_has_arm_and_gripper_apart(tmp_path: Path) -> None:
    joints = path_of(FRANKA)
    model = FRANKA.model_from_joints(joints)
    apart = {"action.joint_position": model[:, :7], "action.gripper_position": model[:, 7:]}
    whole = {"action": model}
    velocities = {"action": model[:, :7]}
    axes = {"axes": [*(f"joint_{i}" for i in range(7)), "gripper"]}
    for name, columns, names in (("apart", apart | velocities, {}), ("whole", whole, {"action": axes})):
        found = from_dataset(write_dataset(tmp_path / name, columns, names), 1, FRANKA)
        np.testing.assert_allclose(found.rows, joints, atol=1e-6)
        assert found.task == "wave" and found.rate_hz == 15
        found.checked(FRANKA)


def test_yams_layout(tmp_path: Path) -> None:
    joints = path_of(YAM)
    columns = {"action": YAM.model_from_joints(joints), "observation.state": YAM.model_from_joints(joints[::-1])}
    names = [
        f"{side}_{joint}.pos" for side in ("left", "right") for joint in (*(f"joint_{i}" for i in range(6)), "gripper")
    ]
    root = write_dataset(tmp_path / "set", columns, {"action": names, "observation.state": names})
    np.testing.assert_allclose(from_dataset(root, 0, YAM).rows, joints, atol=1e-6)
    np.testing.assert_allclose(from_dataset(root, 0, YAM, "measured").rows, joints[::-1], atol=1e-6)


def test_an_so_arms_joints_are_ordered_by_their_names(tmp_path: Path) -> None:
    joints = path_of(ROBOT)
    degrees = ROBOT.model_from_joints(joints, ModelFrame.ARM)
    names = {"action": [f"main_{name}" for name in reversed(ROBOT.joint_names)]}
    root = write_dataset(tmp_path / "set", {"action": degrees[:, ::-1]}, names)
    np.testing.assert_allclose(from_dataset(root, 0, ROBOT).rows, joints, atol=1e-6)
    with pytest.raises(CheckpointError, match="you say the released"):
        from_dataset(root, 0, ROBOT, frame="released")


def test_the_hub_is_asked_for_no_more_than_is_needed(tmp_path: Path) -> None:
    whole = write_dataset(tmp_path / "hub", {"action": FRANKA.model_from_joints(path_of(FRANKA))})
    asked = []

    def fetch(repository: str, pattern: str) -> Path:
        asked.append((repository, pattern))
        if pattern.startswith("data/"):
            (tmp_path / "here" / "data").symlink_to(whole / "data")
        else:
            (tmp_path / "here").mkdir()
            (tmp_path / "here" / "meta").symlink_to(whole / "meta")
        return tmp_path / "here"

    assert len(from_dataset("org/name", 0, FRANKA, fetch=fetch).rows) == 40
    assert asked == [("org/name", "meta/**"), ("org/name", "data/chunk-000/file-000.parquet")]


@pytest.mark.parametrize(
    ("columns", "names", "said"),
    [
        ({"action": np.zeros((5, 7))}, {}, r"has no commanded positions of franka's 8 joints.*'action': \(7,\)"),
        ({"action": np.zeros((5, 8))}, {"action": [*"abcdefg", "h"]}, "expected the joints"),
        ({"action": np.zeros((5, 8))}, {"action": ["gripper", *"abcdefg"]}, "expected the joints"),
        ({"action": np.zeros((5, 8))}, {"action": ["x", "y", "z", *"abcd", "gripper"]}, "not joint positions"),
        ({"observation.state": np.zeros((5, 8))}, {}, "no commanded positions"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, columns: dict[str, np.ndarray], names: Any, said: str) -> None:
    with pytest.raises(ReplayError, match=said):
        from_dataset(write_dataset(tmp_path / "set", columns, names), 0, FRANKA)


def test_what_cannot_be_played_is_refused_by_name(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", {"action": FRANKA.model_from_joints(path_of(FRANKA))})
    with pytest.raises(ReplayError, match="no episode 2; it has 0 to 1"):
        from_dataset(root, 2, FRANKA)
    with pytest.raises(ReplayError, match=r"LeRobotDataset v2\.1, expected v3"):
        from_dataset(write_dataset(tmp_path / "old", {"action": np.zeros((3, 8))}, version="v2.1"), 0, FRANKA)
    with pytest.raises(ReplayError, match="rad, or a normalised range"):
        from_dataset(write_dataset(tmp_path / "rad", {"action": path_of(ROBOT)}), 0, ROBOT)


def test_limits_and_leaps(tmp_path: Path) -> None:
    rows = path_of(FRANKA)
    rows[7, 3] = 0.5
    with pytest.raises(ReplayError, match=r"row 7 asks 0.5 rad of \w+joint4, whose limits are"):
        Trajectory(rows, 15.0, "x").checked(FRANKA)
    rows = path_of(FRANKA)
    rows[8:, 0] += 0.25
    with pytest.raises(ReplayError, match=r"joint1 leaps by 0\.2\d+ rad after row 7.*--speed"):
        Trajectory(rows, 15.0, "x").checked(FRANKA)
    assert Trajectory(rows, 15.0, "x").checked(FRANKA, speed=0.5)
    rows[0, 0] = np.nan
    with pytest.raises(ReplayError, match="finite"):
        Trajectory(rows, 15.0, "x").checked(FRANKA)


def test_a_bag_is_resampled_by_time(tmp_path: Path) -> None:
    found = from_bag(write_bag(tmp_path / "bag"), OPTIONS)
    expected = [swing(START_NS + round(i * 1e9 / 30)) for i in range(len(found.rows))]
    np.testing.assert_allclose(found.rows, expected, atol=3e-4)
    assert found.length_s == pytest.approx(1.99, abs=0.05)
    gap = write_bag(tmp_path / "gap", Story(length_s=3.0), silent("executor/command", 1.0, 2.0))
    with pytest.raises(ExportError, match=r"no commanded positions for more than 0.25 s at 1\.\d+ s"):
        from_bag(gap, OPTIONS)
    assert len(from_bag(gap, replace(OPTIONS, action="measured")).rows) > 80


# -- the motion -------------------------------------------------------------------------------------------------------


def playback() -> Playback:
    rows = path_of(ROBOT, 60)
    return Playback(ROBOT, rows[0] + np.array([0.5, -0.3, 0.2, 0.0, 1.0, 0.1]), rows, 30.0)


def test_the_way_to_the_beginning_is_slow_and_joins_without_a_jump() -> None:
    motion = playback()
    times = np.arange(-0.5, motion.end_s + 0.5, 0.005)
    path = motion.at(times)
    np.testing.assert_array_equal(path[0], motion.start)
    np.testing.assert_array_equal(path[-1], motion.rows[-1])
    speed = np.abs(np.diff(path, axis=0)) / 0.005
    approach = times[:-1] < motion.approach_s - 0.01
    assert np.all(speed[approach] <= 0.2 * ROBOT.limits.velocity + 1e-9)
    assert np.all(speed <= ROBOT.limits.velocity)
    chunk = motion.chunk(motion.approach_s)
    np.testing.assert_allclose(chunk[:29], motion.rows[1:30], atol=1e-9)


def test_the_error_is_told_with_the_lag_and_without() -> None:
    motion = playback()
    times = np.arange(0.0, motion.end_s + 1.0, 0.01)
    found = followed(motion, times, motion.at(times - 0.12))
    assert found.lag_s == pytest.approx(0.12) and max(found.rms_lagged) < 1e-9
    assert max(found.rms) > 0.005 and np.all(np.array(found.largest) >= found.rms)
    assert found.readings == pytest.approx(59 / 30 * 100, abs=2), "neither the approach nor what comes after counts"
    with pytest.raises(ValueError, match="no joint state came"):
        followed(motion, np.array([0.0]), np.zeros((1, 6)))
