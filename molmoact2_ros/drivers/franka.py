"""A Franka arm without ROS on its side: pylibfranka, for machines that have no franka_ros2.

Processes of their own talk to the control box: for the arm at 1 kHz (`franka_loop`), and for the hand and its stops
(`franka_hand`); this side exchanges states and set-points with them. A reading is fresh when its state came after it
was asked for; a box that has fallen silent ends the arm's process, and the arm is connected anew. A hand that is lost
is connected anew by itself, while the arm holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import Array, DriverError, Health, Reading, StaleError, hardware_package
from molmoact2_ros.drivers.franka_hand import HOMED
from molmoact2_ros.drivers.franka_link import MODES, FrankaLink
from molmoact2_ros.drivers.franka_modes import meaning
from molmoact2_ros.embodiments import embodiment

_POLL_S = 0.0005
_TAKES_S = 0.05
"""States come every millisecond; one that takes so long is missing."""
_RECOVERS_S = 4.0
"""While the box recovers from an error it gives no states; it takes so long at most."""
_BEGINS_S = 0.6
"""Control of an idle robot begins within this time, or something is in the way."""
_HAND_S, _HAND_MOTION_S = 1.0, 5.0
"""Readings of a hand at rest are never older; a motion over the whole width takes less than a second."""
_RESTART_S = 1.0


@dataclass(frozen=True)
class FrankaConfig:
    """How the arm is reached.

    Attributes:
        address: IP address of the control box (the shop floor network, not the robot's own page).
        robot: name of the embodiment.
        hand: a Franka Hand is mounted; otherwise the gripper's joint reads 0 and is not moved.
        realtime: insist on a real-time kernel, as libfranka does; False is for emulators.
        start_s: the box must answer within this time.
    """

    address: str
    robot: str = "franka"
    hand: bool = True
    realtime: bool = True
    start_s: float = 10.0


class FrankaDriver:
    """See `drivers.driver.Driver`. `now_ns` must be system time, the clock of the other processes.

    `user_stopped`, `begin_recovery` and `recovery` may be called from any thread, the rest from one.
    """

    def __init__(self, config: FrankaConfig, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.config, self._now_ns = config, now_ns
        self.robot = embodiment(config.robot)
        self._lock = threading.Lock()  # the link lives and dies under it
        self._link: FrankaLink | None = None
        self._arm: subprocess.Popen[str] | None = None
        self._hand: subprocess.Popen[str] | None = None
        self._stopper: subprocess.Popen[str] | None = None
        self._hand_error, self._hand_due = "", 0.0
        self._uncontrolled_since: float | None = None

    # -- Driver -------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start the processes; the arm holds where it is as soon as its mode lets it."""
        self.disconnect()
        hardware_package("pylibfranka", "franka", "pylibfranka")
        if not self.config.address:
            raise DriverError("no address of the control box; set robot_ip (and leave out franka_ros2)")
        link = FrankaLink(f"molmoact2_franka_{os.getpid()}_{time.monotonic_ns()}", create=True)
        with self._lock:
            self._link = link
        arguments = [self.config.robot, *(["realtime"] if self.config.realtime else [])]
        self._arm = self._spawn("franka_loop", [self.config.address, link.name, *arguments])
        if self.config.hand:
            self._start_hand()
        begun = time.monotonic()
        while not link.state[0] or (self.config.hand and not (link.hand[3] and link.hand[4])):
            for process, what in ((self._arm, "arm"), (self._hand, "hand"), (self._stopper, "hand")):
                if process is not None and process.poll() is not None:
                    said = _last_words(process)
                    self.disconnect()
                    raise DriverError(
                        f"Franka {self.config.address}, {what}: {said or 'libfranka ended'}{_advice(said)}"
                    )
            if time.monotonic() > begun + self.config.start_s:
                self.disconnect()
                raise DriverError(f"Franka {self.config.address} gives no state; is FCI activated in Desk?")
            time.sleep(0.005)
        begun = time.monotonic()
        while MODES[int(link.state[1])] == "Idle" and not link.state[2] and time.monotonic() < begun + _BEGINS_S:
            time.sleep(0.005)

    def read(self) -> Reading:
        """See `Driver`. While the box recovers from an error this waits for it."""
        link, asked = self._alive(), self._now_ns()
        deadline = time.monotonic() + _TAKES_S
        latest = time.monotonic() + _RECOVERS_S
        while link.stamp_ns <= asked:
            now = time.monotonic()
            if link.recover[1] < link.recover[0] and now < latest:
                deadline = now + _TAKES_S
            if now > deadline:
                raise StaleError(f"no state of the robot for {(self._now_ns() - link.stamp_ns) * 1e-9:.2f} s")
            self._alive()
            time.sleep(_POLL_S)
        if link.state[2] or MODES[int(link.state[1])] != "Idle":
            self._uncontrolled_since = None
        elif self._uncontrolled_since is None:
            self._uncontrolled_since = time.monotonic()
        positions = np.append(link.state[3:10], link.hand[0])
        return Reading(link.stamp_ns, positions, np.append(link.state[10:17], 0.0))

    def write(self, positions: Array) -> None:
        """See `Driver`. While the robot is stopped, guided, in reflex or not controlled, nothing goes out, nor to the
        hand: StaleError."""
        link = self._alive()
        if not link.state[2]:
            raise StaleError(f"the robot takes no commands: {self._why_not(link)}")
        link.send(np.asarray(positions, dtype=np.float64), time.monotonic_ns())

    def hold(self, positions: Array) -> None:
        """Instead of `write`, to stop: the arm as fast as its limits allow, a motion of the hand at once.

        Where that is, is theirs to say; `positions` (8,) are where the arm was. What the hand holds stays held. A robot
        that is not controlled has stopped by itself, and holds where it is when it is controlled again.

        Raises:
            StaleError: the box is not connected.
        """
        link = self._alive()
        if not link.holds[0] or link.command[9] != link.holds[1]:  # otherwise the last hold still counts
            link.hold()
        if link.busy_since_ns:
            self._stop_hand()

    def confirms(self, positions: Array) -> bool:
        """See `Driver`: the arm's process has taken the last hold. What is not controlled has nothing to take."""
        link = self._alive()
        return not link.state[2] or bool(link.holds[2] == link.holds[0])

    def health(self) -> Health:
        """The robot's mode: what is not controlled must not be armed, and a reflex must be looked at first."""
        link = self._alive()
        index, controlling = int(link.state[1]), bool(link.state[2])
        steps, planned, braked, mean_us, worst_us = link.steps
        values: dict[str, object] = {
            "robot_mode": MODES[index],
            "controlled": controlling,
            "states": int(link.state[0]),
            "commands_at_limits": int(planned + braked),
            "commands_sent": int(steps),
            "filter_us": f"{mean_us:.0f}, at most {worst_us:.0f}",
        }
        hand = self._look_after_hand(link)
        if link.recover[1] < link.recover[0]:
            return Health(Level.ERROR, "recovering from an error", values)
        mode = meaning(index, [link.text] if link.text else [])
        if mode.fault:
            return Health(Level.ERROR, mode.fault, values)
        if mode.stopped:
            return Health(Level.WARN, "user stop is pressed; release it", values)
        if not controlling:
            since = self._uncontrolled_since
            lasts = since is not None and time.monotonic() - since > _BEGINS_S
            return Health(Level.ERROR if lasts else Level.WARN, self._why_not(link), values)
        if hand:
            return Health(Level.ERROR, hand, values)
        if link.hand_text:
            return Health(Level.WARN, f"hand: {link.hand_text}", values)
        return Health(Level.OK, f"mode {MODES[index]}", values)

    def disconnect(self) -> None:
        """See `Driver`. The arm is brought to rest first; the hand ends its motion by itself."""
        arm, self._arm = self._arm, None
        if arm is not None:
            arm.send_signal(signal.SIGTERM)
        self._end_hand()
        if arm is not None:
            try:
                arm.wait(2.0)
            except subprocess.TimeoutExpired:  # libfranka waits for a box that is gone
                arm.kill()
            _bury(arm)
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                link.close()
        self._uncontrolled_since = None

    def close(self) -> None:
        """See `Driver`."""
        self.disconnect()

    # -- any thread ---------------------------------------------------------------------------------------------------

    @property
    def user_stopped(self) -> bool:
        """True while the user stop (or the enabling switch) holds the robot."""
        with self._lock:
            return self._link is not None and MODES[int(self._link.state[1])] == "UserStopped"

    def begin_recovery(self) -> tuple[str, float]:
        """Ask the box to recover from an error, and do not wait; `recovery` tells what came of it.

        Raises:
            StaleError: the box is not connected.
        """
        with self._lock:
            if self._link is None:
                raise StaleError(f"Franka {self.config.address} is not connected; it connects by itself")
            self._link.recover[0] += 1.0
            return self._link.name, float(self._link.recover[0])

    def recovery(self, asked: tuple[str, float]) -> str | None:
        """What came of what `begin_recovery` returned: None while it lasts, why it failed, or an empty string."""
        with self._lock:
            link = self._link
            if link is None or link.name != asked[0]:
                return "the connection was lost meanwhile; it comes back by itself"
            return link.text if link.recover[1] >= asked[1] else None

    # -- the processes ------------------------------------------------------------------------------------------------

    def _why_not(self, link: FrankaLink) -> str:
        text = link.text
        return f"not controlled, mode {MODES[int(link.state[1])]}{': ' + text if text else ''}"

    def _alive(self) -> FrankaLink:
        if self._link is None or self._arm is None or self._arm.poll() is not None:
            raise StaleError(f"Franka {self.config.address}: the connection is lost; are box and network up?")
        return self._link

    def _start_hand(self) -> None:
        assert self._link is not None
        arguments = [self.config.address, self._link.name]
        self._hand = self._spawn("franka_hand", ["move", *arguments])
        self._stopper = self._spawn("franka_hand", ["stop", *arguments], subprocess.PIPE)

    def _end_hand(self) -> None:
        for process in (self._hand, self._stopper):
            if process is not None:
                process.kill()  # a motion would not let it end otherwise, and it owns nothing
                _bury(process)
        self._hand = self._stopper = None

    def _stop_hand(self) -> None:
        if self._stopper is not None and self._stopper.stdin is not None:
            with suppress(OSError):
                self._stopper.stdin.write("stop\n")
                self._stopper.stdin.flush()

    def _look_after_hand(self, link: FrankaLink) -> str:
        """Why the hand cannot be used, or an empty string; starts what has ended, and stops what does not end."""
        if not self.config.hand:
            return ""
        now = time.monotonic()
        ended = [p for p in (self._hand, self._stopper) if p is not None and p.poll() is not None]
        if ended and now >= self._hand_due:
            self._hand_due = now + _RESTART_S
            self._hand_error = _last_words(ended[0]) or "its process ended"
            self._end_hand()
            link.busy_since_ns = link.hand_stamp_ns = 0
            link.hand[4] = 0.0
            self._start_hand()
        busy_s = (self._now_ns() - link.busy_since_ns) * 1e-9 if link.busy_since_ns else 0.0
        silent_s = (self._now_ns() - link.hand_stamp_ns) * 1e-9
        if busy_s > _HAND_MOTION_S:
            self._stop_hand()
            return f"Franka Hand: a motion does not end ({busy_s:.0f} s); what blocks it?"
        if not busy_s and silent_s > _HAND_S:
            since = f"for {silent_s:.1f} s" if link.hand_stamp_ns else "since it was lost"
            because = f": {self._hand_error}" if self._hand_error else ""
            return f"Franka Hand: no reading {since}{because}; is it connected and initialised in Desk?"
        if not link.hand[4]:
            return "Franka Hand: it cannot be stopped yet; its process is starting"
        self._hand_error = ""
        if link.hand[1] < HOMED:
            return "Franka Hand: homing was never done; home it in Desk, then the arm can be armed"
        return ""

    def _spawn(self, module: str, arguments: list[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"molmoact2_ros.drivers.{module}", *arguments]
        with suppress(OSError):
            return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True)
        raise DriverError(f"cannot start {command[0]}")


def _bury(process: subprocess.Popen[str]) -> None:
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _last_words(process: subprocess.Popen[str]) -> str:
    """What an ended process said."""
    return process.stdout.read().strip() if process.stdout is not None else ""


def _advice(said: str) -> str:
    if "realtime" in said.lower() or "real-time" in said.lower() or "scheduling" in said.lower():
        return " (molmoact2 doctor --robot franka)"
    if "refused" in said.lower() or "timeout" in said.lower() or "host" in said.lower():
        return "; is FCI activated in Desk, and this machine in the box's network?"
    return ""
