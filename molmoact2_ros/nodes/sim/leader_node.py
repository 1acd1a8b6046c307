"""A leader arm that is not there: emulated servos on a serial port, and a hand that sways them about where they were.

For trying teleoperation on an emulated robot. `sim/leader_hand` (JointState, rad) takes the place of the swaying hand;
the hand holds the leader only while it has no torque, as a person would.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import NEWEST, RELIABLE
from molmoact2_ros.simulation.emulators.leader import LeaderRig


class LeaderNode(MolmoNode):
    """See the module. Invariant: the port is there between `setup` and `teardown`."""

    PARAMETERS = (
        Parameter("folder", "", "Folder where the emulated leader's port and calibration appear."),
        Parameter("sway", 0.2, "How far the hand sways each joint of the arm, rad; 0: it keeps still.", 0.0, 1.0),
        Parameter("period_s", 6.0, "Of the swaying, s.", 1.0, 60.0),
    )

    def __init__(self) -> None:
        super().__init__("leader")
        self._rig: LeaderRig | None = None

    def setup(self) -> None:
        folder = self.param("folder")
        if not folder:
            raise ValueError("folder is empty, expected where the emulated leader's port shall appear")
        self._robot = embodiment(self.param("robot"))
        self._rig = LeaderRig(Path(folder))
        self._rig.__enter__()
        self._begun_s: float = self.steady.now().nanoseconds * 1e-9
        self._hand: NDArray[np.float64] | None = None
        self.listen(JointState, "sim/leader_hand", self._on_hand, NEWEST)
        self.listen(String, "sim/leader_fault", self._on_fault, RELIABLE)
        self.every(0.01, self._move, inactive=True, steady=True)

    def teardown(self) -> None:
        rig, self._rig = self._rig, None
        if rig is not None:
            rig.__exit__()

    def _on_hand(self, message: JointState) -> None:
        self._hand = self._robot.reorder(message.name, np.asarray(message.position, dtype=np.float64))

    def _on_fault(self, message: String) -> None:
        """`unplug` or `plug`."""
        if self._rig is not None:
            (self._rig.bus.unplug if message.data == "unplug" else self._rig.bus.plug)()

    def _move(self) -> None:
        if self._rig is None:
            return
        if self._hand is None:
            t = self.steady.now().nanoseconds * 1e-9 - self._begun_s
            sway = self.param("sway") * np.sin(2.0 * np.pi * t / self.param("period_s"))
            position = self._robot.rest_position.copy()
            position[self._robot.arms[0]] += sway
        else:
            position = self._hand
        self._rig.hand(position)


main = main_of(LeaderNode)

if __name__ == "__main__":
    main()
