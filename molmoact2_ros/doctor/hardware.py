"""Checks of what is plugged in: hardware packages, cameras, serial ports, CAN channels."""

from __future__ import annotations

import re
from collections.abc import Iterable

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.doctor.finding import Cell, Finding, sound
from molmoact2_ros.doctor.probe import Machine

EXTRAS = {
    "so101": (("scservo_sdk", "so101", "feetech-servo-sdk"),),
    "yam": (("i2rt", "yam", "dreamscale-i2rt"), ("can", "yam", "python-can")),
    "franka": (("pylibfranka", "franka", "pylibfranka"),),
}
CAN_CHANNELS = ("can_left", "can_right")


def packages(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """The robot's hardware packages."""
    for module, extra, package in EXTRAS.get(cell.robot, ()):
        if machine.origin(module):
            yield sound("packages", f"{package} {machine.version(package)}")
        elif cell.robot == "franka":
            yield Finding(
                "packages",
                Level.WARN,
                f"{package} is not installed; franka_ros2 works without it",
                "pip install '.[franka]'",
            )
        else:
            yield Finding("packages", Level.ERROR, f"{package} is not installed", f"pip install '.[{extra}]'")


def cameras(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """Cameras that are plugged in, and those that the config names."""
    known = machine.listed("/dev/v4l/by-path", "*-video-index0")
    sources = [s for s in cell.parameter("camera", "sources", []) if not s.startswith("sim:")]
    for source in sources:
        kind, _, address = source.partition(":")
        if kind == "v4l2" and not machine.exists(address):
            plugged = ", ".join(known) or "none"
            yield Finding(
                "cameras",
                Level.ERROR,
                f"{address} of the config is not plugged in; plugged in: {plugged}",
                "ls -l /dev/v4l/by-path",
            )
        elif kind == "v4l2" and not machine.may_use(address):
            yield Finding(
                "cameras",
                Level.ERROR,
                f"no right to open {address}",
                "sudo usermod -aG video $USER  # then log in again",
            )
        elif kind == "realsense" and not machine.origin("pyrealsense2"):
            yield Finding("cameras", Level.ERROR, "pyrealsense2 is not installed", "pip install '.[realsense]'")
        elif kind == "realsense" and not any("libusb-1.0" in p for p in _libraries(machine)):
            yield Finding("cameras", Level.ERROR, "RealSense needs libusb", "sudo apt install libusb-1.0-0")
        else:
            yield sound("cameras", source)
    if cell.robot and not sources:
        yield Finding(
            "cameras",
            Level.WARN,
            f"the config names no real camera; plugged in: {', '.join(known) or 'none'}",
            "ls -l /dev/v4l/by-path  # then cameras:=<name>=v4l2:<path>,... of the launch file",
        )
    speeds = [path for path in machine.listed("/sys/bus/usb/devices", "*/product") if "RealSense" in machine.read(path)]
    for path in speeds:
        speed = machine.read(path.replace("/product", "/speed"))
        if speed and float(speed) < 5000:
            yield Finding(
                "cameras",
                Level.WARN,
                f"{machine.read(path)} is on USB 2 ({speed} Mbit/s); use a blue socket",
                "lsusb -t",
            )


def _libraries(machine: Machine) -> list[str]:
    return machine.run("ldconfig", "-p")[1].splitlines()


def ports(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """The serial port of an SO-100/101."""
    if cell.robot != "so101":
        return
    port = cell.parameter("so101_driver", "port", "")
    known = machine.listed("/dev/serial/by-id")
    if not port:
        plugged = ", ".join(known) or "none"
        yield Finding(
            "ports",
            Level.WARN if known else Level.ERROR,
            f"the config names no port for the arm; plugged in: {plugged}",
            "lerobot-find-port  # then set so101_driver port in the config file",
        )
    elif not machine.exists(port):
        yield Finding(
            "ports", Level.ERROR, f"{port} is not there; plugged in: {', '.join(known) or 'none'}", "lerobot-find-port"
        )
    elif not machine.may_use(port):
        yield Finding(
            "ports", Level.ERROR, f"no right to open {port}", "sudo usermod -aG dialout $USER  # then log in again"
        )
    elif not port.startswith("/dev/serial/by-"):
        yield Finding(
            "ports",
            Level.WARN,
            f"{port} may be another arm after a reboot; use its name under /dev/serial/by-id",
            "ls -l /dev/serial/by-id",
        )
    else:
        yield sound("ports", port)


def can(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """The CAN channels of a YAM cell: there, up, at 1 Mbit/s, and not in an error state."""
    if cell.robot != "yam":
        return
    channels = [
        cell.parameter("yam_driver", f"{side}_channel", default)
        for side, default in zip(("left", "right"), CAN_CHANNELS, strict=True)
    ]
    for channel in channels:
        up = f"sudo ip link set {channel} up type can bitrate 1000000"
        status, out = machine.run("ip", "-details", "link", "show", channel)
        if status == 127:
            yield Finding("CAN", Level.ERROR, "the ip command is not installed", "sudo apt install iproute2")
            return
        if status != 0:
            there = ", ".join(p.rpartition("/")[2] for p in machine.listed("/sys/class/net", "can*")) or "none"
            yield Finding(
                "CAN",
                Level.ERROR,
                f"no channel {channel}; there are: {there}. Is the adapter in, and named by a udev rule?",
                "ip -br link show type can",
            )
            continue
        state = re.search(r"\bcan (?:<[^>]*> )?state (\S+)", out)
        bitrate = re.search(r"\bbitrate (\d+)", out)
        if "state DOWN" in out or (state and state[1] == "STOPPED"):
            yield Finding("CAN", Level.ERROR, f"{channel} is down", up)
        elif state and state[1] in ("BUS-OFF", "ERROR-PASSIVE", "ERROR-WARNING"):
            yield Finding(
                "CAN",
                Level.ERROR,
                f"{channel} is in state {state[1]}: is the arm's power on, and the bus terminated?",
                f"sudo ip link set {channel} down && {up}",
            )
        elif bitrate and int(bitrate[1]) != 1_000_000:
            yield Finding(
                "CAN",
                Level.ERROR,
                f"{channel} runs at {bitrate[1]} bit/s, the motors at 1000000",
                f"sudo ip link set {channel} down && {up}",
            )
        else:
            yield sound("CAN", f"{channel} is up")
