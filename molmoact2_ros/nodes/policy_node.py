"""Policy node: images, joint states and the task in; action chunks and depth codes out.

Inference runs in a thread of its own on the newest inputs; the spinning thread only takes messages in and watches over
them. When an input falls silent nothing is published, and one line says which.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from functools import partial

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.nodes.ros.joint_topics import Array, MergedJoints
from molmoact2_ros.nodes.ros.messages import chunk_message, image_message, nanoseconds, rgb_from_image, stamp_of
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.policy_parameters import PARAMETERS, opened, request_options
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.nodes.ros.subscriptions import Heard
from molmoact2_ros.nodes.ros.task_parameter import TaskParameter
from molmoact2_ros.policy import Observation, Policy, Prediction
from molmoact2_ros.policy.agreement import TrainedStates
from molmoact2_ros.policy.inputs import Inputs, Problem, task_problem
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.request import Requests

WARM_UP_SIZE = (240, 320, 3)
RETRY_S = 0.5
"""Pause after a failed inference: the reason rarely goes away with the next image."""
JOIN_S = 10.0
"""How long an orderly end waits for the inference in flight."""


class PolicyNode(MolmoNode):
    """See the module.

    Invariant: only the worker thread calls the policy, and it publishes under the lock that guards inputs and epoch; so
    a chunk that was observed before the last task message is dropped, and nothing is published after `stop`.
    """

    PARAMETERS = PARAMETERS

    def __init__(self) -> None:
        super().__init__("policy")
        self._task = TaskParameter(self, task_problem)
        self._changed = threading.Condition()
        self._policy: Policy | None = None
        self._inputs: Inputs | None = None
        self._worker: threading.Thread | None = None
        self._running = False
        self._logged: dict[str, str] = {}
        self._failure = ""
        self._counts = {"chunks": 0, "dropped": 0, "failures": 0}
        self._last: dict[str, object] = {}
        self._latencies: deque[float] = deque(maxlen=200)

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._robot: Embodiment = embodiment(self.param("robot"))
        self._policy = opened(self.param, self._robot, self.now_ns, self.get_logger().warning)
        requests = request_options(self.param)
        used = tuple(dict.fromkeys(self._policy.checkpoint.cameras))
        self._warm_up(self._policy, used)
        found = self._policy.checkpoint
        trained = TrainedStates(found.metadata["state_stats"], self._robot, found.frame)
        limits = self.param("camera_timeout_s"), self.param("state_timeout_s")
        self._inputs = Inputs(used, *limits, trained.problem, self.param("max_skew_s"))
        self._chunks = self.output(JointTrajectory, "policy/action_chunk", NEWEST)
        self._codes = self.output(Image, "policy/depth_codes", NEWEST)
        self._updated = self.output(Image, "policy/depth_updated", NEWEST)
        for name in used:
            self.listen(Image, f"cameras/{name}/image_raw", partial(self._on_image, name), SENSOR)
            self.listen(DiagnosticStatus, f"cameras/{name}/state", partial(self._on_camera_state, name), LATCHED)
        MergedJoints(self, self._robot, self.param("state_timeout_s"), self._on_joints, self._on_no_joints)
        self._present_task = self.output(String, "policy/task", LATCHED)
        self._task.open()
        self.hear(String, "task", self._on_task)
        self.every(0.1, self._watch, inactive=True)
        # The model holds the interpreter most of the time; the spinning thread must not wait long for its turn.
        sys.setswitchinterval(1e-3)
        self._requests = Requests(requests, found.horizon / found.rate_hz)
        depth = f"depth {found.depth_side} x {found.depth_side}" if found.depth_side else "no depth reasoning"
        shown = f"tag {found.norm_tag}, pictures {', '.join(found.cameras)}, {depth}"
        self.get_logger().info(f"{found.name}: {found.layout}, {shown}")

    def start(self) -> None:
        self._running = True
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        with self._changed:
            self._running = False
            self._changed.notify_all()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.join(JOIN_S)

    def teardown(self) -> None:
        self.stop()
        self._task.close()
        policy, self._inputs, self._policy = self._policy, None, None
        if policy is not None:
            policy.close()

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._inputs is None:
            return DiagnosticStatus.OK, "not configured", {}
        with self._changed:
            problem = self._inputs.problem(self.now_ns())
            values: dict[str, object] = {"task": self._inputs.task, **self._counts, **self._last}
            latencies = np.array(self._latencies)
        if latencies.size:
            for share in (50, 99):
                values[f"latency_p{share}_ms"] = f"{np.percentile(latencies, share):.1f}"
        if problem is not None:
            level = DiagnosticStatus.WARN if problem.waiting else DiagnosticStatus.ERROR
            return level, problem.message, values
        if self._failure:
            return DiagnosticStatus.ERROR, self._failure, values
        return DiagnosticStatus.OK, "publishing" if self._running else "inactive", values

    # -- inputs (spinning thread) -----------------------------------------------------------------------------------

    def _on_image(self, name: str, message: Image) -> None:
        try:
            image = rgb_from_image(message)
        except ValueError as error:
            self._log_edge(f"camera {name}", f"camera {name!r}: {error}")
            return
        self._log_edge(f"camera {name}", "")
        with self._changed:
            if self._inputs is not None:
                self._inputs.on_image(name, image, nanoseconds(message.header.stamp), self.now_ns())
                self._changed.notify_all()

    def _on_camera_state(self, name: str, message: DiagnosticStatus) -> None:
        silent = any(value.key == "kind" and value.value == "silent" for value in message.values)
        with self._changed:
            if self._inputs is not None:  # silence is noticed here too; what else is wrong only the camera's node knows
                wrong = message.level == DiagnosticStatus.ERROR and not silent
                self._inputs.on_camera_state(name, message.message if wrong else "")

    def _on_joints(self, joints: Array, stamp_ns: int) -> None:
        with self._changed:
            if self._inputs is not None:
                self._inputs.on_joints(joints, stamp_ns, self.now_ns())

    def _on_no_joints(self, reason: str) -> None:
        with self._changed:
            if self._inputs is not None:
                self._inputs.on_no_joints(reason)

    def _on_task(self, heard: Heard) -> None:
        with self._changed:
            if self._inputs is None:
                return
            accepted = self._inputs.on_task(heard.message.data, self.now_ns())
            self._changed.notify_all()
        if accepted:
            self.get_logger().info(f"task: {heard.message.data}")
            # Latched: whoever joins late, and every bag, has it, even when its publisher is gone.
            self._present_task.publish(heard.message)
        self._task.follow(heard.message.data if accepted else "")
        self._watch()

    def _watch(self) -> None:
        """Say, when it changes, why nothing is published."""
        with self._changed:
            if self._inputs is None or not self._running:
                self._logged.pop("inputs", None)
                return
            problem = self._inputs.problem(self.now_ns())
        before = self._logged.get("inputs", "")
        kind = problem.kind if problem is not None else ""
        if kind == before:
            return
        self._logged["inputs"] = kind
        if problem is None:
            self.get_logger().info("all inputs are fresh: publishing")
        elif problem.waiting:
            self.get_logger().info(f"waiting: {problem.message}")
        else:
            self.get_logger().error(_stopped(problem))

    def _log_edge(self, key: str, text: str) -> None:
        if text and text != self._logged.get(key):
            self.get_logger().error(text)
        self._logged[key] = text

    # -- inference (worker thread) ----------------------------------------------------------------------------------

    def _work(self) -> None:
        policy, inputs = self._policy, self._inputs
        assert policy is not None and inputs is not None
        rate = float(self.param("max_rate_hz"))
        period = 1.0 / rate if rate > 0.0 else 0.0
        epoch, due = -1, 0.0
        while True:
            with self._changed:
                observation: Observation | None = None
                while self._running and observation is None:
                    if inputs.epoch != epoch:
                        self._requests.reset()
                    wait = max(due - time.monotonic(), 1e-9 * self._requests.wait_ns(self.now_ns()))
                    if wait <= 0.0:
                        observation = inputs.observation(self.now_ns())
                    if observation is None:
                        self._changed.wait(min(max(wait, 0.001), 0.1) if wait > 0.0 else 0.1)
                if observation is None:
                    return
                renewed, epoch = inputs.epoch != epoch, inputs.epoch
            due = time.monotonic() + period
            self._requests.called(self.now_ns())
            try:
                if renewed:
                    policy.reset()
                self._publish(policy.infer(observation), epoch)
            except Exception as error:  # the node stays alive to say so; the executor holds without chunks
                self._failed(error)
                due = time.monotonic() + RETRY_S
                epoch = -1  # whatever it was about, the next call begins anew
                continue
            self._failure = ""
            self._log_edge("inference", "")

    def _publish(self, prediction: Prediction, epoch: int) -> None:
        """Send one prediction, unless the task or the state of the node has changed since it was observed."""
        assert self._policy is not None and self._inputs is not None
        rows = prediction.chunk_joints.tolist()
        chunk = chunk_message(rows, prediction.rate_hz, prediction.stamp_ns, self._robot.joint_names)
        grids = []
        if prediction.depth_codes is not None and prediction.depth_updated is not None:
            frame_id = f"{self._policy.checkpoint.cameras[0]}_optical_frame"
            header = Header(stamp=stamp_of(prediction.stamp_ns), frame_id=frame_id)
            updated = np.where(prediction.depth_updated, np.uint8(255), np.uint8(0))
            grids = [
                (self._codes, image_message(prediction.depth_codes.astype(np.uint8), "mono8", header)),
                (self._updated, image_message(updated, "mono8", header)),
            ]
        with self._changed:
            if not self._running or self._inputs.epoch != epoch:
                self._counts["dropped"] += 1
                return
            self._chunks.publish(chunk)
            for publisher, message in grids:
                publisher.publish(message)
            self._requests.published(prediction.stamp_ns)
            self._counts["chunks"] += 1
            self._latencies.append(prediction.timings_ms["total"])
            self._last = {
                "latency_ms": f"{prediction.timings_ms['total']:.1f}",
                **{f"{key}_ms": f"{value:.1f}" for key, value in prediction.timings_ms.items() if key != "total"},
                "forwards": prediction.forwards,
                "input_age_ms": f"{(self.now_ns() - prediction.stamp_ns) / 1e6:.1f}",
                "guided_rows": prediction.guided_rows,
                "updated_cells": None if prediction.depth_updated is None else int(prediction.depth_updated.sum()),
            }

    def _failed(self, error: Exception) -> None:
        self._counts["failures"] += 1
        self._failure = f"inference failed: {error}"
        self._log_edge("inference", self._failure)

    def _warm_up(self, policy: Policy, cameras: tuple[str, ...]) -> None:
        """Run once on a black image: the first call is slow, and a checkpoint that cannot run is refused here."""
        now = self.now_ns()
        images = {name: np.zeros(WARM_UP_SIZE, np.uint8) for name in cameras}
        try:
            policy.infer(Observation(images, dict.fromkeys(cameras, now), self._robot.rest_position, now, "hold still"))
        except UnendedSequenceError as error:
            # What the model makes of a black image is no fault of the checkpoint; on a real one the loop will tell.
            self.get_logger().warning(f"on a black image: {error}")
        policy.reset()


def _stopped(problem: Problem) -> str:
    return f"publishing stops: {problem.message}"


main = main_of(lambda: PolicyNode())

if __name__ == "__main__":
    main()
