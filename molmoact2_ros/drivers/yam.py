"""Two YAM arms through i2rt, unmodified, one CAN channel each.

i2rt goes on returning the last position after its motor chain has stopped, so a reading is proven fresh here: the chain
runs, and it has completed a whole cycle of all motors that began after the reading was asked for. The motors' own
watchdog must be on; an arm whose program has died then goes limp instead of pushing on.

Grippers are the open share in 0..1 to i2rt, which is the embodiment's model unit; the conversion happens there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import Array, DriverError, Health, Reading, StaleError, hardware_package
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.yam_bimanual import SIDES

MOTORS = 7
WATCHDOG_TICKS = 8000
"""Value of the motors' TIMEOUT register for 400 ms, as i2rt's own tool writes it."""
_POLL_S = 0.0005


@dataclass(frozen=True)
class YamConfig:
    """How the arms are reached and what is normal for them.

    Attributes:
        left_channel, right_channel: CAN channels, best named by udev rules.
        can_interface: python-can's interface; i2rt's own is `socketcan`.
        gripper: i2rt's name of the gripper.
        gripper_limits: angles of the gripper's motor closed and open, rad; empty lets i2rt find them at the first start
            by moving the gripper to both stops.
        gripper_force: most force of a blocked gripper, N.
        temperature_warn, temperature_limit: of the hottest motor or its electronics, degrees Celsius.
        cycle_s: two cycles of a chain must not take longer.
        start_s: an arm must have started within this time.
    """

    left_channel: str = "can_left"
    right_channel: str = "can_right"
    can_interface: str = "socketcan"
    gripper: str = "linear_4310"
    gripper_limits: tuple[float, ...] = ()
    gripper_force: float = 50.0
    temperature_warn: float = 65.0
    temperature_limit: float = 80.0
    cycle_s: float = 0.1
    start_s: float = 30.0


@dataclass
class _Arm:
    """One arm: its channel, i2rt's robot while it runs, and what it found out about its gripper."""

    side: str
    channel: str
    robot: Any = None
    limits: tuple[float, ...] = ()
    starting: threading.Thread | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        robot = self.robot
        return robot is not None and robot.motor_chain.running and robot._server_thread.is_alive()


class YamDriver:
    """See `drivers.driver.Driver`.

    Args:
        config: see `YamConfig`.
        now_ns: clock of the readings' stamps, ns.
    """

    def __init__(self, config: YamConfig, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.config, self._now_ns = config, now_ns
        self.robot = embodiment("yam")
        channels = (config.left_channel, config.right_channel)
        self._arms = [
            _Arm(side, channel, limits=config.gripper_limits) for side, channel in zip(SIDES, channels, strict=True)
        ]
        self.guided = False

    # -- Driver -------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start the arms that do not run yet, holding where they are; an arm that runs is left alone."""
        hardware_package("i2rt", "yam", "i2rt (dreamscale-i2rt)")
        if len({arm.channel for arm in self._arms}) != len(self._arms):
            raise DriverError(f"both arms are on CAN channel {self._arms[0].channel}; each needs its own")
        _use_interface(self.config.can_interface)
        lost = [arm for arm in self._arms if not arm.running]
        for arm in lost:
            self._stop(arm)
        begun = [(arm, self._begin(arm)) for arm in lost]
        for arm, failures in begun:
            self._await_start(arm, failures)

    def read(self) -> Reading:
        """See `Driver`. Waits for two ends of a cycle, 4 to 8 ms."""
        stamp = self._now_ns()
        deadline = time.monotonic() + self.config.cycle_s
        # The cycle under way at `stamp` may have begun before it; the one after it has not.
        cycles = [[self._cycle(arm)] for arm in self._arms]
        while any(len(seen) < 3 for seen in cycles):
            if time.monotonic() > deadline:
                late = ", ".join(arm.side for arm, seen in zip(self._arms, cycles, strict=True) if len(seen) < 3)
                raise StaleError(f"{late} arm: no cycle of its motors within {self.config.cycle_s} s")
            time.sleep(_POLL_S)
            for arm, seen in zip(self._arms, cycles, strict=True):
                cycle = self._cycle(arm)
                if cycle is not seen[-1]:
                    seen.append(cycle)
        vectors, rates = zip(*(self._joints(arm) for arm in self._arms), strict=True)
        vector, rate = np.concatenate(vectors), np.concatenate(rates)
        positions = self.robot.joints_from_model(vector)
        # Rates of a linear unit change: the map of positions is affine.
        velocities = self.robot.joints_from_model(vector + rate) - positions
        return Reading(stamp, positions, velocities)

    def write(self, positions: Array) -> None:
        """See `Driver`. Ignored while the arms are guided by hand."""
        if self.guided:
            return
        vector = self.robot.model_from_joints(positions)
        for i, arm in enumerate(self._arms):
            self._cycle(arm)
            arm.robot.command_joint_pos(vector[i * MOTORS : (i + 1) * MOTORS].copy())

    def hold(self, positions: Array) -> None:
        """See `Driver`: its place is a goal like any other."""
        self.write(positions)

    def confirms(self, positions: Array) -> bool:
        """See `Driver`: i2rt sends its target anew in every cycle, so it has it while the chains run."""
        for arm in self._arms:
            self._cycle(arm)
        return not self.guided

    def health(self) -> Health:
        """Temperatures of every motor and its electronics, and the rate of each chain."""
        values: dict[str, object] = {}
        hottest = ("", 0.0)
        for arm in self._arms:
            self._cycle(arm)
            names = [name for name in self.robot.joint_names if name.startswith(arm.side)]
            for name, state in zip(names, arm.robot.motor_chain.read_states(), strict=True):
                values[f"{name}.motor_c"], values[f"{name}.electronics_c"] = state.temp_rotor, state.temp_mos
                values[f"{name}.torque_nm"] = f"{state.eff:.2f}"
                hottest = max(hottest, (name, max(state.temp_rotor, state.temp_mos)), key=lambda one: one[1])
            values[f"{arm.side}.cycles_hz"] = f"{arm.robot.motor_chain.comm_freq:.0f}"
        name, heat = hottest
        config = self.config
        if heat >= config.temperature_limit:
            message = f"{name} is at {heat:.0f} degrees C (limit {config.temperature_limit:g}); let it cool down"
            return Health(Level.ERROR, message, values)
        if heat >= config.temperature_warn:
            message = f"{name} is at {heat:.0f} degrees C (limit {config.temperature_limit:g})"
            return Health(Level.WARN, message, values)
        return Health(Level.OK, f"hottest motor {heat:.0f} degrees C", values)

    def disconnect(self) -> None:
        """See `Driver`. An arm that runs goes on holding."""
        for arm in self._arms:
            if not arm.running:
                self._stop(arm)

    def close(self) -> None:
        """See `Driver`. The arms go limp within the watchdog's 400 ms: they have no brakes."""
        for arm in self._arms:
            self._stop(arm)

    def hand_guiding(self, on: bool) -> None:
        """Let the arms float for guiding by hand, or hold them where they are.

        Raises:
            StaleError: an arm does not run.
        """
        for arm in self._arms:
            self._cycle(arm)
        self.guided = on
        for arm in self._arms:
            if on:
                arm.robot.enter_gravity_comp_idle()
            else:
                arm.robot.command_joint_pos(self._joints(arm)[0])

    # -- inside -------------------------------------------------------------------------------------------------------

    def _cycle(self, arm: _Arm) -> Any:
        """The result of the last whole cycle of the arm's motors; a new object each time.

        Raises:
            StaleError: the chain has stopped; i2rt would go on giving its last position.
        """
        if not arm.running:
            raise StaleError(
                f"{arm.side} arm: the motor chain on {arm.channel} has stopped; has it power, is the cable in?"
            )
        return arm.robot.motor_chain.state

    def _joints(self, arm: _Arm) -> tuple[Array, Array]:
        states = arm.robot.motor_chain.read_states()
        mapper = arm.robot.remapper
        return (
            mapper.to_command_joint_pos_space(np.array([state.pos for state in states])),
            mapper.to_command_joint_vel_space(np.array([state.vel for state in states])),
        )

    def _begin(self, arm: _Arm) -> list[Exception]:
        """Begin to start one arm; returns the list into which its thread puts what went wrong.

        i2rt waits without an end for a motor that keeps reporting an error, so it starts in a thread of its own.

        Raises:
            DriverError: an earlier start hangs.
        """
        if arm.starting is not None and arm.starting.is_alive():
            raise DriverError(
                f"{arm.side} arm on {arm.channel}: a motor keeps reporting an error; switch the arm off and on"
            )
        failures: list[Exception] = []

        def start() -> None:
            try:
                self._check_watchdog(arm)
                arm.robot = self._make(arm)
            except Exception as error:  # i2rt and python-can raise what they like
                failures.append(error)

        arm.starting = threading.Thread(target=start, name=f"start {arm.side}", daemon=True)
        arm.starting.start()
        return failures

    def _await_start(self, arm: _Arm, failures: list[Exception]) -> None:
        """Wait until the arm runs, and hold it where it is.

        Raises:
            DriverError: it did not start.
        """
        assert arm.starting is not None
        arm.starting.join(self.config.start_s)
        if not arm.starting.is_alive():
            arm.starting = None  # it would keep the half-open channel of a failed start
        if failures:
            raise DriverError(f"{arm.side} arm on {arm.channel}: {_explained(failures[0])}") from failures[0]
        if arm.robot is None:
            raise DriverError(f"{arm.side} arm on {arm.channel} did not start within {self.config.start_s:.0f} s")
        self._settle_gripper(arm)
        # It floats up to here: with the gripper's limits a turn off, a position command would drive the gripper.
        arm.robot.command_joint_pos(self._joints(arm)[0])

    def _make(self, arm: _Arm) -> Any:
        from i2rt.robots.get_robot import get_yam_robot
        from i2rt.robots.utils import GripperType

        return get_yam_robot(
            channel=arm.channel,
            gripper_type=GripperType.from_string_name(self.config.gripper),
            zero_gravity_mode=True,
            gripper_limits_override=np.array(arm.limits) if arm.limits else None,
        )

    def _settle_gripper(self, arm: _Arm) -> None:
        """Keep the gripper's limits as angles of its motor, and put the config's force in place of i2rt's 50 N.

        i2rt shifts motor angles by a whole turn when a motor starts beyond half a turn, and with them the meaning of
        limits that were found at an earlier start.
        """
        from i2rt.robots.utils import GripperForceLimiter, JointMapper

        robot, force = arm.robot, self.config.gripper_force
        chain, j = robot.motor_chain, robot._gripper_index
        offset, direction = float(chain.motor_offset[j]), float(chain.motor_direction[j])
        if arm.limits:
            robot._gripper_limits = (np.array(arm.limits) - offset) * direction
            robot.remapper = JointMapper({j: tuple(robot._gripper_limits)}, len(chain))
        else:
            arm.limits = tuple(float(value) * direction + offset for value in robot._gripper_limits)
        robot._gripper_force_limiter = GripperForceLimiter(
            max_force=force, gripper_type=robot._gripper_type, arm_type=robot._arm_type, kp=robot._kp[j]
        )
        robot._limit_gripper_force = force

    def _check_watchdog(self, arm: _Arm) -> None:
        from i2rt.motor_config_tool.dm_motor_registers import DMRegAddr, read_register
        from i2rt.motor_config_tool.utils import RawCanInterface

        bus = RawCanInterface(channel=arm.channel, bustype="socketcan")
        try:
            ticks = {number: int(read_register(bus, number, DMRegAddr.TIMEOUT)) for number in range(1, MOTORS + 1)}
        finally:
            bus.close()
        off = [number for number, value in ticks.items() if not 0 < value <= WATCHDOG_TICKS]
        if off:
            raise DriverError(
                f"the watchdog of motors {off} is off or longer than 400 ms; switch it on: "
                f"python -m i2rt.motor_config_tool.set_timeout --channel {arm.channel} --timeout"
            )

    def _stop(self, arm: _Arm) -> None:
        robot, arm.robot = arm.robot, None
        if robot is not None:
            robot._stop_event.set()
            robot.motor_chain.running = False
            with suppress(Exception):  # the channel may be gone; there is nobody left to tell
                robot.close()


def _use_interface(name: str) -> None:
    """i2rt writes `socketcan` into its calls; where the config names another interface of python-can, put that."""
    import can

    plain = getattr(can.interface, "molmoact2_plain_bus", can.interface.Bus)
    can.interface.molmoact2_plain_bus = plain  # type: ignore[attr-defined]
    if name == "socketcan":
        can.interface.Bus = plain  # type: ignore
        return

    def bus(bustype: str = "", **options: Any) -> Any:
        return plain(interface=name, **options)

    can.interface.Bus = bus  # type: ignore


def _explained(error: Exception) -> str:
    text = " ".join(str(error).split()) or repr(error)
    if "No such device" in text or "Network is down" in text:
        return f"{text}; sudo ip link set <channel> up type can bitrate 1000000 (molmoact2 doctor --robot yam)"
    return text[:600]
