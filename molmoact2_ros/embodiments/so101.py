"""SO-100/101: six Feetech servos, five for the arm and one for the jaw.

Model vectors are in degrees in the frame of the training data (the old LeRobot calibration), the gripper in 0..100
with 0 closed. LeRobot's drivers report degrees about mid-range (`use_degrees=True`), which is also the zero of the
URDF, so the arm frame is `deg(q)`; the training frame is `signs * arm + offsets`. Applying that transform twice, or not
at all, drives the arm into the table.

Sources: `urdf/so101.urdf` for kinematics, the travel by design and velocities, public calibrations and poses for how
far arms as they are built go beyond that travel, lerobot for units, allenai/MolmoAct2-SO100_101 for the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.embodiment import Embodiment, JointLimits, ModelFrame, Workspace
from molmoact2_ros.embodiments.urdf import robot_urdf

if TYPE_CHECKING:
    from molmoact2_ros.embodiments.kinematics import Chain

Array = NDArray[np.float64]

SIGNS = np.array([1.0, -1.0, 1.0, 1.0, 1.0, 1.0])
OFFSETS = np.array([0.0, 90.0, 90.0, 0.0, 0.0, 0.0])
"""model = SIGNS * arm + OFFSETS, degrees; the gripper has neither."""

GRIPPER = 5
_URDF = robot_urdf("so101")
JAW = _URDF.joints["gripper"]
"""The moving jaw's joint in the gripper link; the fixed jaw belongs to the gripper link itself."""

_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
_LOWER, _UPPER, _VELOCITY = _URDF.limits(_JOINTS)

_REACH = {"shoulder_pan": 122.0, "shoulder_lift": 108.0, "wrist_flex": 111.0}
"""How far arms as they are built go to either side, degrees. Stops are printed, and mid-range is where the sweep of a
calibration put it. Among five follower arms lift goes up to 106 (folded up they rest at -103 to -106, on the stop),
wrist flex up to 109 and pan up to 120; 2 degrees more are for what calibrations scatter. The other joints keep to the
URDF. An arm that has less keeps to its own calibration, see `drivers/so101.py`."""
TRAVEL = np.degrees(_UPPER - _LOWER)
"""From stop to stop by design, (dof,), degrees."""
_REACH_RAD = np.radians([_REACH.get(name, 0.0) for name in _JOINTS])


class So101(Embodiment):
    """SO-100 and SO-101 arms with LeRobot calibration.

    LeRobot drives both with one driver and one calibration, whose zero is mid-range, and both have the same servos and
    link lengths within 3 mm; so the SO-100 shares everything here with the SO-101 but the name.
    """

    family = "so101"
    norm_tag = "so100_so101_molmoact2"
    setup_type = "single so100/so101 robotic arm in molmoact2"
    control_mode = "absolute joint pose"
    joint_names = _JOINTS
    gripper_indices = (GRIPPER,)
    gripper_unit = "rad"
    arms = (slice(0, 5),)
    camera_names = ("front", "wrist")
    min_cameras = 1
    rate_hz = 30.0
    horizon = 30
    # No published jump limits for this arm. A step is held to what a working YAM cell uses with this model; the first
    # row may be further away, since a chunk that is half a horizon late finds an arm that has not moved yet.
    max_step = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 2.0])
    max_first_step = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 2.0])
    # Training q50: pan 3.1, lift 123.2, elbow 124.4, wrist_flex 57.9, wrist_roll -11.0 deg, gripper 9.2 of 100.
    rest_position = np.array([0.0541, -0.5794, 0.6004, 1.0105, -0.1920, 0.0021])
    # STS3215 at 7.4 V turns about 4.7 rad/s unloaded; what a loaded arm follows without sagging is about half of it.
    limits = JointLimits(
        lower=np.minimum(_LOWER, -_REACH_RAD),
        upper=np.maximum(_UPPER, _REACH_RAD),
        velocity=_VELOCITY,
        acceleration=np.array([10.0, 10.0, 10.0, 15.0, 15.0, 40.0]),
        jerk=np.array([200.0, 200.0, 200.0, 300.0, 300.0, 800.0]),
    )
    base_link = "base_link"
    wrist_links = ("gripper_link",)
    # The whole reach of the arm; the floor is a little below the plane that the base stands on, since tips are soft.
    workspaces = (Workspace(np.array([-0.50, -0.50, -0.03]), np.array([0.55, 0.50, 0.60])),)
    # It has torque as long as its driver runs, and mostly afterwards.
    moved_by_hand = (
        "support the arm, switch its power off, move it inside by hand and hold it while you switch it on; if it is "
        "not where this says, calibrate it anew"
    )
    # 6 and 7.5 rad/s: recordings of real arms reach 4.0 at shoulder_lift and 6.3 at wrist_flex.
    speed_room = 3.0
    normalize_gripper = True

    def __init__(self, name: str) -> None:
        self.name = name

    def _make_chains(self) -> tuple[tuple[Chain, tuple[int, ...]], ...]:
        return ((_URDF.chain("base_link", "tip"), (0, 1, 2, 3, 4)),)

    def model_from_joints(self, joints: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Rad, ROS order -> degrees in `frame`, gripper 0..100."""
        joints = self.checked(joints, "joint positions")
        arm = np.degrees(joints)
        arm[..., GRIPPER] = 100.0 * (joints[..., GRIPPER] - _LOWER[GRIPPER]) / (_UPPER[GRIPPER] - _LOWER[GRIPPER])
        return SIGNS * arm + OFFSETS if frame is ModelFrame.TRAINING else arm

    def joints_from_model(self, vector: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Degrees in `frame`, gripper 0..100 -> rad, ROS order."""
        vector = self.checked(vector, "model vector")
        arm = SIGNS * (vector - OFFSETS) if frame is ModelFrame.TRAINING else vector
        joints = np.radians(arm)
        joints[..., GRIPPER] = _LOWER[GRIPPER] + arm[..., GRIPPER] / 100.0 * (_UPPER[GRIPPER] - _LOWER[GRIPPER])
        return joints


SO101 = So101("so101")
SO100 = So101("so100")
