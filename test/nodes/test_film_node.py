"""The film of a run is playable after SIGINT and SIGTERM, and the picture is that of the first success."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from molmoact2_ros.nodes.ros.messages import image_message
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR
from molmoact2_ros.rendering.montage import canvas_shape


def running(log: Path, parameters: dict[str, object]) -> NodeProcess:
    return NodeProcess("molmoact2_ros.nodes.sim.film_node", ros_arguments(parameters), log)


@pytest.fixture
def robot() -> Iterator[Companion]:
    with Companion() as one:
        yield one


class Run:
    """A run as the film sees it: two cameras in plain colours, and episodes."""

    def __init__(self, robot: Companion) -> None:
        node = robot.node
        self.images = {c: node.create_publisher(Image, f"cameras/{c}/image_raw", SENSOR) for c in ("front", "wrist")}
        self.episode = node.create_publisher(DiagnosticStatus, "sim/episode", LATCHED)
        self.diagnostics = robot.listen(DiagnosticArray, "/diagnostics")
        self.colour = (90, 90, 90)
        self.outcome, self.number, self.ticks = "waiting", 1, 0

    def tick(self) -> None:
        self.ticks += 1
        picture = np.full((240, 320, 3), self.colour, np.uint8)
        for output in self.images.values():
            output.publish(image_message(picture, "rgb8", Header()))
        values = {"episode": self.number, "elapsed_s": 0.05 * self.ticks, "cube_height_m": 0.01}
        self.episode.publish(
            DiagnosticStatus(
                name="episode",
                message=self.outcome,
                values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
            )
        )

    def said(self) -> tuple[str, int]:
        """What the film node last said on /diagnostics, and how many frames were encoded by then."""
        own = [status for array in self.diagnostics for status in array.status if status.name == "/so101/film"]
        if not own:
            return "", 0
        return own[-1].message, int({value.key: value.value for value in own[-1].values}.get("frames", 0))

    def play(self, robot: Companion, outcome: str, colour: tuple[int, int, int], frames: int = 8) -> None:
        """Go on like this until the film has grown by `frames` and all of it can be of this colour."""
        self.outcome, self.colour = outcome, colour
        ticks, before = self.ticks + 20, self.said()[1]
        wait_until(
            lambda: self.ticks >= ticks and self.said()[1] >= before + frames, f"film of {outcome}", meanwhile=self.tick
        )

    def wait_for(self, robot: Companion, words: str) -> None:
        """Go on until the film node says `words` again."""
        self.diagnostics.clear()
        wait_until(lambda: self.said()[0] == words, f"film node says {words!r}", meanwhile=self.tick)


def panel_colour(picture: np.ndarray) -> np.ndarray:
    """Mean colour within the camera's panel."""
    return picture[120:200, 700:900].reshape(-1, 3).mean(axis=0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_film_and_picture_of_a_run(robot: Companion, tmp_path: Path, how: signal.Signals) -> None:
    film, picture = tmp_path / "film.mp4", tmp_path / "still.png"
    with running(tmp_path / "log", {"film": str(film), "picture": str(picture)}) as node:
        run = Run(robot)
        wait_until(
            lambda: all(output.get_subscription_count() for output in (*run.images.values(), run.episode)),
            f"the film node listens: {node.output}",
        )
        run.wait_for(robot, "waiting for motion")
        run.play(robot, "running", (200, 0, 0), frames=15)
        run.play(robot, "running", (0, 200, 0))
        run.outcome = "success"
        wait_until(picture.exists, "the picture of the success", meanwhile=run.tick)
        run.number = 2
        run.play(robot, "running", (0, 0, 200), frames=15)
        assert node.interrupt(how) == 0, node.output
    still = cv2.imread(str(picture))
    assert still is not None
    assert still.shape == canvas_shape()
    assert np.abs(panel_colour(still[..., ::-1]) - (0, 200, 0)).max() < 5
    frames = []
    video = cv2.VideoCapture(str(film))
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    assert len(frames) > 15
    assert frames[0].shape == canvas_shape()
    # Filming begins with the motion, not with the wait of a second (fifteen pictures) before it.
    assert np.abs(panel_colour(frames[8]) - (200, 0, 0)).max() < 20
    assert np.abs(panel_colour(frames[-1]) - (0, 0, 200)).max() < 20


def test_a_run_without_success_ends_with_its_last_picture(robot: Companion, tmp_path: Path) -> None:
    picture = tmp_path / "still.png"
    with running(tmp_path / "log", {"picture": str(picture)}) as node:
        run = Run(robot)
        wait_until(lambda: run.images["front"].get_subscription_count(), f"it listens: {node.output}")
        run.outcome, run.colour = "running", (200, 0, 0)
        run.wait_for(robot, "filming")
        run.outcome, run.colour = "failure", (0, 0, 200)
        run.wait_for(robot, "filming")
        run.wait_for(robot, "filming")
        assert not picture.exists()
        assert node.interrupt() == 0, node.output
    still = cv2.imread(str(picture))
    assert still is not None
    assert np.abs(panel_colour(still[..., ::-1]) - (0, 0, 200)).max() < 5


def test_nothing_to_make_is_refused(tmp_path: Path) -> None:
    with running(tmp_path / "log", {}) as node:
        assert node.popen is not None and node.popen.wait(30.0) == 1
        assert "set the parameter film" in node.output
