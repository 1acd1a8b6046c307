"""Makes the film and the picture of a run from what the cameras, the visualizer and the executor publish."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.nodes.ros.messages import nanoseconds, rgb_from_image
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.nodes.ros.subscriptions import Heard
from molmoact2_ros.rendering.film import FilmWriter, write_still
from molmoact2_ros.rendering.montage import Caption, canvas_shape, montage
from molmoact2_ros.rendering.overlay import RgbImage

PANELS = ("camera", "overlay", "depth", "wrist")


def _number(values: Mapping[str, str], key: str) -> float | None:
    try:
        return float(values[key])
    except (KeyError, ValueError):
        return None


class FilmNode(MolmoNode):
    """Invariant: from the first motion on the film grows in real time, and it is whole after any end of the node."""

    PARAMETERS = (
        Parameter("film", "", "MP4 file of the run; empty: none."),
        Parameter("picture", "", "PNG file: the first success, or the end of a run without one; empty: none."),
        Parameter("cameras", ["front", "wrist"], "All cameras; the first is shown large, the last two small."),
        Parameter("title", "MolmoAct2", "Name of the run in the film's header."),
        Parameter("fps", 15, "Pictures a second.", 1, 60),
        Parameter("quality", 27, "Rate factor of the encoder; lower is better and larger.", 15, 40),
        Parameter("max_length_s", 900.0, "The film ends after so long, s.", 1.0, 36000.0),
    )

    def __init__(self) -> None:
        super().__init__("film")
        self._writer: FilmWriter | None = None
        self._reset()

    def _reset(self) -> None:
        self._images: dict[str, RgbImage] = {}
        self._caption = Caption()
        self._rolling = False
        self._begin_s = 0.0
        self._heights: list[tuple[float, float]] = []
        self._distances: list[tuple[float, float]] = []
        self._last: RgbImage | None = None
        self._still_due = self._still_taken = False

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        if not (self.param("film") or self.param("picture")):
            raise ValueError("nothing to make: set the parameter film (an .mp4 file), picture (a .png file) or both")
        cameras = list(self.param("cameras"))
        small = cameras[max(0, len(cameras) - 2)], cameras[-1]  # of three, the overlay shows the first already
        self._caption = Caption(title=self.param("title"), cameras=small)
        topics = {
            "camera": f"cameras/{small[0]}/image_raw",
            "overlay": f"visualization/overlay/{cameras[0]}",
            "depth": "visualization/depth_colour",
            "wrist": f"cameras/{cameras[-1]}/image_raw",
        }
        for panel in PANELS if len(cameras) > 1 else PANELS[:3]:
            self.listen(Image, topics[panel], partial(self._on_image, panel), SENSOR)
        self.listen(DiagnosticStatus, "executor/state", self._on_state, LATCHED)
        self.listen(DiagnosticStatus, "sim/episode", self._on_episode, LATCHED)
        self.hear(String, "task", self._on_task)
        self.listen(JointTrajectory, "policy/action_chunk", self._on_chunk, NEWEST)
        if self.param("film"):
            height, width, _ = canvas_shape()
            path = Path(self.param("film")).expanduser()
            self._writer = FilmWriter(path, width, height, self.param("fps"), self.param("quality"))

    def start(self) -> None:
        self.every(1.0 / self.param("fps"), self._shoot)

    def teardown(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            if not writer.close():
                self.get_logger().error(str(writer.error))
            elif writer.frames:
                length = writer.frames / self.param("fps")
                self.get_logger().info(f"{writer.path}: {length:.0f} s, {writer.dropped} pictures left out")
        if not self._still_taken and self._last is not None:
            self._take_still(self._last)
        self._reset()

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._writer is not None and self._writer.error is not None:
            return DiagnosticStatus.ERROR, self._writer.error, {}
        frames = 0 if self._writer is None else self._writer.frames
        return DiagnosticStatus.OK, "filming" if self._rolling else "waiting for motion", {"frames": frames}

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _on_image(self, panel: str, message: Image) -> None:
        try:
            self._images[panel] = rgb_from_image(message)
        except ValueError as error:
            self.get_logger().warning(f"{panel} picture left out: {error}", once=True)

    def _on_task(self, heard: Heard) -> None:
        self._caption = replace(self._caption, task=heard.message.data)

    def _on_chunk(self, message: JointTrajectory) -> None:
        latency_s = (self.now_ns() - nanoseconds(message.header.stamp)) * 1e-9
        self._caption = replace(self._caption, latency_s=latency_s)

    def _on_state(self, message: DiagnosticStatus) -> None:
        values = {value.key: value.value for value in message.values}
        age_ms = _number(values, "chunk_age_ms")
        self._caption = replace(
            self._caption,
            state=message.message,
            reason=values.get("reason", ""),
            chunk_age_s=None if age_ms is None else 1e-3 * age_ms,
        )
        self._rolling = self._rolling or message.message == "TRACKING"

    def _on_episode(self, message: DiagnosticStatus) -> None:
        values = {value.key: value.value for value in message.values}
        # The cell counts its episodes from 0, people from 1.
        number, elapsed_s = int(_number(values, "episode") or 0) + 1, _number(values, "elapsed_s") or 0.0
        before, outcome = self._caption, message.message
        if number != before.episode or elapsed_s < (before.elapsed_s or 0.0):
            self._heights, self._distances = [], []
        height, distance = _number(values, "cube_height_m"), _number(values, "gripper_distance_m")
        if height is not None and outcome != "waiting":
            self._heights.append((elapsed_s, height))
        if distance is not None and outcome != "waiting":
            self._distances.append((elapsed_s, distance))
        ended = outcome in ("success", "failure") and (number, outcome) != (before.episode, before.outcome)
        self._still_due = self._still_due or (ended and outcome == "success" and not self._still_taken)
        self._rolling = self._rolling or outcome == "running"
        self._caption = replace(
            before,
            episode=number,
            outcome=outcome,
            elapsed_s=elapsed_s,
            successes=before.successes + int(ended and outcome == "success"),
            finished=before.finished + int(ended),
            cube_height_m=self._heights,
            gripper_distance_m=self._distances,
        )

    # -- pictures ---------------------------------------------------------------------------------------------------

    def _shoot(self) -> None:
        if not self._rolling or "camera" not in self._images:
            return
        now_s = time.monotonic()
        self._begin_s = self._begin_s or now_s
        camera, drawn, depth, wrist = (self._images.get(panel) for panel in PANELS)
        picture = montage(camera, drawn, depth, wrist, self._caption)
        self._last = picture
        if self._still_due:
            self._still_due = False
            self._take_still(picture)
        if self._writer is not None and now_s - self._begin_s <= self.param("max_length_s"):
            self._writer.add(picture, now_s)

    def _take_still(self, picture: RgbImage) -> None:
        if not self.param("picture"):
            return
        try:
            write_still(picture, Path(self.param("picture")).expanduser())
            self._still_taken = True
        except OSError as error:
            self.get_logger().error(str(error))


main = main_of(FilmNode)

if __name__ == "__main__":
    main()
