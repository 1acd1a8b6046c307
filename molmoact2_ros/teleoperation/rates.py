"""lerobot's gamepad and keyboard as a leader: the tip's velocity that a person asks for, summed up to joint set-points.

While it does not drive it is where the arm is, so it always matches. The tip is moved along the axes of the robot's
base (x forward, y left, z up); its turn follows from the joints that move least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from molmoact2_ros.drivers.driver import Array, DriverError, Reading, StaleError
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.franka_droid import FrankaDroid

DAMPING = 0.03
"""Of the inverse of the Jacobian, m: near a singular pose the tip goes slower, and no joint goes wild."""
STEP_RAD = 1e-5
LONGEST_S = 0.1
"""A longer time between two reads moves the arm by no more than this."""
GAMEPAD_AXES = np.eye(3)
KEYBOARD_AXES = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""lerobot's deltas to forward, left, up. Its keyboard counts the up arrow as -y and the left one as +x."""
CLOSE, OPEN = 0, 2


class RateLeader:
    """See `Teleoperator`.

    Args:
        robot: with one arm.
        make: makes lerobot's teleoperator, whose actions are `delta_x`, `delta_y`, `delta_z` and `gripper`.
        axes: its deltas to forward, left, up, (3, 3).
        speed: of the tip at a full deflection, m/s. gripper_speed: strokes a second.
        now_ns: clock of the readings' stamps, ns.

    Raises:
        ValueError: the robot has several arms.
    """

    def __init__(
        self,
        robot: Embodiment,
        make: Callable[[], Any],
        axes: Array,
        speed: float,
        gripper_speed: float,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if len(robot.arms) != 1:
            raise ValueError(f"a gamepad or a keyboard drives one arm, and {robot.name} has {len(robot.arms)}")
        self._robot, self._make, self._axes, self._now_ns = robot, make, axes, now_ns
        self._speed, self._gripper_speed = speed, gripper_speed
        self._device: Any = None
        self._target: Array | None = None
        self._last_ns = 0
        limits = robot.limits
        self._lower, self._upper = limits.lower, limits.upper
        self._gripper = robot.gripper_indices[0]
        opened = robot.gripper.opened if isinstance(robot, FrankaDroid) else limits.upper[self._gripper]
        self._opens = 1.0 if opened > limits.lower[self._gripper] else -1.0

    def connect(self) -> None:
        """See `Teleoperator`."""
        self.disconnect()
        try:
            device = self._make()
            device.connect()
        except DriverError:
            raise
        except Exception as error:  # lerobot, pygame and pynput raise what they like
            raise DriverError(" ".join(str(error).split()) or repr(error)) from error
        controller = getattr(device, "gamepad", None)
        if not device.is_connected or (controller is not None and not controller.running):
            raise DriverError(
                f"lerobot's {device.name} found no device; is the gamepad plugged in, or, for the keyboard, is this an "
                "X11 session?"
            )
        self._device = device

    def lead(self, arm: Array | None, drives: bool) -> Reading:
        """See `Teleoperator`."""
        if self._device is None:
            raise StaleError("not connected")
        now_ns = self._now_ns()
        try:
            action = self._device.get_action()
        except Exception as error:  # it may have been unplugged
            raise StaleError(f"{self._device.name}: {error!r}") from error
        gone_s, self._last_ns = min(max((now_ns - self._last_ns) * 1e-9, 0.0), LONGEST_S), now_ns
        if not drives or self._target is None:
            if arm is None:
                raise StaleError("where the arm is is not known yet; does its driver publish joint_states?")
            self._target = np.clip(arm, self._lower, self._upper)
        else:
            self._target = self._moved(self._target, action, gone_s)
        return Reading(now_ns, self._target.copy())

    def follow(self, positions: Array) -> None:
        """See `Teleoperator`: it has no motors."""

    def release(self) -> None:
        """See `Teleoperator`."""

    def disconnect(self) -> None:
        """See `Teleoperator`."""
        device, self._device = self._device, None
        self._target = None
        if device is not None:
            try:
                device.disconnect()
            except Exception:  # it may be gone; there is nobody left to tell
                return

    def close(self) -> None:
        """See `Teleoperator`."""
        self.disconnect()

    def _moved(self, position: Array, action: dict[str, Any], gone_s: float) -> Array:
        deltas = np.array([float(action[f"delta_{axis}"]) for axis in "xyz"])
        if not np.all(np.isfinite(deltas)):
            raise StaleError(f"{self._device.name} gives {deltas}")
        wanted = np.clip(self._axes @ deltas, -1.0, 1.0) * self._speed * gone_s
        out = position.copy()
        if wanted.any():
            chain, joints = self._robot.chains[0]
            here = position[list(joints)]
            tips = chain.tip(here + STEP_RAD * np.vstack((np.zeros(len(joints)), np.eye(len(joints)))))[:, :3, 3]
            jacobian = (tips[1:] - tips[0]).T / STEP_RAD
            square = jacobian @ jacobian.T + DAMPING**2 * np.eye(3)
            out[list(joints)] += jacobian.T @ np.linalg.solve(square, wanted)
        way = {CLOSE: -1.0, OPEN: 1.0}.get(int(action.get("gripper", 1)), 0.0)
        stroke = self._upper[self._gripper] - self._lower[self._gripper]
        out[self._gripper] += way * self._opens * self._gripper_speed * stroke * gone_s
        return np.clip(out, self._lower, self._upper)
