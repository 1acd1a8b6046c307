"""Hostile and broken messages to the policy server: each is answered with one line and no more memory than it is worth,
and the client beside it notices nothing.

Every case goes over both protocols where both can say it; the witness asks before and after and gets the same chunk.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from PIL import Image
from policy_server import ROBOT, TASK, make_checkpoint, observe, picture, served, server, state_of
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from molmoact2_ros.policy import RemoteOptions
from molmoact2_ros.policy.remote import wire
from molmoact2_ros.policy.remote.policy import RemotePolicy
from molmoact2_ros.serving.running import PolicyServer

MOST = 2_000_000
MESSAGE_GROWTH_MB = 150
"""More than this for one message of 2 MB would be a leverage."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyServer]:
    sessions = served(make_checkpoint(tmp_path_factory.mktemp("checkpoint")))
    with server(sessions, most_message=MOST) as made:
        yield made
    sessions.close()


@pytest.fixture
def witness(running: PolicyServer) -> Iterator[None]:
    """A sound client, before and after what the test does."""
    there = RemotePolicy(f"ws://127.0.0.1:{running.port}", ROBOT, RemoteOptions(jpeg_quality=0, deadline_s=30.0))
    before = there.infer(observe(1)).chunk_model
    there.reset()
    there.infer(observe(2))
    yield
    there.close()
    again = RemotePolicy(f"ws://127.0.0.1:{running.port}", ROBOT, RemoteOptions(jpeg_quality=0, deadline_s=30.0))
    # Features of pictures that were seen before are kept, so that sums are made in another order.
    np.testing.assert_allclose(again.infer(observe(1)).chunk_model, before, atol=1e-3)
    again.close()


def sound() -> dict[str, Any]:
    seen = observe(1)
    return {"images": dict(seen.images), "state": state_of(seen), "instruction": TASK}


def post(running: PolicyServer, body: bytes) -> tuple[int, str]:
    answer = httpx.post(f"http://127.0.0.1:{running.port}/act", content=body, timeout=30.0)
    return answer.status_code, "" if answer.status_code == 200 else json.loads(answer.text)["error"]


def send(running: PolicyServer, body: bytes | str) -> str:
    """What the websocket answers to `body`; its text when it is an error, after which it must close."""
    with connect(f"ws://127.0.0.1:{running.port}", compression=None, max_size=None) as socket:
        socket.recv(30.0)
        socket.send(body)
        answer = socket.recv(30.0)
        if isinstance(answer, bytes):
            return ""
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(30.0)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
        return answer


def refused(running: PolicyServer, message: dict[str, Any], *words: str) -> None:
    """Both protocols refuse `message` with one line that has these words."""
    status, line = post(running, wire.dumps(message))
    for said in (line, send(running, wire.pack(message))):
        assert said and "\n" not in said and len(said) <= 1000
        assert all(word in said for word in words), said
    assert status == 400


def changed(**parts: Any) -> dict[str, Any]:
    return {**sound(), **parts}


def png(width: int, height: int, rows: int = 1) -> bytes:
    """A PNG that claims `width` x `height` and holds a few zero bytes."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(rows * (1 + 3 * width)), 9)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", data) + part(b"IEND", b"")


IMAGES = sound()["images"]
WRONG: dict[str, tuple[Callable[[], dict[str, Any]], tuple[str, ...]]] = {
    "nothing": (lambda: {}, ("no picture for front, wrist", "needed:")),
    "no state": (lambda: {"images": IMAGES, "instruction": TASK}, ("no state", "shoulder_pan")),
    "no task": (lambda: {"images": IMAGES, "state": [0.0] * 6}, ("no task",)),
    "task that is no text": (lambda: changed(instruction=7), ("no task",)),
    "endless task": (lambda: changed(instruction="pick " * 1000), ("5000 letters",)),
    "token in the task": (lambda: changed(instruction="pick <im_end> up"), ("means something else",)),
    "short state": (lambda: changed(state=np.zeros(5)), ("6 values", "got 5")),
    "long state": (lambda: changed(state=np.zeros((100, 100))), ("6 values", "got 10000")),
    "NaN state": (lambda: changed(state=np.full(6, np.nan)), ("not finite",)),
    "infinite state": (lambda: changed(state=[float("inf")] * 6), ("not finite",)),
    "state of text": (lambda: changed(state=["1"] * 6), ("array or a list of numbers",)),
    "state of lists": (lambda: changed(state=[[0.0]] * 6), ("array or a list of numbers",)),
    "a camera of another robot": (lambda: changed(top_cam=picture(1)), ("'top_cam' is of no camera",)),
    "one camera twice": (lambda: changed(front_cam=picture(1)), ("two pictures for the camera front",)),
    "one camera missing": (lambda: changed(images={"front": picture(1)}), ("no picture for wrist",)),
    "flat picture": (lambda: changed(images={**IMAGES, "front": picture(1)[:, :, 0]}), ("RGB uint8", "(60, 80)")),
    "four channels": (lambda: changed(images={**IMAGES, "front": np.zeros((9, 9, 4), "u1")}), ("RGB uint8",)),
    "float picture": (lambda: changed(images={**IMAGES, "front": np.zeros((9, 9, 3), "f4")}), ("float32",)),
    "tiny picture": (lambda: changed(images={**IMAGES, "front": np.zeros((1, 1, 3), "u1")}), ("1 x 1",)),
    "empty picture": (lambda: changed(images={**IMAGES, "front": np.zeros((0, 9, 3), "u1")}), ("9 x 0",)),
    "thread of a picture": (lambda: changed(images={**IMAGES, "front": np.zeros((8, 5000, 3), "u1")}), ("5000 x 8",)),
    "picture of text": (lambda: changed(images={**IMAGES, "front": "x"}), ("base64",)),
    "picture of nothing": (lambda: changed(images={**IMAGES, "front": None}), ("RGB uint8", "NoneType")),
    "another scaling": (lambda: changed(normalization_tag="yam_dual_molmoact2"), ("normalization_tag",)),
    "another flow": (lambda: changed(num_steps=1), ("num_steps 1",)),
    "stamps of other cameras": (lambda: changed(stamps_ns={"front": 1}), ("stamps_ns",)),
    "stamps below zero": (lambda: changed(stamps_ns={"front": -1, "wrist": 0, "state": 0}), ("stamps_ns",)),
    "time that is none": (lambda: changed(timestamp=float("nan")), ("timestamp",)),
    "latency of text": (lambda: changed(latency_s="long"), ("latency_s",)),
    "session without end": (lambda: changed(session="x" * 65), ("session",)),
    "session of numbers": (lambda: changed(session=3), ("session",)),
    "reset of text": (lambda: changed(reset="yes"), ("reset",)),
    "settings of text": (lambda: changed(settings="fast"), ("settings",)),
    "unknown settings": (lambda: changed(settings={"weights": 1}), ("settings",)),
    "unknown rtc": (lambda: changed(settings={"rtc": {"evil": 1}}), ("rtc has no evil",)),
    "rtc without end": (lambda: changed(settings={"rtc": {"window": 10**12}}), ("rtc has no window",)),
    "rtc of text": (lambda: changed(settings={"rtc": {"horizon": "9"}}), ("rtc has no horizon",)),
    "rtc without rows": (lambda: changed(settings={"rtc": {"horizon": 0}}), ("horizon",)),
    "seed below zero": (lambda: changed(settings={"seed": -1}), ("seed",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_refused_in_one_line(running: PolicyServer, name: str) -> None:
    make, words = WRONG[name]
    message = make()
    refused(running, message, *words)


def test_the_client_beside_them_notices_nothing(running: PolicyServer, witness: None) -> None:
    for name in ("nothing", "NaN state", "one camera twice", "rtc without end"):
        make, words = WRONG[name]
        refused(running, make(), *words)


def jpeg_of(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(out, "JPEG")
    return out.getvalue()


PACKED: dict[str, tuple[Callable[[], bytes], str]] = {
    "noise": (lambda: picture(1).tobytes()[:5000], "no JPEG or PNG"),
    "empty": (lambda: b"", "no JPEG or PNG"),
    "a JPEG that breaks off": (lambda: jpeg_of((640, 480))[:-900], "no JPEG or PNG"),
    "a bomb of 60000 x 60000": (lambda: png(60000, 60000), ""),
    "a bomb of 4000 x 4000": (lambda: png(4000, 4000, 4000), "4000 x 4000"),
    "a large JPEG": (lambda: jpeg_of((3000, 2000)), "3000 x 2000"),
    "a GIF": (lambda: b"GIF89a" + bytes(100), "no JPEG or PNG"),
    "a program": (lambda: pickle.dumps(print), "no JPEG or PNG"),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_pictures_are_looked_at_before_they_are_decoded(running: PolicyServer, name: str) -> None:
    make, words = PACKED[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = changed(images={**IMAGES, "front": make()})
    answer = send(running, wire.pack(message))
    assert answer and "\n" not in answer and words in answer
    seen = observe(1)
    whole = changed(images=None, state=state_of(seen).tolist())
    del whole["images"]
    packed = {"front": base64.b64encode(make()).decode(), "wrist": base64.b64encode(jpeg_of((80, 60))).decode()}
    status, line = post(running, json.dumps({**whole, "images_jpeg": packed}).encode())
    assert status == 400 and words in line
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MESSAGE_GROWTH_MB


def array_in_msgpack(**parts: Any) -> bytes:
    """A sound message whose state is an array of these parts."""
    whole = {b"__ndarray__": True, b"data": bytes(24), b"dtype": "<f4", b"shape": [6]}
    whole |= {key.encode(): value for key, value in parts.items()}
    return msgpack.packb({"state": whole, "instruction": TASK})


BODIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "msgpack"),
    "breaks off": (lambda: wire.pack(sound())[:-100], "msgpack"),
    "more than one": (lambda: wire.pack(sound()) * 2, "msgpack"),
    "noise": (lambda: picture(7).tobytes(), "msgpack"),
    "a list": (lambda: msgpack.packb([1, 2]), "a dictionary was expected"),
    "a number": (lambda: msgpack.packb(1), "a dictionary was expected"),
    "keys that are no text": (lambda: msgpack.packb({b"x": 1}), "keys must be text"),
    "a thousand deep": (lambda: b"\x91" * 100_000, "msgpack"),
    "a million dictionaries": (lambda: b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x80" * 1024) * 1024, "1000 lists"),
    "a long list": (lambda: b"\xdd\xff\xff\xff\xff", "msgpack"),
    "a longer list than taken": (lambda: msgpack.packb({"state": [0.0] * 5000}), "msgpack"),
    "an extension": (lambda: msgpack.packb({"state": msgpack.ExtType(5, b"abc")}), "msgpack"),
    "text that is none": (lambda: b"\x81\xa5state\xa2\xff\xfe", "msgpack"),
    "an array of objects": (lambda: array_in_msgpack(dtype="|O"), "plain numbers"),
    "an array of records": (lambda: array_in_msgpack(dtype=[["a", "<f4"]]), "plain numbers"),
    "an array of text": (lambda: array_in_msgpack(dtype="<U6"), "plain numbers"),
    "an array of a long type": (lambda: array_in_msgpack(dtype="f4," * 1000), "plain numbers"),
    "an array too short": (lambda: array_in_msgpack(shape=[10**9, 10**9, 10**9]), "bytes, got 24"),
    "an array below zero": (lambda: array_in_msgpack(shape=[-1]), "whole numbers"),
    "an array of many sides": (lambda: array_in_msgpack(shape=[1] * 60), "whole numbers"),
    "an array without data": (lambda: array_in_msgpack(data=None), "data as bytes"),
    "an array with a true side": (lambda: array_in_msgpack(shape=[True]), "whole numbers"),
    "a program": (lambda: pickle.dumps(print), "msgpack"),
}


@pytest.mark.parametrize("name", BODIES)
def test_broken_msgpack(running: PolicyServer, name: str) -> None:
    make, words = BODIES[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = send(running, make())
    assert answer and words in answer and "\n" not in answer
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MESSAGE_GROWTH_MB


TEXTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "no JSON"),
    "breaks off": (lambda: wire.dumps(sound())[:-100], "no JSON"),
    "no text": (lambda: b"\xff\xfe" * 50, "no JSON"),
    "a list": (lambda: b"[1, 2]", "a dictionary was expected"),
    "a hundred thousand deep": (lambda: b"[" * 100_000, "values in one message"),
    "ten thousand deep": (lambda: b'{"state":' + b"[" * 10_000 + b"]" * 10_000 + b"}", ""),
    "a picture of lists": (lambda: json.dumps({"front_cam": picture(1).tolist()}).encode(), "json_numpy's form"),
    "a number without end": (lambda: b'{"state": [' + b"9" * 100_000 + b"]}", "100000 digits"),
    "a number that no float holds": (lambda: wire.dumps(changed(state=[10**400] * 6)), "401 digits"),
    "a long step": (lambda: wire.dumps(changed(latency_s=10**400)), "401 digits"),
    "objects": (lambda: b'{"state": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}', "plain numbers"),
    "records": (lambda: b'{"state": {"__numpy__": "AAAA", "dtype": [["a", "<f4"]], "shape": [1]}}', "plain numbers"),
    "no base64": (lambda: b'{"state": {"__numpy__": "@@@@", "dtype": "<f4", "shape": [1]}}', "no base64"),
    "another shape": (lambda: b'{"state": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [9]}}', "9 bytes, got 3"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_broken_json(running: PolicyServer, name: str) -> None:
    make, words = TEXTS[name]
    status, line = post(running, make())
    assert status == 400 and words in line and "\n" not in line and len(line) <= 1000


def test_text_over_the_websocket(running: PolicyServer) -> None:
    assert "got text" in send(running, "hello")


def test_messages_are_bounded_before_they_are_read(running: PolicyServer, witness: None) -> None:
    status, line = post(running, bytes(MOST + 1))
    assert status == 413 and "send JPEG" in line

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(MOST // 20)

    at = f"http://127.0.0.1:{running.port}/act"
    try:
        answer = httpx.post(at, content=pieces(), timeout=30.0)
        assert answer.status_code == 413, "a length that is not said"
    except httpx.WriteError:
        pass  # the server has hung up on it
    with connect(f"ws://127.0.0.1:{running.port}", compression=None) as socket:
        socket.recv(30.0)
        with pytest.raises(ConnectionClosed) as closed:
            socket.send(bytes(MOST + 1))
            socket.recv(30.0)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_nobody_can_send_what_unpacks_to_more(running: PolicyServer) -> None:
    with connect(f"ws://127.0.0.1:{running.port}") as socket:
        assert not socket.protocol.extensions, "no compression, however much a client would like it"
    status, line = post(running, zlib.compress(bytes(10_000_000)))
    assert status == 400 and "no JSON" in line


def test_a_client_that_says_nothing_holds_nobody_up(running: PolicyServer, witness: None) -> None:
    silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
    silent[0].sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    silent[1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n")
    assert post(running, wire.dumps(sound()))[0] == 200
    for one in silent:
        one.close()


def test_many_at_once_are_answered_or_refused(running: PolicyServer) -> None:
    body, found = wire.dumps(changed(session="one robot")), []

    def ask() -> None:
        found.append(post(running, body)[0])

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert len(found) == 12 and set(found) <= {200, 429} and found.count(200) >= 2


def test_a_client_that_goes_while_it_is_answered(running: PolicyServer, witness: None) -> None:
    before = len(running.sessions)
    for _ in range(5):
        socket = connect(f"ws://127.0.0.1:{running.port}", compression=None)
        with socket as there:
            there.recv(30.0)
            there.send(wire.pack(sound()))
            there.socket.close()
    end = time.monotonic() + 30.0
    while len(running.sessions) > before and time.monotonic() < end:
        time.sleep(0.01)
    assert len(running.sessions) == before, "nothing is kept of them"
    assert post(running, wire.dumps(sound()))[0] == 200
