"""Camera images for the panel: found on the graph, with overlays where a visualizer draws them, and only while somebody
looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from molmoact2_ros.nodes.ros.messages import rgb_from_image
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import SENSOR

OVERLAY_SILENT_S = 3.0
"""A visualizer that draws nothing for so long: the camera's own images are shown again."""
QUALITY = 80
MOST_PIXELS_WIDE = 640
IMAGE = "sensor_msgs/msg/Image"


@dataclass
class Source:
    """Where the images of one camera come from now."""

    overlay: bool
    subscription: Subscription
    since_s: float
    heard_s: float = -1e9
    sent_s: float = -1e9


class PanelPictures:
    """The cameras of one robot. Everything is called from the spinning thread.

    Args:
        namespace: of the robot. rate_hz: images a second of each camera, at most.
        show: called with camera, whether the image bears an overlay, and its JPEG.
    """

    def __init__(
        self, node: MolmoNode, namespace: str, rate_hz: float, show: Callable[[str, bool, bytes], None]
    ) -> None:
        self._node, self._prefix, self._period_s, self._show = node, f"{namespace.rstrip('/')}/", 1.0 / rate_hz, show
        self._sources: dict[str, Source] = {}
        self._mute: dict[str, float] = {}
        self._problems: dict[str, str] = {}

    @property
    def cameras(self) -> dict[str, bool]:
        """Cameras that are looked at, by name, and whether with overlays."""
        return {name: source.overlay for name, source in sorted(self._sources.items())}

    @property
    def problem(self) -> str:
        """Images that could not be shown, and why; empty while there are none."""
        return "; ".join(self._problems.values())

    def look(self, watched: bool) -> None:
        """Subscribe to what there is, or to nothing while nobody looks. To be called about once a second."""
        wanted = self._found() if watched else {}
        for name, source in tuple(self._sources.items()):
            if wanted.get(name) != source.overlay:
                self._node.destroy_subscription(source.subscription)
                del self._sources[name]
                self._problems.pop(name, None)
        for name, overlay in wanted.items():
            if name not in self._sources:
                topic = f"{self._prefix}visualization/overlay/{name}"
                topic = topic if overlay else f"{self._prefix}cameras/{name}/image_raw"
                heard = self._node.create_subscription(Image, topic, partial(self._on_image, name), SENSOR)
                self._sources[name] = Source(overlay, heard, time.monotonic())

    def close(self) -> None:
        """Unsubscribe; safe to call twice."""
        self.look(watched=False)

    def _found(self) -> dict[str, bool]:
        """Cameras on the graph, and whether overlays of theirs are drawn."""
        now = time.monotonic()
        raw, drawn = set(), set()
        for topic, types in self._node.get_topic_names_and_types():
            if IMAGE not in types or not topic.startswith(self._prefix):
                continue
            parts = topic.removeprefix(self._prefix).split("/")
            if len(parts) == 3 and parts[0] == "cameras" and parts[2] == "image_raw":
                raw.add(parts[1])
            elif len(parts) == 3 and parts[:2] == ["visualization", "overlay"] and self._node.count_publishers(topic):
                drawn.add(parts[2])
        for name, source in self._sources.items():
            if source.overlay and now - max(source.heard_s, source.since_s) > OVERLAY_SILENT_S and name in raw:
                self._mute[name] = now + 10.0 * OVERLAY_SILENT_S  # then it gets another chance
        drawn = {name for name in drawn if self._mute.get(name, 0.0) < now}
        return {name: name in drawn for name in raw | drawn}

    def _on_image(self, name: str, message: Image) -> None:
        source = self._sources.get(name)
        now = time.monotonic()
        if source is None:
            return
        source.heard_s = now
        if now - source.sent_s < self._period_s:
            return
        source.sent_s = now
        try:
            jpeg = jpeg_of(rgb_from_image(message))
        except (ValueError, cv2.error) as error:
            self._problems[name] = f"camera {name!r}: {error}"
            return
        self._problems.pop(name, None)
        self._show(name, source.overlay, jpeg)


def jpeg_of(rgb: NDArray[np.uint8]) -> bytes:
    """The JPEG of an RGB image (height, width, 3), made smaller where it is wider than the page shows it."""
    height, width = rgb.shape[:2]
    if width > MOST_PIXELS_WIDE:
        size = (MOST_PIXELS_WIDE, max(1, round(height * MOST_PIXELS_WIDE / width)))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    done, data = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise ValueError(f"an image of {width} x {height} pixels cannot be made a JPEG")
    return data.tobytes()
