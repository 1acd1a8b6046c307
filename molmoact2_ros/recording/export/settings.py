"""What a user can choose of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec

from molmoact2_ros.embodiments import Embodiment, ModelFrame, embodiment

ACTIONS = ("commanded", "measured")
"""What was sent to the arm, or where it then was."""
STAMPS = ("header", "receive")
FRAMES = {"arm": ModelFrame.ARM, "released": ModelFrame.TRAINING}


class ExportError(ValueError):
    """Why a bag cannot be exported; the message says what can be done."""


def require(*packages: str) -> None:
    """Refuse with what to install where one of `packages` is not.

    Raises:
        ExportError: one is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"datasets need the packages of the extra 'dataset', and {', '.join(missing)} is not installed: "
            "pip install '.[dataset]' in the folder of this package"
        )


@dataclass(frozen=True)
class ExportOptions:
    """See the module.

    Attributes:
        robot: an embodiment's name.
        rate_hz: frames a second; 0: the embodiment's.
        action: of `ACTIONS`.
        frame: of `FRAMES`, for robots whose checkpoints are in more than one (SO-100/101).
        views: name in the dataset -> the camera, in the order of the prompt; empty: the robot's cameras that the bag
            has, under their own names.
        max_gap_s: longest silence of a camera, of the joint states and of the commands, s.
        split: an episode with longer gaps becomes several; otherwise it is refused.
        min_length_s: what is shorter is left out, s.
        task: stands in place of the task that was recorded; empty: the recorded one.
        namespace: the robot's, in a bag that has several; empty: the only one.
        topics: of a bag of another system: `joints`, `action` and `camera.<name>` -> topic; empty for this package's.
        joint_map: names of the joints there, `theirs=ours` (`embodiments.joint_names`).
        stamps: of `STAMPS`: when something was measured, by its header or by when it was recorded.
        videos: images as video files, or else as PNG, which is lossless.
    """

    robot: str
    rate_hz: float = 0.0
    action: str = "commanded"
    frame: str = "arm"
    views: Mapping[str, str] = field(default_factory=dict)
    max_gap_s: float = 0.25
    split: bool = False
    min_length_s: float = 1.0
    task: str = ""
    namespace: str = ""
    topics: Mapping[str, str] = field(default_factory=dict)
    joint_map: tuple[str, ...] = ()
    stamps: str = "header"
    videos: bool = True

    def __post_init__(self) -> None:
        embodiment(self.robot)
        for name, known in (("action", ACTIONS), ("frame", tuple(FRAMES)), ("stamps", STAMPS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name, low in (("rate_hz", 0.0), ("min_length_s", 0.0), ("max_gap_s", 0.02)):
            if not low <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {low:g}")
        if self.rate and self.rate != round(self.rate):
            raise ValueError(f"a rate of {self.rate:g} Hz: a LeRobotDataset has whole frames a second")

    @property
    def embodiment(self) -> Embodiment:
        """The robot."""
        return embodiment(self.robot)

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.rate_hz or self.embodiment.rate_hz

    @property
    def model_frame(self) -> ModelFrame:
        """The joint frame of states and actions."""
        return FRAMES[self.frame]

    def text(self) -> str:
        """All of it as JSON: two exports with the same text make the same of a bag."""
        return json.dumps(asdict(self), sort_keys=True)
