"""What a checkpoint is and whether it can drive a robot, as rows of text; its weights are not read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.checkpoint import Checkpoint, CheckpointError, Choices, MisfitError, fit, read_contents
from molmoact2_ros.policy.checkpoints.contents import Contents
from molmoact2_ros.policy.checkpoints.location import resolve_directory
from molmoact2_ros.policy.checkpoints.settings import read_json

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass
class Inspection:
    """What was found.

    Attributes:
        rows: what it is, as pairs of a name and a value.
        fits: each robot that was asked about, and why it cannot be driven; nothing where it can.
        table: robot and checkpoint side by side, where one robot was asked about and does not fit.
        notes: what was inferred, one line each.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    fits: dict[str, list[str]] = field(default_factory=dict)
    table: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Some robot that was asked about can be driven."""
        return any(not problems for problems in self.fits.values())


def inspect_checkpoint(
    checkpoint: str | Path, robots: Sequence[Embodiment], norm_tag: str = "", choices: Choices | None = None
) -> Inspection:
    """Look at `checkpoint` for `robots`.

    Args:
        norm_tag: empty for each robot's own; of a checkpoint with a single tag, that.

    Raises:
        CheckpointError: it is not whole, or no MolmoAct2 checkpoint.
    """
    from molmoact2_ros.policy import agreement

    choices = choices or Choices()
    found = Inspection()
    told = norm_tag or _only_tag(checkpoint) or robots[0].norm_tag
    contents = read_contents(checkpoint, told, choices.base)
    found.rows = _rows(contents)
    found.notes = list(contents.notes)
    fitting: Checkpoint | None = None
    for robot in robots:
        try:
            fitting = fit(contents, robot, norm_tag or (robot.norm_tag if len(robots) == 1 else ""), choices)
            found.fits[robot.name] = []
            found.notes = list(fitting.notes)
        except MisfitError as error:
            found.fits[robot.name] = error.found
            if len(robots) == 1:
                found.table = agreement.table(error.rows, robot.name)
        except CheckpointError as error:
            found.fits[robot.name] = [str(error)]
    if fitting is not None:
        found.rows += [("pictures from", ", ".join(fitting.cameras)), ("joint frame", fitting.frame.value)]
        try:
            _check_together(fitting)
        except CheckpointError as error:
            found.fits = {name: problems or [str(error)] for name, problems in found.fits.items()}
    return found


def _only_tag(checkpoint: str | Path) -> str:
    """The tag of a released checkpoint that has one only; else empty."""
    path = resolve_directory(checkpoint) / "norm_stats.json"
    tags = read_json(path).get("metadata_by_tag") if path.is_file() else None
    return str(next(iter(tags))) if isinstance(tags, dict) and len(tags) == 1 else ""


def _rows(contents: Contents) -> list[tuple[str, str]]:
    tensors = contents.tensors.values()
    count = sum(math.prod(info.shape) for info in tensors)
    kinds = sorted({info.dtype for info in tensors})
    stored = sum(math.prod(info.shape) * BYTES.get(info.dtype, 1) for info in tensors)
    metadata, scaling = contents.metadata, contents.scaling
    modes = scaling.state if scaling.state == scaling.action else f"states {scaling.state}, actions {scaling.action}"
    stats = metadata.get("action_stats")
    width = (
        next((len(value) for value in stats.values() if isinstance(value, list)), 0) if isinstance(stats, dict) else 0
    )
    return [
        ("what", contents.what),
        ("folder", str(contents.directory)),
        ("weights", f"{_counted(count)} in {', '.join(kinds)}, {_sized(stored)}"),
        ("memory", f"{_sized(4 * count)} in float32, {_sized(2 * count)} in bfloat16, and what a call needs"),
        ("processor from", str(contents.processor)),
        ("norm tag", contents.norm_tag),
        ("vectors", f"{width} wide, scaling {modes}"),
        ("cameras", ", ".join(view.name for view in contents.views) or "not named"),
        ("chunk", f"{metadata.get('n_action_steps') or metadata.get('action_horizon')} rows are executed"),
        ("set-up", str(metadata.get("setup_type"))),
        ("control mode", str(metadata.get("control_mode"))),
        ("actions", str(contents.config.get("action_mode", "both"))),
        ("depth", "yes" if contents.depth and contents.config.get("enable_depth_reasoning") else "no"),
    ]


def _counted(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"


def _sized(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _check_together(checkpoint: Checkpoint) -> None:
    """Shapes of the weights, tokenizer and image settings against the configuration."""
    from molmoact2_ros.policy.checkpoints.weights import check_tensors
    from molmoact2_ros.policy.loading import empty_model, open_processor

    model = empty_model(checkpoint.config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_tensors(checkpoint.tensors, shapes, checkpoint.directory)
    open_processor(checkpoint, model.config)
