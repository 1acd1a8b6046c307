"""Episodes of a LeRobotDataset v3, whoever made it, as joint positions.

Read with pyarrow alone: neither the images nor lerobot are needed. Which columns hold the positions of the joints is
told by their names and sizes; what a value means follows the robot (`embodiments`), and for SO-100/101 the joint frame,
which is derived from the file or told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment, ModelFrame
from molmoact2_ros.policy.checkpoints.frame import frame_of
from molmoact2_ros.recording.export.dataset import PROVENANCE
from molmoact2_ros.recording.export.settings import FRAMES, require
from molmoact2_ros.recording.replay.trajectory import ReplayError, Trajectory

Array = NDArray[np.float64]
INFO = Path("meta") / "info.json"
COLUMNS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "commanded": (("action",), ("action.joint_position", "action.gripper_position")),
    "measured": (
        ("observation.state",),
        ("observation.state.joint_position", "observation.state.gripper_position"),
    ),
}
"""Where the positions are: in one column, or arm and gripper apart as in DROID's."""
RADIANS = 6.5
"""Degrees of an arm that is used go beyond this."""
Fetch = Callable[[str, str], Path]
"""Brings a file, or all that a pattern names, of a dataset of the hub here; returns the dataset's folder."""


def is_dataset(path: Path) -> bool:
    """Whether the folder is a LeRobotDataset."""
    return (path / INFO).is_file()


def recorded_robot(path: Path) -> str:
    """The robot that the dataset in `path` says it is of, where this package made it; else nothing."""
    if not (path / PROVENANCE).is_file():
        return ""
    return str(json.loads((path / PROVENANCE).read_text()).get("robot", ""))


def from_hub(repository: str, pattern: str) -> Path:
    """Bring the files of a dataset of the Hugging Face hub that `pattern` names; returns the folder."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=[pattern]))


def from_dataset(
    dataset: str | Path,
    episode: int,
    robot: Embodiment,
    kind: str = "commanded",
    frame: str = "",
    fetch: Fetch = from_hub,
) -> Trajectory:
    """Episode number `episode` of a dataset: a folder, or the id of one on the hub.

    Args:
        kind: "commanded" or "measured". frame: of `FRAMES`; empty: derived.

    Raises:
        ReplayError: there is no such episode, or no columns with the robot's joints.
        CheckpointError: the joint frame cannot be told.
    """
    require("pyarrow")
    root = Path(dataset)
    if not is_dataset(root):
        root = fetch(str(dataset), "meta/**")
    info = json.loads((root / INFO).read_text())
    version = str(info.get("codebase_version", ""))
    if not version.startswith("v3"):
        raise ReplayError(
            f"{dataset} is a LeRobotDataset {version or 'of an unknown version'}, expected v3; convert it with "
            "lerobot's convert_dataset_v21_to_v30"
        )
    features = info["features"]
    chosen = _columns(features, robot, kind, dataset)
    rows, task = _read(root, info, episode, chosen, dataset, fetch)
    values = _ordered(rows, [n for key in chosen for n in _names(features[key])], robot, dataset)
    notes: list[str] = []
    model_frame = _frame(root, info, robot, frame, values, notes, dataset)
    joints = robot.joints_from_model(values, model_frame)
    return Trajectory(joints, float(info["fps"]), f"episode {episode} of {root.name}, {kind}", task, tuple(notes))


def _columns(features: Mapping[str, Any], robot: Embodiment, kind: str, dataset: object) -> tuple[str, ...]:
    for group in COLUMNS[kind]:
        if all(key in features for key in group):
            size = sum(int(np.prod(features[key]["shape"])) for key in group)
            if size == robot.dof:
                return group
    shown = {key: tuple(f["shape"]) for key, f in features.items() if key.startswith(("action", "observation.state"))}
    raise ReplayError(
        f"{dataset} has no {kind} positions of {robot.name}'s {robot.dof} joints ({', '.join(robot.joint_names)}); it "
        f"has {shown}; is it of another robot (--robot)?"
    )


def _names(feature: Mapping[str, Any]) -> list[str]:
    """Names of a column's values; empty where it gives none."""
    names = feature.get("names")
    if isinstance(names, Mapping):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    size = int(np.prod(feature["shape"]))
    return [str(name) for name in names] if names and len(names) == size else []


def _ordered(rows: Array, names: Sequence[str], robot: Embodiment, dataset: object) -> Array:
    """`rows` in the robot's order, by the names where they are the robot's; the grippers must be where it has them."""
    if len(names) != robot.dof:
        return rows
    plain = [name.removeprefix("main_").removesuffix(".pos").removesuffix("_position") for name in names]
    if set(plain) == set(robot.joint_names):
        return rows[:, [plain.index(name) for name in robot.joint_names]]
    grippers = tuple(i for i, name in enumerate(names) if "gripper" in name.lower())
    if grippers != tuple(robot.gripper_indices) or any(
        name.rsplit(".")[-1] in ("x", "y", "z", "roll") for name in plain
    ):
        raise ReplayError(
            f"{dataset} has the values {', '.join(names)}, expected the joints {', '.join(robot.joint_names)} in this "
            "order; is it of another robot (--robot), or are these not joint positions?"
        )
    return rows


def _read(
    root: Path, info: Mapping[str, Any], episode: int, columns: Sequence[str], dataset: object, fetch: Fetch
) -> tuple[Array, str]:
    """The rows (n, dof) of an episode, and its task."""
    import pyarrow.dataset as arrow

    listed = arrow.dataset(root / "meta" / "episodes", format="parquet")
    wanted = ["data/chunk_index", "data/file_index", "tasks", "length"]
    found = listed.to_table(columns=wanted, filter=arrow.field("episode_index") == episode).to_pylist()
    if not found:
        raise ReplayError(f"{dataset} has no episode {episode}; it has 0 to {int(info['total_episodes']) - 1}")
    place = {"chunk_index": found[0]["data/chunk_index"], "file_index": found[0]["data/file_index"]}
    name = str(info["data_path"]).format(**place)
    if not (root / name).is_file():
        fetch(str(dataset), name)
    table = arrow.dataset(root / name, format="parquet").to_table(
        columns=[*columns, "frame_index"], filter=arrow.field("episode_index") == episode
    )
    table = table.sort_by("frame_index")
    if len(table) != found[0]["length"]:
        raise ReplayError(f"{dataset}: episode {episode} has {len(table)} rows, expected {found[0]['length']}")
    parts = [np.array(table[key].to_pylist(), np.float64).reshape(len(table), -1) for key in columns]
    tasks = found[0]["tasks"] or [""]
    return np.concatenate(parts, axis=1), str(tasks[0])


def _frame(
    root: Path, info: Mapping[str, Any], robot: Embodiment, said: str, rows: Array, notes: list[str], dataset: object
) -> ModelFrame:
    if robot.family != "so101":
        return ModelFrame.ARM
    arm = rows[:, :5]
    if np.abs(arm).max() < RADIANS:
        raise ReplayError(
            f"{dataset}: no joint of this episode goes beyond {np.abs(arm).max():.2f}: that is rad, or a normalised "
            "range; expected degrees (lerobot's use_degrees)"
        )
    if (root / PROVENANCE).is_file():
        own = str(json.loads((root / PROVENANCE).read_text()).get("frame", "arm"))
        if said and said != own:
            raise ReplayError(f"{dataset} is in the frame {own}, and --frame says {said}")
        return FRAMES[own]
    bounds, median = _span(root, rows)
    return frame_of(bounds, median, "lerobot", False, FRAMES[said] if said else None, notes)


def _span(root: Path, rows: Array) -> tuple[Array, list[float]]:
    """What the dataset's states span: bounds (2, dof) and median (dof,), by its statistics or by the episode."""
    path = root / "meta" / "stats.json"
    stats = json.loads(path.read_text()).get("observation.state", {}) if path.is_file() else {}
    low, high, middle = (np.ravel(stats.get(key, [])) for key in ("q01", "q99", "q50"))
    if len(low) == len(high) == rows.shape[1]:
        return np.stack([low, high]).astype(float), [float(v) for v in (middle if len(middle) else (low + high) / 2)]
    quantiles = np.quantile(rows, [0.01, 0.99, 0.5], axis=0)
    return quantiles[:2], [float(v) for v in quantiles[2]]
