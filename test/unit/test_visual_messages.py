"""Markers say what the arrays say, and take away what is no longer there."""

from __future__ import annotations

import numpy as np
import pytest
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.messages import image_message, metres_from_image
from molmoact2_ros.nodes.ros.scene_markers import path_topics
from molmoact2_ros.nodes.ros.visual_messages import (
    ghost_markers,
    path_markers,
    spread_markers,
    touched_markers,
    workspace_markers,
)
from molmoact2_ros.rendering.body import Body
from molmoact2_ros.rendering.colours import LIMIT, ramp
from molmoact2_ros.rendering.projection import TipPath, tip_paths
from molmoact2_ros.rendering.touching import Touched

HEADER = Header(frame_id="base_link")


def shown(markers: list[Marker]) -> dict[tuple[str, int], Marker]:
    """Markers as RViz has them afterwards."""
    found: dict[tuple[str, int], Marker] = {}
    for marker in markers:
        if marker.action == Marker.DELETE:
            found.pop((marker.ns, marker.id), None)
        else:
            assert (marker.ns, marker.id) not in found, "two markers of one number: the second replaces the first"
            found[marker.ns, marker.id] = marker
    return found


def path(rows: int) -> TipPath:
    poses = np.tile(np.eye(4), (rows, 1, 1))
    poses[:, 0, 3] = np.linspace(0.1, 0.3, rows)
    return TipPath(poses, np.linspace(0.0, 1.0, rows))


@pytest.mark.parametrize("rows", [1, 2, 10, 16, 30, 50])
def test_a_path_has_the_colours_of_the_overlay_and_balls_as_large_as_the_gripper_is_open(rows: int) -> None:
    found = shown(path_markers((path(rows), path(rows)), HEADER, 1.0))
    line = found["path", 1]
    assert len(line.points) == len(line.colors) == rows
    assert line.colors[0].b == pytest.approx(ramp(0.0)[2] / 255.0)
    balls = [marker for (namespace, _), marker in found.items() if namespace == "gripper"]
    assert 2 <= len(balls) <= 2 * 16
    for ball in balls:
        row = round((ball.pose.position.x - 0.1) / 0.2 * (rows - 1)) if rows > 1 else 0
        assert ball.scale.x == pytest.approx(0.005 + 0.01 * path(rows).openness[row])


def test_a_shorter_chunk_takes_the_balls_of_the_longer_one_away() -> None:
    longer, shorter = path_markers((path(17),), HEADER, 1.0), path_markers((path(3),), HEADER, 1.0)
    before = {key for key in shown(longer) if key[0] == "gripper"}
    gone = {(marker.ns, marker.id) for marker in shorter if marker.action == Marker.DELETE}
    assert before - set(shown(shorter)) <= gone


def test_the_spread_is_a_tube_and_earlier_chunks_are_lines_that_fade() -> None:
    arms = (path(30),)
    earlier = [(0.2, (arms[0].points[:10],)), (0.8, (arms[0].points[:20],))]
    found = shown(spread_markers(arms, np.full((1, 30), 0.02), earlier, HEADER, 1.0))
    assert found["spread", 0].type == Marker.TRIANGLE_LIST and len(found["spread", 0].points) % 3 == 0
    assert found["earlier", 0].color.a < found["earlier", 1].color.a < 1.0
    alone = spread_markers(arms, np.full((1, 30), np.nan), [], HEADER, 1.0)
    assert not shown(alone)
    assert {(m.ns, m.id) for m in alone} >= set(found), "and those of before go"


@pytest.mark.parametrize("name", ["so101", "franka", "yam", "panda_robotiq"])
def test_the_ghost_shows_links_that_are_not_where_they_were_commanded(name: str) -> None:
    robot = embodiment(name)
    body = Body(robot)
    joints = robot.rest_position
    measured = body.links(joints)
    assert not shown(ghost_markers(body.shapes, measured, measured, HEADER))
    commanded = joints.copy()
    last = robot.chains[0][1][-2]
    commanded[last] += 0.2
    found = shown(ghost_markers(body.shapes, body.links(commanded), measured, HEADER))
    assert 0 < len(found) < len(body.shapes), "the links before that joint are where they should be"
    assert all(0.0 < marker.color.a < 0.6 for marker in found.values())


def test_links_are_where_the_kinematics_put_them() -> None:
    for name in ("so101", "franka", "yam"):
        robot = embodiment(name)
        links = Body(robot).links(robot.rest_position)
        for (chain, indices), link in zip(robot.chains, robot.wrist_links, strict=True):
            np.testing.assert_allclose(
                links[link], chain.frames(robot.rest_position[list(indices)])[-2], atol=1e-9, err_msg=name
            )


def test_a_box_that_is_touched_stands_out_and_limits_go_when_they_are_left() -> None:
    robot = embodiment("yam")
    found = shown(workspace_markers(robot.workspaces, (True, False), HEADER))
    assert found["workspace", 0].color.r == pytest.approx(LIMIT[0] / 255.0)
    assert found["workspace", 1].color.a < 1.0
    assert len(found["workspace", 0].points) == 24
    touched = [Touched("elbow at its upper limit", np.zeros(3)), Touched("tip at the floor", np.ones(3))]
    two, none = touched_markers(touched, 5, HEADER), touched_markers([], 5, HEADER)
    assert {marker.text for marker in shown(two).values()} == {"", "elbow at its upper limit", "tip at the floor"}
    assert {(m.ns, m.id) for m in none} >= set(shown(two)) and not shown(none)


def test_every_arm_has_a_path_of_its_own() -> None:
    assert path_topics(embodiment("so101")) == ("visualization/path",)
    assert path_topics(embodiment("yam")) == ("visualization/path/left", "visualization/path/right")
    assert len(tip_paths(embodiment("yam"), np.tile(embodiment("yam").rest_position, (3, 1)))) == 2


def test_depth_images_are_read_in_metres_whatever_the_camera_sends() -> None:
    depth = np.array([[0.5, 1.0, 0.0], [2.0, 3.5, 0.25]], np.float32)
    np.testing.assert_allclose(metres_from_image(image_message(depth, "32FC1", HEADER)), depth)
    millimetres = image_message((1000 * depth).astype(np.uint16), "16UC1", HEADER)
    np.testing.assert_allclose(metres_from_image(millimetres), depth)
    with pytest.raises(ValueError, match="32FC1 or 16UC1, got 'rgb8'"):
        metres_from_image(image_message(np.zeros((2, 2, 3), np.uint8), "rgb8", HEADER))
