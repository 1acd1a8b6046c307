"""What came of an episode's streams: counts, gaps, and images that were lost on their way."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
EDGE_NS = 300_000_000
"""An image whose camera_info came within this before the end may still have been on its way."""
STALE_NS = 250_000_000
"""A message that arrives later than this after its stamp is too old for a policy."""
MISSED_PERIODS = 1.5
"""Stamps further apart than so many periods have images missing between them."""


@dataclass
class StreamAudit:
    """What one stream of a bag came to.

    Attributes:
        msgtype: `package/msg/Name`. topic: its name.
        messages, total_bytes: how much of it was written.
        dropped: messages that arrived but found the queue full.
        first_ns, last_ns: earliest and latest receive time, ns; None when nothing came.
        largest_gap_s: longest time between two messages, s.
        stale: images and joint states that arrived later than 0.25 s after their stamp.
        stamps, arrivals: capture and receive times of a camera's messages, ns, in order of arrival.
    """

    msgtype: str = ""
    topic: str = ""
    messages: int = 0
    total_bytes: int = 0
    dropped: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    largest_gap_s: float = 0.0
    stale: int = 0
    stamps: array[int] = field(default_factory=lambda: array("q"), repr=False)
    arrivals: array[int] = field(default_factory=lambda: array("q"), repr=False)

    def add(self, data: bytes, received_ns: int) -> None:
        """Count one written message (CDR)."""
        if self.last_ns is not None:
            self.largest_gap_s = max(self.largest_gap_s, (received_ns - self.last_ns) * 1e-9)
        self.first_ns = received_ns if self.first_ns is None else min(self.first_ns, received_ns)
        self.last_ns = received_ns if self.last_ns is None else max(self.last_ns, received_ns)
        self.messages += 1
        self.total_bytes += len(data)
        camera = self.images or self.msgtype == CAMERA_INFO
        if camera or self.topic.endswith("joint_states"):
            stamp = header_stamp(data)
            self.stale += stamp > 0 and received_ns - stamp > STALE_NS
            if camera:
                self.stamps.append(stamp)
                self.arrivals.append(received_ns)

    @property
    def images(self) -> bool:
        """Whether these are the images of a camera."""
        return self.msgtype in IMAGES and "cameras/" in self.topic

    @property
    def rate_hz(self) -> float | None:
        """Mean rate, or None for fewer than two messages."""
        if self.first_ns is None or self.last_ns is None or self.last_ns <= self.first_ns:
            return None
        return (self.messages - 1) * 1e9 / (self.last_ns - self.first_ns)

    @property
    def missing(self) -> int:
        """Images that are missing by the stamps of those that came."""
        stamps = np.unique(np.frombuffer(self.stamps, np.int64))
        steps = np.diff(stamps)
        if steps.size < 3 or not self.images:
            return 0
        period = float(np.median(steps))
        wide = steps[steps > MISSED_PERIODS * period]
        return int(np.sum(np.round(wide / period) - 1))


def header_stamp(data: bytes) -> int:
    """Capture time, ns, of a serialized message that begins with a header; 0 when it is too short for one."""
    if len(data) < 12:
        return 0
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(sec) * 1_000_000_000 + int(nanosec)


def short(topic: str) -> str:
    """A topic for people: a camera's by its name, others without their namespace's first part."""
    found = re.fullmatch(r".*cameras/([^/]+)/(.+)", topic)
    if found is None:
        return topic.split("/", 2)[-1] if topic.count("/") > 1 else topic
    return f"camera {found[1]!r}" if found[2] == "image_raw" else f"camera {found[1]!r}, {found[2]}"


def lost_images(audits: Mapping[str, StreamAudit]) -> dict[str, int]:
    """By topic, the images that did not come although the camera_info of the same moment did."""
    out: dict[str, int] = {}
    for topic, audit in audits.items():
        if not audit.images:
            continue
        beside = topic.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
        if beside not in audits or not audits[beside].stamps:
            continue
        images = np.unique(np.frombuffer(audit.stamps, np.int64))
        infos = np.unique(np.frombuffer(audits[beside].stamps, np.int64))
        expected = infos[infos < infos[-1] - EDGE_NS]
        if images.size:  # recording may have begun between the two messages of one image
            expected = expected[expected > images[0]]
        lost = int(np.setdiff1d(expected, images).size)
        if lost:
            out[topic] = lost
    return out


def problems(audits: Mapping[str, StreamAudit]) -> list[str]:
    """What is wrong with an episode, one line each; empty for one that can be trusted."""
    lost = lost_images(audits)
    lines = []
    for topic, audit in audits.items():
        if audit.dropped:
            lines.append(f"{short(topic)}: {audit.dropped} dropped, the disk was too slow")
        if audit.images and not audit.messages and "/depth/" not in topic:
            lines.append(f"{short(topic)}: no image arrived")
        elif topic in lost:
            share = 100.0 * lost[topic] / (lost[topic] + audit.messages)
            lines.append(f"{short(topic)}: {lost[topic]} images lost on their way ({share:.0f} %)")
        elif audit.missing:
            lines.append(f"{short(topic)}: {audit.missing} images missing by their stamps")
    return lines


def audit_lines(audits: Mapping[str, StreamAudit]) -> list[str]:
    """The audit for a reader: one line a stream that has messages, one for all that stayed silent."""
    lines, silent, lost = [], [], lost_images(audits)
    for topic, audit in audits.items():
        if not audit.messages and not audit.dropped:
            silent.append(topic)
            continue
        rate = "" if audit.rate_hz is None else f", {audit.rate_hz:.1f} Hz, largest gap {audit.largest_gap_s:.3f} s"
        dropped = f", {audit.dropped} DROPPED" if audit.dropped else ""
        gone = f", {lost[topic]} LOST" if topic in lost else ""
        lines.append(f"{topic}: {audit.messages}{rate}{dropped}{gone}")
    if silent:
        lines.append("nothing on: " + ", ".join(silent))
    return lines


def audit_data(audits: Mapping[str, StreamAudit]) -> dict[str, dict[str, Any]]:
    """The audit for a program, by topic."""
    lost, apart = lost_images(audits), skews(audits)
    names = ("messages", "total_bytes", "dropped", "first_ns", "last_ns", "largest_gap_s", "stale")
    return {
        topic: {name: getattr(audit, name) for name in names}
        | (
            {"lost": lost.get(topic, 0), "missing": audit.missing, "skew_s": apart.get(topic, 0.0)}
            if audit.images
            else {}
        )
        for topic, audit in audits.items()
    }


def skews(audits: Mapping[str, StreamAudit]) -> dict[str, float]:
    """By topic, how far its images' stamps are from the first camera's at the moment of arrival: the median, s.

    Of the images of the first camera that are the newest then and right after, the nearer one counts, so that cameras
    that are merely out of phase are not apart.
    """
    images = {
        topic: (np.frombuffer(audit.arrivals, np.int64), np.frombuffer(audit.stamps, np.int64))
        for topic, audit in audits.items()
        if audit.images and audit.stamps
    }
    if not images:
        return {}
    first_arrivals, first_stamps = next(iter(images.values()))
    out = {}
    for topic, (arrivals, stamps) in images.items():
        after = np.searchsorted(first_arrivals, arrivals, side="right")
        pair = np.stack([np.maximum(after - 1, 0), np.minimum(after, first_stamps.size - 1)])
        out[topic] = float(np.median(np.min(np.abs(first_stamps[pair] - stamps), axis=0))) * 1e-9
    return out
