"""`molmoact2 episodes`: what each is, whether it can be trusted, what a person says of it, and a page of all."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from recording_messages import IMAGE, STORE, STRING, messages, string

from molmoact2_ros.cli import run
from molmoact2_ros.recording.bag import Bag
from molmoact2_ros.recording.episode_recorder import next_episode
from molmoact2_ros.recording.episodes import episodes, latest, read_episode, verdict
from molmoact2_ros.recording.following import Following
from molmoact2_ros.recording.streams import Stream

WRIST = Stream("/so101/cameras/wrist/image_raw", "sensor_msgs/msg/Image", reliable=False)
JOINTS = Stream("/so101/joint_states", "sensor_msgs/msg/JointState", reliable=False)
BEGIN = 1000.0


def colour(stamp: float, value: int) -> bytes:
    """A serialized Image of one grey."""
    types = STORE.types
    sec, nanosec = divmod(round(stamp * 1e9), 10**9)
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](sec, nanosec), "f")
    pixels = np.full(24 * 32 * 3, value, np.uint8)
    message = types["sensor_msgs/msg/Image"](header, 24, 32, "rgb8", 0, 96, pixels)
    return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/Image"))


def joints(stamp: float) -> bytes:
    types = STORE.types
    sec, nanosec = divmod(round(stamp * 1e9), 10**9)
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](sec, nanosec), "")
    zeros = np.zeros(2)
    message = types["sensor_msgs/msg/JointState"](header, ["a", "b"], zeros, zeros, zeros)
    return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/JointState"))


def record(folder: Path, number: int, late_s: float = 0.01, skew_s: float = 0.0, gap: bool = False) -> Path:
    """Five seconds of two cameras at 10 Hz and joints at 20 Hz."""
    bag = Bag(folder / f"episode_{number:04d}", [IMAGE, WRIST, JOINTS, STRING])
    for tick in range(50):
        stamp = BEGIN + 0.1 * tick
        bag.write(IMAGE.topic, colour(stamp, 5 * tick), round((stamp + 0.01) * 1e9))
        bag.write(WRIST.topic, colour(stamp - skew_s, 5 * tick), round((stamp + 0.01) * 1e9))
        for half in (0.0, 0.05):
            if not (gap and 20 <= tick < 25):
                bag.write(JOINTS.topic, joints(stamp + half), round((stamp + half + late_s) * 1e9))
    bag.close({"task": "pick up the red cube", "outcome": "success"})
    return bag.path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record(tmp_path, 1)
    record(tmp_path, 2, late_s=0.4)
    record(tmp_path, 3, skew_s=0.3)
    record(tmp_path, 4, gap=True)
    left = Bag(tmp_path / "episode_0005", [STRING])
    left.write(STRING.topic, string("x"), 1)
    left.abort()
    return tmp_path


def test_each_episode_has_its_length_task_outcome_and_verdict(folder: Path) -> None:
    found = episodes(folder)
    assert [episode.number for episode in found] == [1, 2, 3, 4, 5]
    good = found[0]
    assert (good.task, good.outcome, good.verdict, good.whole) == ("pick up the red cube", "success", (), True)
    assert good.length_s == pytest.approx(4.96, abs=0.05)
    assert found[1].verdict == ("joint_states: 100 % arrived late",)
    assert found[2].verdict == (
        "camera 'wrist': 100 % arrived late",
        "camera 'wrist': 0.30 s apart from the first camera",
    )
    assert found[3].verdict == ("joint_states: nothing for 0.55 s",)
    assert found[4].verdict == ("unfinished; recover it",) and not found[4].whole


def test_the_latest_are_listed_and_one_that_cannot_be_read_says_so(folder: Path) -> None:
    (folder / "episode_0099").mkdir()
    (folder / "episode_0099" / "metadata.yaml").write_text("[]")
    (folder / "episode_0100").mkdir()
    found = list(latest(folder, 50, but="episode_0100"))
    numbers = [episode["episode"] for episode in found]
    assert numbers[0] == 99 and numbers == sorted(numbers, reverse=True) and len(numbers) > 2
    assert "metadata" in found[0]["verdict"][0] and any(episode["whole"] for episode in found)
    assert len(list(latest(folder, 1))) == 1 and not list(latest(folder / "nowhere", 3))


def test_what_the_recorder_said_is_in_the_verdict() -> None:
    audit = json.dumps({IMAGE.topic: {"messages": 10, "largest_gap_s": 0.1, "missing": 0, "skew_s": 0.3, "stale": 0}})
    told = verdict({"audit": audit, "problems": '["3 images lost"]', "error": "disk full", "damaged_chunks": "2"})
    assert told[:3] == ("disk full", "3 images lost", "2 damaged chunks were left out")
    assert "0.30 s apart from the first camera" in told[3]
    assert verdict({}) == ("it was not audited: another program recorded it",)


def test_a_person_relabels_marks_and_deletes_and_the_messages_stay(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = messages(folder / "episode_0002")
    assert run(["episodes", str(folder), "--relabel", "2", "pick up the blue cube", "--mark", "2", "bad"]) == 0
    assert run(["episodes", str(folder), "--outcome", "2", "failure", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    second = json.loads(lines[-1])["episodes"][1]
    assert (second["task"], second["mark"], second["outcome"]) == ("pick up the blue cube", "bad", "failure")
    assert messages(folder / "episode_0002") == before
    assert run(["episodes", str(folder), "--relabel", "2", "again"]) == 0
    text = (folder / "episode_0002" / "metadata.yaml").read_text()
    assert "recorded_task: pick up the red cube" in text, "what the recorder wrote is kept"

    assert run(["episodes", str(folder), "--delete", "4", "5"]) == 0
    assert [episode.number for episode in episodes(folder)] == [1, 2, 3]
    assert sorted(path.name for path in (folder / ".trash").iterdir()) == ["episode_0004", "episode_0005"]
    assert next_episode(folder).name == "episode_0006", "a number is never given twice"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--mark", "1", "fine"], "--mark N good or --mark N bad"),
        (["--mark", "one", "good"], "'one' is no number"),
        (["--relabel", "9", "x"], "no whole bag of episode 9"),
        (["--relabel", "5", "x"], "no whole bag of episode 5"),
        (["--delete", "9"], "no episode 9"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], given, told) -> None:
    assert run(["episodes", str(folder), *given]) == 2
    assert told in capsys.readouterr().err
    assert run(["episodes", str(folder / "none")]) == 2


def test_the_page_shows_a_strip_of_images_over_the_episode_and_what_is_wrong(folder: Path) -> None:
    import cv2

    (folder / "episode_0003" / "episode_0003.mcap").write_bytes(b"broken")
    page = folder / "page.html"
    assert run(["episodes", str(folder), "--html", str(page)]) == 0
    text = page.read_text()
    assert "http" not in text, "nothing is loaded from elsewhere"
    first = text.split("<section>")[1]
    strips = re.findall(r"<div title='[^']*front[^']*'>(.*?)</div>", first)
    images = re.findall(r"base64,([^']*)'", strips[0])
    greys = [int(cv2.imdecode(np.frombuffer(base64.b64decode(i), np.uint8), 0).mean()) for i in images]
    assert len(greys) == 8 and greys == sorted(greys) and greys[0] < 10 and greys[-1] > 235
    assert "100 % arrived late" in text and "unfinished; recover it" in text
    assert "wrist/image_raw: " in text.split("<section>")[3], "a damaged bag is told in its place"


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is named episode_0001"):
        read_episode(tmp_path)
    path = tmp_path / "episode_0001"
    path.mkdir()
    (path / "metadata.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match="no metadata of a bag"):
        episodes(tmp_path)


def test_a_followed_episode_ends_once_and_the_next_begins() -> None:
    following = Following()
    assert following.heard(1, "running", False) == ("", False), "an inactive recorder follows none"
    assert following.heard(1, "running", True) == ("", True)
    assert following.heard(1, "running", True) == ("", False)
    assert following.heard(1, "success", True) == ("success", False)
    assert following.heard(1, "success", True) == ("", False)
    assert following.heard(2, "running", True) == ("", True)
    assert following.heard(3, "running", True) == ("interrupted", True), "the end of 2 was not heard"
    assert following.heard(4, "failure", True) == ("interrupted", False)
