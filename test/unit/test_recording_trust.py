"""A recording loses nothing without saying so: full disks, removed folders, cuts, flipped bytes, images on their way.

Pins: a full disk once left a third of the images, no metadata, and a success; zeros at the end of a file once ended its
recovery in a traceback although every message was there.
"""

from __future__ import annotations

import errno
import random
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from recording_messages import IMAGE, STRING, custom_data, image, messages, string
from rosbags.rosbag2 import Reader

from molmoact2_ros.cli.sim import unrecorded
from molmoact2_ros.recording import episode_recorder
from molmoact2_ros.recording.bag import RESERVE, Bag, Output
from molmoact2_ros.recording.episode_recorder import EpisodeRecorder, EpisodeWriter, Finished, finished_bags, unfinished
from molmoact2_ros.recording.recover import recover
from molmoact2_ros.recording.streams import Stream

MB = 2**20


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# -- disks ------------------------------------------------------------------------------------------------------------


class SmallDisk:
    """The file of a bag on a disk with `room` bytes, some of which the bag keeps in reserve."""

    def __init__(self, file: Any, room: int, reserve: Path, greedy: bool) -> None:
        self.file, self.room, self.reserve, self.greedy = file, room, reserve, greedy
        self.reserved = reserve.stat().st_size
        self.used = 0

    def write(self, data: memoryview) -> int:
        # A greedy neighbour takes what the bag gives back.
        room = self.room - self.used - (self.reserved if self.greedy or self.reserve.exists() else 0)
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[:room])
        self.used += written
        return int(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture(params=["injected", "greedy", "tmpfs"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a disk of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=False)
        return
    real = Output.reserve

    def small(self: Output, size: int) -> None:
        real(self, size)
        if not isinstance(self._file, SmallDisk):
            self._file = SmallDisk(self._file, 12 * MB, self._reserve, request.param == "greedy")

    monkeypatch.setattr(Output, "reserve", small)
    yield folder


def test_a_full_disk_ends_the_episode_and_keeps_what_came_before(
    small_disk: Path, request: pytest.FixtureRequest
) -> None:
    greedy = "greedy" in request.node.name
    ended = threading.Event()
    finished: list[Finished] = []

    def done(episode: Finished) -> None:
        finished.append(episode)
        ended.set()

    episodes = EpisodeRecorder(small_disk, [IMAGE, STRING], done)
    path = episodes.start(0, {"robot": "so101", "task": "pick up the red cube", "outcome": "interrupted"})
    sent = []
    for number in range(240):
        sent.append(image(number, 128))
        episodes.put(IMAGE.topic, sent[-1], number * 33_000_000)
    assert ended.wait(20.0), "it is told when it happens, not when somebody asks"
    assert "No space left" in (finished[0].error or "") and finished[0].kept
    assert episodes.recording is None
    writer = episodes.stop({"outcome": "stopped"})
    assert writer.result is finished[0], "who stops it afterwards is told, too"
    assert not (path / RESERVE).exists()
    if greedy:  # not even the end of the bag could be written
        assert "python -m molmoact2_ros.recording.recover" in (finished[0].error or "")
        assert unfinished(small_disk) == [path]
        shutil.copytree(path, small_disk.parent / "larger" / path.name)
        path = recover(small_disk.parent / "larger" / path.name)
    else:
        assert "what came before is in it" in (finished[0].error or "")
        assert "No space left" in custom_data(path)["error"]
    found = [data for topic, data in messages(path) if topic == IMAGE.topic]
    assert len(found) > 60 and found == sent[: len(found)]
    custom = custom_data(path)
    assert (custom["robot"], custom["task"]) == ("so101", "pick up the red cube")


def test_a_folder_that_is_removed_is_told_and_the_next_episode_has_one_again(tmp_path: Path) -> None:
    finished: list[Finished] = []
    episodes = EpisodeRecorder(tmp_path / "bags", [IMAGE, STRING], finished.append)
    episodes.start(0)
    episodes.put(IMAGE.topic, image(1), 1)
    shutil.rmtree(tmp_path / "bags")
    assert eventually(lambda: finished), "noticed with the next flush"
    assert "was removed or renamed" in (finished[0].error or "") and not finished[0].kept
    result = episodes.stop({}).result
    assert result is not None and result.error is not None
    path = episodes.start(0)
    episodes.put(IMAGE.topic, image(2), 2)
    episodes.stop({})
    assert episodes.wait(10.0)
    assert messages(path) == [(IMAGE.topic, image(2))]


def test_an_episode_that_ends_early_says_why_and_is_whole(tmp_path: Path) -> None:
    finished: list[Finished] = []
    episodes = EpisodeRecorder(tmp_path, [IMAGE], finished.append)
    path = episodes.start(0)
    episodes.put(IMAGE.topic, image(1), 1)
    episodes.end_early({"outcome": "interrupted"}, "90 MB free on the disk")
    assert eventually(lambda: finished)
    assert finished[0].error == "90 MB free on the disk; what came before is in it"
    assert custom_data(path)["error"] == "90 MB free on the disk" and len(messages(path)) == 1
    assert episodes.stop({}).result is finished[0]
    assert finished_bags(tmp_path) == set(), "a part of an episode is not one"
    episodes.start(5)
    episodes.end_early({}, "90 MB free on the disk")
    assert eventually(lambda: len(finished) == 2)
    gone = episodes.discard()
    assert not gone.path.exists(), "what ended by itself can be thrown away"


def test_a_run_that_was_not_recorded_says_so_and_fails(tmp_path: Path) -> None:
    log = tmp_path / "recorder.log"
    assert unrecorded({"episodes": 3, "bags": 3}, log) == "" == unrecorded({"episodes": 3}, log)
    told = unrecorded({"episodes": 3, "bags": 2}, log)
    assert told.startswith("recorded: 2 of 3 episodes;") and told.endswith("recorder.log says why")


def test_every_static_frame_is_in_every_bag(tmp_path: Path) -> None:
    frames = Stream("/so101/tf_static", "tf2_msgs/msg/TFMessage", latched=True, all_hold=True)
    episodes = EpisodeRecorder(tmp_path, [frames], lambda _: None)
    arm, camera = (struct.pack("<4xI", 0) + bytes([number] * 4) for number in (1, 2))
    for data in (arm, camera, arm):  # of several publishers; each has its own last word
        episodes.put(frames.topic, data, 1)
    path = episodes.start(2)
    episodes.stop({})
    assert episodes.wait(10.0)
    assert [data for _, data in messages(path)] == [arm, camera]


def test_without_room_for_its_end_no_bag_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", none)
    episodes = EpisodeRecorder(tmp_path, [IMAGE], lambda _: None)
    with pytest.raises(OSError, match="No space left"):
        episodes.start(0)
    assert list(tmp_path.iterdir()) == [] and episodes.recording is None


def test_a_file_system_that_keeps_no_room_is_recorded_on_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", unable)
    bag = Bag(tmp_path / "episode_0001", [STRING])
    bag.write(STRING.topic, string("here"), 1)
    bag.close({})
    assert messages(bag.path) == [(STRING.topic, string("here"))]


def test_two_recorders_in_one_folder_take_different_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (EpisodeRecorder(tmp_path, [STRING], lambda _: None) for _ in range(2))
    real = episode_recorder.next_episode
    stale = iter([real(tmp_path)])  # the other one has looked at the same moment
    paths = [first.start(0)]
    monkeypatch.setattr(episode_recorder, "next_episode", lambda folder: next(stale, None) or real(folder))
    paths.append(second.start(0))
    assert [path.name for path in paths] == ["episode_0001", "episode_0002"]
    assert unfinished(tmp_path) == [], "one that is being written was not left"
    with pytest.raises(ValueError, match="is being written by a recorder"):
        recover(paths[0])
    for episodes in (first, second):
        episodes.put(STRING.topic, string("here"), 1)
        episodes.stop({})
        assert episodes.wait(10.0)
    assert finished_bags(tmp_path) == {"episode_0001", "episode_0002"}
    assert finished_bags(tmp_path, {"episode_0001"}) == {"episode_0002"}


def test_the_disk_has_what_is_a_second_old_whatever_the_messages_clock_does(tmp_path: Path) -> None:
    steady = 100.0
    bag = Bag(tmp_path / "episode_0001", [STRING], steady=lambda: steady)
    file = tmp_path / "episode_0001" / "episode_0001.mcap"
    bag.write(STRING.topic, string("first"), 40_000_000_000)
    begin = file.stat().st_size
    steady = 101.1
    bag.write(STRING.topic, string("the clock was set back"), 1_000_000_000)
    assert file.stat().st_size > begin
    steady, before = 103.0, file.stat().st_size
    bag.write(STRING.topic, string("the last for long"), 2_000_000_000)
    bag.tick()
    assert file.stat().st_size == before
    steady = 104.1
    bag.tick()
    assert file.stat().st_size > before
    bag.close({})
    duration = yaml.safe_load((tmp_path / "episode_0001" / "metadata.yaml").read_text())
    assert duration["rosbag2_bagfile_information"]["duration"]["nanoseconds"] == 39_000_000_000


def test_a_lone_message_reaches_the_disk_though_no_other_comes(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "episode_0001", [STRING], lambda _: None)
    file = tmp_path / "episode_0001" / "episode_0001.mcap"
    begin = file.stat().st_size
    writer.put(STRING.topic, string("alone"), 1)
    assert eventually(lambda: file.stat().st_size > begin)
    writer.finish(None)
    assert writer.join(10.0)


# -- recovery ---------------------------------------------------------------------------------------------------------

ABOUT = {"robot": "yam", "task": "fold the towel", "config": "a: 1", "checkpoint": "c", "outcome": "interrupted"}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[tuple[int, int]]]:
    """A file of 30 chunks with one image and one string each, as a killed recorder leaves it, and (end, messages)."""
    folder = tmp_path_factory.mktemp("left")
    bag = Bag(folder / "episode_0001", [IMAGE, STRING], zstd=True, about=ABOUT)
    ends = []
    for number in range(30):
        bag.write(IMAGE.topic, image(number), number)
        bag.write(STRING.topic, string(f"word {number}"), number)
        before = bag._output.tell()
        bag.flush()
        # The chunk itself ends where its index begins; the message index is not needed to read it.
        data = (folder / "episode_0001" / "episode_0001.mcap").read_bytes()
        length = struct.unpack_from("<Q", data, before + 1)[0]
        ends.append((before + 9 + length, 2 * (number + 1)))
    bag.abort()
    return data, ends


def laid(folder: Path, data: bytes) -> Path:
    path = folder / "episode_0001"
    path.mkdir(parents=True)
    (path / "episode_0001.mcap").write_bytes(data)
    return path


@pytest.mark.parametrize("cases", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_everything_before_a_cut_is_recovered_wherever_it_is_and_with_zeros_behind_it(
    left: tuple[bytes, list[tuple[int, int]]], tmp_path: Path, cases: int
) -> None:
    data, ends = left
    rng = random.Random(11)
    everything = [item for n in range(30) for item in ((IMAGE.topic, image(n)), (STRING.topic, string(f"word {n}")))]
    for case in range(cases):
        cut = rng.randrange(ends[0][0], len(data) + 1)
        zeros = 0 if case % 4 == 0 else rng.choice([1, 2, 7, 8, 9, 17, 42, 511, 4096, len(data) - cut])
        kept = max(count for end, count in ends if end <= cut)
        path = laid(tmp_path / str(case), data[:cut] + bytes(zeros))
        whole = recover(path)
        assert messages(whole) == everything[:kept], (cut, zeros)
        if case % 20 == 0:
            custom = custom_data(whole)
            assert {key: custom[key] for key in ABOUT} == ABOUT and custom["recovered_from"] == "episode_0001"
        shutil.rmtree(tmp_path / str(case))


def test_a_flipped_byte_is_seen_and_costs_its_chunk_only(
    left: tuple[bytes, list[tuple[int, int]]], tmp_path: Path
) -> None:
    data, ends = left
    for number in (0, 7, 29):  # the first holds the schemas and channels of all
        broken = bytearray(data)
        broken[ends[number][0] - 5] ^= 0x10
        whole = recover(laid(tmp_path / str(number), bytes(broken)))
        assert len(messages(whole)) == 58
        assert string(f"word {number}") not in [body for _, body in messages(whole)]
        assert custom_data(whole)["damaged_chunks"] == "1"


def test_a_flipped_byte_in_a_finished_bag_is_seen_by_another_reader(tmp_path: Path) -> None:
    bag = Bag(tmp_path / "episode_0001", [IMAGE])
    for number in range(5):
        bag.write(IMAGE.topic, image(number, 64), number)
    bag.close({})
    file = bag.path / "episode_0001.mcap"
    data = bytearray(file.read_bytes())
    place = data.find(image(2, 64)[200:300])
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(Exception, match="checksum"), Reader(bag.path) as reader:
        list(reader.messages())


def test_a_recovery_that_fails_leaves_nothing_and_can_be_tried_again(
    left: tuple[bytes, list[tuple[int, int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = laid(tmp_path, left[0])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Bag, "close", full)
        with pytest.raises(OSError, match="No space left"):
            recover(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["episode_0001"]
    assert len(messages(recover(path))) == 60
    with pytest.raises(FileExistsError, match="remove it to recover episode_0001 again"):
        recover(path)


# -- images on their way ----------------------------------------------------------------------------------------------
