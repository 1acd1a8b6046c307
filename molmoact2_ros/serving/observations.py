"""What clients send, made into an observation: other people's names for cameras, joints and task, held against bounds.

State vectors are in the checkpoint's units and frame, as Ai2's and openpi's clients send them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy import Observation, RTCOptions
from molmoact2_ros.policy.checkpoints.views import View, camera_named
from molmoact2_ros.policy.interface import Description
from molmoact2_ros.policy.options import MAX_GAP_S
from molmoact2_ros.policy.remote.pictures import PictureError, checked, decode
from molmoact2_ros.policy.remote.wire import base64_bytes

LONGEST_TASK = 2000
LONGEST_NAME = 64
LARGEST = 10_000

TASK = ("instruction", "prompt", "task")
"""What clients call it: Ai2's, openpi's, lerobot's."""
STATE = ("state", "observation/state", "observation.state")
PARTS = ("observation/joint_position", "observation/gripper_position")
"""openpi's DROID client sends the state in two pieces."""
OTHER_NAMES = {"external_cam": "exterior", "cam_high": "top"}
"""Ai2's DROID client and openpi's ALOHA client for cameras that are called otherwise here."""
_RTC = asdict(RTCOptions())
_PREFIXES = ("observation.images.", "observation/")


class RequestError(ValueError):
    """What a client sent cannot be used; the message says what was expected, in one line."""


@dataclass(frozen=True)
class Settings:
    """What a client may choose for its session."""

    rtc: RTCOptions = field(default_factory=RTCOptions)
    seed: int = 0
    max_gap_s: float = MAX_GAP_S


@dataclass(frozen=True)
class Call:
    """One message of a client.

    Attributes:
        observation: what to predict from; None: only `reset` was asked for.
        reset: an episode begins with this call.
        session: the client's name for what it continues; empty: its connection.
        settings: None: the server's own.
        latency_s: capture to chunk of its call before, s, negative when not known yet; None: it does not measure.
        own_clock: the stamps are the client's, not the time of arrival.
        timestamp: what an Ai2 client wants to see again, s.
    """

    observation: Observation | None
    reset: bool = False
    session: str = ""
    settings: Settings | None = None
    latency_s: float | None = None
    own_clock: bool = False
    timestamp: float | None = None


def read_call(
    message: Mapping[str, Any], checkpoint: Description, robot: Embodiment, arrival_ns: int, steps: int | None = None
) -> Call:
    """The call in `message`, which arrived at `arrival_ns` by the server's clock; pictures are decoded here.

    Args:
        steps: of the flow, where the checkpoint says it.

    Raises:
        RequestError: something is missing, misshapen, too large or not finite.
    """
    reset = message.get("reset", False)
    if not isinstance(reset, bool):
        raise RequestError(f"reset must be true or false, got {type(reset).__name__}")
    session = message.get("session", "")
    if not isinstance(session, str) or len(session) > LONGEST_NAME:
        raise RequestError(f"session must be text of up to {LONGEST_NAME} letters")
    settings = _settings(message["settings"]) if "settings" in message else None
    found = dict(_pictures(message))
    if not found and reset and not any(name in message for name in (*STATE, *TASK)):
        return Call(None, True, session, settings)
    _check_choices(message, checkpoint, steps)
    latency = message.get("latency_s")
    stamps = message.get("stamps_ns")
    images = _images(found, checkpoint)
    joints = robot.joints_from_model(_state(message, robot), checkpoint.frame)
    image_stamps, state_stamp = dict.fromkeys(images, arrival_ns), arrival_ns
    if stamps is not None:
        image_stamps, state_stamp = _stamps(stamps, images)
    return Call(
        Observation(images, image_stamps, joints, state_stamp, _task(message)),
        reset,
        session,
        settings,
        None if latency is None else _number(latency, "latency_s"),
        stamps is not None,
        _number(message["timestamp"], "timestamp") if message.get("timestamp") is not None else None,
    )


def wanted(checkpoint: Description, robot: Embodiment) -> str:
    """What a message must hold, for a refusal."""
    cameras = ", ".join(dict.fromkeys(checkpoint.cameras))
    return f"pictures for {cameras}, state ({robot.dof},) and instruction"


def _pictures(message: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Everything in `message` that is meant as a picture, by the client's name for it."""
    for name, value in message.items():
        if name in ("images", "images_jpeg") and isinstance(value, Mapping):
            for inner, picture in value.items():
                yield str(inner), base64_bytes(picture) if isinstance(picture, str) else picture
        elif isinstance(value, bytes) or name.endswith("_cam") or _is_matrix(value, name):
            yield name, value


def _is_matrix(value: object, name: str) -> bool:
    return isinstance(value, np.ndarray) and value.ndim >= 2 and name not in STATE


def _images(found: Mapping[str, object], checkpoint: Description) -> dict[str, NDArray[np.uint8]]:
    cameras = tuple(dict.fromkeys(checkpoint.cameras))
    named: dict[str, str] = {}
    for name in found:
        camera = _camera(name, cameras)
        if camera is None:
            raise RequestError(f"the picture {name[:LONGEST_NAME]!r} is of no camera; expected {', '.join(cameras)}")
        if camera in named:
            raise RequestError(f"two pictures for the camera {camera}: {named[camera][:64]!r} and {name[:64]!r}")
        named[camera] = name
    missing = [camera for camera in cameras if camera not in named]
    if missing:
        raise RequestError(f"no picture for {', '.join(missing)}; expected {', '.join(cameras)}")
    images = {}
    for camera in cameras:
        value = found[named[camera]]
        try:
            packed = value.tobytes() if isinstance(value, np.ndarray) and value.ndim == 1 else value
            images[camera] = decode(packed) if isinstance(packed, bytes) else checked(packed)
        except PictureError as error:
            raise RequestError(f"the picture {named[camera][:64]!r}: {error}") from error
    return images


def _camera(name: str, cameras: tuple[str, ...]) -> str | None:
    plain = OTHER_NAMES.get(name, name)
    for prefix in _PREFIXES:
        plain = plain.removeprefix(prefix)
    return camera_named(View(plain), cameras)


def _state(message: Mapping[str, Any], robot: Embodiment) -> NDArray[np.float64]:
    given = next((message[name] for name in STATE if name in message), None)
    if given is None and all(name in message for name in PARTS):
        given = np.concatenate([_vector(message[name], name) for name in PARTS])
    if given is None:
        raise RequestError(f"no state; expected {robot.dof} values ({', '.join(robot.joint_names)})")
    vector = _vector(given, "state")
    if vector.size != robot.dof:
        raise RequestError(f"state must have {robot.dof} values ({', '.join(robot.joint_names)}), got {vector.size}")
    return vector


def _vector(value: object, name: str) -> NDArray[np.float64]:
    plain = isinstance(value, list) and all(type(entry) in (int, float) for entry in value)
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "iuf"
    if not (plain or numbers):
        raise RequestError(f"{name} must be an array or a list of numbers, got {type(value).__name__}")
    vector = np.asarray(value, dtype=np.float64).reshape(-1)
    if not np.all(np.isfinite(vector)):
        raise RequestError(f"{name} has values that are not finite")
    return vector


def _task(message: Mapping[str, Any]) -> str:
    task = next((message[name] for name in TASK if name in message), None)
    if not isinstance(task, str):
        raise RequestError(f"no task; expected text as {', '.join(TASK[:2])}")
    if len(task) > LONGEST_TASK:
        raise RequestError(f"a task of {len(task)} letters, at most {LONGEST_TASK} are taken")
    return task


def _stamps(stamps: object, images: Mapping[str, object]) -> tuple[dict[str, int], int]:
    names = {*images, "state"}
    sound = isinstance(stamps, Mapping) and set(stamps) == names
    if not isinstance(stamps, Mapping) or not sound or not all(type(ns) is int and ns >= 0 for ns in stamps.values()):
        raise RequestError(f"stamps_ns must give the capture time in ns of each of {', '.join(sorted(names))}")
    return {name: stamps[name] for name in images}, stamps["state"]


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} must be a finite number")
    return float(value)


def _settings(found: object) -> Settings:
    rtc = found.get("rtc", {}) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(rtc, Mapping) or set(found) - {"rtc", "seed", "max_gap_s"}:
        raise RequestError("settings must be a dictionary of rtc, seed and max_gap_s")
    for name, value in rtc.items():
        default = _RTC.get(name)
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if default is None or type(value) not in kinds or value != value or abs(_size(value)) > LARGEST:
            raise RequestError(
                f"settings: rtc has no {str(name)[:LONGEST_NAME]} of this kind; it has {', '.join(_RTC)}"
            )
    seed, gap = found.get("seed", 0), _number(found.get("max_gap_s", MAX_GAP_S), "max_gap_s")
    if type(seed) is not int or not 0 <= seed < 2**31 or not 0.0 < gap <= 60.0:
        raise RequestError("settings: seed must be a whole number of 31 bits, max_gap_s above 0 and at most 60")
    try:
        return Settings(RTCOptions(**rtc), seed, gap)
    except ValueError as error:
        raise RequestError(f"settings: {error}") from error


def _size(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _check_choices(message: Mapping[str, Any], checkpoint: Description, steps: int | None) -> None:
    """What Ai2's clients may say of the model must be what it is."""
    tag = message.get("normalization_tag", checkpoint.norm_tag)
    if tag != checkpoint.norm_tag:
        raise RequestError(f"normalization_tag {str(tag)[:64]!r}: this server scales by {checkpoint.norm_tag!r}")
    asked = message.get("num_steps", steps)
    if steps is not None and asked != steps:
        raise RequestError(f"num_steps {str(asked)[:20]}: this server's flow has {steps}; leave num_steps out")
