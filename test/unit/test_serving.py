"""The policy server, spoken to by our client, by openpi's own, and as Ai2's clients speak.

Pins: answers are the local policy's, bit for bit where the same pixels go in; clients at the same time do not mix
caches, drafts, chunks or noise; turns are fair; a session that nobody uses ends; a token is asked for.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import json_numpy
import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image
from policy_server import ROBOT, SECOND, TASK, local_policy, make_checkpoint, observe, served, server, state_of
from websockets.exceptions import InvalidStatus

from molmoact2_ros.policy import Observation, Prediction, RemoteOptions, RTCOptions, open_policy
from molmoact2_ros.policy.model_policy import ModelPolicy
from molmoact2_ros.policy.remote.links import RemoteError
from molmoact2_ros.policy.remote.pictures import decode, encode
from molmoact2_ros.policy.remote.policy import RemotePolicy
from molmoact2_ros.serving.running import PolicyServer
from molmoact2_ros.serving.sessions import Sessions

RTC = RTCOptions(enabled=True, horizon=20, max_deviation=100.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def sessions(directory: Path) -> Iterator[Sessions]:
    made = served(directory)
    yield made
    made.close()


@pytest.fixture(scope="module")
def running(sessions: Sessions) -> Iterator[PolicyServer]:
    with server(sessions) as made:
        yield made


@pytest.fixture(scope="module")
def shared(directory: Path) -> ModelPolicy:
    return local_policy(directory)


def local(shared: ModelPolicy, rtc: RTCOptions | None = None, seed: int = 0) -> ModelPolicy:
    """The local policy as if it had just been opened."""
    return shared.beside(seed=seed, rtc=rtc or RTCOptions(), max_gap_s=2.0, log=lambda line: None)


def client(running: PolicyServer, scheme: str = "ws", **how: Any) -> RemotePolicy:
    options = RemoteOptions(jpeg_quality=how.pop("quality", 0), token_file=how.pop("token_file", ""), deadline_s=30.0)
    return RemotePolicy(f"{scheme}://127.0.0.1:{running.port}", ROBOT, options, **how)


def assert_same(found: Prediction, wanted: Prediction) -> None:
    np.testing.assert_array_equal(found.chunk_model, wanted.chunk_model)
    np.testing.assert_array_equal(found.chunk_joints, wanted.chunk_joints)
    assert found.depth_codes is not None and wanted.depth_codes is not None
    np.testing.assert_array_equal(found.depth_codes, wanted.depth_codes)
    np.testing.assert_array_equal(found.depth_updated, wanted.depth_updated)
    assert (found.stamp_ns, found.rate_hz, found.guided_rows) == (wanted.stamp_ns, wanted.rate_hz, wanted.guided_rows)
    assert found.forwards == wanted.forwards, "the draft of the call before was as good"


@pytest.mark.parametrize("scheme", ["ws", "http"])
@pytest.mark.parametrize("quality", [0, 90])
def test_answers_are_the_local_policys(running: PolicyServer, shared: ModelPolicy, scheme: str, quality: int) -> None:
    here, there = local(shared), client(running, scheme, quality=quality)
    replayed = []
    for step in range(4):
        seen = observe(1, step)
        same = seen
        if quality:
            same = replace(seen, images={name: decode(encode(image, quality)) for name, image in seen.images.items()})
        found = there.infer(seen)
        assert_same(found, here.infer(same))
        replayed.append(int(np.count_nonzero(~found.depth_updated)))
        assert {"server", "network", "encode", "infer", "queue", "decode", "total"} <= set(found.timings_ms)
    assert replayed[0] == 0 and max(replayed[1:]) > 0, "the cache of the call before was used"
    there.reset()
    assert there.infer(observe(1, 4)).depth_updated.all(), "a reset is heard"
    there.close()


def test_chunks_are_guided_by_the_clients_own_and_its_measured_latency(
    running: PolicyServer, shared: ModelPolicy
) -> None:
    now = [0]
    there = client(running, rtc=RTC, now_ns=lambda: now[0])
    here = local(shared, RTC)
    for step, latency_ms in enumerate((290, 210, 410)):
        seen = observe(2, step)
        now[0] = seen.stamp_ns + latency_ms * 1_000_000
        # What the local policy is told is what the remote one must have measured of its call before.
        wanted = here.infer(seen, -1.0 if step == 0 else (290, 210, 410)[step - 1] * 1e-3)
        found = there.infer(seen)
        assert_same(found, wanted)
        assert (found.guided_rows > 0) == (step > 0)
    there.close()


def test_clients_at_the_same_time_do_not_mix(running: PolicyServer, shared: ModelPolicy) -> None:
    steps = 6
    wanted = {}
    for robot in range(3):
        here = local(shared, RTC, seed=robot)
        wanted[robot] = [here.infer(observe(robot, step), -1.0 if step == 0 else 0.11) for step in range(steps)]
    start = threading.Barrier(3)

    def drive(robot: int) -> list[Prediction]:
        seen = [observe(robot, step) for step in range(steps)]
        now = iter(one.stamp_ns + 11 * SECOND // 100 for one in seen)
        there = client(running, ("ws", "http", "ws")[robot], rtc=RTC, seed=robot, now_ns=lambda: next(now))
        start.wait(30.0)
        found = [there.infer(one) for one in seen]
        there.close()
        return found

    with ThreadPoolExecutor(3) as pool:
        for robot, found in enumerate(pool.map(drive, range(3))):
            for one, other in zip(found, wanted[robot], strict=True):
                assert_same(one, other)


def test_openpis_own_client(running: PolicyServer, shared: ModelPolicy) -> None:
    theirs = WebsocketClientPolicy("127.0.0.1", running.port)
    said = theirs.get_server_metadata()
    assert (said["cameras"], said["horizon"], said["robot"]) == (["front", "wrist"], 30, "so101")
    here = local(shared)
    for step in range(2):
        seen = observe(3, step)
        answer = theirs.infer(
            {
                "observation/front_image": seen.images["front"],
                "observation/wrist_image": seen.images["wrist"],
                "observation/state": state_of(seen),
                "prompt": TASK,
            }
        )
        np.testing.assert_array_equal(answer["actions"], here.infer(as_sent(seen)).chunk_model)
        assert answer["actions"].shape == (30, 6) and answer["server_timing"]["infer_ms"] > 0.0
    with pytest.raises(RuntimeError, match="no picture for wrist"):
        theirs.infer({"observation/front_image": seen.images["front"], "state": state_of(seen), "prompt": TASK})
    again = WebsocketClientPolicy("127.0.0.1", running.port)
    assert again.get_server_metadata() == said, "the others, and who comes back, are served on"


def as_sent(seen: Observation) -> Observation:
    """`seen` by a client whose state is float32 in the checkpoint's units."""
    return replace(seen, joints=ROBOT.joints_from_model(state_of(seen).astype(float)))


def ask(running: PolicyServer, message: Any, **how: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{running.port}/act", content=json_numpy.dumps(message), timeout=30.0, **how)


def test_a_client_that_speaks_as_ai2s_do(running: PolicyServer, shared: ModelPolicy) -> None:
    health = httpx.get(f"http://127.0.0.1:{running.port}/act").json()
    assert {key: health[key] for key in ("status", "norm_tag", "num_cameras", "state_dim")} == {
        "status": "ok",
        "norm_tag": ROBOT.norm_tag,
        "num_cameras": 2,
        "state_dim": 6,
    }
    assert httpx.get(f"http://127.0.0.1:{running.port}/healthz").json() == {"status": "ok"}
    seen = observe(4)
    raw = {f"{name}_cam": image for name, image in seen.images.items()}
    rest = {"timestamp": 1.5, "instruction": TASK, "state": state_of(seen), "normalization_tag": ROBOT.norm_tag}
    answer = ask(running, {**raw, **rest}, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    found = json_numpy.loads(answer.text)
    assert found["actions"].dtype == np.float32 and found["dt_ms"] > 0.0 and found["timestamp"] == 1.5
    np.testing.assert_array_equal(found["actions"], local(shared).infer(as_sent(seen)).chunk_model)

    def jpeg(image: np.ndarray) -> str:
        out = io.BytesIO()
        Image.fromarray(image).save(out, format="JPEG", quality=85)
        return base64.b64encode(out.getvalue()).decode("ascii")

    small = {"images_jpeg": {name: jpeg(image) for name, image in seen.images.items()}}
    found = json_numpy.loads(ask(running, {**small, **rest, "state": state_of(seen).tolist()}).text)
    same = {name: decode(encode(image, 85)) for name, image in seen.images.items()}
    wanted = local(shared).infer(replace(as_sent(seen), images=same)).chunk_model
    np.testing.assert_array_equal(found["actions"], wanted)


def test_an_http_connection_is_a_session_and_a_proxy_makes_none(running: PolicyServer) -> None:
    def updated(http: httpx.Client, step: int, **headers: str) -> np.ndarray:
        seen = observe(5, step)
        body = json_numpy.dumps({"images": seen.images, "state": state_of(seen), "instruction": TASK})
        answer = http.post(f"http://127.0.0.1:{running.port}/act", content=body, headers=headers, timeout=30.0)
        return json_numpy.loads(answer.text)["depth_updated"]

    with httpx.Client() as one, httpx.Client() as other:
        assert updated(one, 0).all()
        assert not updated(one, 1).all(), "its own picture before"
        assert updated(other, 1).all(), "nothing of another's"
        assert updated(one, 2, **{"X-Forwarded-For": "10.0.0.1"}).all(), "by a proxy may come anybody"


def test_settings_are_said_once_a_session(running: PolicyServer, shared: ModelPolicy) -> None:
    here = local(shared, seed=7)
    with httpx.Client() as http:
        for step in range(2):
            seen = observe(6, step)
            message = {"images": seen.images, "state": state_of(seen), "instruction": TASK}
            message |= {"session": "seven"} | ({"settings": {"seed": 7}} if step == 0 else {})
            answer = http.post(f"http://127.0.0.1:{running.port}/act", content=json_numpy.dumps(message), timeout=30.0)
            wanted = here.infer(as_sent(seen)).chunk_model
            np.testing.assert_allclose(json_numpy.loads(answer.text)["actions"], wanted, atol=1e-3)


def test_metrics_count_what_happened(running: PolicyServer) -> None:
    before = httpx.get(f"http://127.0.0.1:{running.port}/metrics").text
    assert ask(running, {"state": [0.0]}).status_code == 400
    after = httpx.get(f"http://127.0.0.1:{running.port}/metrics").text

    def count(text: str) -> float:
        name = 'molmoact2_calls_total{outcome="400",protocol="http"} '
        return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)

    assert count(after) == count(before) + 1
    assert "molmoact2_infer_seconds_bucket" in after and "molmoact2_sessions" in after


def test_a_token_is_asked_for(sessions: Sessions, tmp_path: Path) -> None:
    good, bad = tmp_path / "token", tmp_path / "other"
    good.write_text("correct-horse-battery\n")
    bad.write_text("correct-horse-batterx\n")
    with server(sessions, token_file=str(good)) as guarded:
        for scheme in ("ws", "http"):
            for file in ("", str(bad)):
                with pytest.raises(RemoteError, match="refuses the token"):
                    client(guarded, scheme, token_file=file)
            there = client(guarded, scheme, token_file=str(good))
            assert there.infer(observe(1)).chunk_model.shape == (30, 6)
            there.close()
        with pytest.raises(InvalidStatus):
            WebsocketClientPolicy("127.0.0.1", guarded.port, api_key="wrong")
        theirs = WebsocketClientPolicy("127.0.0.1", guarded.port, api_key="correct-horse-battery")
        assert theirs.get_server_metadata()["robot"] == "so101"
        at = f"http://127.0.0.1:{guarded.port}"
        assert [httpx.get(f"{at}/{path}").status_code for path in ("act", "metrics", "healthz")] == [401, 401, 200]
        assert ask(guarded, {}).status_code == 401
        allowed = {"Authorization": "Bearer correct-horse-battery"}
        assert httpx.get(f"{at}/metrics", headers=allowed).status_code == 200
        page = {**allowed, "Origin": "http://somewhere.example"}
        assert httpx.get(f"{at}/act", headers=page).status_code == 401, "a page in a browser"


def test_a_session_that_nobody_uses_ends(directory: Path) -> None:
    now = [0.0]
    kept = served(directory, idle_s=10.0, monotonic=lambda: now[0])
    with server(kept) as made:
        there = client(made, "http")
        there.infer(observe(1, 0))
        now[0] = 9.0
        assert not there.infer(observe(1, 1)).depth_updated.all()
        assert len(kept) == 1
        now[0] = 20.0
        httpx.get(f"http://127.0.0.1:{made.port}/metrics")
        assert len(kept) == 0
        assert there.infer(observe(1, 2)).depth_updated.all(), "it begins anew"
        there.close()
    kept.close()


def test_what_the_model_refuses_ends_no_server(running: PolicyServer) -> None:
    seen = observe(1)
    answer = ask(running, {"images": seen.images, "state": state_of(seen), "instruction": " "})
    assert answer.status_code == 400 and "is empty" in json.loads(answer.text)["error"]
    assert "\n" not in json.loads(answer.text)["error"]
    assert ask(running, {"images": seen.images, "state": state_of(seen), "instruction": TASK}).status_code == 200


def test_guidance_that_the_server_cannot_give_is_refused(directory: Path) -> None:
    reference = open_policy(directory, ROBOT, ROBOT.norm_tag, backend="reference", device="cpu", threads=1)
    assert isinstance(reference, ModelPolicy)
    kept = Sessions(reference, ROBOT)
    with server(kept) as made:
        there = client(made)
        assert there.infer(observe(1)).chunk_model.shape == (30, 6)
        there.close()
        guided = client(made, rtc=RTC)
        with pytest.raises(RemoteError, match=r"rtc\.enabled off"):
            guided.infer(observe(1))
        guided.close()
    kept.close()


def test_each_policy_beside_another_keeps_its_own_draft(shared: ModelPolicy) -> None:
    one, other = local(shared), local(shared)
    for step in range(2):
        for policy, robot in ((one, 1), (other, 2)):
            found = policy.infer(observe(robot, step))
            assert found.depth_codes is not None
            assert policy._episode.draft == found.depth_codes.reshape(-1).tolist()
    kept = one._episode
    other.reset()
    assert one._episode is kept and other._episode.draft is None
