"""A driver node that ends: the arm that it parks hears the e-stop on its way."""

from __future__ import annotations

import signal
from pathlib import Path

from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import JointState
from so101_rig import ROBOT, Rig
from std_msgs.msg import Bool

from molmoact2_ros.drivers.parking import ParkPath
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR


def test_an_e_stop_ends_the_parking_of_a_driver_node_that_ends(tmp_path: Path) -> None:
    pose = ROBOT.rest_position.copy()
    pose[0] += 1.5
    assert ParkPath.of(ROBOT, ROBOT.rest_position, pose, 0.02).duration_s > 30.0
    with Companion() as other, Rig(tmp_path).running() as rig:
        joints = other.listen(JointState, "joint_states", SENSOR)
        button = other.node.create_publisher(Bool, "e_stop", LATCHED)
        given = {"port": str(rig.bus.link), "calibration_dir": str(tmp_path), "park_pose": pose.tolist()}
        arguments = ros_arguments({**given, "park_speed": 0.02})
        with NodeProcess("molmoact2_ros.nodes.so101_driver_node", arguments, tmp_path / "log") as node:
            assert node.popen is not None
            wait_until(lambda: joints, "a reading", 30.0)
            node.popen.send_signal(signal.SIGINT)
            wait_until(lambda: joints[-1].position[0] > ROBOT.rest_position[0] + 0.01, "the way to the pose", 20.0)
            assert node.popen.poll() is None
            button.publish(Bool(data=True))
            assert node.popen.wait(10.0) == 0
            assert joints[-1].position[0] < pose[0] - 0.5
