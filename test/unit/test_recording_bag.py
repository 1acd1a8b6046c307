"""A bag holds the very bytes that came, can be read by others, says what is in it, and survives a kill.

Pins: sqlite3 bags lose everything on a kill; slow streams alone must reach the disk within about a second too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from recording_messages import IMAGE, STORE, STRING, image, messages, string
from rosbags.rosbag2 import Reader

from molmoact2_ros.recording.audit import StreamAudit, audit_lines
from molmoact2_ros.recording.bag import Bag
from molmoact2_ros.recording.episode_recorder import (
    EpisodeRecorder,
    EpisodeWriter,
    Finished,
    next_episode,
    unfinished,
)
from molmoact2_ros.recording.recover import recover
from molmoact2_ros.recording.streams import Arrival, DuplicateFilter, streams_of


@pytest.mark.parametrize("zstd", [False, True])
def test_rosbags_and_mcap_read_the_same_bytes(tmp_path: Path, zstd: bool) -> None:
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    sent = [(IMAGE.topic, image(i), 1_000_000_000 + i * 33_000_000) for i in range(40)]
    sent += [(STRING.topic, string("pick up the red cube"), 1_000_000_001)]
    bag = Bag(tmp_path / "episode_0001", [IMAGE, STRING], zstd)
    for topic, data, stamp in sent:
        bag.write(topic, data, stamp)
    bag.close({"robot": "so101", "task": "pick up the red cube"})

    with Reader(bag.path) as reader:
        read = sorted((c.topic, bytes(data), stamp) for c, stamp, data in reader.messages())
        assert read == sorted(sent)
        assert reader.message_count == 41
        custom = yaml.safe_load((bag.path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"]
        assert custom["robot"] == "so101"
        audit = json.loads(custom["audit"])
        assert audit[IMAGE.topic]["messages"] == 40
        assert audit[IMAGE.topic]["largest_gap_s"] == pytest.approx(0.033)
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
        assert qos[IMAGE.topic].reliability.name == "BEST_EFFORT"
        assert qos[STRING.topic].durability.name == "TRANSIENT_LOCAL"
    with (bag.path / "episode_0001.mcap").open("rb") as file:
        decoded = [
            message
            for _, _, _, message in make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages()
        ]
    images = [message for message in decoded if hasattr(message, "encoding")]
    assert len(images) == 40
    assert images[3].header.frame_id == "front_optical_frame"
    np.testing.assert_array_equal(
        np.frombuffer(bytes(images[3].data), np.uint8),
        np.random.default_rng(3).integers(0, 256, 768, dtype=np.uint8),
    )


def test_every_recorded_type_has_the_hash_that_ros_gives_it(tmp_path: Path) -> None:
    """The bag's type hashes are those of the installed message packages: a player on real ROS 2 accepts them."""
    share = Path(sys.prefix) / "share"
    streams = [
        stream
        for stream in streams_of(["front"], compressed=True, depth=True)
        if (share / stream.msgtype.partition("/")[0]).is_dir()  # TF's messages have no wheel
    ]
    checked = 0
    for stream in streams:
        package, _, name = stream.msgtype.split("/")
        described = share / package / "msg" / f"{name}.json"
        if not described.is_file():
            continue
        hashes = {
            entry["type_name"]: entry["hash_string"] for entry in json.loads(described.read_text())["type_hashes"]
        }
        assert STORE.hash_rihs01(stream.msgtype) == hashes[stream.msgtype]
        checked += 1
    if checked == 0:
        pytest.skip("the installed message packages carry no type descriptions")
    assert checked == len(streams)


WRITER = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from recording_messages import IMAGE, STRING, image, string
from molmoact2_ros.recording.bag import Bag
now = 0
bag = Bag(Path(sys.argv[1]), [IMAGE, STRING], steady=lambda: now * 1e-9)
for i in range(10**6):
    now = i * 50_000_000
    bag.write(IMAGE.topic, image(i), now)
    bag.write(STRING.topic, string(str(i)), now)
    print(i, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_recorder_loses_about_one_second(tmp_path: Path) -> None:
    directory = tmp_path / "episode_0001"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(root / "test"), str(root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    for line in process.stdout:
        if int(line) >= 130 or time.monotonic() > deadline:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert unfinished(tmp_path) == [directory]

    whole = recover(directory)
    with Reader(whole) as reader:
        by_topic: dict[str, list[bytes]] = {}
        for connection, _, data in reader.messages():
            by_topic.setdefault(connection.topic, []).append(bytes(data))
    # 20 messages a second of message time: of 130 at most the last chunk (21) may be missing.
    assert len(by_topic[IMAGE.topic]) >= 105
    assert by_topic[IMAGE.topic] == [image(i) for i in range(len(by_topic[IMAGE.topic]))]
    assert by_topic[STRING.topic][50] == string("50")
    assert (directory / "episode_0001.mcap").exists(), "the unfinished bag is left as it was"
    with pytest.raises(ValueError, match="needs no recovery"):
        recover(whole)


def test_recovering_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="directory of one episode"):
        recover(tmp_path)
    bag = Bag(tmp_path / "episode_0001", [STRING])
    bag.write(STRING.topic, string("lost"), 5)
    bag.abort()
    with pytest.raises(ValueError, match="no whole chunk"):
        recover(bag.path)


def test_a_bag_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "episode_0007_recovered").mkdir()
    assert next_episode(tmp_path).name == "episode_0008"
    with pytest.raises(FileExistsError, match="never overwritten"):
        Bag(tmp_path / "episode_0007_recovered", [STRING])


def recorder(directory: Path) -> tuple[EpisodeRecorder, list[Finished]]:
    """A recorder of one latched and one sensor stream, and what it reports."""
    finished: list[Finished] = []
    return EpisodeRecorder(directory, [IMAGE, STRING], finished.append), finished


def test_every_episode_begins_with_the_last_latched_messages(tmp_path: Path) -> None:
    episodes, finished = recorder(tmp_path)
    episodes.put(STRING.topic, string("old"), 1)
    episodes.put(STRING.topic, string("pick up the red cube"), 2)
    episodes.put(IMAGE.topic, image(0), 3)
    paths = []
    for i in (1, 2):
        paths.append(episodes.start(10 * i, {"robot": "so101"}))
        episodes.put(IMAGE.topic, image(i), 10 * i + 1)
        episodes.stop({"task": "t"})
    assert episodes.wait(10.0)
    assert paths == [tmp_path / "episode_0001", tmp_path / "episode_0002"]
    assert {entry.path for entry in finished} == set(paths), "each bag is finished in a thread of its own"
    for i, path in enumerate(paths, 1):
        assert messages(path) == [(STRING.topic, string("pick up the red cube")), (IMAGE.topic, image(i))]


def test_what_was_kept_from_before_is_recorded_but_does_not_hold_again(tmp_path: Path) -> None:
    heard, new, late, again = DuplicateFilter(), Arrival.NEWEST, Arrival.LATE, Arrival.AGAIN
    came = [
        ("task", 20, 200, new),
        ("task", 10, 100, late),  # the other subscription kept it from before
        ("task", 20, 201, again),
        ("e_stop", 10, 100, new),
        ("task", 5, 300, new),  # from a publisher whose clock is behind
        ("task", 40, 300 - DuplicateFilter.WAITING_NS, late),
        ("task", 50, 299 - DuplicateFilter.WAITING_NS, new),  # this clock was set back
        ("task", 60, 400 - DuplicateFilter.WAITING_NS, new),
        ("task", 10, 999, again),
    ]
    for topic, sent, received, wanted in came:
        assert heard.arrival(topic, sent, received) is wanted, (topic, sent, received)

    episodes, _ = recorder(tmp_path)
    episodes.put(STRING.topic, string("pick up the red cube"), 2)
    first = episodes.start(10)
    episodes.put(STRING.topic, string("kept from before"), 11, newest=False)
    episodes.stop({})
    second = episodes.start(20)
    episodes.stop({})
    assert episodes.wait(10.0)
    now = (STRING.topic, string("pick up the red cube"))
    assert messages(first) == [now, (STRING.topic, string("kept from before"))]
    assert messages(second) == [now]


def test_a_discarded_or_empty_episode_leaves_no_directory(tmp_path: Path) -> None:
    episodes, finished = recorder(tmp_path)
    episodes.start(0)
    episodes.put(IMAGE.topic, image(1), 1)
    episodes.discard()
    episodes.start(0)
    episodes.stop({})
    assert episodes.wait(10.0)
    assert list(tmp_path.iterdir()) == []
    assert [(entry.kept, entry.error) for entry in finished] == [
        (False, None),
        (False, "no message arrived; does the robot run, and in this namespace?"),
    ]


def test_start_and_stop_out_of_turn_say_what_to_do(tmp_path: Path) -> None:
    episodes, _ = recorder(tmp_path)
    with pytest.raises(RuntimeError, match="start one first"):
        episodes.stop({})
    episodes.start(0)
    with pytest.raises(RuntimeError, match="episode_0001 is being recorded"):
        episodes.start(0)
    episodes.discard()
    assert episodes.wait(10.0)


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    finished: list[Finished] = []
    writer = EpisodeWriter(tmp_path / "episode_0001", [IMAGE], finished.append, queue_bytes=len(image(0)) - 1)
    assert not writer.put(IMAGE.topic, image(0), 0)
    writer.finish({})
    assert writer.join(10.0)
    assert finished[0].audits[IMAGE.topic].dropped == 1


def test_a_disk_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Bag, "write", full)
    episodes, finished = recorder(tmp_path)
    episodes.start(0)
    episodes.put(IMAGE.topic, image(0), 0)
    episodes.stop({})
    assert episodes.wait(10.0)
    assert "No space left" in (finished[0].error or "")


def test_audit_names_gaps_drops_and_silent_streams() -> None:
    good, silent = StreamAudit(), StreamAudit()
    for stamp in (0.0, 0.1, 0.2, 0.9, 1.0):
        good.add(b"0123456789", int(stamp * 1e9))
    good.dropped = 2
    lines = audit_lines({"joint_states": good, "task": silent})
    assert lines == ["joint_states: 5, 4.0 Hz, largest gap 0.700 s, 2 DROPPED", "nothing on: task"]


def test_images_must_be_recorded_one_way_or_the_other() -> None:
    with pytest.raises(ValueError, match="raw or compressed"):
        streams_of(["front"], raw=False)
    topics = {stream.topic for stream in streams_of(["front", "wrist"], raw=False, compressed=True)}
    assert "cameras/wrist/image_raw/compressed" in topics
    assert "cameras/wrist/image_raw" not in topics
