"""The part of the Franka driver that talks to the Franka Hand, in two processes of their own.

A motion of the hand blocks its caller, and libfranka's Python binding holds the interpreter meanwhile; its `stop` is
for another thread of the same connection, which Python therefore cannot give it. So one process moves and reads the
hand, and a second one waits, with everything loaded, to open a connection of its own and stop a motion that is under
way. It does so only then: a hand at rest, and one that has taken hold of something, is left alone.

    python -m molmoact2_ros.drivers.franka_hand move|stop <address> <name of the link>
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from molmoact2_ros.drivers.franka_link import FrankaLink

GRASP_SPEED, GRASP_FORCE, EPSILON = 0.1, 30.0, 0.08
"""M/s of the width, N, and how far from the wanted width something may be to count as grasped, m."""
HYSTERESIS, FINE, SETTLED_S = 0.005, 0.0005, 0.2
"""The least change of the width that starts a motion, m, and how long a width must stay the same to be reached exactly,
s: a motion blocks the hand, so not every set-point can be one."""
HELD = 0.002
"""A grasp that ended so far from its width has something between the fingers, m. `is_grasped` says no more than that
it ended within EPSILON."""
KEEP = 0.005
"""A wanted width so close to that of what is held means to go on holding it, m."""
TRIES, RETRY_S = 3, 0.3
HOMED = 0.01
"""The hand finds its largest width, m, by homing; before that it gives none."""
STOP_S, AGAIN_S = 2.0, 0.02


class HandLoop:
    """Follows the wanted width in motions. Closing is a grasp, which holds what is in the way with a force; opening is
    a motion.

    Args:
        gripper: pylibfranka's Gripper, or what stands in for it.
        refusal: the exception of a motion that was refused or aborted.
        link: what is exchanged with the driver.
        now_s: monotonic time, s.
    """

    def __init__(
        self, gripper: Any, refusal: type[Exception], link: FrankaLink, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._gripper, self._refusal, self._link, self._now_s = gripper, refusal, link, now_s
        self._taken, self._held = float(link.command[9]), float(link.holds[0])
        width = self._read().width
        self._wanted = self._sent = width
        self._since = now_s()
        self._grasped = False
        self._failures, self._pause_until = 0, 0.0

    def step(self) -> None:
        """One reading, and a motion where one is wanted."""
        state = self._read()
        if self._hold_came():
            self._stay(state.width)
        found = self._link.take(self._taken)
        now = self._now_s()
        if found is not None:
            self._taken, wanted = found[0], 2.0 * float(found[1][7])
            if wanted != self._wanted:
                self._wanted, self._since, self._failures = wanted, now, 0
        least = FINE if now - self._since > SETTLED_S else HYSTERESIS
        if abs(self._wanted - self._sent) <= least or now < self._pause_until:
            return
        if self._grasped and (self._wanted < self._sent or self._wanted < state.width + KEEP):
            return  # it has hold of something: closing further, or staying there, is what it does already
        self._move(self._wanted, self._wanted < state.width)

    def _move(self, width: float, closing: bool) -> None:
        self._link.busy_since_ns = time.time_ns()
        if self._link.holds[0] > self._held:  # it came before this motion could be seen, and would not be stopped
            self._link.busy_since_ns = 0
            return
        what = f"{'grasp' if closing else 'move'}({width:.3f} m)"
        try:
            if closing:
                done = self._gripper.grasp(width, GRASP_SPEED, GRASP_FORCE, EPSILON, EPSILON)
            else:
                done = self._gripper.move(width, GRASP_SPEED)
            said = "" if done else "did not reach it"
        except self._refusal as error:
            said = str(error)
        finally:
            self._link.busy_since_ns = 0
        state = self._read()
        if self._hold_came():
            self._stay(state.width)
        elif not said:
            self._sent, self._grasped, self._failures = width, closing and state.width > width + HELD, 0
            self._link.hand_text = ""
        else:
            self._failures += 1
            self._grasped = False
            self._pause_until = self._now_s() + RETRY_S
            advice = "" if state.max_width > HOMED else "; homing was never done"
            self._link.hand_text = f"{what} failed {self._failures} times: {said}{advice}"
            if self._failures >= TRIES:
                self._sent = width  # until another width is wanted

    def _hold_came(self) -> bool:
        if self._link.holds[0] <= self._held:
            return False
        self._held, self._taken = float(self._link.holds[0]), max(self._taken, float(self._link.holds[1]))
        return True

    def _stay(self, width: float) -> None:
        """Want what there is, unless something is held: then go on holding it."""
        if not self._grasped:
            self._wanted = self._sent = width
        self._wanted = self._sent

    def _read(self) -> Any:
        state = self._gripper.read_once()
        hand = self._link.hand
        hand[0], hand[1], hand[2] = state.width / 2.0, state.max_width, float(state.is_grasped)
        self._link.hand_stamp_ns = time.time_ns()
        hand[3] += 1.0
        return state


def run_hand(address: str, link: FrankaLink, ended: list[int]) -> None:
    """Serve the hand until a signal, or until the driver has gone."""
    import pylibfranka

    parent = os.getppid()
    loop = HandLoop(pylibfranka.Gripper(address), pylibfranka.CommandException, link)
    while not ended and os.getppid() == parent:
        loop.step()


def run_stops(address: str, link: FrankaLink, asked: Any) -> None:
    """For every line of `asked`, stop the motion that the hand is in, until it has ended; end with `asked`."""
    import pylibfranka

    link.hand[4] = 1.0
    for _ in asked:
        deadline = time.monotonic() + STOP_S
        gripper = None
        while link.busy_since_ns and time.monotonic() < deadline:
            try:
                gripper = gripper or pylibfranka.Gripper(address)
                gripper.stop()
            except RuntimeError as error:
                gripper = None
                link.hand_text = f"the hand could not be stopped: {error}"
            # Again, until it shows: a stop that comes before its motion stops nothing.
            time.sleep(AGAIN_S)


def main() -> None:
    """Entry point of both processes."""
    part, address, name = sys.argv[1:4]
    link = FrankaLink(name, create=False)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.append(1))
    try:
        if part == "move":
            run_hand(address, link, ended)
        else:
            run_stops(address, link, sys.stdin)
    except Exception as error:  # libfranka raises what it likes; the driver reads it on this line
        print(" ".join(str(error).split()), flush=True)
        os._exit(1)  # a binding that waits for the box would not let the process end


if __name__ == "__main__":
    main()
