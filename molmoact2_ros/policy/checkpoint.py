"""The one door to a checkpoint: whatever its layout, it is described, held against the robot and refused by name.

Only JSON files and the headers of safetensors files are read here (no torch), so that a wrong checkpoint is named
within milliseconds. What is checked: files present and whole, the scaling named and known, sizes and units against the
robot, cameras, joint frame, depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment, ModelFrame
from molmoact2_ros.policy import agreement
from molmoact2_ros.policy.checkpoints.contents import Adapter, Contents, depth_side
from molmoact2_ros.policy.checkpoints.frame import FRAMES, frame_of
from molmoact2_ros.policy.checkpoints.lerobot import ADAPTER, ADAPTER_CONFIG, read_lerobot
from molmoact2_ros.policy.checkpoints.location import BUNDLED, resolve_directory
from molmoact2_ros.policy.checkpoints.released import read_released
from molmoact2_ros.policy.checkpoints.scaling import Scaling, ends
from molmoact2_ros.policy.checkpoints.settings import CheckpointError, read_json, whole
from molmoact2_ros.policy.checkpoints.views import View, cameras_of
from molmoact2_ros.policy.checkpoints.weights import TensorInfo

RANGE_MARGIN = 0.35
"""How far the training range may pass a joint limit, rad: arms are calibrated a little differently from each other."""


@dataclass(frozen=True)
class Choices:
    """What a user says of a checkpoint where the files leave something open.

    Attributes:
        cameras: one a picture of the prompt in its order, or "view=camera" for each; empty: by name.
        cell_cameras: the cameras that there are; empty: the robot's usual ones.
        base: what a fine-tune was made from, where that is not where it says: a directory or a Hugging Face id.
        joint_frame: of an SO arm's checkpoint, of `FRAMES`.
    """

    cameras: tuple[str, ...] = ()
    cell_cameras: tuple[str, ...] = ()
    base: str = ""
    joint_frame: str = "auto"

    def __post_init__(self) -> None:
        if self.joint_frame not in FRAMES:
            raise ValueError(f"joint_frame must be one of {', '.join(FRAMES)}, got {self.joint_frame!r}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fits its robot.

    Attributes:
        directory: where its files are. layout: what kind of folder it is, in words.
        processor: where the files of processor and tokenizer are: its own directory, or its base's.
        norm_tag: the tag in use. metadata: what is known about it, in the words of `norm_stats.json`.
        config: the model's configuration.
        tensors: shape, type and place of every stored tensor. adapter: LoRA matrices to merge into them.
        scaling: how vectors become numbers of -1 .. 1.
        state_bounds, action_bounds: (2, dof) in its units, what -1 and 1 stand for; targets lie between the latter.
        views: the pictures that it was trained on. cameras: the camera of each picture of the prompt; the first is the
            depth image.
        frame: which joint frame its vectors are in.
        normalize_language: the task is tidied up before it goes into the prompt.
        horizon: rows of a chunk. rate_hz: their rate.
        depth_side: cells on a side of the depth grid, None without depth reasoning.
        notes: what was inferred and what the user should know, one line each.
    """

    directory: Path
    layout: str
    processor: Path
    norm_tag: str
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    adapter: Adapter | None
    scaling: Scaling
    state_bounds: NDArray[np.float64]
    action_bounds: NDArray[np.float64]
    views: tuple[View, ...]
    cameras: tuple[str, ...]
    frame: ModelFrame
    normalize_language: bool
    horizon: int
    rate_hz: float
    depth_side: int | None
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """What to call it: the name of its directory."""
        return self.directory.name

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that decides what the model computes, from the directory or as whole paths."""
        found = {info.file for info in self.tensors.values()}
        if self.adapter is not None:
            found |= {info.file for info in self.adapter.tensors.values()}
            found |= {ADAPTER_CONFIG} if self.adapter.directory else set()
        if self.processor != self.directory:
            found.add(str(self.processor / "config.json"))
        return tuple(sorted(found))


class MisfitError(CheckpointError):
    """A checkpoint that is whole and does not fit the robot.

    Attributes:
        rows: the table of what each says. found: why, one line each. contents: what the checkpoint says.
    """

    def __init__(
        self, contents: Contents, robot: Embodiment, rows: tuple[agreement.Row, ...], found: list[str]
    ) -> None:
        table = agreement.table(rows, robot.name)
        super().__init__(f"{contents.directory} does not fit {robot.name}:\n{table}\n" + "\n".join(found))
        self.contents, self.rows, self.found = contents, rows, found


def read_contents(checkpoint: str | Path, norm_tag: str, base: str = "") -> Contents:
    """What the files of a checkpoint say, whatever its layout.

    Raises:
        CheckpointError: something is missing, damaged, or of another kind.
    """
    directory = resolve_directory(checkpoint)
    if not (directory / "config.json").is_file():
        # Of a training, the folder of a step or the whole.
        inner = [directory / "pretrained_model", directory / "checkpoints" / "last" / "pretrained_model"]
        found = next((folder for folder in inner if folder.is_dir()), None)
        if found is not None:
            directory = found
        elif (directory / ADAPTER).is_file() or (directory / ADAPTER_CONFIG).is_file():
            raise CheckpointError(
                f"{directory}: a LoRA adapter alone: config.json and the processors' files are missing; name the "
                "folder that lerobot-train wrote (pretrained_model), with all of them"
            )
    config = read_json(directory / "config.json")
    if config.get("type") == "molmoact2" and "text_config" not in config:
        return read_lerobot(directory, config, norm_tag, base)
    if base:
        raise CheckpointError(
            f"{directory}: base_checkpoint {base!r} is given, but only a fine-tune by lerobot has a base"
        )
    return read_released(directory, config, norm_tag)


def open_checkpoint(
    checkpoint: str | Path,
    robot: Embodiment,
    norm_tag: str,
    cameras: tuple[str, ...] | None = None,
    action_mode: str = "continuous",
    choices: Choices | None = None,
) -> Checkpoint:
    """Check a checkpoint against `robot` and return what is known about it; see `open_policy` for the arguments.

    Args:
        cameras: those of `choices`, for short.
        action_mode: what its actions are wanted as, "continuous" or "discrete".

    Raises:
        CheckpointError: with what was expected, what was found and what to do; a `MisfitError` where the checkpoint is
            sound and another robot's.
    """
    choices = choices or Choices()
    if cameras:
        choices = replace(choices, cameras=cameras)
    contents = read_contents(checkpoint, norm_tag, choices.base)
    return fit(contents, robot, norm_tag, choices, action_mode)


def fit(
    contents: Contents, robot: Embodiment, norm_tag: str, choices: Choices, action_mode: str = "continuous"
) -> Checkpoint:
    """Hold what a checkpoint says against `robot`; see `open_checkpoint`."""
    metadata, scaling, tag = contents.metadata, contents.scaling, contents.norm_tag
    _require_actions(contents.config, action_mode)
    notes = list(contents.notes)
    # All of it is looked at before anything is refused, so that one table shows everything that does not fit.
    asked = norm_tag if contents.layout == "lerobot" and norm_tag else tag
    found = agreement.problems(metadata, asked, robot)
    states = _attempt(found, lambda: _bounds(contents, "state", robot, notes))
    actions = _attempt(found, lambda: _bounds(contents, "action", robot, notes))
    _attempt(found, lambda: _check_words(contents, robot, notes))
    frame = None
    if states is not None and actions is not None:
        found += agreement.gripper_units(actions, tag, robot) if not found else []
        frame = _attempt(found, lambda: _frame(contents, states, robot, choices, notes))
        if frame is not None:
            _attempt(found, lambda: _check_range(actions, tag, robot, frame))
    cell, usual = choices.cell_cameras, robot.camera_names
    used = _attempt(found, lambda: cameras_of(contents.views, cell, usual, choices.cameras, notes))
    horizon = _attempt(found, lambda: _horizon(contents, robot, notes))
    depth = depth_side(contents.config, contents.directory / "config.json")
    if found or frame is None or used is None or horizon is None or states is None or actions is None:
        rows = agreement.compare(
            metadata, asked, robot, choices.cameras or cell or usual, used is not None, contents.layout == "released"
        )
        raise MisfitError(contents, robot, rows, found)
    if depth is not None and not contents.depth:
        notes.append("LeRobot's training leaves depth reasoning out: the policy runs without")
    return Checkpoint(
        directory=contents.directory,
        layout=contents.what,
        processor=contents.processor,
        norm_tag=tag,
        metadata=metadata,
        config=contents.config,
        tensors=contents.tensors,
        adapter=contents.adapter,
        scaling=scaling,
        state_bounds=states,
        action_bounds=actions,
        views=contents.views,
        cameras=used,
        frame=frame,
        normalize_language=contents.normalize_language,
        horizon=horizon,
        rate_hz=robot.rate_hz,
        depth_side=depth if contents.depth else None,
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


def _bounds(contents: Contents, kind: str, robot: Embodiment, notes: list[str]) -> NDArray[np.float64]:
    """What -1 and 1 stand for in the states or actions, and whether the gripper's scaling is of one mind."""
    metadata, tag = contents.metadata, contents.norm_tag
    stats = metadata.get(f"{kind}_stats")
    if not isinstance(stats, Mapping):
        raise CheckpointError(f"norm tag {tag!r}: {kind}_stats are missing; the checkpoint cannot be scaled")
    mask = stats.get("mask")
    mode = contents.scaling.mode(kind)
    where = f"norm tag {tag!r}"
    joints = f"{robot.name} has {robot.dof} ({', '.join(robot.joint_names)}); choose the tag of this robot"
    if mask is not None and np.shape(mask) != (robot.dof,):
        # Of a vector of another width, the width is what is wrong.
        widths = {np.size(value) for key, value in stats.items() if key in ("q01", "min", "mean")}
        if widths == {robot.dof}:
            raise CheckpointError(f"{where}: mask of {kind}_stats must have {robot.dof} values, got {mask}")
        raise CheckpointError(f"{where}: {kind} has {np.size(mask)} dimensions, {joints}")
    try:
        bounds = ends(stats, mode, kind, where, robot.dof)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(f"expected {robot.dof}", joints)) from None
    if mode == "none":
        notes.append(f"{kind}s are not scaled by this checkpoint (IDENTITY), and clipped to -1 .. 1")
    if mask is not None:
        scaled = {bool(mask[index]) for index in robot.gripper_indices}
        said = metadata.get("normalize_gripper")
        if said is not None and scaled != {bool(said)}:
            raise CheckpointError(
                f"{where}: normalize_gripper is {said}, but the mask of {kind}_stats is {sorted(scaled)} at the "
                "gripper; one of the two would scale the gripper wrongly"
            )
    return bounds


def _check_words(contents: Contents, robot: Embodiment, notes: list[str]) -> None:
    """Control mode and set-up, as the prompt says them."""
    metadata, tag = contents.metadata, contents.norm_tag
    control, setup = metadata.get("control_mode"), metadata.get("setup_type")
    if contents.layout == "lerobot":
        # Free texts of whoever trained it: they go into the prompt as they are.
        relative = [word for word in ("delta", "relative", "velocity") if word in str(control).lower()]
        if relative:
            raise CheckpointError(
                f"control_mode is {control!r}, {robot.name} executes {robot.control_mode!r}; choose a checkpoint with "
                "absolute joint targets"
            )
        if setup != robot.setup_type or control != robot.control_mode:
            notes.append(f"the prompt says the set-up {setup!r} and the control mode {control!r}, as in its training")
        return
    if control != robot.control_mode:
        raise CheckpointError(
            f"norm tag {tag!r}: control_mode is {control!r}, {robot.name} executes {robot.control_mode!r}; choose a "
            "checkpoint or tag with absolute joint targets"
        )
    if setup != robot.setup_type:
        notes.append(f"norm tag {tag!r} describes the set-up {setup!r}; this robot is {robot.setup_type!r}")


def _frame(
    contents: Contents, states: NDArray[np.float64], robot: Embodiment, choices: Choices, notes: list[str]
) -> ModelFrame:
    said = FRAMES[choices.joint_frame]
    if robot.family != "so101":
        if contents.transform:
            raise CheckpointError(f"its processors transform the joints of an SO arm; {robot.name} is another robot")
        return ModelFrame.TRAINING
    stats = contents.metadata["state_stats"]
    seen = agreement.trained_range(stats, states)
    return frame_of(seen, stats.get("q50"), contents.layout, contents.transform, said, notes)


def _check_range(actions: NDArray[np.float64], tag: str, robot: Embodiment, frame: ModelFrame) -> None:
    """The targets of a chunk lie between the action bounds: those must be angles that this robot has."""
    joints = robot.joints_from_model(actions, frame)
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


def _horizon(contents: Contents, robot: Embodiment, notes: list[str]) -> int:
    config, metadata, tag = contents.config, contents.metadata, contents.norm_tag
    where = f"norm tag {tag!r}"
    longest = int(config["max_action_horizon"])
    horizon = whole(metadata, "action_horizon", where, 1, longest)
    rows = whole(metadata, "n_action_steps", where, 1, horizon)
    first = int(config["n_obs_steps"]) - 1
    if not rows <= horizon <= longest or first + rows > horizon:
        raise CheckpointError(
            f"{where}: rows {first} to {first + rows} of a horizon of {horizon} (model: {longest}) cannot be cut"
        )
    if rows > robot.horizon:
        raise CheckpointError(
            f"{where}: a chunk has {rows} rows, {robot.name} has {robot.horizon} at {robot.rate_hz:g} Hz; a longer "
            "chunk means another rate, so the arm would move at the wrong speed"
        )
    if rows < robot.horizon:
        notes.append(f"chunks of {rows} rows instead of {robot.horizon}: {rows / robot.rate_hz:.2f} s of motion each")
    if contents.layout == "lerobot":
        notes.append(f"the file does not say the data set's rate: rows are {robot.rate_hz:g} a second")
    if int(config["max_action_dim"]) < robot.dof:
        raise CheckpointError(
            f"the model's actions are {config.get('max_action_dim')} wide, {robot.name} needs {robot.dof}"
        )
    return rows


__all__ = ["BUNDLED", "Checkpoint", "CheckpointError", "Choices", "MisfitError", "open_checkpoint", "resolve_directory"]
