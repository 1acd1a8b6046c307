"""Whether a checkpoint and a robot belong together: what each says of itself side by side, and what the first measured
state says.

What data can show before the arm moves, and where:
- tag, size, cameras, rate, gripper scaling, control mode, joint order, arms left and right, units, SO frame: in
  `norm_stats.json`, before the weights are read;
- a doubled or missing SO frame transform and a swapped jaw polarity of the running robot: in the first joint state,
  which then lies far outside the states of the training;
- a swapped gripper polarity of a robot whose training states cover the whole stroke (YAM), and two arms or cameras that
  were swapped behind correct names: nowhere in the data. Names bound to hardware (CAN channels, serial numbers) and the
  preview in RViz are what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import EMBODIMENTS, Embodiment, ModelFrame

Array = NDArray[np.float64]

SPAN_SLACK = 0.5
"""How far the first state may lie outside the training states, as a share of their span."""
LEAST_SLACK = 0.2
"""And at least so far for an arm joint, rad."""


@dataclass(frozen=True)
class Row:
    """One thing that robot and checkpoint must agree on."""

    what: str
    robot: str
    checkpoint: str
    differs: bool


def compare(
    metadata: Mapping[str, Any], tag: str, robot: Embodiment, cameras: Sequence[str], seen: bool, released: bool
) -> tuple[Row, ...]:
    """What `robot` and the `metadata` of norm tag `tag` say of the same things.

    Args:
        cameras: the user's choice or the cell's. seen: they serve what the checkpoint wants to see.
        released: the layout, in which an SO arm's vectors are always in the frame of the training.
    """
    rows = []

    def row(what: str, ours: object, theirs: object, differs: bool | None = None) -> None:
        rows.append(Row(what, str(ours), str(theirs), str(ours) != str(theirs) if differs is None else differs))

    row("norm tag", robot.norm_tag, tag, _another_robots_tag(tag, robot))
    row("set-up", robot.setup_type, metadata.get("setup_type"), False)
    row("control mode", robot.control_mode, metadata.get("control_mode"))
    for kind in ("state", "action"):
        row(f"{kind} size", robot.dof, _size(metadata.get(f"{kind}_stats")))
    keys = [str(key).rsplit(".", 1)[-1] for key in metadata.get("camera_keys") or ()]
    row("cameras", ", ".join(cameras), ", ".join(keys) or "not named", not seen)
    rows_said = metadata.get("n_action_steps") or metadata.get("action_horizon")
    longer = isinstance(rows_said, int) and rows_said > robot.horizon
    row("chunk", f"{robot.horizon} rows at {robot.rate_hz:g} Hz", f"{rows_said} rows", longer)
    scaled = metadata.get("normalize_gripper")
    differs = scaled is not None and bool(scaled) != robot.normalize_gripper
    row("gripper scaled", robot.normalize_gripper, scaled, differs)
    theirs = _names(metadata)
    order = order_problem(theirs, robot)
    row("joint order", ", ".join(robot.joint_names), ", ".join(theirs) or "not named", bool(order))
    median = (metadata.get("state_stats") or {}).get("q50")
    if released and robot.family == "so101" and isinstance(median, list) and len(median) == robot.dof:
        lift, elbow = (float(value) for value in median[1:3])
        said = f"median lift {lift:.0f}, elbow {elbow:.0f} deg"
        row("SO frame", "training: lift and elbow above 0", said, lift < 0.0 or elbow < 0.0)
    return tuple(rows)


def table(rows: Sequence[Row], robot: str) -> str:
    """The rows as text, those that differ marked by `!=`."""
    lines = (Row("", f"robot {robot}", "checkpoint", False), *rows)
    cells = [(row.what, _short(row.robot), "!=" if row.differs else "", _short(row.checkpoint)) for row in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(f"  {line}".rstrip() for line in padded)


def order_problem(names: Sequence[str], robot: Embodiment) -> str:
    """Why vectors whose entries are called `names` are not in the robot's order; empty when they may be.

    Released checkpoints name joints after their data set, so only what the names have in common with the robot's is
    compared: left and right, grippers, and the same names in another order.
    """
    if len(names) != robot.dof:
        return ""
    plain = [name.removesuffix(".pos").lower() for name in names]
    sides = [next((side for side in ("left", "right") if side in name), "") for name in plain]
    for i, (side, ours) in enumerate(zip(sides, robot.joint_names, strict=True)):
        if side and ours.startswith(("left_", "right_")) and not ours.startswith(side):
            return f"entry {i} is {names[i]}, here it is {ours}: the arms are swapped"
    if set(plain) == set(robot.joint_names) and plain != list(robot.joint_names):
        i = next(i for i, (a, b) in enumerate(zip(plain, robot.joint_names, strict=True)) if a != b)
        return f"entry {i} is {names[i]}, here it is {robot.joint_names[i]}"
    grippers = tuple(i for i, name in enumerate(plain) if "gripper" in name)
    if grippers and grippers != robot.gripper_indices:
        return f"grippers are entries {grippers}, here {robot.gripper_indices}"
    return ""


def problems(metadata: Mapping[str, Any], tag: str, robot: Embodiment) -> list[str]:
    """What stops the launch and is said nowhere else: one sentence each, with what to do."""
    out = []
    if _another_robots_tag(tag, robot):
        out.append(f"norm tag {tag!r} is another robot's; use {robot.norm_tag!r}, or the robot of this tag")
    scaled = metadata.get("normalize_gripper")
    if scaled is not None and bool(scaled) != robot.normalize_gripper:
        out.append(
            f"norm tag {tag!r}: normalize_gripper is {scaled}, the grippers of {robot.name} are "
            f"{'' if robot.normalize_gripper else 'not '}scaled; they would move by another amount"
        )
    order = order_problem(_names(metadata), robot)
    if order:
        out.append(f"norm tag {tag!r}: joints in another order: {order}")
    return out


def trained_range(stats: Mapping[str, Any], otherwise: Array) -> Array:
    """What the training's states or actions spanned, (2, dof) in the checkpoint's units: their outer quantiles, or the
    nearest to them that the statistics have, else `otherwise`."""
    for low, high in (("q01", "q99"), ("min", "max")):
        if low in stats and high in stats:
            return np.array([stats[low], stats[high]], dtype=np.float64)
    if "mean" in stats and "std" in stats:
        middle, spread = np.asarray(stats["mean"], dtype=np.float64), np.asarray(stats["std"], dtype=np.float64)
        return np.stack((middle - 2.3 * spread, middle + 2.3 * spread))
    return otherwise


def gripper_units(bounds: Array, tag: str, robot: Embodiment) -> list[str]:
    """A gripper whose targets, between `bounds` (2, dof), span a sliver of its stroke or go far beyond it is in other
    units: one line, or none."""
    low, high = bounds
    poses = np.tile(robot.rest_position, (2, 1))
    grippers = list(robot.gripper_indices)
    poses[:, grippers] = np.array([robot.limits.lower, robot.limits.upper])[:, grippers]
    closed, opened = robot.model_from_joints(poses)
    for g in robot.gripper_indices:
        full = abs(opened[g] - closed[g])
        if high[g] - low[g] < 0.02 * full or max(abs(low[g]), abs(high[g])) > 1.5 * full:
            bottom, top = sorted((float(closed[g]), float(opened[g])))
            return [
                f"norm tag {tag!r}: {robot.joint_names[g]} spans {low[g]:g} to {high[g]:g}, on {robot.name} it goes "
                f"from {bottom:g} to {top:g}; its units are other ones"
            ]
    return []


class TrainedStates:
    """The states that a checkpoint was trained on, as joint positions.

    Args:
        stats: `state_stats` of the tag, model units; see `trained_range`.
        frame: the joint frame of the checkpoint.
    """

    def __init__(self, stats: Mapping[str, Any], robot: Embodiment, frame: ModelFrame) -> None:
        self._robot = robot
        anywhere = robot.model_from_joints(np.stack((robot.limits.lower, robot.limits.upper)), frame)
        ends = robot.joints_from_model(trained_range(stats, anywhere), frame)
        self._low, self._high = ends.min(axis=0), ends.max(axis=0)
        least = np.full(robot.dof, LEAST_SLACK)
        for g in robot.gripper_indices:
            least[g] = 0.1 * (robot.limits.upper[g] - robot.limits.lower[g])
        self._slack = np.maximum(SPAN_SLACK * (self._high - self._low), least)

    def problem(self, joints: Array) -> str:
        """Why the policy must not begin at `joints` (dof,); empty when it may.

        Far from everything it was trained on, a policy stalls or moves wildly; and joint states that are reported in
        another frame or polarity than they should be lie there.
        """
        excess = np.maximum(self._low - joints, joints - self._high) - self._slack
        worst = int(np.argmax(excess / self._slack))
        if excess[worst] <= 0.0:
            return ""
        gripper = worst in self._robot.gripper_indices
        return (
            f"{self._robot.joint_names[worst]} is at {joints[worst]:.3f}, far from the training states "
            f"({self._low[worst]:.3f} to {self._high[worst]:.3f}); move the robot to its start pose. Where it seems to "
            f"be there already, {'the polarity of the gripper' if gripper else 'the frame or the units of the joints'} "
            "is wrong in the driver"
        )


def _another_robots_tag(tag: str, robot: Embodiment) -> bool:
    return tag != robot.norm_tag and any(tag == other.norm_tag for other in EMBODIMENTS.values())


def _names(metadata: Mapping[str, Any]) -> list[str]:
    stats = metadata.get("action_stats")
    names = stats.get("names") if isinstance(stats, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _size(stats: object) -> object:
    if not isinstance(stats, Mapping):
        return "none"
    return next((len(values) for key in ("q01", "min") if isinstance(values := stats.get(key), list)), "none")


def _short(text: str) -> str:
    return text if len(text) <= 48 else text[:45] + "..."
