"""Our client of a policy server against servers that are late, gone, changed, or say what must not be believed.

Pins: nothing is given out that does not answer the observation handed in; a link that failed is never used again;
attempts to connect wait longer each time; a server that runs another checkpoint than before is not believed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from policy_server import ROBOT, make_checkpoint, observe, served, server
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.policy import CheckpointError, Choices, RemoteOptions, open_checkpoint, open_policy
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.remote.description import describe
from molmoact2_ros.policy.remote.links import RemoteError, read_token
from molmoact2_ros.policy.remote.policy import FIRST_PAUSE_S, LONGEST_PAUSE_S, RemotePolicy
from molmoact2_ros.policy.remote.wire import pack, unpack

Answer = Callable[[dict[str, Any]], dict[str, Any] | str | bytes | None]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def said(directory: Path) -> dict[str, Any]:
    """What a sound server says of its checkpoint."""
    return describe(open_checkpoint(directory, ROBOT, ROBOT.norm_tag), ROBOT)


def sound(message: dict[str, Any]) -> dict[str, Any]:
    return {
        "actions": np.tile(np.float32(message["state"]), (30, 1)),
        "stamp_ns": min(message["stamps_ns"].values()),
        "depth_codes": np.zeros((3, 3), np.uint8),
        "depth_updated": np.ones((3, 3), bool),
        "server_timing": {"total_ms": 1.0},
    }


@contextmanager
def playing(description: dict[str, Any] | list[dict[str, Any]], answer: Answer) -> Iterator[str]:
    """A websocket server in the hands of the test; its address. Of several descriptions each connection gets the next,
    and the last one again."""
    descriptions = list(description) if isinstance(description, list) else [description]
    open_ones: list[ServerConnection] = []

    def handle(socket: ServerConnection) -> None:
        open_ones.append(socket)
        socket.send(pack(descriptions.pop(0) if len(descriptions) > 1 else descriptions[0]))
        try:
            for body in socket:
                assert isinstance(body, bytes)
                said = answer(unpack(body))
                if said is not None:
                    socket.send(pack(said) if isinstance(said, dict) else said)
        except ConnectionClosed:
            pass

    with serve(handle, "127.0.0.1", 0, compression=None) as made:
        thread = Thread(target=made.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{made.socket.getsockname()[1]}"
        made.shutdown()
        for socket in open_ones:  # websockets 16 leaves them open, 17 closes them
            socket.close()
        thread.join()


def client(address: str, **how: Any) -> RemotePolicy:
    options = RemoteOptions(deadline_s=how.pop("deadline_s", 10.0), jpeg_quality=0)
    return RemotePolicy(address, ROBOT, options, **how)


def changed(**parts: Any) -> Answer:
    return lambda message: {key: value for key, value in {**sound(message), **parts}.items() if value is not ...}


LIES: dict[str, tuple[Answer, str]] = {
    "no actions": (changed(actions=...), "expected actions"),
    "actions of another robot": (changed(actions=np.zeros((30, 14), np.float32)), "expected actions"),
    "too few rows": (changed(actions=np.zeros((29, 6), np.float32)), "expected actions"),
    "whole numbers": (changed(actions=np.zeros((30, 6), np.int64)), "expected actions"),
    "NaN": (changed(actions=np.full((30, 6), np.nan, np.float32)), "not finite"),
    "an answer to another observation": (changed(stamp_ns=1), "another observation"),
    "no stamp": (changed(stamp_ns=...), "another observation"),
    "no depth": (changed(depth_codes=...), "expected depth"),
    "depth of another size": (changed(depth_updated=np.zeros((9, 9), bool)), "expected depth"),
    "an error": (lambda message: "Traceback\n  in line 1\nValueError: broken\n", "ValueError: broken"),
    "nothing of the protocol": (lambda message: b"\xc1\xc1", "cannot be read"),
    "objects": (
        lambda message: pack({"actions": {b"__ndarray__": True, b"data": b"12345678", b"dtype": "|O", b"shape": [1]}}),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_answers_that_cannot_be_believed(said: dict[str, Any], name: str) -> None:
    lie, words = LIES[name]
    answers = [sound, lie, sound]
    with playing(said, lambda message: answers.pop(0)(message)) as address:
        there = client(address)
        assert there.infer(observe(1)).stamp_ns == observe(1).stamp_ns
        with pytest.raises(RemoteError, match=words):
            there.infer(observe(1, 1))
        assert there.infer(observe(1, 2)).stamp_ns == observe(1, 2).stamp_ns, "a new connection, at once"
        there.close()


def test_strange_timings_hurt_nobody(said: dict[str, Any]) -> None:
    for timing in (None, "fast", {"total_ms": "long", "x": [1]}):
        with playing(said, changed(server_timing=timing)) as address:
            there = client(address)
            assert there.infer(observe(1)).timings_ms["total"] > 0.0
            there.close()


def test_a_late_answer_is_never_the_next_ones(said: dict[str, Any]) -> None:
    asked = []

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        asked.append(message)
        if len(asked) == 2:
            time.sleep(0.4)
        return sound(message)

    with playing(said, answer) as address:
        there = client(address, deadline_s=0.2)
        there.infer(observe(1))
        with pytest.raises(RemoteError, match=r"within 0\.2 s"):
            there.infer(observe(1, 1))
        found = there.infer(observe(1, 2))
        assert found.stamp_ns == observe(1, 2).stamp_ns
        there.close()
    assert len({message["session"] for message in asked}) == 1, "the episode goes on under its name"


def test_the_measured_latency_goes_out_with_the_next_call(said: dict[str, Any]) -> None:
    asked, now = [], [0]

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        asked.append(message)
        now[0] = min(message["stamps_ns"].values()) + 250_000_000
        return sound(message)

    with playing(said, answer) as address:
        there = client(address, now_ns=lambda: now[0])
        for step in range(2):
            there.infer(observe(1, step))
        there.reset()
        there.infer(observe(1, 2))
        there.close()
    assert [message["latency_s"] for message in asked] == [-1.0, 0.25, 0.25]
    assert [message["reset"] for message in asked] == [True, False, True]


def test_attempts_wait_longer_each_time(said: dict[str, Any]) -> None:
    now = [100.0]
    with playing(said, sound) as address:
        there = client(address, monotonic=lambda: now[0])
        there.infer(observe(1))
    tried = []
    with pytest.raises(RemoteError, match="no policy server"):
        there.infer(observe(1, 1))  # the connection is found to be gone
    for _ in range(400):
        before = there._not_before
        with pytest.raises(RemoteError, match="no policy server"):
            there.infer(observe(1, 1))
        if there._not_before != before:
            tried.append(now[0])
        now[0] += 0.05
    pauses = np.diff(tried)
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S, abs=0.06)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S, abs=0.06) and np.all(np.diff(pauses) > -0.06)


def test_who_comes_back_must_be_the_same(said: dict[str, Any]) -> None:
    answers: list[Answer] = [sound, lambda message: "bye", sound]
    with playing([said, {**said, "name": "another"}, said], lambda message: answers.pop(0)(message)) as address:
        there = client(address)
        there.infer(observe(1))
        with pytest.raises(RemoteError, match="bye"):
            there.infer(observe(1, 1))
        with pytest.raises(RemoteError, match="runs another now"):
            there.infer(observe(1, 2))
        assert there.infer(observe(1, 3)).stamp_ns == observe(1, 3).stamp_ns, "the right one again"
        there.close()


def test_a_sequence_without_end_keeps_its_name(said: dict[str, Any]) -> None:
    with playing(said, lambda message: "UnendedSequenceError: did not end") as address:
        there = client(address)
        with pytest.raises(UnendedSequenceError):
            there.infer(observe(1))
        there.close()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another server": ({"server": "openpi"}, "no server of molmoact2 serve"),
    "no description": ({"server": ...}, "no server of molmoact2 serve"),
    "another version": ({"protocol": 2}, "same version"),
    "another robot": ({"robot": "yam"}, "serve --robot so101"),
    "no cameras": ({"cameras": []}, "cannot be used"),
    "an unknown frame": ({"frame": "mirror"}, "cannot be used"),
    "a longer chunk": ({"horizon": 60}, "60 rows"),
    "another rate": ({"rate_hz": 15.0}, "15"),
}


@pytest.mark.parametrize("name", WRONG)
def test_servers_for_something_else(said: dict[str, Any], name: str) -> None:
    parts, words = WRONG[name]
    described = {key: value for key, value in {**said, **parts}.items() if value is not ...}
    with playing(described, sound) as address, pytest.raises(CheckpointError, match=words):
        client(address)


def test_what_does_not_fit_the_cell_is_refused(directory: Path) -> None:
    sessions = served(directory)
    with server(sessions) as running:
        backend = f"remote:http://127.0.0.1:{running.port}"
        found = open_policy("", ROBOT, ROBOT.norm_tag, backend=backend)
        assert found.checkpoint.cameras == ("front", "wrist")
        with pytest.raises(ValueError, match="cameras front, wrist"):
            found.infer(replace(observe(1), images={"front": observe(1).images["front"]}))
        found.close()
        with pytest.raises(CheckpointError, match="scales by norm tag"):
            open_policy("", ROBOT, "other", backend=backend)
        with pytest.raises(CheckpointError, match="the cell has top"):
            open_policy("", ROBOT, "", backend=backend, choices=Choices(cell_cameras=("top",)))
        with pytest.raises(CheckpointError, match="this one is 'yam'"):
            open_policy("", embodiment("yam"), "", backend=backend)
        with pytest.raises(ValueError, match="dtype, cameras must be said to molmoact2 serve"):
            open_policy("", ROBOT, "", backend=backend, dtype="float32", cameras=("front", "wrist"))
    sessions.close()


@pytest.mark.parametrize("address", ["remote:", "remote:localhost:8000", "remote:ftp://host/act", "remote:ws://"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="a policy server is ws://host:port"):
        open_policy("", ROBOT, "", backend=address)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "msgpack" else known(name))
    with pytest.raises(ValueError, match=r"needs msgpack: pip install -r requirements/robot\.txt"):
        open_policy("", ROBOT, "", backend="remote:ws://127.0.0.1:9")


def test_nobody_there() -> None:
    for scheme in ("ws", "http"):
        with pytest.raises(RemoteError, match="does molmoact2 serve run there"):
            open_policy("", ROBOT, "", backend=f"remote:{scheme}://127.0.0.1:9")


@pytest.mark.parametrize("text", ["", "short\n", "two words in one token", "ünicode-ünicode-ünicode"])
def test_tokens_that_keep_nobody_out(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ValueError, match="token file"):
        read_token(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_token(tmp_path / "missing")


@pytest.mark.parametrize("parts", [{"jpeg_quality": 101}, {"jpeg_quality": -1}, {"deadline_s": 0.0}])
def test_options_that_cannot_work(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RemoteOptions(**parts)
