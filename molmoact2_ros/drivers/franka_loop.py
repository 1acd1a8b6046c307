"""The part of the Franka driver that talks to the control box at 1 kHz, in a process of its own.

libfranka's Python binding holds the interpreter while it waits, a millisecond at a time, so nothing else may share it.

    python -m molmoact2_ros.drivers.franka_loop <address> <name of the link> <name of the robot> [realtime]
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.drivers.franka_filter import SetpointFilter
from molmoact2_ros.drivers.franka_link import MODES, FrankaLink
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.franka_droid import ARM_JOINTS, ArmModel, FrankaDroid

Array = NDArray[np.float64]

SILENCE = "communication_constraints_violation"
"""The error of a box whose commands did not come in time."""
REST = 1e-6
"""Rad/s."""
RETRY_S = 0.2
FINISH_S = 1.5
"""So long the arm may take to come to rest before its motion is ended."""


class ArmLoop:
    """Reads states at 1 kHz and, while the robot lets it, holds or moves it.

    Args:
        franka: pylibfranka, or what stands in for it.
        robot: its Robot.
        arm: whose limits are kept.
        link: what is exchanged with the driver.
    """

    def __init__(self, franka: Any, robot: Any, arm: ArmModel, link: FrankaLink) -> None:
        self._franka, self._robot, self._arm, self._link = franka, robot, arm, link
        self._control: Any = None
        self._filter: SetpointFilter | None = None
        self._taken = self._held = 0.0
        self._blocked_until = 0.0
        self._seen = False
        self._cost_us = 0.0

    def step(self) -> None:
        """One state, and one command where the robot is controlled. Raises NetworkException when the box is lost.

        The binding's exceptions have nothing in common but RuntimeError."""
        if self._link.recover[0] > self._link.recover[1]:
            self._recover()
        if self._control is None:
            state = self._robot.read_once()
            self._note(state)
            if state.robot_mode.name == "Reflex":
                self._link.text = _errors(state)
                if not self._seen and _errors(state) == SILENCE:
                    self._recover()  # the box stopped because an earlier connection broke off; nothing was touched
            self._seen = True
            if state.robot_mode.name == "Idle" and time.monotonic() >= self._blocked_until:
                self._begin()
            return
        try:
            state, _ = self._control.readOnce()
            self._note(state)
            self._control.writeOnce(self._franka.JointPositions(self._next(state)))
        except self._franka.NetworkException:
            raise
        except RuntimeError as error:  # reflex, user stop: states go on, commands do not
            self._link.text = str(error)
            self._control = self._filter = None

    def finish(self) -> None:
        """Bring the arm to rest and end its motion as the box wants it."""
        deadline = time.monotonic() + FINISH_S
        with suppress(RuntimeError):
            while self._control is not None:
                state, _ = self._control.readOnce()
                self._note(state)
                if self._filter is not None:
                    self._filter.hold()
                last = self._franka.JointPositions(self._next(state, take=False))
                rests = self._filter is None or np.abs(self._filter.velocity).max() < REST
                if rests or time.monotonic() > deadline:
                    last.motion_finished = True
                self._control.writeOnce(last)
                if last.motion_finished:
                    break
        self._control = None

    def _next(self, state: Any, take: bool = True) -> list[float]:
        """The position to command after `state`."""
        begun = time.perf_counter()
        link, now = self._link, time.monotonic()
        wanted = np.array(state.q_d)
        if self._filter is None:
            self._filter = SetpointFilter(self._arm, wanted)
        else:
            self._filter.told(wanted, np.array(state.dq_d), np.array(state.ddq_d))
        if take:
            if link.holds[0] > self._held:
                self._held, self._taken = float(link.holds[0]), float(link.holds[1])
                self._filter.hold()
                link.holds[2] = self._held
            elif (found := link.take(self._taken)) is not None:
                self._taken = found[0]
                self._filter.setpoint(found[1][:ARM_JOINTS], found[2] * 1e-9)
        out: list[float] = self._filter.step(now).tolist()
        taken_us = (time.perf_counter() - begun) * 1e6
        self._cost_us += 0.01 * (taken_us - self._cost_us)
        link.steps[:4] = self._filter.steps, self._filter.planned, self._filter.braked, self._cost_us
        link.steps[4] = max(link.steps[4], taken_us)
        return out

    def _begin(self) -> None:
        # Commands and holds of before do not count any more: the arm stays where it is.
        self._taken = float(self._link.command[9])
        self._held = self._link.holds[2] = float(self._link.holds[0])
        self._filter = None
        self._blocked_until = time.monotonic() + RETRY_S
        try:
            self._control = self._robot.start_joint_position_control(self._franka.ControllerMode.JointImpedance)
        except self._franka.NetworkException:
            raise
        except RuntimeError as error:
            self._link.text = str(error)
        else:
            self._link.text = ""

    def _recover(self) -> None:
        asked = float(self._link.recover[0])
        self._control = self._filter = None
        try:
            self._robot.automatic_error_recovery()
            self._link.text = ""
        except self._franka.NetworkException:
            raise
        except RuntimeError as error:
            self._link.text = str(error)
        self._link.recover[1] = asked

    def _note(self, state: Any) -> None:
        link = self._link
        link.state[3:10], link.state[10:17] = state.q, state.dq
        link.state[1] = MODES.index(state.robot_mode.name)
        link.state[2] = float(self._control is not None)
        link.stamp_ns = time.time_ns()
        link.state[0] += 1.0


def _errors(state: Any) -> str:
    return str(state.current_errors).strip("[]").replace('"', "")


def run_arm(address: str, link: FrankaLink, arm: ArmModel, realtime: bool, ended: list[int]) -> None:
    """Serve the arm until a signal, until the driver has gone, or until the box is lost."""
    import pylibfranka

    config = pylibfranka.RealtimeConfig.kEnforce if realtime else pylibfranka.RealtimeConfig.kIgnore
    robot = pylibfranka.Robot(address, config)
    loop = ArmLoop(pylibfranka, robot, arm, link)
    parent = os.getppid()
    gc.disable()  # a collection takes milliseconds, and nothing here makes circles
    while not ended and os.getppid() == parent:
        loop.step()
    loop.finish()


def main() -> None:
    """Entry point of the process."""
    address, name, robot = sys.argv[1:4]
    link = FrankaLink(name, create=False)
    described = embodiment(robot)
    assert isinstance(described, FrankaDroid)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.append(1))
    try:
        run_arm(address, link, described.arm, "realtime" in sys.argv[4:], ended)
    except Exception as error:  # libfranka raises what it likes; the driver reads it on this line
        print(" ".join(str(error).split()), flush=True)
        os._exit(1)  # a binding that waits for the box would not let the process end


if __name__ == "__main__":
    main()
