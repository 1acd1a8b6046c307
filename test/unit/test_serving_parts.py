"""Parts of the policy server that need no model: who may call, fair turns, other clients' names, JPEG."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from molmoact2_ros.embodiments import ModelFrame, embodiment
from molmoact2_ros.policy.remote.description import RemoteCheckpoint
from molmoact2_ros.policy.remote.pictures import decode, encode
from molmoact2_ros.serving.access import check_exposure
from molmoact2_ros.serving.observations import RequestError, read_call
from molmoact2_ros.serving.turns import BusyError, Turns

TASK = "pick up the red cube"


def test_a_network_is_not_let_in_without_a_token() -> None:
    check_exposure("127.0.0.1", "", False)
    check_exposure("::1", "", False)
    check_exposure("0.0.0.0", "a-token-of-sixteen", False)
    check_exposure("0.0.0.0", "", True)
    for host in ("0.0.0.0", "::", "192.168.1.5", "gpu.lab"):
        with pytest.raises(ValueError, match="--token-file"):
            check_exposure(host, "", False)


def test_turns_are_fair_and_a_client_that_floods_is_refused() -> None:
    turns = Turns()
    release, order = threading.Event(), []
    blocked = turns.submit("first", lambda: release.wait(10.0))
    while not blocked.running():
        pass
    for client in ("greedy", "greedy", "modest"):
        turns.submit(client, lambda client=client: order.append(client))
    with pytest.raises(BusyError):
        turns.submit("greedy", lambda: None)
    release.set()
    failed = turns.submit("last", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(10.0)
    turns.submit("last", lambda: None).result(10.0)
    assert order in (["greedy", "modest", "greedy"],), order
    turns.close()
    with pytest.raises(BusyError):
        turns.submit("late", lambda: None)


NAMES = {
    "Ai2, DROID": ("franka", {"external_cam": "exterior", "wrist_cam": "wrist"}),
    "openpi, DROID": (
        "franka",
        {"observation/exterior_image_1_left": "exterior", "observation/wrist_image_left": "wrist"},
    ),
    "lerobot": ("so101", {"observation.images.front": "front", "observation.images.wrist": "wrist"}),
    "Ai2, YAM": ("yam", {"top_cam": "top", "left_cam": "left", "right_cam": "right"}),
    "openpi, ALOHA": ("yam", {"cam_high": "top", "cam_left_wrist": "left", "cam_right_wrist": "right"}),
}


@pytest.mark.parametrize("whose", NAMES)
def test_cameras_and_states_as_others_call_them(whose: str) -> None:
    name, names = NAMES[whose]
    robot = embodiment(name)
    found = RemoteCheckpoint(
        name="x",
        layout="x",
        norm_tag=robot.norm_tag,
        cameras=robot.camera_names,
        metadata={},
        frame=ModelFrame.TRAINING,
        horizon=robot.horizon,
        rate_hz=robot.rate_hz,
        depth_side=None,
    )
    pictures = {theirs: np.full((9, 12, 3), number, np.uint8) for number, theirs in enumerate(names)}
    state = robot.model_from_joints(robot.rest_position).astype(np.float32)
    parts: dict[str, Any] = {"state": state}
    if whose == "openpi, DROID":
        parts = {"observation/joint_position": state[:7], "observation/gripper_position": state[7:]}
    nested = {"images": pictures} if whose == "openpi, ALOHA" else pictures
    call = read_call({**nested, **parts, "prompt": TASK}, found, robot, 7)
    assert call.observation is not None and call.observation.stamp_ns == 7
    assert {ours: int(image[0, 0, 0]) for ours, image in call.observation.images.items()} == {
        ours: number for number, ours in enumerate(names.values())
    }
    np.testing.assert_allclose(call.observation.joints, robot.rest_position, atol=1e-6)
    with pytest.raises(RequestError, match="of no camera"):
        read_call({**nested, "ceiling_cam": pictures[next(iter(names))], **parts, "prompt": TASK}, found, robot, 7)


def test_jpeg_is_what_every_client_means_by_it() -> None:
    image = np.asarray(
        Image.fromarray(np.random.default_rng(3).integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((320, 240))
    )
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    for data in (out.getvalue(), encode(image, 90)):
        np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))
    assert np.abs(decode(encode(image, 90)).astype(int) - image).mean() < 2.0
    grey = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(grey, "JPEG")
    assert decode(grey.getvalue()).shape == (240, 320, 3)
