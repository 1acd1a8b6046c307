"""Looks for motion that nobody asked for, for `molmoact2 bench robots --unasked`.

Each scenario moves or holds the arm, does to it what happens in a workcell (an e-stop pressed and released, hand
guiding, a power cut, a pulled cable), waits until the arm rests, and does what once made an arm move by itself. What it
then moves before the next `executor/arm` is the result. Executor and driver are the real nodes, the policy never stops
sending chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from molmoact2_ros.nodes.bench.drill_node import DrillNode
from molmoact2_ros.nodes.ros.node_base import main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import RELIABLE

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
REST_RAD, REST_S = 0.003, 0.6
"""An arm whose joints moved less than this in so long rests."""
MOVING_RAD = 0.015
"""In a tenth of a second: an arm in motion."""
WATCH_S = 2.0
"""How long it is watched for motion that nobody asked for."""
PUSH_RAD = 0.3

Array = NDArray[np.float64]


class UnaskedNode(DrillNode):
    """See the module; what moves an arm and waits for it is the drill's."""

    PARAMETERS = (*DrillNode.PARAMETERS, Parameter("scenarios", [""], "Names of the scenarios, in order."))

    def setup(self) -> None:
        super().setup()
        self._stop = self.output(Bool, "e_stop", RELIABLE)
        self._other_stop = self.output(Bool, "e_stop", BEST_EFFORT)
        self._guiding_client = self.create_client(SetBool, "driver/hand_guiding")
        robot = self._robot
        self._arm_joints = [j for j in range(robot.dof) if j not in robot.gripper_indices]
        self.result["unasked"] = []

    def _work(self) -> None:
        self._wait(lambda: self._position is not None, "a joint state", 10.0)
        self._arm()
        self._ended.wait(self.param("motion_s"))
        for name in filter(None, self.param("scenarios")):
            self.result["unasked"].append(self._scenario(name))

    def _scenario(self, name: str) -> dict[str, Any]:
        """Run one scenario from an arm in motion, and bring the arm back into motion."""
        play: Callable[[], float] = getattr(self, f"_play_{name}")
        self.get_logger().info(f"scenario {name}")
        stop_rad = play()
        moved = self._watched()
        found = {"scenario": name, "moved_rad": moved, "stop_rad": stop_rad, "state": self._state}
        found["reason"] = self._reason
        self.get_logger().info(f"{name}: moved {moved:.4f} rad; {self._state}: {self._reason}")
        self._recover()
        return found

    # -- scenarios: each returns what the stop itself took, rad, and ends with what may not move the arm -------------

    def _play_e_stop_released(self) -> float:
        stopped = self._press_and_rest(self._stop)
        self._stop.publish(Bool(data=False))
        return stopped

    def _play_e_stop_tapped(self) -> float:
        start = self._in_motion()
        self._stop.publish(Bool(data=True))
        time.sleep(0.05)
        self._stop.publish(Bool(data=False))
        return self._rested(start)

    def _play_e_stop_best_effort(self) -> float:
        stopped = self._press_and_rest(self._other_stop)
        self._other_stop.publish(Bool(data=False))
        return stopped

    def _play_e_stop_other_lets_go(self) -> float:
        self._other_stop.publish(Bool(data=False))
        stopped = self._press_and_rest(self._stop)
        self._other_stop.publish(Bool(data=False))
        if self._state != "ESTOPPED":
            raise RuntimeError(f"another publisher's release ended the e-stop: {self._state}")
        return stopped

    def _play_hand_guiding(self) -> float:
        start = self._hold_still()
        self._guide(True)
        self._push()
        self._guide(False)
        return float(np.abs(self._measured() - start).max())

    def _play_power_cut(self) -> float:
        start = self._hold_still()
        self._switch("power")
        self._push()
        self._switch("none")
        self._wait(lambda: self._driver != "ok", "the driver to notice", 10.0) if self._driver == "ok" else None
        self._wait(lambda: self._fresh(), "fresh readings", 20.0)
        return float(np.abs(self._measured() - start).max())

    def _play_cable_pulled(self) -> float:
        start = self._in_motion()
        self._switch("unplug")
        time.sleep(1.5)
        if self.param("robot") == "yam":  # its motors go limp by their own watchdog
            self._push()
        self._switch("none")
        self._wait(lambda: self._fresh(), "fresh readings", 20.0)
        return self._rested(start)

    def _play_silence(self) -> float:
        start = self._in_motion()
        self._switch("silent 3")
        time.sleep(0.4)
        self._switch("none")
        self._wait(lambda: self._fresh(), "fresh readings", 20.0)
        if self._state in ("TRACKING", "STOPPING", "HOLDING"):  # ridden out: the policy would move the arm on, as asked
            start = self._measured()
            self._call_arm(False)
        return self._rested(start)

    def _play_user_stop(self) -> float:
        start = self._in_motion()
        self._switch("user_stop")
        self._wait(lambda: self._state == "ESTOPPED", "ESTOPPED", 10.0)
        stopped = self._rested(start)
        self._switch("none")
        return stopped

    def _play_hot(self) -> float:
        start = self._in_motion()
        self._switch("reflex" if self.param("robot") == "franka" else "hot 3")
        self._wait(lambda: self._state == "FAULT", "FAULT", 10.0)
        stopped = self._rested(start)
        self._switch("none")
        if "driver/recover" in self._reason:
            self._ask(self._recover_client)
        return stopped

    def _play_arm_and_disarm(self) -> float:
        """Ten times, in HOLDING: an arm that is held where it sagged to would sink each time."""
        self._hold_still()
        chunks, self._home = self._home, None  # no chunk may move it meanwhile
        try:
            start = self._measured()
            for _ in range(10):
                self._call_arm(False)
                self._wait(lambda: self._state == "DISARMED", "DISARMED", 10.0)
                time.sleep(0.5)
                self._call_arm(True)
                self._wait(lambda: self._state == "HOLDING", "HOLDING", 10.0)
                time.sleep(0.6)
            self._call_arm(False)
            self._drift = float(np.abs(self._measured() - start).max())
        finally:
            self._home = chunks
        return 0.0

    # -- parts of scenarios -------------------------------------------------------------------------------------------

    _drift = 0.0

    def _measured(self) -> Array:
        assert self._position is not None
        return self._position[self._arm_joints].copy()

    def _in_motion(self) -> Array:
        """Wait until the arm moves at a good pace; returns where it is."""

        def moving() -> bool:
            before = self._measured()
            self._ended.wait(0.1)
            return self._state == "TRACKING" and bool(np.abs(self._measured() - before).max() > MOVING_RAD)

        self._wait(moving, "an arm in motion", 15.0)
        return self._measured()

    def _press_and_rest(self, publisher: Any) -> float:
        start = self._in_motion()
        publisher.publish(Bool(data=True))
        self._wait(lambda: self._state == "ESTOPPED", "ESTOPPED", 5.0)
        return self._rested(start)

    def _rested(self, start: Array) -> float:
        """Wait until the arm rests; returns how far a joint went from `start`."""
        deadline = time.monotonic() + 15.0
        while time.monotonic() < deadline:
            before, heard = self._measured(), self._heard
            if self._ended.wait(REST_S):
                break
            if self._heard > heard + 10 and np.abs(self._measured() - before).max() < REST_RAD:
                return float(np.abs(self._measured() - start).max())
        raise RuntimeError("the arm does not come to rest")

    def _watched(self) -> float:
        """The largest movement of an arm joint from now on, while nobody arms."""
        start, moved, deadline = self._measured(), self._drift, time.monotonic() + WATCH_S
        self._drift = 0.0
        while time.monotonic() < deadline and not self._ended.wait(0.005):
            moved = max(moved, float(np.abs(self._measured() - start).max()))
        return moved

    def _hold_still(self) -> Array:
        """Armed and at rest: disarm, and arm while no chunk comes."""
        chunks, self._home = self._home, None
        self._call_arm(False)
        self._wait(lambda: self._state == "DISARMED", "DISARMED", 10.0)
        self._rested(self._measured())
        self._wait(lambda: not self._call_arm(True), "arming", 10.0)
        self._wait(lambda: self._state == "HOLDING", "HOLDING", 10.0)
        self._ended.wait(0.8)
        self._home = chunks
        self._begun_s = 0.0
        return self._measured()

    def _guide(self, on: bool) -> None:
        answers: list[Any] = []
        call = self._guiding_client.call_async(SetBool.Request(data=on))
        call.add_done_callback(lambda done: answers.append(done.result()))
        self._wait(lambda: bool(answers), "an answer of driver/hand_guiding", 10.0)

    def _switch(self, fault: str) -> None:
        from std_msgs.msg import String

        self._fault.publish(String(data=fault))

    def _push(self) -> None:
        """A person moves the arm, and lets it go."""
        self._switch(f"push {PUSH_RAD}")
        self._ended.wait(1.0)
        self._switch("push 0")
        self._ended.wait(0.3)

    def _fresh(self) -> bool:
        before = self._heard
        self._ended.wait(0.1)
        return self._heard > before

    def _recover(self) -> None:
        """Whatever state it is in: reset, disarm, and arm into motion."""
        self._ended.wait(0.5)
        if "driver/recover" in self._reason + self._driver:
            self._ask(self._recover_client)
        self._wait(lambda: self._driver == "ok", "a sound driver", 20.0)
        self._stop.publish(Bool(data=False))
        if self._state == "ESTOPPED":
            self._ask(self._reset_client)
        else:
            self._call_arm(False)
        self._wait(lambda: self._state == "DISARMED", "DISARMED", 10.0)
        self._ended.wait(0.3)
        self._home = self._position
        self._arm()
        self._ended.wait(2.0)


main = main_of(UnaskedNode)

if __name__ == "__main__":
    main()
