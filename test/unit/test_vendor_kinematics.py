"""Our kinematics against the models that the vendors' packages carry, read by pinocchio: 1,000 random poses a robot.

Both of ours are held to them: the URDF that RViz, robot_state_publisher and the simulated cells read, and the chains of
the embodiments, which draw paths and guard the workspace. `make test-all` installs the packages (requirements/
vendor.txt); without them these tests fail and say so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.description import VENDOR_MODELS, robot_description, vendor_path

pytestmark = pytest.mark.slow
VENDOR = Path(sys.prefix) / "vendor"
POSES = 1000
METRES, RADIANS = 1e-4, 1e-4
STATION = "i2rt/robot_models/station/yam_station_linear_4310_d405/yam_station_linear_4310_d405.urdf"
FINGERS_LEFT_OUT = {"left_left_finger", "left_right_finger", "right_left_finger", "right_right_finger"}
"""Links whose frames the vendor puts elsewhere on the same finger; `test_fingers...` compares their strokes."""


@pytest.fixture(scope="module")
def pin() -> Iterator[ModuleType]:
    """Pinocchio, and the vendors' packages on the search path."""
    folders = [VENDOR, *VENDOR.glob("cmeel.prefix/lib/python3*/site-packages")]
    if len(folders) < 2:
        pytest.fail(f"the vendors' models are not in {VENDOR}; install them with: make vendor")
    before = list(sys.path)
    sys.path += map(str, folders)
    import pinocchio

    yield pinocchio
    sys.path[:] = before


class Model:
    """A URDF in pinocchio, with joints set by name."""

    def __init__(self, pin: ModuleType, text: str) -> None:
        self._pin = pin
        self.model = pin.buildModelFromXML(text)
        self._data = self.model.createData()

    def joint_of(self, link: str) -> int:
        """The joint that moves `link`; 0 for the base."""
        assert self.model.existFrame(link), f"no link {link}"
        return int(self.model.frames[self.model.getFrameId(link)].parentJoint)

    def pose(self, values: dict[int, float]) -> None:
        q = self._pin.neutral(self.model)
        for joint, value in values.items():
            q[self.model.idx_qs[joint]] = value
        self._pin.framesForwardKinematics(self.model, self._data, q)

    def link(self, name: str, base: str) -> np.ndarray[Any, Any]:
        frames = self._data.oMf
        found = frames[self.model.getFrameId(base)].inverse() * frames[self.model.getFrameId(name)]
        return np.asarray(found.homogeneous)

    def limits(self, joint: int) -> tuple[float, float]:
        i = self.model.idx_qs[joint]
        return float(self.model.lowerPositionLimit[i]), float(self.model.upperPositionLimit[i])


def assert_same(pin: ModuleType, ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], what: str) -> None:
    distance = float(np.linalg.norm(ours[:3, 3] - theirs[:3, 3]))
    angle = float(np.linalg.norm(pin.log3(ours[:3, :3].T @ theirs[:3, :3])))
    assert distance < METRES, f"{what}: {1e3 * distance:.3f} mm apart"
    assert angle < RADIANS, f"{what}: {angle:.2e} rad apart"


@pytest.mark.parametrize(("robot", "arm"), [("franka", 0), ("panda", 0), ("so101", 0), ("yam", 0), ("yam", 1)])
def test_links_stand_where_the_vendors_links_stand(pin: ModuleType, robot: str, arm: int) -> None:
    body = embodiment(robot)
    vendor = VENDOR_MODELS[body.family][arm]
    prefix = "panda" if robot == "panda" else "fr3"
    pairs = {
        ours.replace("fr3", prefix): theirs for ours, theirs in vendor.links.items() if ours not in FINGERS_LEFT_OUT
    }
    ours = Model(pin, robot_description(body))
    theirs = Model(pin, vendor_path(vendor.urdf, vendor.package).read_text())
    joints = {ours.joint_of(a): theirs.joint_of(b) for a, b in pairs.items() if ours.joint_of(a)}
    base_a, base_b = next(iter(pairs.items()))
    if robot != "franka":  # the package carries the Panda, whose limits the FR3 does not have
        for a, b in joints.items():
            if theirs.model.names[b] not in ("panda_finger_joint1", "panda_finger_joint2", "joint7", "joint8"):
                assert ours.limits(a) == pytest.approx(theirs.limits(b), abs=1e-3), ours.model.names[a]
    chain, indices = body.chains[arm]
    names = [ours.model.names[joint] for joint in joints]
    wrist = body.wrist_links[arm]
    random = np.random.default_rng(11)
    for _ in range(POSES):
        values = {joint: random.uniform(*ours.limits(joint)) for joint in joints}
        ours.pose(values)
        theirs.pose({joints[joint]: value for joint, value in values.items()})
        for a, b in pairs.items():
            assert_same(pin, ours.link(a, base_a), theirs.link(b, base_b), f"{robot} {a}")
        by_name = dict(zip(names, values.values(), strict=True))
        q = np.array([by_name[body.joint_names[i]] for i in indices])
        frame = np.eye(4)
        frame[:3, 3] = chain.base_xyz
        assert_same(
            pin, np.linalg.inv(frame) @ chain.frames(q)[-2], theirs.link(pairs[wrist], base_b), f"{robot} chain"
        )


def test_both_yam_arms_and_their_cameras_stand_as_in_the_vendors_station(pin: ModuleType) -> None:
    body = embodiment("yam")
    theirs = Model(pin, vendor_path(STATION, "dreamscale-i2rt").read_text())
    random = np.random.default_rng(12)
    arm_joints = [name for name in body.joint_names if "joint" in name]
    for _ in range(POSES):
        q = random.uniform(body.limits.lower, body.limits.upper)
        named = dict(zip(body.joint_names, q, strict=True))
        theirs.pose({theirs.model.getJointId(name): named[name] for name in arm_joints})
        for side, (chain, indices) in zip(("left", "right"), body.chains, strict=True):
            frames = chain.frames(q[list(indices)])
            assert_same(pin, frames[-2], theirs.link(f"{side}_gripper", "left_base"), f"{side} gripper")
            camera = frames[-2] @ camera_calibration("yam", side).pose
            assert_same(pin, camera, theirs.link(f"{side}_camera", "left_base"), f"{side} camera")
    top = camera_calibration("yam", "top").pose
    assert_same(pin, top, theirs.link("top_camera", "left_base"), "top camera")


def test_fingers_of_the_yam_open_as_the_vendors_do(pin: ModuleType) -> None:
    """Zero is closed, and each finger goes the same way by the same stroke."""
    vendor = VENDOR_MODELS["yam"][0]
    ours, theirs = (
        Model(pin, robot_description(embodiment("yam"))),
        Model(pin, vendor_path(vendor.urdf, vendor.package).read_text()),
    )
    for finger in ("left_left_finger", "left_right_finger"):
        mine, yours = ours.joint_of(finger), theirs.joint_of(vendor.links[finger])
        sign = 1.0 if theirs.limits(yours)[1] > 0.01 else -1.0  # this file of theirs counts the stroke down from zero
        moves = []
        for model, joint, link, base, way in (
            (ours, mine, finger, "left_link6", 1.0),
            (theirs, yours, vendor.links[finger], "gripper", sign),
        ):
            model.pose({joint: 0.0})
            closed = model.link(link, base)[:3, 3]
            model.pose({joint: way * 0.04})
            moves.append(model.link(link, base)[:3, 3] - closed)
        np.testing.assert_allclose(moves[0], moves[1], atol=METRES, err_msg=finger)
