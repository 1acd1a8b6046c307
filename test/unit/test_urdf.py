"""The URDFs of `urdf/` and what is made of them: one tree, the joints of ROS, kinematics as MuJoCo reads them from the
same file, possible inertias; and the vendor's meshes in the place of our shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from molmoact2_ros.embodiments import EMBODIMENTS, Embodiment, embodiment
from molmoact2_ros.embodiments.description import VENDOR_MODELS, robot_description, vendor_path
from molmoact2_ros.embodiments.urdf import Urdf, origin_of, robot_urdf

FROM_URDF = ("franka", "panda", "so101", "yam")
WITH_FINGERS = ("franka", "panda", "yam")
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
    (top,) = set(links) - set(ends["child"])
    (standing,) = (joint for joint in joints.values() if joint.find("parent").get("link") == top)  # type: ignore
    assert standing.find("child").get("link") == robot.base_link and standing.get("type") == "fixed"  # type: ignore
    assert standing.find("origin") is None, "the base is where the root is"
    assert root.find(f"link[@name='{top}']/inertial") is None, "kdl_parser warns of an inertia on the root"
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
            stop = float(limit.get(key, "nan"))
            if robot.family == "so101" and joint_name in ("shoulder_pan", "shoulder_lift", "wrist_flex"):
                assert 0.1 < abs(expected[i]) - abs(stop) < 0.3, joint_name  # arms as they are built go further
            else:
                assert stop == pytest.approx(expected[i], abs=1e-4), joint_name
        assert float(limit.get("velocity", "nan")) == pytest.approx(robot.limits.velocity[i])


@pytest.mark.parametrize("name", FROM_URDF)
def test_links_and_tips_stand_where_mujoco_has_them(name: str) -> None:
    robot = embodiment(name)
    body = model(robot)
    data = mujoco.MjData(body)
    random = np.random.default_rng(4)
    seen = 0
    for _ in range(100):
        joints = random.uniform(robot.limits.lower, robot.limits.upper)
        for joint, value in zip(robot.joint_names, joints, strict=True):
            data.qpos[body.joint(joint).qposadr[0]] = value
        mujoco.mj_kinematics(body, data)
        for (chain, indices), wrist in zip(robot.chains, robot.wrist_links, strict=True):
            links = [body.body(body.joint(joint.name).bodyid[0]).name for joint in chain.joints]
            assert links[-1] == wrist
            for link, expected in zip((*links, tip_of(wrist)), chain.frames(joints[list(indices)]), strict=True):
                found = data.body(link)
                np.testing.assert_allclose(found.xpos, expected[:3, 3], atol=1e-9, err_msg=link)
                np.testing.assert_allclose(found.xmat.reshape(3, 3), expected[:3, :3], atol=1e-9, err_msg=link)
                seen += 1
    assert seen >= 600


def tip_of(wrist: str) -> str:
    return wrist.replace("_link7", "_hand_tcp").replace("_link6", "_tcp").replace("gripper_link", "tip")


def test_a_rotation_between_two_links_is_the_one_of_all_joints_between_them() -> None:
    """Links before a robot's base, links that are no chain and prismatic joints are refused by name."""
    urdf = robot_urdf("yam")
    np.testing.assert_allclose(
        urdf.pose("left_base_link", "left_hand"),
        urdf.chain("left_base_link", "left_hand").tip(np.zeros(6)),
        atol=1e-12,
    )
    with pytest.raises(ValueError, match="no path from link 'right_link1' to link 'left_tcp'"):
        urdf.chain("right_link1", "left_tcp")
    with pytest.raises(ValueError, match=r"left_gripper.*is prismatic, not revolute"):
        urdf.chain("left_base_link", "left_left_finger")


@pytest.mark.parametrize("name", FROM_URDF)
def test_every_moving_link_has_mass_and_a_possible_inertia(name: str) -> None:
    body = model(embodiment(name))
    for i in range(1, body.nbody):
        if body.body_dofnum[i]:
            assert 0.005 < body.body_mass[i] < 6.0
            a, b, c = sorted(body.body_inertia[i])
            assert a > 0.0
            assert c <= a + b + 1e-9, f"{body.body(i).name}: principal moments {a, b, c} belong to no body"


@pytest.mark.parametrize("name", WITH_FINGERS)
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


def test_the_jaw_of_the_so101_opens_away_from_the_fixed_jaw() -> None:
    robot = embodiment("so101")
    body = model(robot)
    data = mujoco.MjData(body)

    def gap(angle: float) -> float:
        data.qpos[body.joint("gripper").qposadr[0]] = angle
        mujoco.mj_kinematics(body, data)
        jaw = data.body("moving_jaw_link")
        end = jaw.xmat.reshape(3, 3) @ np.array([0.0, -0.08, 0.0188]) + jaw.xpos
        return float(np.linalg.norm(end - data.body("tip").xpos))

    assert gap(robot.limits.lower[5]) < 0.03 < gap(0.5) < gap(1.2)


def test_a_robotiq_arm_has_no_franka_hand() -> None:
    names = [link.get("name") for link in tree(embodiment("panda_robotiq")).findall("link")]
    assert names == ["root", *(f"panda_link{i}" for i in range(9))]


# -- meshes ---------------------------------------------------------------------------------------------------------


def test_meshes_of_the_yam_stand_in_the_place_of_our_shapes() -> None:
    root = ElementTree.fromstring(robot_description(embodiment("yam"), meshes=True))
    plain = tree(embodiment("yam"))
    vendor = ElementTree.parse(vendor_path(VENDOR_MODELS["yam"][0].urdf, "dreamscale-i2rt")).getroot()
    ours, theirs = Urdf(plain), Urdf(vendor)
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
                expected = theirs.pose("base", theirs_name) @ origin_of(original)
                found = ours.pose("left_base_link", name) @ origin_of(visual)
                np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    assert shown == 18


def test_without_the_package_the_meshes_are_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["/nowhere"])
    with pytest.raises(FileNotFoundError, match="pip install --no-deps dreamscale-i2rt"):
        robot_description(embodiment("yam"), meshes=True)
