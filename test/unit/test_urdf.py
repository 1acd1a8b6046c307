"""The URDFs of `urdf/` and what is made of them: one tree, the joints of ROS, the kinematics and limits of the
embodiment, possible inertias; and the vendor's meshes in the place of our shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from molmoact2_ros.embodiments import EMBODIMENTS, Embodiment, embodiment
from molmoact2_ros.embodiments.description import VENDOR_MODELS, origin_of, robot_description, vendor_path, zero_poses

FROM_URDF = ("franka", "panda", "yam")
WITH_MODEL = sorted(name for name in EMBODIMENTS if "robotiq" not in name)


def tree(robot: Embodiment) -> ElementTree.Element:
    return ElementTree.fromstring(robot_description(robot))


def model(robot: Embodiment) -> mujoco.MjModel:
    extension = '<mujoco><compiler fusestatic="false"/></mujoco></robot>'
    return mujoco.MjModel.from_xml_string(robot_description(robot).replace("</robot>", extension))


@pytest.mark.parametrize("name", sorted(EMBODIMENTS))
def test_robot_state_publisher_finds_one_tree(name: str) -> None:
    """What its parser refuses: a second root, a link without a name of its own, a joint between links that are not
    there, a moving joint without axis or limits."""
    robot = embodiment(name)
    root = tree(robot)
    links = [link.get("name") for link in root.findall("link")]
    assert len(links) == len(set(links))
    joints = {joint.get("name"): joint for joint in root.findall("joint")}
    assert len(joints) == len(root.findall("joint"))
    ends: dict[str, list[str]] = {"parent": [], "child": []}
    for joint in joints.values():
        for end, found in ends.items():
            element = joint.find(end)
            assert element is not None
            found.append(str(element.get("link")))
    assert len(set(ends["child"])) == len(ends["child"]), "a link hangs on two joints"
    assert set(ends["parent"]) | set(ends["child"]) == set(links)
    assert set(links) - set(ends["child"]) == {robot.base_link}
    assert set(robot.wrist_links) <= set(links)
    for joint in joints.values():
        if joint.get("type") in ("revolute", "prismatic"):
            limit = joint.find("limit")
            assert joint.find("axis") is not None and limit is not None
            assert float(limit.get("effort", "0")) > 0.0
            mimic = joint.find("mimic")
            assert mimic is None or mimic.get("joint") in joints
    materials = {material.get("name") for material in root.findall("material")}
    used = {material.get("name") for material in root.iterfind(".//visual/material")}
    assert used <= materials


@pytest.mark.parametrize("name", WITH_MODEL)
def test_the_moving_joints_are_those_of_ros_and_fingers_that_mirror_them(name: str) -> None:
    robot = embodiment(name)
    moving = {j.get("name"): j for j in tree(robot).findall("joint") if j.get("type") != "fixed"}
    followers = {key for key, joint in moving.items() if joint.find("mimic") is not None}
    assert set(moving) - followers == set(robot.joint_names)
    for i, joint_name in enumerate(robot.joint_names):
        limit = moving[joint_name].find("limit")
        assert limit is not None
        for key, expected in (("lower", robot.limits.lower), ("upper", robot.limits.upper)):
            assert float(limit.get(key, "nan")) == pytest.approx(expected[i], abs=1e-4), joint_name
        assert float(limit.get("velocity", "nan")) == pytest.approx(robot.limits.velocity[i])


@pytest.mark.parametrize("name", FROM_URDF)
def test_forward_kinematics_equals_the_embodiment(name: str) -> None:
    robot = embodiment(name)
    body = model(robot)
    data = mujoco.MjData(body)
    random = np.random.default_rng(4)
    for _ in range(100):
        joints = random.uniform(robot.limits.lower, robot.limits.upper)
        for joint, value in zip(robot.joint_names, joints, strict=True):
            data.qpos[body.joint(joint).qposadr[0]] = value
        mujoco.mj_kinematics(body, data)
        for (chain, indices), wrist in zip(robot.chains, robot.wrist_links, strict=True):
            frames = chain.frames(joints[list(indices)])
            for link, expected in ((wrist, frames[-2]), (tip_of(wrist), frames[-1])):
                found = data.body(link)
                np.testing.assert_allclose(found.xpos, expected[:3, 3], atol=1e-6, err_msg=link)
                np.testing.assert_allclose(found.xmat.reshape(3, 3), expected[:3, :3], atol=1e-6, err_msg=link)


def tip_of(wrist: str) -> str:
    return wrist.replace("_link7", "_hand_tcp").replace("_link6", "_tcp")


@pytest.mark.parametrize("name", FROM_URDF)
def test_every_moving_link_has_mass_and_a_possible_inertia(name: str) -> None:
    body = model(embodiment(name))
    for i in range(1, body.nbody):
        if body.body_dofnum[i]:
            assert 0.005 < body.body_mass[i] < 6.0
            a, b, c = sorted(body.body_inertia[i])
            assert a > 0.0
            assert c <= a + b + 1e-9, f"{body.body(i).name}: principal moments {a, b, c} belong to no body"


@pytest.mark.parametrize("name", FROM_URDF)
def test_fingers_meet_in_the_middle_and_open_evenly(name: str) -> None:
    robot = embodiment(name)
    body = model(robot)
    data = mujoco.MjData(body)
    for g, wrist in zip(robot.gripper_indices, robot.wrist_links, strict=True):
        arm = wrist.rsplit("_", 1)[0]
        pair = [
            joint.name
            for joint in map(body.joint, range(body.njnt))
            if joint.type[0] == mujoco.mjtJoint.mjJNT_SLIDE and joint.name.startswith(arm)
        ]
        assert len(pair) == 2
        gaps = []
        for opening in (0.0, robot.limits.upper[g]):
            for joint in pair:
                data.qpos[body.joint(joint).qposadr[0]] = opening
            mujoco.mj_kinematics(body, data)
            bodies = [body.joint(joint).bodyid[0] for joint in pair]
            gaps.append(np.linalg.norm(data.xpos[bodies[0]] - data.xpos[bodies[1]]))
            tip = data.body(tip_of(wrist))
            middle = 0.5 * (data.xpos[bodies[0]] + data.xpos[bodies[1]]) - tip.xpos
            along = tip.xmat.reshape(3, 3)[:, 2]
            np.testing.assert_allclose(middle - along * (along @ middle), np.zeros(3), atol=1e-9)
        assert gaps == pytest.approx([0.0, 2.0 * robot.limits.upper[g]], abs=1e-9)


def test_a_robotiq_arm_has_no_franka_hand() -> None:
    names = [link.get("name") for link in tree(embodiment("panda_robotiq")).findall("link")]
    assert names == [f"panda_link{i}" for i in range(9)]


# -- meshes ---------------------------------------------------------------------------------------------------------


def test_meshes_of_the_yam_stand_in_the_place_of_our_shapes() -> None:
    root = ElementTree.fromstring(robot_description(embodiment("yam"), meshes=True))
    plain = tree(embodiment("yam"))
    vendor = ElementTree.parse(vendor_path(VENDOR_MODELS["yam"][0].urdf, "dreamscale-i2rt")).getroot()
    ours, theirs = zero_poses(plain, "left_base_link"), zero_poses(vendor, "base")
    by_name: dict[str, Any] = {link.get("name"): link for link in vendor.findall("link")}
    shown = 0
    for link in root.findall("link"):
        name = str(link.get("name"))
        collisions = next(x for x in plain.findall("link") if x.get("name") == name).findall("collision")
        assert len(link.findall("collision")) == len(collisions), "collision shapes stay primitive"
        for visual in link.findall("visual"):
            (mesh,) = visual.iter("mesh")
            file = str(mesh.get("filename")).removeprefix("file://")
            assert Path(file).is_file()
            shown += 1
            if name.startswith("left_"):
                theirs_name = VENDOR_MODELS["yam"][0].links[name]
                original = by_name[theirs_name].find("visual")
                np.testing.assert_allclose(
                    ours[name] @ origin_of(visual), theirs[theirs_name] @ origin_of(original), atol=1e-6, err_msg=name
                )
    assert shown == 18


def test_without_the_package_the_meshes_are_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["/nowhere"])
    with pytest.raises(FileNotFoundError, match="pip install --no-deps dreamscale-i2rt"):
        robot_description(embodiment("yam"), meshes=True)
