"""Stands in for cameras and for whoever looks at the visualizer's topics, so that its cost can be measured.

Images and depth codes are made up; chunks, readings and commands come from the replay node and the executor.
"""

from __future__ import annotations

import json
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.messages import image_message, nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR
from molmoact2_ros.nodes.ros.scene_markers import path_topics

WATCHES = ("nothing", "overlays", "everything")
KEPT = 3000


class OnlookerNode(MolmoNode):
    """See the module. Invariant: what it publishes does not depend on what it watches."""

    PARAMETERS = (
        Parameter("cameras", ["top", "left", "right"], "Cameras to stand in for."),
        Parameter("width", 640, "Of the images, pixels.", 16, 4096),
        Parameter("height", 480, "Of the images, pixels.", 16, 4096),
        Parameter("image_rate_hz", 30.0, "Images a second of each camera.", 1.0, 120.0),
        Parameter("codes", 25, "Depth codes that there are.", 1, 256),
        Parameter("grid", 5, "Depth cells a side.", 1, 64),
        Parameter("codes_rate_hz", 5.0, "Depth images a second.", 0.1, 60.0),
        Parameter("watch", "everything", f"What is subscribed to: {', '.join(WATCHES)}."),
        Parameter("report", "onlooker.json", "Where the latencies are written, once a second."),
    )

    def __init__(self) -> None:
        super().__init__("onlooker")
        self._latencies_ms: deque[float] = deque(maxlen=KEPT)
        self._overlays = 0
        self._began_ns: int | None = None

    def setup(self) -> None:
        watch = self.param("watch")
        if watch not in WATCHES:
            raise ValueError(f"watch is {watch!r}, expected one of {', '.join(WATCHES)}")
        rng = np.random.default_rng(0)
        size = self.param("height"), self.param("width"), 3
        self._cameras = {camera: rng.integers(0, 255, size, np.uint8) for camera in self.param("cameras")}
        self._images = {c: self.output(Image, f"cameras/{c}/image_raw", SENSOR) for c in self._cameras}
        self._codes = self.output(Image, "policy/depth_codes", NEWEST)
        self._rng = rng
        if watch != "nothing":
            for camera in self._cameras:
                self.listen(Image, f"visualization/overlay/{camera}", self._on_overlay, NEWEST)
        if watch == "everything":
            topics: list[tuple[type, str]] = [
                *((MarkerArray, f"visualization/{name}") for name in ("markers", "state_markers")),
                *((PathMessage, topic) for topic in path_topics(embodiment(self.param("robot")))),
                *((Image, topic) for topic in ("visualization/depth_colour", "policy/depth/image")),
                (PointCloud2, "visualization/depth_points"),
            ]
            for kind, topic in topics:
                self.listen(kind, topic, self._on_other, NEWEST, raw=True)

    def start(self) -> None:
        for camera in self._cameras:
            self.every(1.0 / self.param("image_rate_hz"), partial(self._take, camera))
        self.every(1.0 / self.param("codes_rate_hz"), self._imagine)
        self.every(1.0, self._write)

    def _take(self, camera: str) -> None:
        message = image_message(self._cameras[camera], "rgb8", self._header(camera))
        self._images[camera].publish(message)

    def _imagine(self) -> None:
        side = self.param("grid")
        codes = self._rng.integers(0, self.param("codes"), (side, side), np.uint8)
        self._codes.publish(image_message(codes, "mono8", self._header(next(iter(self._cameras)))))

    def _header(self, camera: str) -> Header:
        header = Header()
        header.stamp, header.frame_id = self.get_clock().now().to_msg(), f"{camera}_optical_frame"
        return header

    def _on_overlay(self, message: Image) -> None:
        now_ns = self.now_ns()
        self._began_ns = self._began_ns or now_ns
        self._overlays += 1
        self._latencies_ms.append((now_ns - nanoseconds(message.header.stamp)) * 1e-6)

    def _on_other(self, data: bytes) -> None:
        """It is enough that it is sent."""

    def _write(self) -> None:
        seconds = 0.0 if self._began_ns is None else (self.now_ns() - self._began_ns) * 1e-9
        found = {"overlays": self._overlays, "seconds": seconds, "latencies_ms": list(self._latencies_ms)}
        place = Path(self.param("report"))
        part = place.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(place)


main = main_of(OnlookerNode)

if __name__ == "__main__":
    main()
