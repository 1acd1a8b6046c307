"""An arm that only remembers what it was told, as a lerobot robot: lerobot's client cannot be made without one.

lerobot finds the class of a robot by the name of its configuration and looks for it in a module of the class's name,
hence the name of this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot


@RobotConfig.register_subclass("molmoact2_replay_arm")
@dataclass(kw_only=True)
class ReplayArmConfig(RobotConfig):
    """`joints`: its joint names. `start`: where it stands, rad."""

    joints: list[str] = field(default_factory=list)
    start: list[float] = field(default_factory=list)


class ReplayArm(Robot):
    """Does at once what it is told; `position` (dof,) is the last action."""

    config_class = ReplayArmConfig
    name = "molmoact2_replay_arm"

    def __init__(self, config: ReplayArmConfig) -> None:
        super().__init__(config)
        self._joints = list(config.joints)
        self.position = np.array(config.start, dtype=np.float64)

    @property
    def observation_features(self) -> dict[str, Any]:
        """One figure a joint."""
        return {f"{name}.pos": float for name in self._joints}

    @property
    def action_features(self) -> dict[str, Any]:
        """One figure a joint."""
        return self.observation_features

    def get_observation(self) -> dict[str, Any]:
        """Where it stands."""
        return dict(zip(self.observation_features, self.position.tolist(), strict=True))

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Stand where `action` says."""
        self.position = np.array([action[key] for key in self.action_features], dtype=np.float64)
        return action

    is_connected = True
    is_calibrated = True

    def connect(self, calibrate: bool = True) -> None:
        """Nothing to do."""

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def disconnect(self) -> None:
        """Nothing to do."""
