"""Records episodes as rosbag2 MCAP bags: by service, or by following the episodes of the simulated cell.

Messages are taken serialized and written as they came; none is decoded but the task, the episode's state and
whose diagnostics they are.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.recorder_answers import PAUSE_S, WRITE_TIMEOUT_S, listed, written
from molmoact2_ros.nodes.ros.recorder_parameters import PARAMETERS, episode_metadata, message_class, subscription_qos
from molmoact2_ros.nodes.ros.services import Pause
from molmoact2_ros.recording.audit import audit_lines
from molmoact2_ros.recording.episode_recorder import EpisodeRecorder, Finished, unfinished
from molmoact2_ros.recording.episodes import label
from molmoact2_ros.recording.following import Following
from molmoact2_ros.recording.streams import DIAGNOSTICS, Arrival, DuplicateFilter, Stream, streams_of

ENDING_S = 0.3
"""How long messages that are on their way when an episode ends are still taken."""


class RecorderNode(MolmoNode):
    """Invariant: at most one episode is being recorded; each has its own bag, which is never written again."""

    PARAMETERS = PARAMETERS

    def __init__(self) -> None:
        super().__init__("recorder")
        self._episodes: EpisodeRecorder | None = None
        self._listening: list[tuple[str, Subscription]] = []
        self._kept = 0
        self._last: Path | None = None
        self._failure = ""
        self._doubt = ""
        self._forget()

    def _forget(self) -> None:
        """What was heard before belongs to subscriptions that are gone: the new ones hear what is latched again."""
        self._tasks: dict[str, str] = {}
        self._heard = DuplicateFilter()
        self._following = Following()
        self._ending: tuple[str, float] | None = None

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._forget()
        directory = Path(self.param("directory")).expanduser()
        pictures = self.param("raw"), self.param("compressed"), self.param("depth")
        cameras, more, joints = (list(self.param(name)) for name in ("cameras", "topics", "joint_state_topics"))
        chosen = streams_of(cameras, *pictures, more, joints)
        known = {stream: found for stream in chosen if (found := message_class(stream.msgtype)) is not None}
        if missing := sorted({stream.msgtype for stream in chosen} - {stream.msgtype for stream in known}):
            self.get_logger().info(f"not recorded, since their packages are not installed: {', '.join(missing)}")
        streams = {stream: replace(stream, topic=self.resolve_topic_name(stream.topic)) for stream in known}
        self._episodes = EpisodeRecorder(directory, list(streams.values()), self._finished, self.param("zstd"))
        for path in unfinished(directory):
            self.get_logger().warning(
                f"{path} was left unfinished; `python -m molmoact2_ros.recording.recover {path}` makes it whole"
            )
        for relative, stream in streams.items():
            take = partial(self._take, stream, self._reaction(relative.topic))
            for qos in subscription_qos(stream):
                heard = self.listen(known[relative], stream.topic, take, qos, raw=True)
                self._listening.append((relative.topic, heard))
        self.serve(SetBool, "recorder/label", self._label)
        offers = {"start": self._start, "stop": self._stop, "discard": self._discard, "list": self._list}
        for name, action in offers.items():
            self.serve(Trigger, f"recorder/{name}", partial(self._serve, action))
        self.every(1.0, self._watch_disk, inactive=True, steady=True)
        self.every(0.05, self._watch_end, inactive=True, steady=True)

    def stop(self) -> None:
        self._finish(self._ending[0] if self._ending else "interrupted")

    def teardown(self) -> None:
        if self._episodes is not None:
            self.stop()
            if not self._episodes.wait(WRITE_TIMEOUT_S):
                self.get_logger().error(f"a bag is not finished after {WRITE_TIMEOUT_S:.0f} s; recover it later")
        self._listening.clear()
        self._episodes = None

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        values = {"episodes_kept": self._kept, "directory": self.param("directory")}
        if self._failure:
            return DiagnosticStatus.ERROR, self._failure, values
        if self._doubt:
            return DiagnosticStatus.WARN, self._doubt, values
        running = self._episodes.recording if self._episodes is not None else None
        return DiagnosticStatus.OK, "idle" if running is None else f"recording {running.name}", values

    # -- messages ---------------------------------------------------------------------------------------------------

    def _reaction(self, topic: str) -> Callable[[bytes], bool] | None:
        """What a message of `topic` leads to besides being recorded; False keeps it out of the bag."""
        if topic in ("task", "policy/task"):
            return partial(self._on_task, topic)
        if topic == "sim/episode" and self.param("autostart_recording"):
            return self._on_episode
        return self._is_of_this_robot if topic == DIAGNOSTICS else None

    def _take(self, stream: Stream, react: Callable[[bytes], bool] | None, data: bytes, info: Any) -> None:
        if self._episodes is None:
            return
        arrival = Arrival.NEWEST
        received_ns = int(info["received_timestamp"]) or self.now_ns()
        if stream.latched:
            arrival = self._heard.arrival(stream.topic, int(info["source_timestamp"]), received_ns)
        if arrival is Arrival.AGAIN:
            return
        if arrival is Arrival.NEWEST and react is not None and not react(data):
            return
        # One clock for a bag: with use_sim_time it is the simulator's, by which the messages are stamped too.
        written_ns = self.now_ns() if self.param("use_sim_time") else received_ns
        self._episodes.put(stream.topic, data, written_ns, arrival is Arrival.NEWEST)

    def _empty_queues(self) -> None:
        """Take what has arrived and still waits: it belongs to the episode that ends now."""
        for topic, subscription in self._listening:
            while topic != "sim/episode":
                with subscription.handle:
                    taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
                if taken is None:
                    break
                subscription.callback(*taken)

    def _on_task(self, topic: str, data: bytes) -> bool:
        self._tasks[topic] = deserialize_message(data, String).data
        return True

    def _is_of_this_robot(self, data: bytes) -> bool:
        own = self.get_namespace().rstrip("/") + "/"
        return any(status.name.startswith(own) for status in deserialize_message(data, DiagnosticArray).status)

    def _on_episode(self, data: bytes) -> bool:
        """Start with a running episode, stop with its end, whichever way it ends."""
        status = deserialize_message(data, DiagnosticStatus)
        text = {value.key: value.value for value in status.values}.get("episode", "0")
        if not text.isdecimal():
            self.get_logger().warning(f"sim/episode: number {text!r} is none; not followed")
            return True
        outcome, begins = self._following.heard(int(text), status.message, self.active)
        if outcome:
            self._end(outcome)
        if begins:
            try:
                self._begin()
            except (OSError, RuntimeError) as error:
                self._report(f"episode {text} is not recorded: {error}")
        return True

    def _end(self, outcome: str) -> None:
        """The followed episode is over; its bag is, once what is still on its way has been taken."""
        if self._episodes is not None and self._episodes.recording is not None:
            self._ending = (outcome, time.monotonic() + ENDING_S)

    def _watch_end(self) -> None:
        if self._ending is not None and time.monotonic() > self._ending[1]:
            self._finish(self._ending[0])

    def _finish(self, outcome: str) -> None:
        self._ending = None
        if self._episodes is not None and self._episodes.recording is not None:
            self._empty_queues()
            self._episodes.stop(self._metadata(outcome))

    # -- episodes ---------------------------------------------------------------------------------------------------

    def _begin(self) -> Path:
        assert self._episodes is not None
        if self._ending is not None:
            self._finish(self._ending[0])
        if self.param("use_sim_time") and self.now_ns() == 0:
            raise OSError("use_sim_time is set, but nothing has come on /clock: a bag needs one clock")
        free = self._free_mb()
        if free < self.param("min_free_mb"):
            raise OSError(f"{free} MB free in {self._episodes.directory}, at least {self.param('min_free_mb')} needed")
        path = self._episodes.start(self.now_ns(), self._metadata("interrupted"))
        self.get_logger().info(f"recording {path}")
        return path

    def _free_mb(self) -> int:
        assert self._episodes is not None
        self._episodes.directory.mkdir(parents=True, exist_ok=True)  # it may have been removed since
        return shutil.disk_usage(self._episodes.directory).free // 2**20

    def _watch_disk(self) -> None:
        """End a recording in order before the disk is full."""
        if self._episodes is None or self._episodes.recording is None:
            return
        try:
            free = self._free_mb()
        except OSError:
            return  # the writer meets it too, and says it
        if free < self.param("stop_free_mb"):
            name = self._episodes.recording.name
            told = f"{name} ended early: {free} MB free on the disk, stop_free_mb {self.param('stop_free_mb')}"
            self._episodes.end_early(self._metadata("interrupted"), told)

    def _metadata(self, outcome: str) -> dict[str, str]:
        # The policy holds the task; who published it may be gone.
        task = self._tasks.get("policy/task") or self._tasks.get("task", "")
        return episode_metadata(self.param, task, outcome)

    def _finished(self, episode: Finished) -> None:
        """Called on the writing thread."""
        name = episode.path.name
        if episode.error is not None:
            self._report(f"{name}: {episode.error}")
        elif not episode.kept:
            self.get_logger().info(f"{name} discarded")
        else:
            self._kept += 1
            self._last = episode.path
            self._failure = ""
            lines = "\n  ".join(audit_lines(episode.audits))
            self.get_logger().info(f"{episode.path} is on disk\n  {lines}")
            self._doubt = f"{name}: {'; '.join(episode.problems)}" if episode.problems else ""
            if self._doubt:
                self.get_logger().warning(self._doubt)

    def _report(self, failure: str) -> None:
        self._failure = failure
        self.get_logger().error(failure)

    # -- services ---------------------------------------------------------------------------------------------------

    async def _serve(
        self, action: Callable[[], Awaitable[str]], request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        if not self.active:
            response.message = "the recorder is not active"
            return response
        try:
            response.message = await action()
            response.success = True
        except (OSError, RuntimeError) as error:
            response.message = str(error)
        return response

    def _label(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """A person says how the last episode went: true is a success."""
        if self._last is None:
            response.message = "no episode has been recorded yet"
            return response
        label(self._last, outcome="success" if request.data else "failure")
        response.success, response.message = True, f"{self._last.name}: {'success' if request.data else 'failure'}"
        return response

    async def _start(self) -> str:
        return str(self._begin())

    async def _stop(self) -> str:
        end = time.monotonic() + ENDING_S
        while time.monotonic() < end and self._episodes is not None:
            time.sleep(PAUSE_S)
            await Pause()
        if self._episodes is None:
            raise RuntimeError("the recorder was cleaned up meanwhile")
        self._empty_queues()
        writer = self._episodes.stop(self._metadata("stopped"))
        finished = await written(writer)
        if finished.error is not None:
            raise OSError(finished.error)
        return str(writer.path)

    async def _discard(self) -> str:
        assert self._episodes is not None
        writer = self._episodes.discard()
        await written(writer)
        return f"{writer.path} is deleted"

    async def _list(self) -> str:
        assert self._episodes is not None
        return await listed(self._episodes)


main = main_of(RecorderNode)

if __name__ == "__main__":
    main()
