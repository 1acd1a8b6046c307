"""The URDF in RViz and the kinematics that the policy, the simulator and the overlays use are one arm."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import mujoco
import numpy as np
import pytest

from molmoact2_ros.embodiments.kinematics import rotation_about, rotation_from_quaternion
from molmoact2_ros.embodiments.so101 import ARM_CHAIN, JAW, SO101

URDF = Path(__file__).parents[2] / "urdf" / "so101.urdf"
LINKS = ("shoulder_link", "upper_arm_link", "lower_arm_link", "wrist_link", "gripper_link")


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    """The URDF as MuJoCo reads it, with fixed links kept (they would be merged into their parents)."""
    tree = ElementTree.parse(URDF)
    extension = ElementTree.SubElement(tree.getroot(), "mujoco")
    ElementTree.SubElement(extension, "compiler", fusestatic="false", discardvisual="false")
    return mujoco.MjModel.from_xml_string(ElementTree.tostring(tree.getroot(), encoding="unicode"))


def poses(model: mujoco.MjModel, joints: np.ndarray) -> dict[str, np.ndarray]:
    """Pose (4, 4) of every link for `joints` (6,)."""
    data = mujoco.MjData(model)
    for name, value in zip(SO101.joint_names, joints, strict=True):
        data.qpos[model.joint(name).qposadr[0]] = value
    mujoco.mj_kinematics(model, data)
    out = {}
    for i in range(model.nbody):
        out[model.body(i).name] = np.eye(4)
        out[model.body(i).name][:3, :3] = data.xmat[i].reshape(3, 3)
        out[model.body(i).name][:3, 3] = data.xpos[i]
    return out


def test_forward_kinematics_equals_the_embodiment(model: mujoco.MjModel) -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        joints = random.uniform(SO101.limits.lower, SO101.limits.upper)
        expected = ARM_CHAIN.frames(joints[:5])
        got = poses(model, joints)
        for link, pose in zip((*LINKS, "tip"), expected, strict=True):
            np.testing.assert_allclose(got[link], pose, atol=1e-6, err_msg=link)
        jaw = np.eye(4)
        jaw[:3, :3] = rotation_from_quaternion(JAW.wxyz) @ rotation_about(np.array(JAW.axis), joints[5])
        jaw[:3, 3] = JAW.xyz
        np.testing.assert_allclose(got["moving_jaw_link"], expected[4] @ jaw, atol=1e-6)


def test_limits_are_those_of_the_embodiment() -> None:
    joints = {joint.get("name"): joint for joint in ElementTree.parse(URDF).getroot().iter("joint")}
    for i, name in enumerate(SO101.joint_names):
        limit = joints[name].find("limit")
        assert limit is not None
        assert float(limit.get("lower", "nan")) == pytest.approx(SO101.limits.lower[i])
        assert float(limit.get("upper", "nan")) == pytest.approx(SO101.limits.upper[i])
        assert float(limit.get("velocity", "nan")) == pytest.approx(SO101.limits.velocity[i])


def test_every_moving_link_has_mass_and_a_possible_inertia(model: mujoco.MjModel) -> None:
    for link in (*LINKS, "moving_jaw_link"):
        body = model.body(link)
        assert 0.01 < body.mass[0] < 1.0
        a, b, c = sorted(body.inertia)
        assert a > 0.0
        assert c <= a + b + 1e-12, f"{link}: principal moments {a, b, c} belong to no body"


def test_the_jaw_opens_away_from_the_fixed_jaw(model: mujoco.MjModel) -> None:
    def gap(angle: float) -> float:
        joints = np.zeros(6)
        joints[5] = angle
        frames = poses(model, joints)
        end = frames["moving_jaw_link"] @ np.array([0.0, -0.08, 0.0188, 1.0])
        return float(np.linalg.norm(end[:3] - frames["tip"][:3, 3]))

    assert gap(SO101.limits.lower[5]) < 0.03 < gap(0.5) < gap(1.2)
