"""Open a checkpoint in the released format, and refuse what does not fit before any weight is loaded.

Only JSON files and safetensors headers are read here (no torch), so a wrong checkpoint is named within milliseconds.
What is checked: files present and whole, the tag named and known, sizes and units against the robot, cameras, depth.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from molmoact2_ros.embodiments import Embodiment, ModelFrame
from molmoact2_ros.policy import agreement
from molmoact2_ros.policy.weights import CheckpointError, TensorInfo, read_weight_headers

BUNDLED = Path(__file__).resolve().parents[1] / "data"
"""Where the checkpoints of the simulated cells lie, by name."""

STATS_FORMAT = "molmoact2_norm_stats.v1"
BOUNDED_MODES = {"q01_q99": ("q01", "q99"), "q10_q90": ("q10", "q90"), "min_max": ("min", "max")}
"""Normalisations whose targets are bounded, and their bounds. The others could send an arm anywhere."""

RANGE_MARGIN = 0.35
"""How far the training range may pass a joint limit, rad: arms are calibrated a little differently from each other."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fits its robot.

    Attributes:
        directory: where its files are.
        norm_tag: the tag in use. metadata: what `norm_stats.json` says about it.
        config: `config.json`.
        tensors: shape and type of every stored tensor.
        cameras: the robot's cameras in the order of the prompt; the first is the depth image.
        frame: which joint frame its vectors are in.
        horizon: rows of a chunk. rate_hz: their rate.
        depth_side: cells on a side of the depth grid, None without depth reasoning.
        notes: what the user should know, one line each.
    """

    directory: Path
    norm_tag: str
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    cameras: tuple[str, ...]
    frame: ModelFrame
    horizon: int
    rate_hz: float
    depth_side: int | None
    notes: tuple[str, ...] = field(default=())


def resolve_directory(checkpoint: str | Path) -> Path:
    """The local directory of `checkpoint`: a path, a bundled name, or a Hugging Face id that is fetched.

    Raises:
        CheckpointError: neither exists, or the fetch failed.
    """
    text = str(checkpoint).strip()
    if not text:
        raise CheckpointError("no checkpoint given: name a directory in the released format or a Hugging Face id")
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if "/" not in text and (BUNDLED / text / "config.json").is_file():
        return BUNDLED / text
    if path.exists():
        raise CheckpointError(f"{path} is a file; name the checkpoint's directory")
    if not _HUB_ID.fullmatch(text) or text.startswith(("./", "../", "~")):
        raise CheckpointError(f"{path}: no such directory, and not a Hugging Face id (owner/name) either")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise CheckpointError(
            f"{text}: no such directory here, and fetching it from Hugging Face failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Check the name and the network, or fetch "
            "it elsewhere with `hf download` and give the directory"
        ) from error


def open_checkpoint(
    checkpoint: str | Path,
    robot: Embodiment,
    norm_tag: str,
    cameras: tuple[str, ...] | None = None,
    action_mode: str = "continuous",
) -> Checkpoint:
    """Check a checkpoint against `robot` and return what is known about it; see `open_policy` for the arguments.

    Args:
        action_mode: what its actions are wanted as, "continuous" or "discrete".

    Raises:
        CheckpointError: with what was expected, what was found and what to do.
    """
    directory = resolve_directory(checkpoint)
    config = _read_json(directory / "config.json")
    if "text_config" not in config:
        kind = config.get("type") or config.get("model_type")
        raise CheckpointError(
            f"{directory / 'config.json'}: not a MolmoAct2 checkpoint in the released format (no text_config; it says "
            f"{kind!r}). Of a LeRobot conversion, use the original checkpoint instead (allenai/MolmoAct2-...)"
        )
    _require_actions(config, action_mode)
    stats_path = directory / str(config.get("norm_stats_filename") or "norm_stats.json")
    _require_files(directory, stats_path)
    metadata, mode = _read_stats(stats_path, norm_tag)
    notes: list[str] = []
    # All of it is looked at before anything is refused, so that one table shows everything that does not fit.
    found = agreement.problems(metadata, norm_tag, robot, cameras)
    sound = _attempt(found, lambda: _check_vectors(metadata, mode, norm_tag, robot, notes))
    frame = _attempt(found, lambda: _frame(directory, metadata, robot)) if sound else None
    if frame is not None:
        _attempt(found, lambda: _check_range(metadata, mode, norm_tag, robot, frame))
    used = _attempt(found, lambda: _cameras(metadata, robot, cameras))
    horizon = _attempt(found, lambda: _horizon(config, metadata, norm_tag, robot, notes))
    if found or frame is None or used is None or horizon is None:
        rows = agreement.table(agreement.compare(metadata, norm_tag, robot, cameras), robot.name)
        raise CheckpointError(f"{directory} does not fit {robot.name}:\n{rows}\n" + "\n".join(found))
    return Checkpoint(
        directory=directory,
        norm_tag=norm_tag,
        metadata=metadata,
        config=config,
        tensors=read_weight_headers(directory),
        cameras=used,
        frame=frame,
        horizon=horizon,
        rate_hz=robot.rate_hz,
        depth_side=_depth_side(config),
        notes=tuple(notes),
    )


def _attempt[Checked](found: list[str], check: Callable[[], Checked]) -> Checked | None:
    """What `check` returns; when it refuses, None, and its words go to `found`."""
    try:
        return check()
    except CheckpointError as error:
        found.append(str(error))
        return None


def _require_actions(config: Mapping[str, Any], wanted: str) -> None:
    """The checkpoint must have been trained on the kind of actions that is wanted."""
    found = config.get("action_mode", "both")
    if found not in (wanted, "both"):
        other = "discrete" if wanted == "continuous" else "continuous"
        raise CheckpointError(
            f"action_mode {wanted}: the checkpoint's action_mode is {found!r}; use action_mode {other}, or another "
            "checkpoint"
        )
    if not config.get("add_action_expert", True):
        # The stages read the expert's sizes in either mode, and no released checkpoint is without it.
        raise CheckpointError("config.json: add_action_expert is false; only checkpoints with an action expert run")
    if wanted == "discrete":
        keys = ("action_start_token_id", "action_end_token_id", "action_token_start_id", "eos_token_id")
        absent = [key for key in keys if config.get(key) is None]
        absent += [] if config.get("num_action_tokens") else ["num_action_tokens"]
        if absent:
            raise CheckpointError(f"action_mode discrete: config.json lacks {', '.join(absent)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint in the released format?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object, got {type(content).__name__}")
    return content


def _require_files(directory: Path, stats_path: Path) -> None:
    missing = [path.name for path in (stats_path, directory / "processor_config.json") if not path.is_file()]
    if not (directory / "tokenizer.json").is_file():
        pair = [name for name in ("vocab.json", "merges.txt") if not (directory / name).is_file()]
        if pair:
            missing.append("tokenizer.json")
    if missing:
        raise CheckpointError(f"{directory}: missing {', '.join(missing)}; fetch the checkpoint again, complete")


def _read_stats(path: Path, norm_tag: str) -> tuple[dict[str, Any], str]:
    payload = _read_json(path)
    if payload.get("format") != STATS_FORMAT:
        raise CheckpointError(f"{path}: format is {payload.get('format')!r}, this version reads {STATS_FORMAT!r}")
    mode = payload.get("norm_mode")
    if mode not in BOUNDED_MODES:
        raise CheckpointError(f"{path}: norm_mode is {mode!r}, expected one of {', '.join(BOUNDED_MODES)}")
    tags = payload.get("metadata_by_tag")
    if not isinstance(tags, dict) or not tags:
        raise CheckpointError(f"{path}: metadata_by_tag is empty; the checkpoint cannot be scaled for any robot")
    known = ", ".join(sorted(tags))
    if not str(norm_tag or "").strip():
        raise CheckpointError(
            f"no norm tag given: without it another robot's scaling could be used. Name one of these: {known}"
        )
    if norm_tag not in tags:
        raise CheckpointError(f"{path}: no norm tag {norm_tag!r}; this checkpoint has: {known}")
    return dict(tags[norm_tag]), str(mode)


def _check_vectors(metadata: Mapping[str, Any], mode: str, tag: str, robot: Embodiment, notes: list[str]) -> bool:
    """Width, bounds and gripper scaling of states and actions, and the control mode."""
    for kind in ("state", "action"):
        stats = metadata.get(f"{kind}_stats")
        if not isinstance(stats, Mapping):
            raise CheckpointError(f"norm tag {tag!r}: {kind}_stats are missing; the checkpoint cannot be scaled")
        low, high = (_vector(stats, key, kind, tag, robot) for key in BOUNDED_MODES[mode])
        if np.any(low > high):
            raise CheckpointError(f"norm tag {tag!r}: {kind}_stats have a lower bound above the upper one")
        mask = stats.get("mask")
        if mask is None:
            continue
        if np.shape(mask) != (robot.dof,):
            raise CheckpointError(f"norm tag {tag!r}: mask of {kind}_stats must have {robot.dof} values, got {mask}")
        scaled = {bool(mask[index]) for index in robot.gripper_indices}
        if metadata.get("normalize_gripper") is not None and scaled != {bool(metadata["normalize_gripper"])}:
            raise CheckpointError(
                f"norm tag {tag!r}: normalize_gripper is {metadata['normalize_gripper']}, but the mask of {kind}_stats "
                f"is {sorted(scaled)} at the gripper; one of the two would scale the gripper wrongly"
            )
    control_mode = metadata.get("control_mode")
    if control_mode != robot.control_mode:
        raise CheckpointError(
            f"norm tag {tag!r}: control_mode is {control_mode!r}, {robot.name} executes {robot.control_mode!r}; "
            "choose a checkpoint or tag with absolute joint targets"
        )
    if metadata.get("setup_type") != robot.setup_type:
        notes.append(
            f"norm tag {tag!r} describes the set-up {metadata.get('setup_type')!r}; this robot is {robot.setup_type!r}"
        )
    return True


def _vector(stats: Mapping[str, Any], key: str, kind: str, tag: str, robot: Embodiment) -> np.ndarray:
    try:
        values = np.asarray(stats[key], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"norm tag {tag!r}: {kind}_stats have no numbers {key!r}") from None
    if values.shape != (robot.dof,):
        raise CheckpointError(
            f"norm tag {tag!r}: {kind} has {values.size} dimensions, {robot.name} has {robot.dof} "
            f"({', '.join(robot.joint_names)}); choose the tag of this robot"
        )
    if not np.all(np.isfinite(values)):
        raise CheckpointError(f"norm tag {tag!r}: {key} of {kind}_stats contains NaN or infinity")
    return values


def _frame(directory: Path, metadata: Mapping[str, Any], robot: Embodiment) -> ModelFrame:
    if robot.family != "so101":
        return ModelFrame.TRAINING
    from molmoact2_ros.embodiments.so101 import frame_of_checkpoint

    stats = metadata["state_stats"]
    try:
        frame = frame_of_checkpoint(directory, stats)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    median = stats.get("q50")
    if frame is ModelFrame.ARM and median is not None and median[1] > 0.0:
        raise CheckpointError(
            f"{directory}: policy_preprocessor.json transforms the joints by itself, which this runtime does not run, "
            f"and the median lift of {median[1]:.1f} deg is of the frame behind the transform: it would be missing. "
            "Use the original checkpoint (allenai/MolmoAct2-SO100_101)"
        )
    return frame


def _check_range(metadata: Mapping[str, Any], mode: str, tag: str, robot: Embodiment, frame: ModelFrame) -> None:
    """The targets of a chunk lie between the action bounds: those must be angles that this robot has."""
    ends = np.stack([np.asarray(metadata["action_stats"][key], dtype=np.float64) for key in BOUNDED_MODES[mode]])
    joints = robot.joints_from_model(ends, frame)
    low, high = joints.min(axis=0), joints.max(axis=0)
    margin = np.full(robot.dof, RANGE_MARGIN)
    for g in robot.gripper_indices:
        margin[g] = min(RANGE_MARGIN, 0.2 * (robot.limits.upper[g] - robot.limits.lower[g]))
    outside = (low < robot.limits.lower - margin) | (high > robot.limits.upper + margin)
    if np.any(outside):
        index = int(np.argmax(outside))
        raise CheckpointError(
            f"norm tag {tag!r}: its targets for {robot.joint_names[index]} span {low[index]:.2f} to {high[index]:.2f} "
            f"rad, but the joint goes from {robot.limits.lower[index]:.2f} to {robot.limits.upper[index]:.2f}; the "
            "units or the frame of this checkpoint are not those of this robot"
        )


def _cameras(metadata: Mapping[str, Any], robot: Embodiment, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    """The robot's cameras in the order of the checkpoint's camera keys.

    A key that ends in the name of one of the robot's cameras is that camera. Other keys take the robot's remaining
    cameras in order, since released checkpoints name theirs after the data set.
    """
    keys: Sequence[str] = [str(key).rsplit(".", 1)[-1] for key in metadata.get("camera_keys") or ()]
    count = len(keys) or len(chosen or robot.camera_names)
    if not robot.min_cameras <= count <= len(robot.camera_names):
        raise CheckpointError(
            f"the checkpoint expects {count} cameras ({', '.join(keys)}), {robot.name} has "
            f"{len(robot.camera_names)} ({', '.join(robot.camera_names)}); choose another checkpoint or tag"
        )
    if chosen is not None:
        unknown = [name for name in chosen if name not in robot.camera_names]
        if unknown or len(set(chosen)) != len(chosen) or len(chosen) != count:
            raise CheckpointError(
                f"cameras must be {count} different ones of {', '.join(robot.camera_names)}, got {', '.join(chosen)}"
            )
        return tuple(chosen)
    if not keys:
        return robot.camera_names
    rest = [name for name in robot.camera_names if name not in keys]
    cameras = tuple(key if key in robot.camera_names else rest.pop(0) for key in keys)
    if len(set(cameras)) != count:
        raise CheckpointError(f"the checkpoint names a camera twice: {', '.join(keys)}; its norm_stats.json is damaged")
    return cameras


def _horizon(
    config: Mapping[str, Any], metadata: Mapping[str, Any], tag: str, robot: Embodiment, notes: list[str]
) -> int:
    longest = int(config.get("max_action_horizon") or 0)
    horizon = int(metadata.get("action_horizon") or longest)
    rows = int(metadata.get("n_action_steps") or horizon)
    first = int(config.get("n_obs_steps") or 1) - 1
    if not 1 <= rows <= horizon <= longest or first + rows > horizon:
        raise CheckpointError(
            f"norm tag {tag!r}: rows {first} to {first + rows} of a horizon of {horizon} (model: {longest})"
            " cannot be cut"
        )
    if rows > robot.horizon:
        raise CheckpointError(
            f"norm tag {tag!r}: a chunk has {rows} rows, {robot.name} has {robot.horizon} at {robot.rate_hz:g} Hz; a "
            "longer chunk means another rate, so the arm would move at the wrong speed"
        )
    if rows < robot.horizon:
        notes.append(f"chunks of {rows} rows instead of {robot.horizon}: {rows / robot.rate_hz:.2f} s of motion each")
    if int(config.get("max_action_dim") or 0) < robot.dof:
        raise CheckpointError(
            f"the model's actions are {config.get('max_action_dim')} wide, {robot.name} needs {robot.dof}"
        )
    return rows


def _depth_side(config: Mapping[str, Any]) -> int | None:
    if not config.get("enable_depth_reasoning", False):
        return None
    codes, kinds = int(config.get("num_depth_codes") or 0), int(config.get("num_depth_tokens") or 0)
    side = math.isqrt(codes)
    if codes < 1 or side * side != codes or not 1 <= kinds <= 256:
        raise CheckpointError(
            f"config.json: depth reasoning needs a square number of cells and at most 256 codes, got {codes}, {kinds}"
        )
    absent = [
        key for key in ("depth_start_token_id", "depth_end_token_id", "depth_token_start_id") if config.get(key) is None
    ]
    if absent:
        raise CheckpointError(f"config.json: depth reasoning is on, but {', '.join(absent)} is not set")
    return side
