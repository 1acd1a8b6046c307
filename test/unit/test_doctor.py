"""The doctor on machines that are not this one: what is wrong with each is named, with the command that mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.doctor.calibration import calibration
from molmoact2_ros.doctor.checks import CHECKS, checks_before, examine
from molmoact2_ros.doctor.finding import Cell, Finding
from molmoact2_ros.doctor.probe import Machine
from molmoact2_ros.doctor.report import cell_of, main

PORT = "/dev/serial/by-id/usb-arm"
CAMERA = "/dev/v4l/by-path/front"
UP = "9: can_left: <NOARP,UP> mtu 16 state UP\n can state ERROR-ACTIVE\n  bitrate 1000000 sample-point 0.75"


class Workcell(Machine):
    """A workcell where everything is right; tests change what they are about."""

    def __init__(self) -> None:
        site = "/ws/.venv/lib/python3.12/site-packages"
        modules = ("rclpy", "numpy", "lerobot", "scservo_sdk", "i2rt", "can", "pylibfranka", "pyrealsense2")
        self.origins = {name: f"{site}/{name}/__init__.py" for name in modules}
        self.versions = {"numpy": "2.2.6", "tensorrt-rtx-cu13-bindings": "1.7.1.116"}
        self.commands = {
            "nvidia-smi": (0, "NVIDIA GeForce RTX 4090, 570.1, 24564 MiB, 8.9\n"),
            "ip": (0, UP),
            "timedatectl": (0, "yes\n"),
            "ldconfig": (0, "libusb-1.0.so.0\n"),
        }
        self.files = {"/sys/kernel/realtime": "1"}
        self.there = {PORT, CAMERA}
        self.usable = {PORT, CAMERA}
        self.folders: dict[str, list[str]] = {"/dev/serial/by-id": [PORT], "/dev/v4l/by-path": [CAMERA]}
        self.variables: dict[str, str] = {}
        self.priority, self.speed, self.free, self.cuda = 99, 900.0, 500.0, (True, "RTX 4090")

    def run(self, *command, timeout_s=10.0):
        return self.commands.get(command[0], (127, f"{command[0]}: not installed"))

    def read(self, path):
        return self.files.get(path, "")

    def listed(self, folder, pattern="*"):
        return self.folders.get(folder, [])

    def exists(self, path):
        return path in self.there

    def may_use(self, path):
        return path in self.usable

    def version(self, package):
        return self.versions.get(package, "")

    def origin(self, module):
        return self.origins.get(module, "")

    def environment(self, name):
        return self.variables.get(name, "")

    def realtime_limit(self):
        return self.priority

    def write_mb_s(self, folder):
        return self.speed

    def free_gb(self, folder):
        return self.free

    def torch_cuda(self):
        return self.cuda


def cell(robot: str = "so101", port: str = PORT, source: str = f"v4l2:{CAMERA}") -> Cell:
    return Cell(robot, {"so101_driver": {"port": port}, "camera": {"sources": [source]}})


def complaints(machine: Machine, where: Cell) -> list[Finding]:
    return [finding for finding in examine(machine, where) if finding.level is not Level.OK]


@pytest.mark.parametrize("robot", ["so101", "yam", "franka"])
def test_a_sound_workcell_has_nothing_to_mend(robot: str):
    assert complaints(Workcell(), cell(robot)) == []


def change(**values):
    def apply(machine: Workcell) -> None:
        for name, value in values.items():
            present = getattr(machine, name)
            if isinstance(value, dict):
                present.update(value)
            else:
                setattr(machine, name, value)

    return apply


WRONG = {
    "no GPU": (change(commands={"nvidia-smi": (127, "")}), "so101", "GPU", Level.WARN, "ubuntu-drivers"),
    "small GPU": (change(commands={"nvidia-smi": (0, "T1200, 570, 4096 MiB, 8.6")}), "so101", "GPU", Level.WARN, ""),
    "torch without CUDA": (change(cuda=(False, "torch 2.11+cpu sees no GPU")), "so101", "CUDA", Level.ERROR, "torch=="),
    "GPU without words": (change(commands={"nvidia-smi": (0, "")}), "so101", "GPU", Level.WARN, "ubuntu-drivers"),
    "no TensorRT for RTX": (
        change(versions={"tensorrt-rtx-cu13-bindings": ""}),
        "so101",
        "TensorRT",
        Level.WARN,
        "tensorrt_rtx_cu13",
    ),
    "TensorRT on Hopper": (
        change(commands={"nvidia-smi": (0, "NVIDIA H100, 580, 81559 MiB, 9.0")}),
        "so101",
        "TensorRT",
        Level.WARN,
        "tensorrt-cu13>=10.13",
    ),
    "a GPU without bfloat16": (
        change(commands={"nvidia-smi": (0, "Tesla T4, 570, 15360 MiB, 7.5")}),
        "so101",
        "TensorRT",
        Level.WARN,
        "",
    ),
    "no ROS": (change(origins={"rclpy": ""}), "so101", "ROS", Level.ERROR, "apt install ros-jazzy"),
    "ROS not sourced": (
        change(origins={"rclpy": ""}, there={"/opt/ros/jazzy/setup.bash", PORT, CAMERA}),
        "so101",
        "ROS",
        Level.ERROR,
        "source /opt/ros/jazzy/setup.bash",
    ),
    "another ROS": (change(variables={"ROS_DISTRO": "humble"}), "so101", "ROS", Level.ERROR, "source /opt/ros/jazzy"),
    "another middleware": (
        change(variables={"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}),
        "so101",
        "ROS middleware",
        Level.WARN,
        "unset RMW",
    ),
    "left segments": (
        change(folders={"/dev/shm": ["x"] * 500}),
        "so101",
        "ROS middleware",
        Level.WARN,
        "fastdds shm clean",
    ),
    "apt's numpy first": (
        change(origins={"numpy": "/usr/lib/python3/dist-packages/numpy/__init__.py"}, versions={"numpy": "1.26.4"}),
        "so101",
        "numpy",
        Level.ERROR,
        "unset PYTHONPATH",
    ),
    "two ROS": (
        change(versions={"ros-jazzy-rclpy": "7.1.6"}, variables={"PYTHONPATH": "/opt/ros/jazzy/lib/python3.12"}),
        "so101",
        "numpy",
        Level.WARN,
        "unset PYTHONPATH",
    ),
    "no lerobot": (change(origins={"lerobot": ""}), "so101", "lerobot", Level.ERROR, "requirements/runtime.txt"),
    "no SDK": (change(origins={"scservo_sdk": ""}), "so101", "packages", Level.ERROR, "pip install '.[so101]'"),
    "no i2rt": (change(origins={"i2rt": ""}), "yam", "packages", Level.ERROR, "pip install '.[yam]'"),
    "no pylibfranka": (
        change(origins={"pylibfranka": ""}),
        "franka",
        "packages",
        Level.WARN,
        "pip install '.[franka]'",
    ),
    "camera out": (change(there={PORT}), "so101", "cameras", Level.ERROR, "by-path"),
    "no right to a camera": (change(usable={PORT}), "so101", "cameras", Level.ERROR, "usermod -aG video"),
    "port gone": (change(there={CAMERA}), "so101", "ports", Level.ERROR, "lerobot-find-port"),
    "no right to the port": (change(usable={CAMERA}), "so101", "ports", Level.ERROR, "usermod -aG dialout"),
    "no channel": (change(commands={"ip": (1, "does not exist")}), "yam", "CAN", Level.ERROR, "ip -br link"),
    "channel down": (
        change(commands={"ip": (0, "can_left state DOWN can state STOPPED")}),
        "yam",
        "CAN",
        Level.ERROR,
        "up type can bitrate 1000000",
    ),
    "bus off": (
        change(commands={"ip": (0, UP.replace("ERROR-ACTIVE", "BUS-OFF"))}),
        "yam",
        "CAN",
        Level.ERROR,
        "ip link set can_left down",
    ),
    "wrong bitrate": (
        change(commands={"ip": (0, UP.replace("1000000", "500000"))}),
        "yam",
        "CAN",
        Level.ERROR,
        "bitrate 1000000",
    ),
    "no real time": (change(priority=0), "so101", "real time", Level.WARN, "rtprio 99"),
    "no real time for Franka": (change(priority=0), "franka", "real time", Level.ERROR, "rtprio 99"),
    "ordinary kernel": (
        change(files={"/sys/kernel/realtime": ""}),
        "franka",
        "real time",
        Level.WARN,
        "realtime-kernel",
    ),
    "saving power": (
        change(folders={"/sys/devices/system/cpu": ["/g"]}, files={"/g": "powersave"}),
        "so101",
        "real time",
        Level.WARN,
        "frequency-set -g performance",
    ),
    "slow disk": (change(speed=20.0), "so101", "disk", Level.WARN, "--record"),
    "full disk": (change(free=3.0), "so101", "disk", Level.WARN, "du -sh"),
    "free clock": (change(commands={"timedatectl": (0, "no")}), "so101", "clock", Level.WARN, "set-ntp true"),
    "slow clock": (
        change(files={"/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"}),
        "so101",
        "clock",
        Level.WARN,
        "dmesg",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_what_mends_it(name: str):
    apply, robot, check, level, command = WRONG[name]
    machine = Workcell()
    apply(machine)
    found = complaints(machine, cell(robot))
    assert found and {(finding.check, finding.level) for finding in found} == {(check, level)}
    assert all(finding.message for finding in found)
    assert command in found[0].command


def test_ports_and_cameras_that_the_config_leaves_open():
    found = complaints(Workcell(), cell(port="", source="sim:front"))
    assert {(finding.check, finding.level) for finding in found} == {("ports", Level.WARN), ("cameras", Level.WARN)}
    assert all(PORT in f.message or CAMERA in f.message for f in found)
    machine = Workcell()
    machine.there.add("/dev/ttyACM0")
    machine.usable.add("/dev/ttyACM0")
    (unstable,) = complaints(machine, cell(port="/dev/ttyACM0"))
    assert "after a reboot" in unstable.message


def test_realsense_needs_its_package_and_libusb():
    machine = Workcell()
    machine.origins["pyrealsense2"] = ""
    assert "pip install '.[realsense]'" in complaints(machine, cell(source="realsense:1234"))[0].command
    machine = Workcell()
    machine.commands["ldconfig"] = (0, "")
    assert "apt install libusb-1.0-0" in complaints(machine, cell(source="realsense:1234"))[0].command


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on():
    machine = Workcell()
    machine.write_mb_s = None
    found = examine(machine, cell())
    assert next(f.message for f in found if f.check == "disk").startswith("could not be checked")
    assert {f.check for f in found} >= {"GPU", "ROS", "clock"}


def test_status_and_json(capsys: pytest.CaptureFixture):
    machine = Workcell()
    assert main("", "", "bags", True, machine) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    machine.origins["rclpy"] = ""
    assert main("", "", "bags", True, machine) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert next(row for row in told["findings"] if row["level"] == "ERROR")["check"] == "ROS"
    assert main("", "", "bags", False, machine) == 1
    assert "-> sudo apt install ros-jazzy-ros-base" in capsys.readouterr().out


def test_the_config_file_of_each_robot_is_understood():
    for robot in ("so101", "yam", "franka", "panda_robotiq"):
        assert cell_of(robot, "", "bags").parameter("executor", "realtime_priority", None)
    with pytest.raises(ValueError, match="known robots"):
        cell_of("hal", "", "bags")


def test_this_machine_can_be_examined():
    found = examine(Machine(), Cell())
    assert not [finding for finding in found if "could not be checked" in finding.message]
    assert len({finding.check for finding in found}) >= 6 and len(CHECKS) == 12


CALIBRATED = "width: 640, height: 480, k: [600, 0, 320, 0, 600, 240, 0, 0, 1], xyz: [0, 0, 1], wxyz: [0, 1, 0, 0]"


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        (
            f"front: {{{CALIBRATED}, mount: base_link, measured: {{day: 2026-01-02, place_mm: 0.6}}}}",
            Level.OK,
            "0.6 mm",
        ),
        (f"top: {{{CALIBRATED}, mount: base_link}}", Level.WARN, "no camera 'front'; it has top"),
        (f"front: {{{CALIBRATED}, mount: table}}", Level.ERROR, "'table', which is none of base_link, gripper_link"),
        ("front: {width: 640}", Level.ERROR, "needs width, height, k"),
        (f"front: {{{CALIBRATED.replace('640', '320')}, mount: base_link}}", Level.WARN, "calibrated at 320x480"),
    ],
)
def test_a_calibration_file_is_looked_at(text: str, level: Level, words: str, tmp_path: Path):
    file = tmp_path / "cameras.yaml"
    file.write_text(text)
    config = tmp_path / "my_cell.yaml"
    config.write_text(
        f"/**/visualizer: {{ros__parameters: {{calibration_file: {file}}}}}\n"
        "/**/camera: {ros__parameters: {names: [front], formats: [640x480@30]}}\n"
    )
    found = [one for one in calibration(Workcell(), cell_of("so101", str(config), "bags"))]
    assert [one.level for one in found] == [level] and words in found[0].message
    assert found[0].level is Level.OK or "calibrate cameras" in found[0].command


def test_a_calibration_file_that_is_not_there_is_an_error(tmp_path: Path):
    cell = Cell("so101", {"visualizer": {"calibration_file": str(tmp_path / "none.yaml")}})
    (found,) = calibration(Workcell(), cell)
    assert found.level is Level.ERROR and "none.yaml" in found.message


def test_before_a_run_only_what_concerns_it_is_looked_at() -> None:
    def names(**said: bool) -> set[str]:
        return {check.__name__ for check in checks_before(**said)}

    software = {"ros", "numpy", "packages"}
    hardware = software | {"cameras", "ports", "can", "realtime"}
    assert names(policy=True, hardware=False, recorded=False) == software
    assert names(policy=False, hardware=True, recorded=False) == hardware
    assert names(policy=True, hardware=True, recorded=True) == hardware | {"gpu", "disk"}
    assert examine(Workcell(), Cell("so101"), ()) == []
