"""SO-100/101 leader arm: lerobot's `SO101Leader`, unmodified, on the guarded serial port of the follower's driver.

Readings are proven fresh as the follower's are (`drivers/so101.py`). The leader has no torque, but while it is asked to
follow the arm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from molmoact2_ros.drivers.driver import Array, DriverError, Reading
from molmoact2_ros.drivers.so101 import So101Driver
from molmoact2_ros.drivers.so101_servos import aim_where_it_is, keeping_torque
from molmoact2_ros.embodiments import ModelFrame


class SoLeader(So101Driver):
    """See `Teleoperator`."""

    LEADER: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._holds = False

    def _make_follower(self, port: str, folder: Path) -> Any:
        from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

        # A retry inside lerobot would take an answer to the first try for one to the second.
        config = SO101LeaderConfig(
            port=port, id=self.config.calibration_id, calibration_dir=folder, use_degrees=True, num_read_retries=0
        )
        try:
            return SO101Leader(config)
        except Exception as error:  # it reads the calibration again, which may have changed meanwhile
            raise DriverError(f"leader on {port}: {error}") from error

    def _power(self, follower: Any, port: str) -> None:
        """Take its torque and give it lerobot's settings."""
        follower.configure()
        self._holds = False

    # -- Teleoperator -------------------------------------------------------------------------------------------------

    def lead(self, arm: Array | None, drives: bool) -> Reading:
        """See `Teleoperator`."""
        return self.read()

    def follow(self, positions: Array) -> None:
        """See `Teleoperator`. With torque a servo goes to its last goal: it gets a new one first."""
        if not self._holds:
            self._exchange("the leader's goals", aim_where_it_is)
            self._exchange("the leader's torque", lambda _: self._follower.enable_torque())
            self._holds = True
        vector = self.robot.model_from_joints(positions, ModelFrame.ARM)
        if self._range is not None:
            vector = self._range.keep(vector)
        goals = {f"{name}.pos": float(value) for name, value in zip(self.robot.joint_names, vector, strict=True)}
        self._exchange("the leader's goals", lambda _: self._follower.send_feedback(goals))

    def release(self) -> None:
        """See `Teleoperator`."""
        if self._holds:
            self._exchange("the leader's torque", lambda _: self._follower.disable_torque())
            self._holds = False

    def close(self) -> None:
        """See `Teleoperator`."""
        kept = keeping_torque(self._follower.bus) if self._holds and self._follower is not None else ""
        self._holds = False
        self.disconnect()
        if kept:
            raise DriverError(f"{kept}: the leader on {self.config.port} still holds; switch its power off")
