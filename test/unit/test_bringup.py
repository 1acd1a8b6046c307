"""The nodes for each choice, and that what bringup sets, and what the config file sets, is declared by the node."""

import ast
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from molmoact2_ros.bringup.ending import LAUNCHER, Launcher, OnEnd, ends_after, stage_of
from molmoact2_ros.bringup.frames import StaticFrame, camera_frames
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.specs import BUTTON_SILENCE_S, ROOMS, NodeSpec, fastdds_profile, nodes
from molmoact2_ros.parameter_files import parameters_for, robot_files, sections
from molmoact2_ros.share import share_path

PACKAGE = Path(__file__).parents[2] / "molmoact2_ros"
ROBOTS = ("franka", "so101", "yam")
EVERYTHING = Options(film="/tmp/film.mp4", picture="/tmp/picture.png", record="/tmp/bags")


def declared(path: Path) -> set[str]:
    """Names of the parameters that a node module declares, read from its text: importing torch takes too long here."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Parameter" and call.args]
    return {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}


def offered(executable: str) -> set[str]:
    """Parameters of a node, with those that every driver node shares or that have a module of their own."""
    shared = declared(module_path("driver_node")) if executable.endswith("_driver_node") else set()
    apart = PACKAGE / "nodes" / "ros" / f"{executable.replace('_node', '_parameters')}.py"
    shared |= declared(apart) if apart.is_file() else set()
    return declared(module_path(executable)) | shared | COMMON


def module_path(executable: str) -> Path:
    return PACKAGE / ROOMS.get(executable, "nodes").replace(".", "/") / f"{executable}.py"


COMMON = declared(PACKAGE / "nodes" / "ros" / "parameters.py") | declared(PACKAGE / "nodes" / "ros" / "joint_topics.py")


def executables(options: Options) -> set[str]:
    return {spec.executable.removesuffix("_node") for spec in nodes(options)}


def test_each_choice_starts_its_nodes():
    base = {"sim", "camera", "policy", "executor", "visualizer", "episode"}
    assert executables(Options()) == base
    assert executables(Options(policy="expert", visualize=False)) == base - {"policy", "visualizer"} | {"expert"}
    assert executables(EVERYTHING) == base | {"film", "recorder"}
    real = Options(sim=False, checkpoint="a/b", cameras=("front=v4l2:/a",))
    assert executables(real) == base - {"sim", "episode"} | {"so101_driver"}
    assert executables(Options(emulated=True)) == base | {"so101_driver"}
    for robot in ("yam", "franka"):
        assert f"{robot}_driver" in executables(Options(robot=robot, emulated=True, policy="expert"))
    franka = Options(robot="franka", sim=False, checkpoint="a/b", cameras=("wrist=realsense:1",))
    assert "franka_state" in executables(franka) and "franka_driver" not in executables(franka)
    assert "franka_driver" in executables(replace(franka, robot_ip="10.0.0.2"))
    assert {spec.namespace for spec in nodes(Options(namespace="left/arm"))} == {"/left/arm"}


def test_a_cell_without_episodes_is_left_to_the_user_as_a_robot_is():
    options = Options(emulated=True, episodes=0, policy="none", visualize=False)
    specs = {spec.name: spec for spec in nodes(options)}
    assert set(specs) == {"sim", "so101_driver", "camera", "executor"}
    assert {name: spec.on_end for name, spec in specs.items()} == {
        "sim": OnEnd.ENDS_RUN,
        **dict.fromkeys(("so101_driver", "camera", "executor"), OnEnd.RESTARTED),
    }
    with pytest.raises(ValueError, match="those need a policy"):
        nodes(replace(options, episodes=1))
    with pytest.raises(ValueError, match="at least 1, or 0"):
        nodes(replace(options, episodes=-1, policy="expert"))


def test_the_silence_of_a_console_with_a_stop_key_is_a_stop(tmp_path: Path):
    options = Options(sim=False, checkpoint="a/b", cameras=("front=v4l2:/a",))

    def heartbeat(options: Options) -> object:
        found = {spec.name: spec for spec in nodes(options)}
        assert ("operator" in found) is bool(options.operator)
        assert not options.operator or found["operator"].on_end is OnEnd.ENDS_RUN
        assert not options.operator or found["operator"].parameters["button"] is (options.operator == "keys")
        return found["executor"].parameters.get("e_stop_heartbeat_s")

    assert heartbeat(options) is heartbeat(replace(options, operator="lines")) is None
    assert heartbeat(replace(options, operator="keys")) == BUTTON_SILENCE_S
    own = tmp_path / "own.yaml"  # the user's word counts
    own.write_text("/**/executor: {ros__parameters: {e_stop_heartbeat_s: 0.5}}")
    assert heartbeat(replace(options, operator="keys", config=str(own))) is None


@pytest.mark.parametrize(
    "spec",
    [
        *nodes(EVERYTHING),
        *nodes(replace(EVERYTHING, operator="keys"))[-1:],
        *nodes(replace(EVERYTHING, teleop="so101_leader"))[-2:],
        *nodes(replace(EVERYTHING, policy="expert", emulated=True)),
    ],
    ids=lambda spec: spec.name,
)
def test_every_parameter_that_bringup_sets_is_declared_by_its_node(spec: NodeSpec):
    path = module_path(spec.executable)
    assert path.is_file(), f"{spec.executable} has no module"
    assert set(spec.parameters) <= offered(spec.executable)


@pytest.mark.parametrize("robot", ROBOTS)
def test_every_key_of_the_config_file_is_a_parameter_of_its_node(robot: str):
    for file in robot_files(robot):
        for key, values in sections(file).items():
            name = key.removeprefix("/**/")
            unknown = set(values) - offered(f"{name}_node")
            assert not unknown, f"{file} {key}: {sorted(unknown)} are no parameters of {name}_node"


def test_simulated_cameras_of_two_cells_do_not_mix():
    (camera,) = (spec for spec in nodes(Options(link_prefix="cell_b")) if spec.executable == "camera_node")
    assert camera.parameters["sources"] == ["sim:cell_b_front", "sim:cell_b_wrist"]


def test_parameters_reach_the_command_line_with_their_types():
    parameters = {"task": 'say "no"', "rate": 5.0, "on": True, "names": ["a", "b"]}
    spec = NodeSpec("x_node", "x", "/so101", ("/c.yaml", "/d.yaml"), parameters)

    def after(flag: str) -> list[str]:
        arguments = spec.ros_arguments()
        return [value for before, value in pairwise(arguments) if before == flag]

    assert after("--params-file") == ["/c.yaml", "/d.yaml"]
    given = after("-p")
    parsed = {text.partition(":=")[0]: yaml.safe_load(text.partition(":=")[2]) for text in given}
    assert parsed == dict(spec.parameters)
    assert isinstance(parsed["rate"], float)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"robot": "hal"}, "known robots"),
        ({"policy": "random"}, "molmoact2, expert"),
        ({"policy": "expert", "sim": False}, "simulated cell only"),
        ({"sim": False, "emulated": True}, "emulated needs the simulated cell"),
        ({"robot": "yam"}, "no trained checkpoint of the simulated yam cell.*policy expert"),
        ({"sim": False}, "needs a checkpoint on a robot"),
        ({"policy": "none"}, "episodes, and those need a policy"),
        ({"driver": "mine"}, "auto, node, external"),
        ({"sim": False, "policy": "none", "robot_ip": "10.0.0.2"}, "robot_ip is of a Franka"),
        ({"sim": False, "policy": "none", "robot": "yam", "ports": ("can0",)}, "left_channel and right_channel"),
        ({"task": "  "}, "task is empty"),
        ({"episodes": -1}, "at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(change, hint):
    with pytest.raises(ValueError, match=hint):
        nodes(Options(**change))


def test_files_are_found_and_a_missing_one_is_named():
    assert fastdds_profile().name == "fastdds.xml"
    with pytest.raises(FileNotFoundError, match=r"config/none\.yaml"):
        share_path("config/none.yaml")


@pytest.mark.parametrize(
    ("robot", "gripper", "topic"),
    [
        ("franka", "franka_gripper", "fr3_arm_controller/joint_trajectory"),
        ("panda", "franka_gripper", "panda_arm_controller/joint_trajectory"),
        ("franka_robotiq", "gripper_command", "fr3_arm_controller/joint_trajectory"),
    ],
)
def test_a_franka_without_an_address_is_driven_by_franka_ros2(robot: str, gripper: str, topic: str, tmp_path: Path):
    real = Options(robot=robot, sim=False, policy="none")
    (executor,) = (spec for spec in nodes(real) if spec.executable == "executor_node")
    assert executor.parameters["output"] == "joint_trajectory"
    assert executor.parameters["command_topic"] == topic
    assert executor.parameters["gripper_output"] == gripper
    assert set(executor.parameters) <= offered("executor_node")
    (executor,) = (spec for spec in nodes(replace(real, robot_ip="10.0.0.2")) if spec.executable == "executor_node")
    assert "output" not in executor.parameters
    own = tmp_path / "cell.yaml"
    own.write_text("/**/executor: {ros__parameters: {command_topic: /mine/joint_trajectory}}")
    (executor,) = (spec for spec in nodes(replace(real, config=str(own))) if spec.executable == "executor_node")
    assert "command_topic" not in executor.parameters
    assert executor.parameters["output"] == "joint_trajectory"


def test_cameras_on_links_have_frames_that_belong_to_them(tmp_path: Path):
    frames = {frame.child: frame for frame in camera_frames(Options(robot="yam", policy="expert"))}
    assert {name: frame.parent for name, frame in frames.items()} == {
        "top_optical_frame": "left_base_link",
        "left_optical_frame": "left_link6",
        "right_optical_frame": "right_link6",
    }
    assert frames["top_optical_frame"].xyz == pytest.approx((-0.1665, -0.305, 0.9543))
    w, x, y, z = frames["left_optical_frame"].wxyz
    assert (w, x) == pytest.approx((0.97630, -0.21644), abs=1e-4), "canted by 25 degrees, as the vendor's station"
    assert (y, z) == pytest.approx((0.0, 0.0), abs=1e-9)
    real = Options(robot="yam", sim=False, policy="none")
    assert camera_frames(real) == ()
    (tmp_path / "cameras.yaml").write_text(
        "top: {width: 640, height: 360, k: [500, 0, 320, 0, 500, 180, 0, 0, 1], mount: left_base_link,"
        " xyz: [0.1, 0.2, 0.9], wxyz: [0, 1, 0, 0]}"
    )
    config = tmp_path / "cell.yaml"
    config.write_text(f"/**/visualizer: {{ros__parameters: {{calibration_file: {tmp_path}/cameras.yaml}}}}")
    (frame,) = camera_frames(replace(real, config=str(config)))
    assert frame == StaticFrame("left_base_link", "top_optical_frame", (0.1, 0.2, 0.9), (0.0, 1.0, 0.0, 0.0))


YAM_CAMERAS = ("top=realsense:1", "left=realsense:2", "right=realsense:3")
REAL = Options(robot="yam", sim=False, checkpoint="a/b", cameras=YAM_CAMERAS)
DERIVED = {
    "policy": {"norm_tag": "mine", "checkpoint": "/mine"},
    "visualizer": {"base_frame": "table", "checkpoint": "/elsewhere", "cameras": ["up"]},
    "executor": {"acknowledgement_timeout_s": 0.4},
    "recorder": {"cameras": ["up"], "checkpoint": "c", "config_files": ["x"]},
    "camera": {"names": ["up", "down"], "sources": ["v4l2:/dev/a", "v4l2:/dev/b"]},
    "episode": {"task": "stir", "episodes": 3, "seed": 4, "episode_timeout_s": 5.0},
    "sim": {"seed": 4},
    "yam_driver": {"retry_s": 2.0, "left_channel": "can7"},
}
"""Values that bringup would set by itself, as a user may have them in his file."""


def written(folder: Path, values: dict) -> str:
    path = folder / "cell.yaml"
    path.write_text(yaml.safe_dump({f"/**/{node}": {"ros__parameters": keys} for node, keys in values.items()}))
    return str(path)


def effective(spec: NodeSpec) -> dict:
    """What the node hears: its files, and what is set on top of them."""
    return {**parameters_for(spec.configs, f"{spec.namespace}/{spec.name}"), **spec.parameters}


@pytest.mark.parametrize(
    "options",
    [
        replace(REAL, checkpoint="", cameras=(), record="/bags"),
        Options(robot="yam", record="/bags"),
        Options(robot="yam", policy="expert"),
    ],
)
def test_what_the_user_wrote_in_his_file_reaches_the_node_as_it_is(options: Options, tmp_path: Path):
    config = written(tmp_path, DERIVED)
    seen = 0
    for spec in nodes(replace(options, config=config)):
        for key, value in DERIVED.get(spec.name, {}).items():
            assert effective(spec)[key] == value, f"{spec.name}.{key}"
            seen += 1
    assert seen > 8
    for spec in nodes(replace(options, config=config, checkpoint=options.checkpoint or "/mine")):
        assert spec.configs[-1] == config and len(spec.configs) == 3


def test_the_cameras_of_the_file_are_those_of_every_node_that_shows_or_keeps_images(tmp_path: Path):
    config = written(tmp_path, {"camera": {"names": ["up", "down"]}})
    for spec in nodes(Options(config=config, film="/f.mp4", record="/bags")):
        if spec.name in ("visualizer", "film", "recorder"):
            assert effective(spec)["cameras"] == ["up", "down"]
        if spec.name == "camera":
            assert effective(spec)["sources"] == ["sim:molmoact2_so101_up", "sim:molmoact2_so101_down"]


def test_named_cameras_come_in_the_order_of_the_robot_and_others_after_them():
    named = ("side=topic:/usb/image_raw", "right=realsense:3", "top=v4l2:/dev/v4l/by-path/a")
    camera = next(spec for spec in nodes(replace(REAL, cameras=named)) if spec.name == "camera")
    assert camera.parameters["names"] == ["top", "right", "side"]
    assert camera.parameters["sources"] == ["v4l2:/dev/v4l/by-path/a", "realsense:3", "topic:/usb/image_raw"]
    policy = next(spec for spec in nodes(replace(REAL, cameras=named)) if spec.name == "policy")
    assert policy.parameters["cell_cameras"] == ["top", "right", "side"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (replace(REAL, cameras=()), "nothing says where the images of yam come from; say cameras:=top=v4l2:"),
        (replace(REAL, cameras=("top=sim:cell_a_top",)), "sim:cell_a_top shows a simulated cell, and this is a real"),
        (replace(REAL, cameras=("top",)), "cameras must be top=v4l2:.*, got 'top'"),
        (replace(REAL, cameras=("top=realsense:1", "top=realsense:2")), "got top twice"),
        (Options(cameras=("front=v4l2:/dev/video0",)), "the simulated cell has cameras of its own"),
        (replace(REAL, calibration_id="arm_b"), "calibration_id is of an SO-100/101; yam has none"),
    ],
)
def test_a_real_arm_is_moved_by_what_its_own_cameras_see(options: Options, words: str):
    with pytest.raises(ValueError, match=words):
        nodes(options)


def test_a_simulated_camera_in_a_file_does_not_reach_a_real_arm(tmp_path: Path):
    config = written(tmp_path, {"camera": {"sources": ["sim:molmoact2_yam_top", "realsense:2", "realsense:3"]}})
    with pytest.raises(ValueError, match="sim:molmoact2_yam_top shows a simulated cell"):
        nodes(replace(REAL, cameras=(), config=config))


def test_only_the_simulated_cell_has_its_cameras_calibration():
    for options, file in ((Options(), "cell"), (REAL, None)):
        visualizer = next(spec for spec in nodes(options) if spec.name == "visualizer")
        assert visualizer.parameters.get("calibration_file") == file
    assert camera_frames(Options()) and not camera_frames(REAL)


@pytest.mark.parametrize(
    ("options", "values", "words"),
    [
        (replace(REAL, ports=("can0", "can1")), {"yam_driver": {"left_channel": "can7"}}, "left_channel of yam_driver"),
        (REAL, {"policy": {"checkpoint": "c/d"}}, "checkpoint of policy to 'c/d', and 'a/b' is asked for"),
        (REAL, {"executor": {"robot": "so101"}}, "robot of executor to 'so101', and 'yam'"),
        (REAL, {"camera": {"sources": ["topic:a"]}}, "sources of camera"),
        (replace(REAL, record="/bags"), {"recorder": {"directory": "/data"}}, "directory of recorder"),
        (Options(task="stir"), {"episode": {"task": "fold"}}, "task of episode to 'fold', and 'stir'"),
        (Options(emulated=True), {"so101_driver": {"port": "/dev/arm"}}, "port of so101_driver to '/dev/arm'"),
    ],
)
def test_an_option_that_says_something_else_than_the_file_is_refused(options, values, words, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{words}.*leave one of the two out"):
        nodes(replace(options, config=written(tmp_path, values)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read the parameter file .*: No such file"),
        ("a: [", "is no YAML"),
        ("just words", "must hold sections of nodes"),
        ("rate_hz: 30.0", "'rate_hz' belongs under a node's name and ros__parameters"),
        ("/**/camera: {rate_hz: 30.0}", "'rate_hz' belongs under"),
        ("/**/camera: {ros__parameters: 3}", "must hold names and values, got 3"),
    ],
)
def test_a_file_that_is_no_parameter_file_is_refused(text: str | None, words: str, tmp_path: Path):
    path = tmp_path / "cell.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words):
        nodes(Options(config=str(path)))


def test_what_moves_an_arm_ends_before_what_holds_it_and_that_before_the_cell():
    for robot in ROBOTS:
        names = [spec.name for spec in nodes(Options(robot=robot, emulated=True, policy="expert", record="/bags"))]
        order = sorted(names, key=stage_of)
        assert order[0] == "executor" and order[-2:] == [f"{robot}_driver", "sim"]
        assert set(ends_after("sim")) >= {"executor", f"{robot}_driver"}
        assert ends_after(f"{robot}_driver") == ("executor",)
        assert not ends_after("executor") and not ends_after("camera")
        assert stage_of("operator") > stage_of(f"{robot}_driver")  # an arm that is being parked can be stopped


def test_only_the_simulated_cell_has_nodes_whose_end_ends_the_run():
    real = replace(REAL, robot="franka", cameras=("wrist=realsense:1",), record="/bags")
    assert {spec.name for spec in nodes(real) if spec.on_end is not OnEnd.RESTARTED} == {"franka_state"}
    assert not [spec for spec in nodes(real) if spec.on_end is OnEnd.ENDS_RUN]
    cell = {spec.name: spec.on_end for spec in nodes(EVERYTHING)}
    assert {name for name, on_end in cell.items() if on_end is OnEnd.REPORTED} == {"visualizer", "film"}
    assert set(cell.values()) == {OnEnd.REPORTED, OnEnd.ENDS_RUN}


def test_a_launcher_that_is_named_is_watched_even_if_it_was_never_the_parent():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as popen:
        launcher = Launcher({LAUNCHER: str(popen.pid)})
        assert not launcher.ended
        popen.communicate(b"end\n")
        assert launcher.ended
    assert Launcher({LAUNCHER: str(popen.pid)}).ended, "it ended before this process could look"
    assert not Launcher({}).ended, "the parent of the tests is there"


def test_the_policy_knows_the_cameras_of_the_users_cell(tmp_path: Path) -> None:
    """They are what a checkpoint's views are matched with."""
    config = tmp_path / "mine.yaml"
    config.write_text("/**/camera:\n  ros__parameters:\n    names: [top, wrist]\n    sources: [v4l2:/a, v4l2:/b]\n")
    options = Options(sim=False, checkpoint="owner/name", config=str(config))
    (policy,) = [spec for spec in nodes(options) if spec.name == "policy"]
    assert policy.parameters["cell_cameras"] == ["top", "wrist"]


def test_a_policy_on_another_machine_needs_no_checkpoint_here(tmp_path: Path):
    address = "remote:ws://gpu.lab:8000"
    options = replace(REAL, checkpoint="", config=written(tmp_path, {"policy": {"backend": address}}))
    found = {spec.name: effective(spec) for spec in nodes(options)}
    assert found["policy"]["backend"] == address and "checkpoint" not in found["policy"]
    assert "checkpoint" not in found["visualizer"], "the depth decoder of another checkpoint would draw another depth"
