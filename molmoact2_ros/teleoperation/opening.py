"""Which teleoperators there are, and what a name such as `so101_leader:blue@/dev/serial/by-id/...` means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from molmoact2_ros.drivers.driver import hardware_package
from molmoact2_ros.drivers.so101 import So101Config
from molmoact2_ros.drivers.yam import YamConfig
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.teleoperation.rates import GAMEPAD_AXES, KEYBOARD_AXES, RateLeader
from molmoact2_ros.teleoperation.so_leader import SoLeader
from molmoact2_ros.teleoperation.teleoperator import Teleoperator
from molmoact2_ros.teleoperation.yam_leader import YamLeader

FAMILIES = {"so101_leader": "so101", "so100_leader": "so101", "yam_leader": "yam"}
"""Leader arms lead arms of their own kind only."""
KINDS = (*FAMILIES, "gamepad", "keyboard")


@dataclass(frozen=True)
class TeleoperatorConfig:
    """What is opened.

    Attributes:
        kind: one of `KINDS`.
        ports: serial port of an SO leader, CAN channels of the left and the right YAM leader.
        calibration_id, calibration_dir: of an SO leader, see `So101Config`.
        gripper, can_interface: of YAM leaders, see `YamConfig`.
        speed: of the tip at a full deflection of a gamepad, m/s. gripper_speed: strokes a second.
    """

    kind: str
    ports: tuple[str, ...] = ()
    calibration_id: str = "leader"
    calibration_dir: str = ""
    gripper: str = "linear_4310"
    can_interface: str = "socketcan"
    speed: float = 0.1
    gripper_speed: float = 1.0


def open_teleoperator(config: TeleoperatorConfig, robot: Embodiment, now_ns: Callable[[], int]) -> Teleoperator:
    """The teleoperator that `config` names, for `robot`, not connected yet; stamps are of `now_ns`.

    Raises:
        ValueError: there is none of that name, or it does not fit the robot; the message says what does.
        MissingPackageError: what it needs is not installed.
    """
    kind, ports = config.kind, config.ports
    if kind not in KINDS:
        raise ValueError(f"teleoperator is {kind!r}, expected one of {', '.join(KINDS)}")
    if FAMILIES.get(kind, robot.family) != robot.family:
        raise ValueError(f"a {kind} leads an arm of its own kind ({FAMILIES[kind]}), and the robot is {robot.name}")
    if kind == "yam_leader":
        if len(ports) != 2:
            raise ValueError(f"yam_leader needs the CAN channels of its left and right arm, got {list(ports)}")
        left, right = ports
        return YamLeader(YamConfig(left, right, config.can_interface, config.gripper), now_ns)
    if kind in FAMILIES:
        if len(ports) != 1:
            raise ValueError(f"{kind} needs its serial port, for instance /dev/serial/by-id/..., got {list(ports)}")
        return SoLeader(So101Config(ports[0], config.calibration_id, config.calibration_dir), now_ns)
    make, axes = (_gamepad, GAMEPAD_AXES) if kind == "gamepad" else (_keyboard, KEYBOARD_AXES)
    return RateLeader(robot, make, axes, config.speed, config.gripper_speed, now_ns)


def _gamepad() -> Any:
    hardware_package("pygame", "teleop", "pygame")
    from lerobot.teleoperators.gamepad import GamepadTeleop, GamepadTeleopConfig

    return GamepadTeleop(GamepadTeleopConfig())


def _keyboard() -> Any:
    hardware_package("pynput", "teleop", "pynput")
    from lerobot.teleoperators.keyboard import KeyboardEndEffectorTeleop, KeyboardEndEffectorTeleopConfig

    return KeyboardEndEffectorTeleop(KeyboardEndEffectorTeleopConfig())


def parts_of(text: str) -> tuple[str, str, tuple[str, ...]]:
    """Kind, calibration id and ports of a text `KIND[:[ID@]PORT[,PORT]]`; what it does not say is empty.

    Raises:
        ValueError: the kind is unknown.
    """
    kind, _, where = text.strip().partition(":")
    if kind not in KINDS:
        raise ValueError(f"teleoperator {text!r}: expected one of {', '.join(KINDS)}, for instance {EXAMPLE}")
    name, _, ports = where.rpartition("@")
    return kind, name, tuple(port.strip() for port in ports.split(",") if port.strip())


EXAMPLE = "so101_leader:my_leader@/dev/serial/by-id/..."
