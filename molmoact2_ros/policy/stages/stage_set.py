"""The three stages that a backend supplies; speculation, caches and prompts around them are the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from molmoact2_ros.policy.stages.decoder import TextDecoder
from molmoact2_ros.policy.stages.flow import FlowStage
from molmoact2_ros.policy.stages.vision import VisionStage


@dataclass(frozen=True)
class Stages:
    """Vision, text and flow of one model. A backend replaces what computes inside them, never what they promise.

    Attributes:
        vision: `see`. decoder: `embed`, `new_store` and the call. flow: `noise`, `context` and the call.
        row_cost: what one more row of a verified block costs, as a share of a forward of one row; None: what is usual
            on the device.
    """

    vision: VisionStage
    decoder: TextDecoder
    flow: FlowStage
    row_cost: float | None = None


def release(*layers: nn.Module) -> None:
    """Drop torch's weights of `layers`: the backend that runs them holds its own copy."""
    for part in layers:
        for parameter in part.parameters():
            parameter.data = parameter.data.new_empty(0)


OpenStages = Callable[[Any, int], Stages]
"""Makes the stages of the reference's inner model, for a robot with so many joints."""


def torch_stages(model: Any, dof: int) -> Stages:
    """The reference's weights in torch, eagerly."""
    return Stages(VisionStage(model.vision_backbone), TextDecoder(model.transformer), FlowStage(model, dof))
