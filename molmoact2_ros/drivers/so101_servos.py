"""What is asked of and told to the servos of an SO-100/101 outside the stream of commands: start, end, complaints.

`bus` is lerobot's `FeetechMotorsBus` everywhere, which knows the servos by the names of their joints.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from molmoact2_ros.drivers.driver import DriverError

_MULTI_TURN = 0x10
"""The bit of the Phase register with which a servo counts on over whole turns instead of 0 to 4095."""
_AGAIN = "support the arm, switch its power off and on again"
_COMPLAINTS = {
    1: ("a voltage beyond its limits", "is the power supply the right one?"),
    2: ("a fault of its encoder", f"{_AGAIN}; if it comes back the servo is broken"),
    4: ("overheating", "let it cool down"),
    8: ("too much current", f"see what blocks it, {_AGAIN}"),
    32: ("overload", f"see what blocks it, {_AGAIN}"),
}
"""Bits of the error byte with which a servo answers: what it says, what helps."""


def registers(name: str, bus: Any) -> dict[str, int]:
    """The register `name` of every servo as it stands there: joint -> value."""
    found: dict[str, int] = bus.sync_read(name, normalize=False)
    return found


def counting_turns(bus: Any) -> list[str]:
    """The servos that count on over whole turns, so that their place is not an angle."""
    return [name for name, phase in registers("Phase", bus).items() if phase & _MULTI_TURN]


def aim_where_it_is(bus: Any) -> None:
    """Make every servo's goal the place where it is, before torque: with torque it goes to its last goal.

    lerobot's settings come first, since they end the count over whole turns: a goal from before would be a turn away.
    Each goal is acknowledged.

    Raises:
        DriverError: a servo still counts over whole turns.
    """
    bus.disable_torque()  # it has none; this lets the servos keep the settings
    bus.configure_motors()
    places = registers("Present_Position", bus)
    beyond = [name for name, ticks in places.items() if not 0 <= ticks <= 4095]
    if beyond:
        raise DriverError(
            f"{', '.join(beyond)} reports a place outside one turn (expected 0 to 4095 ticks): {places}; {_AGAIN}"
        )
    for name, ticks in places.items():
        bus.write("Goal_Position", name, ticks, normalize=False)


def keeping_torque(bus: Any) -> str:
    """Take the torque from every servo, whatever the others do; say which keep it, or are silent. Empty: none."""
    kept, silent = [], []
    for name in bus.motors:
        # A servo that complains does as it is told all the same: what counts is what it says about its torque.
        with suppress(Exception):
            bus.disable_torque(name, num_retry=2)
        bus.port_handler.is_using = False
        try:
            if bus.sync_read("Torque_Enable", [name], normalize=False, num_retry=2)[name]:
                kept.append(name)
        except Exception:  # lerobot, its SDK and pyserial raise what they like
            silent.append(name)
        bus.port_handler.is_using = False
    told = [f"{', '.join(kept)} kept torque"] if kept else []
    return "; ".join(told + ([f"{', '.join(silent)} did not answer"] if silent else []))


def complaints(bus: Any) -> str:
    """What servos complain of, with what helps, and which do not answer; empty where none complains.

    To lerobot a servo that answers with a complaint is one that is missing.
    """
    told, silent = [], []
    for name, motor in bus.motors.items():
        try:
            _, failed, error = bus.packet_handler.ping(bus.port_handler, motor.id)
        except Exception:  # the port may be gone, which the first failure has told
            return ""
        if failed:
            silent.append(name)
            continue
        for bit, (what, helps) in _COMPLAINTS.items():
            if error & bit:
                told.append(f"{name} (servo {motor.id}) reports {what}: {helps}")
    if told and silent:
        told.append(f"{', '.join(silent)} did not answer: is every servo's cable in?")
    return "; ".join(told)
