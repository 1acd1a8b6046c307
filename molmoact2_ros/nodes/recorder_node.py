"""Records episodes as rosbag2 MCAP bags: by service, or by following the episodes of the simulated cell.

Messages are taken serialized and written as they came; none is decoded but the task and the episode's state.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from std_msgs.msg import String
from std_srvs.srv import Trigger

from molmoact2_ros.nodes.ros.node_base import MolmoNode, Parameter, main_of
from molmoact2_ros.recording.bag import audit_lines
from molmoact2_ros.recording.episode_recorder import EpisodeRecorder, Finished, unfinished
from molmoact2_ros.recording.streams import Arrival, DuplicateFilter, Stream, streams_of

WRITE_TIMEOUT_S = 30.0
"""How long the end of an episode may take before the caller is told that it is still being written."""


def message_class(msgtype: str) -> Any:
    """Class of `package/msg/Name`."""
    package, kind, name = msgtype.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def subscription_qos(stream: Stream) -> list[QoSProfile]:
    """What the recorder asks for: best effort where that is offered, and the last message of latched streams.

    A latched stream is listened to twice, since a transient local subscription hears no publisher that does not latch
    (a bare `ros2 topic pub`), and another one misses what was published before.
    """
    plain = QoSProfile(
        depth=stream.depth,
        reliability=ReliabilityPolicy.RELIABLE if stream.reliable else ReliabilityPolicy.BEST_EFFORT,
    )
    if not stream.latched:
        return [plain]
    durability = DurabilityPolicy.TRANSIENT_LOCAL
    return [plain, QoSProfile(depth=stream.depth, reliability=plain.reliability, durability=durability)]


class RecorderNode(MolmoNode):
    """Invariant: at most one episode is being recorded; each has its own bag, which is never written again."""

    PARAMETERS = (
        Parameter("directory", "bags", "Where the bags go: episode_0001, episode_0002, ..."),
        Parameter("cameras", ["front", "wrist"], "Cameras to record."),
        Parameter("raw", True, "Record image_raw of every camera."),
        Parameter("compressed", False, "Record image_raw/compressed of every camera."),
        Parameter("zstd", True, "Compress the chunks of the bag; about a tenth of a core for two small cameras."),
        Parameter("autostart_recording", True, "Follow sim/episode where it is there: one bag a running episode."),
        Parameter("checkpoint", "", "Checkpoint that drives the robot, for the bag's metadata."),
        Parameter(
            "config_files", [""], "Parameter files whose text goes into the bag's metadata, one after the other."
        ),
        Parameter("min_free_mb", 500, "Recording does not start with less room than this on the disk.", 0, 10**7),
    )

    def __init__(self) -> None:
        super().__init__("recorder")
        self._episodes: EpisodeRecorder | None = None
        self._task = ""
        self._heard = DuplicateFilter()
        # The episode of sim/episode that was started for; kept when a user ends its bag early, so that it stays ended.
        self._followed: int | None = None
        self._kept = 0
        self._failure = ""

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        directory = Path(self.param("directory")).expanduser()
        chosen = streams_of(list(self.param("cameras")), self.param("raw"), self.param("compressed"))
        streams = [replace(stream, topic=self.resolve_topic_name(stream.topic)) for stream in chosen]
        self._episodes = EpisodeRecorder(directory, streams, self._finished, self.param("zstd"))
        for path in unfinished(directory):
            self.get_logger().warning(
                f"{path} was left unfinished; `python -m molmoact2_ros.recording.recover {path}` makes it whole"
            )
        for relative, stream in zip(chosen, streams, strict=True):
            kind, take = message_class(stream.msgtype), partial(self._take, stream, self._reaction(relative.topic))
            for qos in subscription_qos(stream):
                self.listen(kind, stream.topic, take, qos, raw=True)
        for name, action in (("start", self._start), ("stop", self._stop), ("discard", self._discard)):
            self.serve(Trigger, f"recorder/{name}", partial(self._serve, action))

    def stop(self) -> None:
        if self._episodes is not None and self._episodes.recording is not None:
            self._episodes.stop(self._metadata("interrupted"))

    def teardown(self) -> None:
        if self._episodes is not None:
            self.stop()
            if not self._episodes.wait(WRITE_TIMEOUT_S):
                self.get_logger().error(f"a bag is not finished after {WRITE_TIMEOUT_S:.0f} s; recover it later")
        self._episodes = None

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        values = {"episodes_kept": self._kept, "directory": self.param("directory")}
        if self._failure:
            return DiagnosticStatus.ERROR, self._failure, values
        running = self._episodes.recording if self._episodes is not None else None
        return DiagnosticStatus.OK, "idle" if running is None else f"recording {running.name}", values

    # -- messages ---------------------------------------------------------------------------------------------------

    def _reaction(self, topic: str) -> Callable[[bytes], None] | None:
        if topic == "task":
            return self._on_task
        if topic == "sim/episode" and self.param("autostart_recording"):
            return self._on_episode
        return None

    def _take(self, stream: Stream, react: Callable[[bytes], None] | None, data: bytes, info: Any) -> None:
        if self._episodes is None:
            return
        received_ns = int(info["received_timestamp"]) or self.now_ns()
        arrival = Arrival.NEWEST
        if stream.latched:
            arrival = self._heard.arrival(stream.topic, int(info["source_timestamp"]), received_ns)
        if arrival is Arrival.AGAIN:
            return
        if arrival is Arrival.NEWEST and react is not None:
            react(data)
        self._episodes.put(stream.topic, data, received_ns, arrival is Arrival.NEWEST)

    def _on_task(self, data: bytes) -> None:
        self._task = deserialize_message(data, String).data

    def _on_episode(self, data: bytes) -> None:
        """Start with a running episode, stop with its end, whichever way it ends."""
        status = deserialize_message(data, DiagnosticStatus)
        number = int({value.key: value.value for value in status.values}.get("episode", 0))
        running = status.message == "running"
        if self._followed is not None and not (running and number == self._followed):
            ended = status.message in ("success", "failure") and number == self._followed
            self._end(status.message if ended else "interrupted")
        if running and self._followed is None and self.active:
            self._followed = number
            try:
                self._begin()
            except (OSError, RuntimeError) as error:
                self._report(f"episode {number} is not recorded: {error}")

    def _end(self, outcome: str) -> None:
        self._followed = None
        if self._episodes is not None and self._episodes.recording is not None:
            self._episodes.stop(self._metadata(outcome))

    # -- episodes ---------------------------------------------------------------------------------------------------

    def _begin(self) -> Path:
        assert self._episodes is not None
        free = shutil.disk_usage(self._episodes.directory).free // 2**20
        if free < self.param("min_free_mb"):
            raise OSError(f"{free} MB free in {self._episodes.directory}, at least {self.param('min_free_mb')} needed")
        path = self._episodes.start(self.now_ns())
        self.get_logger().info(f"recording {path}")
        return path

    def _metadata(self, outcome: str) -> dict[str, str]:
        try:
            software = version("molmoact2_ros")
        except PackageNotFoundError:  # run from the source tree
            software = "source"
        out = {
            "robot": str(self.param("robot")),
            "checkpoint": str(self.param("checkpoint")),
            "task": self._task,
            "outcome": outcome,
            "cameras": json.dumps(list(self.param("cameras"))),
            "molmoact2_ros": software,
        }
        files = [Path(file) for file in self.param("config_files") if file]
        if files:
            texts = (file.read_text() if file.is_file() else "# not found" for file in files)
            out["config"] = "---\n".join(f"# {file}\n{text}" for file, text in zip(files, texts, strict=True))
        return out

    def _finished(self, episode: Finished) -> None:
        """Called on the writing thread."""
        if episode.error is not None:
            self._report(f"{episode.path.name}: {episode.error}")
        elif not episode.kept:
            self.get_logger().info(f"{episode.path.name} discarded")
        else:
            self._kept += 1
            self._failure = ""
            lines = "\n  ".join(audit_lines(episode.audits))
            self.get_logger().info(f"{episode.path} is on disk\n  {lines}")

    def _report(self, failure: str) -> None:
        self._failure = failure
        self.get_logger().error(failure)

    # -- services ---------------------------------------------------------------------------------------------------

    def _serve(
        self, action: Callable[[], str], request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        if not self.active:
            response.message = "the recorder is not active"
            return response
        try:
            response.message = action()
            response.success = True
        except (OSError, RuntimeError) as error:
            response.message = str(error)
        return response

    def _start(self) -> str:
        return str(self._begin())

    def _stop(self) -> str:
        assert self._episodes is not None
        path = self._episodes.stop(self._metadata("stopped"))
        if not self._episodes.wait(WRITE_TIMEOUT_S):
            raise OSError(f"{path} is still being written; the log says when it is done")
        return str(path)

    def _discard(self) -> str:
        assert self._episodes is not None
        path = self._episodes.discard()
        self._episodes.wait(WRITE_TIMEOUT_S)
        return f"{path} is deleted"


main = main_of(RecorderNode)

if __name__ == "__main__":
    main()
