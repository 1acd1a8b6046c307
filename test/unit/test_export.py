"""Bags become a LeRobotDataset, read back by lerobot's own reader: what was seen, when, and what the arm was told then.

Pins: frames are chosen by time and not by counting; an action is what was commanded a period after the observation; a
frame's image is the message's to the last byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_bags import ROBOT, SIZE, START_NS, TASK, Story, pixels, silent, swing, write_bag

from molmoact2_ros.cli import run
from molmoact2_ros.embodiments import ModelFrame
from molmoact2_ros.recording.episodes import label
from molmoact2_ros.recording.export.dataset import PROVENANCE, write_part
from molmoact2_ros.recording.export.exporting import export
from molmoact2_ros.recording.export.moments import Plan, plan_of
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions
from molmoact2_ros.recording.export.source import Source, topics_of

OPTIONS = ExportOptions("so101", videos=False)
PERIOD_NS = 1e9 / 30


def plan(path: Path, options: ExportOptions = OPTIONS, cameras: tuple[str, ...] = ("front", "wrist")) -> Plan:
    with Source(path) as source:
        return plan_of(source, topics_of(source, options), cameras, options)


def opened(root: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/test", root=root)


def vector(joints: np.ndarray) -> np.ndarray:
    return ROBOT.model_from_joints(joints, ModelFrame.ARM)


# -- which moments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [12.0, 30.0, 47.0])
def test_frames_are_chosen_by_time_whatever_the_cameras_rate(tmp_path: Path, fps: float) -> None:
    (frames,) = plan(write_bag(tmp_path / "bag", Story(fps=fps))).episodes
    assert len(frames) == pytest.approx(2.0 * 30 - 2, abs=2)
    np.testing.assert_allclose(np.diff([frame.time_ns for frame in frames]), PERIOD_NS, atol=2)
    for frame in frames:
        for stamp_ns in frame.image_stamps_ns.values():
            assert 0 <= frame.time_ns - stamp_ns <= 1.01e9 / fps + 8e6, "the newest image that had come, no older one"


def test_an_action_is_what_was_commanded_a_period_after_the_observation(tmp_path: Path) -> None:
    found = plan(write_bag(tmp_path / "bag"))
    (frames,) = found.episodes
    for frame in frames:
        due = frame.time_ns - found.age_ns + PERIOD_NS
        np.testing.assert_allclose(frame.action, swing(round(due)), atol=2e-4)
        np.testing.assert_array_equal(frame.joints, swing(frame.joints_stamp_ns - 50_000_000))
    stamps = np.array([min(frame.joints_stamp_ns, *frame.image_stamps_ns.values()) for frame in frames])
    times = np.array([frame.time_ns for frame in frames])
    assert np.median(times - stamps) == pytest.approx(found.age_ns, abs=1)


def test_what_was_measured_can_be_the_action(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", keep=lambda passed, topic: "command" not in topic)
    with pytest.raises(ExportError, match="--action measured"):
        plan(path)
    found = plan(path, replace(OPTIONS, action="measured"))
    for frame in found.episodes[0]:
        due = frame.time_ns - found.age_ns + PERIOD_NS
        np.testing.assert_allclose(frame.action, swing(round(due) - 50_000_000), atol=2e-4)


def test_a_bag_is_exported_where_the_arm_was_commanded(tmp_path: Path) -> None:
    (frames,) = plan(write_bag(tmp_path / "bag", Story(commands=(0.5, 1.7)))).episodes
    passed = [(frame.time_ns - START_NS) * 1e-9 for frame in frames]
    assert passed[0] > 0.45 and passed[-1] < 1.75 and len(frames) == pytest.approx(36, abs=2)


@pytest.mark.parametrize("topic", ["cameras/wrist", "joint_states", "executor/command"])
def test_a_gap_refuses_or_splits(tmp_path: Path, topic: str) -> None:
    path = write_bag(tmp_path / "bag", Story(length_s=5.0), silent(topic, 2.0, 2.8))
    with pytest.raises(ExportError, match=r"gap at [12]\.\d+ s to 2\.\d+ s: .*--split"):
        plan(path)
    found = plan(path, replace(OPTIONS, split=True))
    before, after = found.episodes
    assert (before[-1].time_ns - START_NS) * 1e-9 < 2.3 < (after[0].time_ns - START_NS) * 1e-9
    assert len(found.gaps) == 1
    for episode in found.episodes:
        np.testing.assert_allclose(np.diff([frame.time_ns for frame in episode]), PERIOD_NS, atol=2)


def test_a_short_silence_is_no_gap(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", keep=silent("cameras/wrist", 1.0, 1.15))
    assert len(plan(path).episodes) == 1


def test_interventions_and_tasks(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", Story(person=(1.0, 1.5)))
    (frames,) = plan(path).episodes
    driven = [(frame.time_ns - START_NS) * 1e-9 for frame in frames if frame.intervention]
    assert driven[0] == pytest.approx(1.0, abs=0.04) and driven[-1] == pytest.approx(1.5, abs=0.04)
    assert {frame.task for frame in frames} == {TASK}
    label(path, task="put the cup down")
    assert {frame.task for frame in plan(path).episodes[0]} == {"put the cup down"}, "a person's word goes before"
    assert {frame.task for frame in plan(path, replace(OPTIONS, task="wave")).episodes[0]} == {"wave"}


# -- hostile bags -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("joint_states", "no joint states"),
        ("cameras/front", "no images of front"),
        ("task", None),
        ("executor/driving", None),
    ],
)
def test_missing_topics_are_named(tmp_path: Path, topic: str, said: str | None) -> None:
    path = write_bag(tmp_path / "bag", keep=lambda passed, name: topic not in name)
    if said is None:  # the metadata says the task, too; and nobody has to say who drives
        assert plan(path).episodes
        return
    with pytest.raises(ExportError, match=said):
        plan(path)


def test_no_task_at_all(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", Story(task=""))
    with pytest.raises(ExportError, match="--task"):
        plan(path)
    assert plan(path, replace(OPTIONS, task="wave")).episodes[0][0].task == "wave"


def test_two_robots(tmp_path: Path) -> None:
    other = Story(namespace="/other")
    path = write_bag(tmp_path / "bag", stories=[other])
    with pytest.raises(ExportError, match=r"several robots: /other, /so101; choose one with --namespace"):
        plan(path)
    assert plan(path, replace(OPTIONS, namespace="other")).episodes
    with pytest.raises(ExportError, match="was recorded on so101, and yam is exported"):
        plan(path, replace(OPTIONS, robot="yam"))


def test_a_bag_that_was_cut_off(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "episode_0001")
    file = path / "episode_0001.mcap"
    whole = file.read_bytes()
    for share in (0.0, 0.3, 0.7, 0.999):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ExportError, match=r"cannot be read|damaged"):
            plan(path)
    file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    with pytest.raises(ExportError, match=r"cannot be read|damaged"):
        plan(path)
    (path / "metadata.yaml").unlink()
    with pytest.raises(ExportError, match=r"recording\.recover"):
        plan(path)


def test_stamps_of_another_clock_are_told(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", Story(delay_ns=20_000_000_000))
    with pytest.raises(ExportError, match=r"there is no moment with all inputs: camera .*old on arrival"):
        plan(path)


# -- the dataset ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bags, and the dataset of them."""
    root = tmp_path_factory.mktemp("export")
    write_bag(root / "bags" / "episode_0001", Story(length_s=1.5))
    later = Story(length_s=2.5, task="put the cup down", start_ns=START_NS + 10**11, person=(0.5, 1.0))
    write_bag(root / "bags" / "episode_0002", later, outcome="failure")
    before = digest(root / "bags")
    assert run(["export", str(root / "bags"), "--out", str(root / "set"), "--images"]) == 0
    assert digest(root / "bags") == before, "bags are never touched"
    return root / "bags", root / "set"


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_lerobots_own_reader_finds_what_was_recorded(made: tuple[Path, Path]) -> None:
    bags, root = made
    data = opened(root)
    assert data.num_episodes == 2 and data.fps == 30 and data.meta.robot_type == "so101"
    assert list(data.meta.camera_keys) == ["observation.images.front", "observation.images.wrist"]
    assert data.features["observation.state"]["names"] == [f"{name}.pos" for name in ROBOT.joint_names]
    index = 0
    for number, (task, outcome) in enumerate([(TASK, "success"), ("put the cup down", "failure")], 1):
        (frames,) = plan(bags / f"episode_000{number}").episodes
        for i, frame in enumerate(frames):
            item = data[index]
            index += 1
            assert (item["task"], item["outcome"], int(item["episode_index"])) == (task, outcome, number - 1)
            assert bool(item["intervention"]) == frame.intervention
            assert float(item["timestamp"]) == pytest.approx(i / 30)
            np.testing.assert_array_equal(item["observation.state"], vector(frame.joints).astype(np.float32))
            np.testing.assert_array_equal(item["action"], vector(frame.action).astype(np.float32))
            for camera in ("front", "wrist"):
                got = np.round(255 * item[f"observation.images.{camera}"].numpy().transpose(1, 2, 0)).astype(np.uint8)
                np.testing.assert_array_equal(got, pixels(camera, frame.image_stamps_ns[camera]))
    assert index == len(data)


def test_the_statistics_are_those_of_all_frames_together(made: tuple[Path, Path]) -> None:
    data = opened(made[1])
    for key in ("observation.state", "action"):
        every = np.stack([np.asarray(row) for row in data.hf_dataset.with_format("numpy")[key]]).astype(float)
        for name, share in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
            np.testing.assert_allclose(data.meta.stats[key][name], np.quantile(every, share, axis=0), rtol=1e-6)
        np.testing.assert_allclose(data.meta.stats[key]["std"], every.std(0), rtol=1e-6)
    about = json.loads((made[1] / PROVENANCE).read_text())
    assert [bag["bag"] for bag in about["bags"]] == ["episode_0001", "episode_0002"]
    assert about["bags"][1]["episodes"][0]["interventions"] == pytest.approx(15, abs=1)


def test_the_same_export_again_does_nothing_and_another_one_is_refused(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bags, root = made
    before = digest(root)
    command = ["export", str(bags), "--out", str(root), "--images", "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 2
    assert run([*command, "--rate", "15"]) != 0
    assert "exists already" in capsys.readouterr().err
    assert digest(root) == before


def test_bad_episodes_are_left_out_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2, 3, 4):
        write_bag(tmp_path / "bags" / f"episode_000{number}", Story(length_s=1.3))
    label(tmp_path / "bags" / "episode_0001", mark="bad")
    (tmp_path / "bags" / "episode_0002" / "metadata.yaml").unlink()
    label(tmp_path / "bags" / "episode_0003", outcome="failure")
    command = ["export", str(tmp_path / "bags"), "--images", "--json", "--outcome", "success", "--out"]
    assert run([*command, str(tmp_path / "set")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["exported"] == ["episode_0004"]
    assert told["refused"]["episode_0001"] == "marked bad"
    assert "recover" in told["refused"]["episode_0002"] and "failure" in told["refused"]["episode_0003"]
    command = ["export", str(tmp_path / "bags"), "--images", "--json", "--include-bad", "--out"]
    assert run([*command, str(tmp_path / "all")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["exported"] == ["episode_0001", "episode_0003", "episode_0004"]
    assert list(told["refused"]) == ["episode_0002"], "what cannot be read is never taken"


def test_nothing_to_export_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bag(tmp_path / "episode_0001", Story(length_s=0.7))
    assert run(["export", str(path), "--out", str(tmp_path / "set")]) == 1
    assert "no 1 s in one piece" in capsys.readouterr().out
    assert {entry.name for entry in tmp_path.iterdir()} == {"episode_0001"}


def test_two_folders_may_have_bags_of_one_name(tmp_path: Path) -> None:
    paths = [
        write_bag(tmp_path / day / "episode_0001", Story(length_s=length)) for day, length in (("a", 0.7), ("b", 1.3))
    ]
    report = export(paths, tmp_path / "set", OPTIONS)
    assert report.episodes == 1 and list(report.refused) == [str(paths[0])]


def test_views_have_the_names_and_the_order_of_the_prompt(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", Story(length_s=1.3))
    options = replace(
        OPTIONS, views={"wrist_left": "wrist", "exterior_1": "front", "exterior_2": "front"}, frame="released"
    )
    write_part(path, tmp_path / "part", options)
    data = opened(tmp_path / "part")
    assert [key.rpartition(".")[2] for key in data.meta.camera_keys] == ["wrist_left", "exterior_1", "exterior_2"]
    item = data[3]
    assert np.array_equal(item["observation.images.exterior_1"], item["observation.images.exterior_2"])
    assert tuple(item["observation.images.wrist_left"].shape) == (3, *SIZE)
    (frames,) = plan(path, options).episodes
    expected = ROBOT.model_from_joints(frames[3].joints, ModelFrame.TRAINING)
    np.testing.assert_allclose(item["observation.state"], expected, rtol=1e-6)


def test_what_an_export_had_done_when_it_was_interrupted_is_used(tmp_path: Path) -> None:
    for number in (1, 2):
        write_bag(tmp_path / "bags" / f"episode_000{number}", Story(length_s=1.3))
    target, bags = tmp_path / "set", sorted((tmp_path / "bags").iterdir())

    def interrupt(path: Path, done: int, of: int) -> None:
        if path == bags[1] and done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(bags, target, OPTIONS, told=interrupt)
    assert not target.exists(), "a dataset appears when it is whole"
    left = [entry.name for entry in tmp_path.joinpath(".set.parts").iterdir()]
    assert len(left) == 1 and left[0].startswith("episode_0001_"), "half a part does not stay"
    report = export(bags, target, OPTIONS)
    assert report.resumed == 1 and report.episodes == 2 and report.frames == opened(target).num_frames


@pytest.mark.slow
def test_a_killed_export_goes_on_where_it_was(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_bag(tmp_path / "bags" / f"episode_000{number}", Story(length_s=1.3))
    target = tmp_path / "set"
    parts = target.with_name(".set.parts")
    command = [
        sys.executable,
        "-m",
        "molmoact2_ros.cli",
        "export",
        str(tmp_path / "bags"),
        "--out",
        str(target),
        "--images",
    ]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 240.0
    while not any(parts.glob("episode_*/part.json")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not target.exists(), "a dataset appears when it is whole"
    done = len(list(parts.glob("episode_*/part.json")))
    assert done
    report = export(sorted((tmp_path / "bags").iterdir()), target, OPTIONS)
    assert report.resumed == done and report.episodes == 3 and len(opened(target)) == report.frames
    assert not parts.exists()
