"""What is held against each other before the first node of a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from molmoact2_ros.bringup.specs import NodeSpec
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.parameter_files import parameters_for


class RefusedError(RuntimeError):
    """The run cannot work; nothing was started. The message says why, and what to do."""


def parameters_of(spec: NodeSpec) -> dict[str, Any]:
    """What a node is told: by its parameter files, and on top of them."""
    return {**parameters_for(spec.configs, f"{spec.namespace.rstrip('/')}/{spec.name}"), **spec.parameters}


def check_checkpoint(specs: Iterable[NodeSpec], fetch: bool = True) -> None:
    """Hold the policy's checkpoint against its robot; only what describes it is read.

    Args:
        fetch: get it from Hugging Face, if that is where it is; otherwise its policy does so, and checks it then.

    Raises:
        RefusedError: it does not fit, is not whole, or is not there.
    """
    from molmoact2_ros.policy.checkpoint import Choices, open_checkpoint
    from molmoact2_ros.policy.checkpoints.location import BUNDLED

    for spec in specs:
        if spec.name != "policy":
            continue
        told = parameters_of(spec)
        checkpoint = str(told["checkpoint"])
        here = Path(checkpoint).expanduser().is_dir() or (BUNDLED / checkpoint).is_dir()
        if not here and not fetch:
            continue
        try:
            choices = Choices(
                cameras=tuple(filter(None, told.get("cameras", ()))),
                cell_cameras=tuple(filter(None, told.get("cell_cameras", ()))),
                base=told.get("base_checkpoint", ""),
                joint_frame=told.get("joint_frame", "auto"),
            )
            mode = told.get("action_mode", "continuous")
            open_checkpoint(checkpoint, embodiment(told["robot"]), told["norm_tag"], action_mode=mode, choices=choices)
        except ValueError as error:
            raise RefusedError(f"the checkpoint is refused: {error}") from None
