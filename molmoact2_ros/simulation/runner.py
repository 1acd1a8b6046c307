"""Runs a cell in real time in one thread of its own: physics, encoder readings and camera frames at their rates.

The thread owns the cell, since a MuJoCo renderer belongs to the thread that made it. Others talk to it through
`command`, `reset` and `snapshot`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.frame_link import FrameWriter
from molmoact2_ros.execution.command_timeout import CommandTimeout
from molmoact2_ros.simulation.cell import Cell, Episode

Array = NDArray[np.float64]

MAX_CATCH_UP_S = 0.05
"""Most physics that one tick makes up for; on a machine that is too slow the cell's time falls behind and says so."""


@dataclass(frozen=True)
class CellSnapshot:
    """The cell at one moment: encoder reading (dof,) and velocities, pose of the object, the episode's progress."""

    stamp_ns: int
    positions: Array
    velocities: Array
    object_position: Array
    object_wxyz: Array
    cube_height_m: float
    gripper_distance_m: float
    grasped: bool
    episode: Episode


class CellRunner:
    """A cell that runs. `on_reading` is called from the cell's thread at every encoder reading."""

    def __init__(
        self,
        make_cell: Callable[[], Cell],
        links: Mapping[str, str],
        on_reading: Callable[[CellSnapshot], None],
        clock: Callable[[], int],
        joint_rate_hz: float = 100.0,
        camera_rate_hz: float = 30.0,
        command_timeout_s: float = 0.2,
    ) -> None:
        """`links` maps camera names to names of frame links; `clock` gives ROS time in ns; see `sim_node` for the
        rest."""
        self._make_cell, self._links, self._on_reading, self._clock = make_cell, dict(links), on_reading, clock
        self._period, self._frame_period = 1.0 / joint_rate_hz, 1.0 / camera_rate_hz
        self._command_timeout = CommandTimeout(time.monotonic_ns, command_timeout_s)
        self._lock = threading.Lock()
        self._target: Array | None = None
        self._reset_to: int | None = None
        self._hold = False
        self._push = 0.0
        self._hand: Array | None = None
        self._reset_done = threading.Event()
        self._ended = threading.Event()
        self._ready = threading.Event()
        self.error: Exception | None = None
        """What ended the cell's thread, if anything did; nothing moves any more then."""
        self.lost_s = 0.0
        self._thread = threading.Thread(target=self._guarded, name="cell", daemon=True)

    def start(self, timeout_s: float = 30.0) -> None:
        """Build the cell and begin; raises what building it raised."""
        self._thread.start()
        if not self._ready.wait(timeout_s):
            raise TimeoutError(f"the simulated cell was not built within {timeout_s:.0f} s")
        if self.error is not None:
            raise self.error

    @property
    def timeout_holds(self) -> int:
        """How often the arm was held because commands had ceased."""
        return self._command_timeout.trips

    def command(self, joints: Array) -> None:
        """Set the servos' targets (dof,), rad and m."""
        with self._lock:
            self._target = np.array(joints, dtype=np.float64)
            self._command_timeout.fed()

    def hold(self) -> None:
        """Hold the arm where it is from the next step on, and drop the command that waits."""
        with self._lock:
            self._target, self._hold = None, True
            self._command_timeout.forget()

    def push(self, distance: float) -> None:
        """A person's hand: every arm joint is taken `distance` rad away from its nearer limit, whatever the driver
        wants, and kept there; 0 lets go."""
        with self._lock:
            self._push = distance

    def reset(self, episode: int, timeout_s: float = 5.0) -> None:
        """Begin `episode` and return when the cell has done so."""
        self._reset_done.clear()
        with self._lock:
            self._reset_to = episode
        if not self._reset_done.wait(timeout_s):
            raise TimeoutError(f"the simulated cell did not reset within {timeout_s:.0f} s")

    def close(self) -> None:
        """End the thread and remove the frame links."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as error:  # start() raises it; later, whoever looks at `error` must act on it
            self.error = error
            self._ready.set()

    def _run(self) -> None:
        cell = self._make_cell()
        writers = {}
        try:
            for camera, link in self._links.items():
                shape = cell.render(camera).shape
                writers[camera] = FrameWriter(link, shape[0], shape[1])
            self._ready.set()
            self._loop(cell, writers)
        finally:
            for writer in writers.values():
                writer.close()
            cell.close()

    def _loop(self, cell: Cell, writers: Mapping[str, FrameWriter]) -> None:
        begun = tick = time.monotonic()
        simulated = 0.0
        # Cameras are rendered in different ticks, so that no tick is much longer than the others.
        due = {camera: begun + i * self._period for i, camera in enumerate(writers)}
        while not self._ended.is_set():
            simulated += self._step(cell, min(time.monotonic() - begun - simulated, MAX_CATCH_UP_S))
            behind = time.monotonic() - begun - simulated
            if behind > MAX_CATCH_UP_S:
                self.lost_s += behind
                simulated += behind
            self._on_reading(self._snapshot(cell))
            now = time.monotonic()
            late = [camera for camera, when in due.items() if now >= when]
            if late:
                camera = min(late, key=lambda name: due[name])
                writers[camera].write(cell.render(camera), self._clock())
                due[camera] = max(due[camera] + self._frame_period, now - self._frame_period)
            tick += self._period
            rest = tick - time.monotonic()
            if rest > 0:
                time.sleep(rest)
            else:
                tick = time.monotonic()

    def _step(self, cell: Cell, seconds: float) -> float:
        with self._lock:
            target, self._target = self._target, None
            reset_to, self._reset_to = self._reset_to, None
            hold, self._hold = self._hold, False
            push = self._push
        silent = self._command_timeout.expired()
        if reset_to is not None:
            cell.reset(reset_to)
            self._command_timeout.forget()
            self._reset_done.set()
            return 0.0
        self._hand = self._pushed(cell, push, seconds) if push else None
        if self._hand is not None:
            cell.command(self._hand)
        elif target is not None:
            cell.command(target)
        elif silent or hold:
            cell.hold()
        step = cell.model.opt.timestep
        if seconds < step:
            return 0.0
        steps = int(seconds / step)
        cell.advance(steps * step)
        return float(steps * step)

    def _pushed(self, cell: Cell, push: float, seconds: float) -> Array:
        """Where the hand is now; it moves at 0.6 rad/s."""
        limits, robot = cell.robot.limits, cell.robot
        hand = self._hand
        if hand is None:
            hand = cell.joints()[0]
            middle = 0.5 * (limits.lower + limits.upper)
            self._goal = hand + push * np.where(hand < middle, 1.0, -1.0)
            grippers = list(robot.gripper_indices)
            self._goal[grippers] = hand[grippers]
        step = 0.6 * seconds
        moved: Array = hand + np.clip(self._goal - hand, -step, step)
        return moved

    def _snapshot(self, cell: Cell) -> CellSnapshot:
        positions, velocities = cell.joints()
        place, turn = cell.object_pose()
        offset = cell.grip_point() - place
        return CellSnapshot(
            stamp_ns=self._clock(),
            positions=positions,
            velocities=velocities,
            object_position=place,
            object_wxyz=turn,
            cube_height_m=cell.cube_height(),
            gripper_distance_m=float(np.hypot(offset[0], offset[1])),
            grasped=cell.grasped(),
            episode=Episode(**vars(cell.episode)),
        )
