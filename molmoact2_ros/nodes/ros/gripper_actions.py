"""Grippers behind action servers: a goal when the target has changed enough, never one a tick.

`gripper_command` (control_msgs/GripperCommand) and `parallel_gripper_command` (control_msgs/ParallelGripperCommand)
take the position of the driving joint. `franka_gripper` (franka_msgs) takes widths, twice the position of the finger
joint: opening is a Move, closing a Grasp, which holds what it finds at whatever width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from sensor_msgs.msg import JointState

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.joint_names import JointNames
from molmoact2_ros.execution.gripper import GripperGoals
from molmoact2_ros.nodes.ros.node_base import MolmoNode

RETRY_NS = 1_000_000_000
"""A goal that was refused or failed, or for which there is no server, is tried again after this."""
ANSWER_NS = 2_000_000_000
"""A server that has not answered to a goal by then is asked again."""
HOMING = "; was the hand homed since it was switched on? call driver/home_gripper while disarmed"
PACKAGES = {
    "gripper_command": ("control_msgs", "GripperCommand"),
    "parallel_gripper_command": ("control_msgs", "ParallelGripperCommand"),
    "franka_gripper": ("franka_msgs", "Grasp", "Move"),
}


def action_types(output: str) -> list[Any]:
    """The action types that a `gripper_output` needs.

    Raises:
        ValueError: their package is not installed, or lacks one of them; the message says what to install.
    """
    package, *names = PACKAGES[output]
    try:
        module = importlib.import_module(f"{package}.action")
        return [getattr(module, name) for name in names]
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"gripper_output {output} needs {package}/action/{names[0]} ({error}): install "
            f"ros-jazzy-{package.replace('_', '-')}, or set gripper_output to in_array"
        ) from None


def failure(status: int, result: Any, closing: bool) -> str:
    """What went wrong with a goal, by its `status` and `result`; empty when nothing did.

    A gripper that stalls while it closes has something between its fingers, which is what it is for.
    """
    error = getattr(result, "error", "")
    because = f" ({error})" if error else ""
    stalled = bool(getattr(result, "stalled", False))
    if status == GoalStatus.STATUS_CANCELED:
        return "somebody cancelled its motion"
    if closing and stalled:
        return ""
    if status != GoalStatus.STATUS_SUCCEEDED:
        return f"its motion was aborted{because}"
    if not getattr(result, "success", True):
        return f"its motion failed{because}"
    if not getattr(result, "reached_goal", True):
        return f"it {'stalled' if stalled else 'ended'} before its position was reached"
    return ""


@dataclass
class _Gripper:
    """One gripper: its joint, the rule for its goals, and what is under way: the number of its last goal, when it was
    asked for (0: answered), with which client, its handle, and the handles of all that have not ended."""

    joint: str
    rule: GripperGoals
    clients: Sequence[ActionClient]
    middle: float
    handle: Any = None
    open: list[Any] = field(default_factory=list)
    client: ActionClient | None = None
    goal: int = 0
    asked_ns: int = 0
    cancelled: int = 0
    not_before_ns: int = 0
    told: str = ""
    failed: str = ""


class GripperActions:
    """All grippers of the robot. `update` is called from the spinning thread, some ten times a second."""

    def __init__(self, node: MolmoNode, robot: Embodiment, output: str) -> None:
        types = action_types(output)
        self._node, self._output, self._now_ns = node, output, node.now_ns
        self._effort, self._speed = float(node.param("gripper_effort")), float(node.param("gripper_speed"))
        names = [name for name in node.param("gripper_actions") if name]
        joints = JointNames(robot, node.param("joint_map")).theirs
        self._grippers = []
        for name, j in zip(names, robot.gripper_indices, strict=True):
            topics = [f"{name}/grasp", f"{name}/move"] if output == "franka_gripper" else [name]
            clients = [ActionClient(node, kind, topic) for kind, topic in zip(types, topics, strict=True)]
            lower, upper = float(robot.limits.lower[j]), float(robot.limits.upper[j])
            rule = GripperGoals(
                lower,
                upper,
                step=float(node.param("gripper_step")),
                interval_s=float(node.param("gripper_interval_s")),
                # A grasp is a decision; a width in between is none.
                binary=bool(node.param("binary_grippers")) or output == "franka_gripper",
            )
            self._grippers.append(_Gripper(joints[j], rule, clients, (lower + upper) / 2.0))
        self.goals = 0
        """Goals sent so far."""

    def begin(self, positions: Sequence[float]) -> None:
        """Armed: the grippers are at `positions`, rad or m, and get no goal before something else is asked of them."""
        for gripper, position in zip(self._grippers, positions, strict=True):
            gripper.rule.begin(position)

    def update(self, targets: Sequence[float], now_ns: int) -> None:
        """Send the goals that `targets`, rad or m, are worth."""
        for gripper, target in zip(self._grippers, targets, strict=True):
            self._look_after(gripper, now_ns)
            if now_ns < gripper.not_before_ns:
                continue
            goal = gripper.rule.update(float(target), now_ns)
            if goal is not None:
                self._send(gripper, goal, now_ns)

    @property
    def problem(self) -> str:
        """What went wrong with the last goals; empty when nothing did."""
        return "; ".join(gripper.failed for gripper in self._grippers if gripper.failed)

    def cancel(self) -> None:
        """An e-stop: what is under way is cancelled, and a goal that nobody has accepted yet as soon as somebody does.

        Nobody knows where the grippers come to rest.
        """
        for gripper in self._grippers:
            gripper.rule.forget()
            gripper.cancelled, gripper.asked_ns = gripper.cancelled + 1, 0
            handles, gripper.open, gripper.handle = gripper.open, [], None
            for handle in handles:
                handle.cancel_goal_async()

    def destroy(self) -> None:
        """Let go of the action clients; safe to call twice."""
        for gripper in self._grippers:
            for client in gripper.clients:
                client.destroy()
        self._grippers.clear()

    # -- one goal -----------------------------------------------------------------------------------------------------

    def _send(self, gripper: _Gripper, position: float, now_ns: int) -> None:
        closing = position < gripper.middle
        client = gripper.clients[0 if closing or len(gripper.clients) == 1 else 1]
        if not client.server_is_ready():
            self._try_again(gripper, now_ns, f"no action server {client._action_name}")
            return
        goal = self._goal(gripper, position, closing)
        self.goals += 1
        gripper.goal, gripper.asked_ns, gripper.client = gripper.goal + 1, now_ns, client
        client.send_goal_async(goal).add_done_callback(self._answered(gripper, closing))

    def _look_after(self, gripper: _Gripper, now_ns: int) -> None:
        """A goal whose server says nothing, or has gone, would be waited for without end."""
        if gripper.asked_ns and now_ns - gripper.asked_ns > ANSWER_NS:
            gripper.goal, gripper.asked_ns = gripper.goal + 1, 0
            self._try_again(gripper, now_ns, f"its action server has not answered for {ANSWER_NS / 1e9:g} s")
        elif gripper.handle is not None and gripper.client is not None and not gripper.client.server_is_ready():
            gripper.handle, gripper.open = None, []
            self._try_again(gripper, now_ns, f"its action server {gripper.client._action_name} has gone")

    def _goal(self, gripper: _Gripper, position: float, closing: bool) -> Any:
        if self._output == "gripper_command":
            goal = gripper.clients[0]._action_type.Goal()
            goal.command.position, goal.command.max_effort = float(position), self._effort
            return goal
        if self._output == "parallel_gripper_command":
            goal = gripper.clients[0]._action_type.Goal()
            goal.command = JointState(name=[gripper.joint], position=[float(position)])
            if self._effort > 0.0:
                goal.command.effort = [self._effort]
            return goal
        width = 2.0 * float(position)
        goal = gripper.clients[0 if closing else 1]._action_type.Goal()
        goal.width, goal.speed = width, self._speed
        if closing:
            goal.force = self._effort
            # An object of any width is a grasp; so is none, for then the fingers meet as they were told.
            goal.epsilon.inner = goal.epsilon.outer = 0.08
        return goal

    def _answered(self, gripper: _Gripper, closing: bool) -> Callable[[Any], None]:
        cancelled, number = gripper.cancelled, gripper.goal

        def answered(future: Any) -> None:
            handle = future.result()
            taken = handle is not None and handle.accepted
            if gripper.cancelled != cancelled:  # an e-stop came between the goal and its acceptance
                if taken:
                    handle.cancel_goal_async()
                return
            newest = gripper.goal == number
            if newest:
                gripper.asked_ns = 0
            if taken:
                gripper.open.append(handle)  # to be cancelled by an e-stop, even if a newer goal has taken its place
                handle.get_result_async().add_done_callback(lambda done: self._ended(gripper, handle, closing, done))
            if newest and taken:
                gripper.handle, gripper.told = handle, ""
            elif newest:
                self._try_again(gripper, self._now_ns(), "its action server refused the goal")

        return answered

    def _ended(self, gripper: _Gripper, handle: Any, closing: bool, future: Any) -> None:
        """A goal has its result: one that failed is told, and asked for again."""
        if handle in gripper.open:
            gripper.open.remove(handle)
        if gripper.handle is not handle:
            return  # another goal has taken its place
        gripper.handle = None
        answer = future.result()
        problem = "" if answer is None else failure(answer.status, answer.result, closing)
        gripper.failed = ""
        if problem:
            advice = HOMING if self._output == "franka_gripper" else ""
            self._try_again(gripper, self._now_ns(), problem + advice)

    def _try_again(self, gripper: _Gripper, now_ns: int, problem: str) -> None:
        gripper.rule.forget()
        gripper.not_before_ns = now_ns + RETRY_NS
        gripper.failed = f"gripper {gripper.joint}: {problem}"
        if problem != gripper.told:
            self._node.get_logger().error(f"{gripper.failed}; tried again every second")
            gripper.told = problem
