"""The part of the Franka driver that talks to the control box, in processes of its own.

libfranka's Python binding holds the interpreter while it waits, a millisecond at a time for the arm and whole motions
for the hand, so neither may share a process with anything else. `FrankaLink` is what the driver and they exchange.

    python -m molmoact2_ros.drivers.franka_loop arm|hand <address> <name of the link> [realtime]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

JOINTS = 7
MODES = ("Other", "Idle", "Move", "Guiding", "Reflex", "UserStopped", "AutomaticErrorRecovery")
BOX, ORDER = 20, 3
"""Set-points come at 100 Hz; three moving averages over 20 ms make a curve of them whose acceleration is continuous, as
the box demands. They come 30 ms later for it."""
GRASP_SPEED, GRASP_FORCE, HYSTERESIS, SETTLED_S = 0.1, 30.0, 0.005, 0.2
"""Of the hand: m/s, N, the least change of the width that starts a motion, m, and how long a width must stay the same
to be reached exactly, s: a motion of the hand blocks it, so not every set-point can be one."""
SILENCE = "communication_constraints_violation"
"""The error of a box whose commands did not come in time."""
_RETRY_S = 0.2


class FrankaLink:
    """Shared memory between the driver and its two processes. Times are ROS time in ns, positions rad and m.

    Attributes:
        state: stamp of the newest state, number of states, mode, controlling (0 or 1), q (7), dq (7).
        hand: half of the width between the fingers, and the stamp of that reading.
        command: number of commands, q (7), half of the width.
        recover: how often the driver has asked for error recovery, and how often it was done.
    """

    _SIZE, _TEXT = 64, 512

    def __init__(self, name: str, create: bool) -> None:
        self._memory = shared_memory.SharedMemory(name=name, create=create, size=8 * self._SIZE + self._TEXT)
        if not create:  # the driver removes it; Python's tracker would do so when this process ends
            resource_tracker.unregister(self._memory._name, "shared_memory")  # type: ignore[attr-defined]
        self._owner = create
        self._values: Array = np.ndarray((self._SIZE,), np.float64, self._memory.buf)
        self._stamps: NDArray[np.int64] = np.ndarray((self._SIZE,), np.int64, self._memory.buf)
        self._words: NDArray[np.uint8] = np.ndarray((self._TEXT,), np.uint8, self._memory.buf, 8 * self._SIZE)
        self.state, self.hand = self._values[0:18], self._values[20:22]
        self.command, self.recover = self._values[24:33], self._values[40:42]

    @property
    def stamp_ns(self) -> int:
        """When the newest state came."""
        return int(self._stamps[50])

    @stamp_ns.setter
    def stamp_ns(self, value: int) -> None:
        self._stamps[50] = value

    @property
    def text(self) -> str:
        """What the box complains about."""
        return self._words.tobytes().rstrip(b"\0").decode(errors="replace")

    @text.setter
    def text(self, value: str) -> None:
        data = value.encode()[: self._TEXT]
        self._words[:] = np.frombuffer(data.ljust(self._TEXT, b"\0"), np.uint8)

    def close(self) -> None:
        """Let go of the memory; the driver removes it."""
        del self.state, self.hand, self.command, self.recover, self._values, self._stamps, self._words
        self._memory.close()
        if self._owner:
            with suppress(FileNotFoundError):
                self._memory.unlink()


class Smoother:
    """Moving averages in a row over set-points, one `step` a millisecond. Starts at rest at `start` (7,)."""

    def __init__(self, start: Array) -> None:
        self._buffers = np.tile(start, (ORDER, BOX, 1))
        self._sums = self._buffers.sum(axis=1)
        self._next = 0

    def step(self, target: Array) -> Array:
        """Take the present set-point; return the position to command now."""
        value = target
        for order in range(ORDER):
            self._sums[order] += value - self._buffers[order, self._next]
            self._buffers[order, self._next] = value
            value = self._sums[order] / BOX
        self._next = (self._next + 1) % BOX
        return value


class ArmLoop:
    """Reads states at 1 kHz and, while the robot lets it, holds or moves it."""

    def __init__(self, franka: Any, robot: Any, link: FrankaLink) -> None:
        self._franka, self._robot, self._link = franka, robot, link
        self._control: Any = None
        self._smoother = Smoother(np.zeros(JOINTS))
        self._held: Array = np.zeros(JOINTS)
        self._taken = 0.0
        self._blocked_until = 0.0
        self._seen = False

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
                self._begin(state)
            return
        try:
            state, passed = self._control.readOnce()
            self._note(state)
            for _ in range(max(1, min(round(1e3 * passed.to_sec()), 5))):
                position = self._smoother.step(self._target())
            self._control.writeOnce(self._franka.JointPositions(position.tolist()))
        except self._franka.NetworkException:
            raise
        except RuntimeError as error:  # reflex, user stop: states go on, commands do not
            self._link.text = str(error)
            self._control = None

    def finish(self) -> None:
        """End the motion as the box wants it."""
        if self._control is None:
            return
        with suppress(RuntimeError):
            last = self._franka.JointPositions(self._smoother.step(self._held).tolist())
            last.motion_finished = True
            self._control.readOnce()
            self._control.writeOnce(last)
        self._control = None

    def _begin(self, state: Any) -> None:
        start = np.array(state.q_d)
        self._held, self._taken = start, float(self._link.command[0])  # commands of before do not count any more
        self._smoother = Smoother(start)
        self._blocked_until = time.monotonic() + _RETRY_S
        try:
            self._control = self._robot.start_joint_position_control(self._franka.ControllerMode.JointImpedance)
        except self._franka.NetworkException:
            raise
        except RuntimeError as error:
            self._link.text = str(error)
        else:
            self._link.text = ""

    def _target(self) -> Array:
        if self._link.command[0] > self._taken:
            self._taken, self._held = float(self._link.command[0]), self._link.command[1:8].copy()
        return self._held

    def _recover(self) -> None:
        asked = float(self._link.recover[0])
        self._control = None
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
        link.state[4:11], link.state[11:18] = state.q, state.dq
        link.state[2] = MODES.index(state.robot_mode.name)
        link.state[3] = float(self._control is not None)
        link.stamp_ns = time.time_ns()
        link.state[1] += 1.0


def _errors(state: Any) -> str:
    return str(state.current_errors).strip("[]").replace('"', "")


def run_arm(address: str, link: FrankaLink, realtime: bool, ended: list[int]) -> None:
    """Serve the arm until a signal, or until the box is lost."""
    import pylibfranka

    config = pylibfranka.RealtimeConfig.kEnforce if realtime else pylibfranka.RealtimeConfig.kIgnore
    robot = pylibfranka.Robot(address, config)
    loop = ArmLoop(pylibfranka, robot, link)
    while not ended:
        loop.step()
    loop.finish()


def run_hand(address: str, link: FrankaLink, ended: list[int]) -> None:
    """Serve the hand until a signal: a motion when the wanted width changes, readings in between.

    Closing is a grasp, which holds what is in the way with a force; opening is a motion.
    """
    import pylibfranka

    gripper = pylibfranka.Gripper(address)
    present = gripper.read_once().width
    link.hand[:] = present / 2.0, 1.0
    link.command[8] = present / 2.0
    sent = last = present
    since = time.monotonic()
    while not ended:
        wanted = 2.0 * float(link.command[8])
        if wanted != last:
            last, since = wanted, time.monotonic()
        least = 0.0005 if time.monotonic() - since > SETTLED_S else HYSTERESIS
        if abs(wanted - sent) > least:
            closing, sent = wanted < sent, wanted
            with suppress(pylibfranka.CommandException):
                if closing:
                    gripper.grasp(wanted, GRASP_SPEED, GRASP_FORCE, 0.08, 0.08)
                else:
                    gripper.move(wanted, GRASP_SPEED)
        link.hand[0] = gripper.read_once().width / 2.0


def main() -> None:
    """Entry point of both processes."""
    part, address, name = sys.argv[1:4]
    link = FrankaLink(name, create=False)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.append(1))
    try:
        if part == "arm":
            run_arm(address, link, "realtime" in sys.argv[4:], ended)
        else:
            run_hand(address, link, ended)
    except Exception as error:  # libfranka raises what it likes; the driver reads it on this line
        print(" ".join(str(error).split()), flush=True)
        os._exit(1)  # a binding that waits for the box would not let the process end


if __name__ == "__main__":
    main()
