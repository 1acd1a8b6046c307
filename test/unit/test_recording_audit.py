"""What the audit of an episode counts: images lost on their way, silent cameras, and what it marks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from recording_messages import IMAGE, INFO, STORE, custom_data

from molmoact2_ros.recording.audit import StreamAudit, audit_data, lost_images, problems
from molmoact2_ros.recording.episode_recorder import EpisodeRecorder, Finished


def stamped(kind: str, number: float) -> bytes:
    types = STORE.types
    sec, nanosec = divmod(round(number * 1e9), 10**9)
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](sec, nanosec), "f")
    if kind == "image":
        message = types["sensor_msgs/msg/Image"](header, 2, 2, "rgb8", 0, 6, np.zeros(12, np.uint8))
        return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/Image"))
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    k, p = np.zeros(9), np.zeros(12)
    message = types["sensor_msgs/msg/CameraInfo"](header, 2, 2, "plumb_bob", k[:5], k, k, p, 0, 0, roi)
    return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/CameraInfo"))


def audited(images: list[float], infos: list[float]) -> dict[str, StreamAudit]:
    audits = {stream.topic: StreamAudit(stream.msgtype, stream.topic) for stream in (IMAGE, INFO)}
    for kind, topic, stamps in (("image", IMAGE.topic, images), ("info", INFO.topic, infos)):
        for stamp in stamps:
            audits[topic].add(stamped(kind, stamp), round(stamp * 1e9))
    return audits


def test_images_that_were_lost_on_their_way_are_counted_by_their_camera_info() -> None:
    infos = [10.0 + 0.1 * i for i in range(100)]
    whole = audited(infos, infos)
    assert lost_images(whole) == {} and problems(whole) == []
    # The first image's info came before recording began, the last image is still on its way: nothing is lost.
    assert problems(audited(infos[:-2], infos)) == [] and problems(audited(infos, infos[1:])) == []
    thinned = [stamp for i, stamp in enumerate(infos) if i % 4]
    audits = audited(thinned, infos)
    assert lost_images(audits) == {IMAGE.topic: 23}
    assert problems(audits) == ["camera 'front': 23 images lost on their way (23 %)"]
    assert audit_data(audits)[IMAGE.topic]["lost"] == 23
    stopped = audited(infos[:50], infos)
    assert lost_images(stopped) == {IMAGE.topic: 46}, "all of the second half, but for what may still be on its way"


def test_images_that_are_missing_by_their_stamps_and_cameras_that_are_silent_are_named() -> None:
    stamps = [10.0 + 0.1 * i for i in range(50) if i not in (20, 21, 30)]
    assert problems(audited(stamps, stamps)) == ["camera 'front': 3 images missing by their stamps"]
    assert problems(audited([], [])) == ["camera 'front': no image arrived"]


def test_depth_codes_of_a_policy_are_no_cameras_images() -> None:
    codes = StreamAudit("sensor_msgs/msg/Image", "/so101/policy/depth_codes")
    for stamp in (10.0, 10.1, 10.2, 13.0):
        codes.add(stamped("image", stamp), round((stamp + 0.5) * 1e9))
    assert problems({codes.topic: codes}) == [] and codes.stale == 0
    assert "missing" not in audit_data({codes.topic: codes})[codes.topic]


def test_an_episode_with_lost_images_is_marked(tmp_path: Path) -> None:
    finished: list[Finished] = []
    episodes = EpisodeRecorder(tmp_path, [IMAGE, INFO], finished.append)
    path = episodes.start(0)
    for number in range(40):
        stamp = number * 0.1 + 1.0
        episodes.put(INFO.topic, stamped("info", stamp), round(stamp * 1e9))
        if number % 2:
            episodes.put(IMAGE.topic, stamped("image", stamp), round(stamp * 1e9))
    episodes.stop({})
    assert episodes.wait(10.0)
    told = json.loads(custom_data(path)["problems"])
    assert told == finished[0].problems and "images lost on their way" in told[0]
