"""The scripted expert of cells whose arms have parallel grippers: from any state, the chunk that a patient operator
would play next.

Like the SO-101's expert it has no memory: what it does follows from the joints and the cube's place alone. The arm
that is nearer to the cube works, another one goes to its start pose and waits. The grip point moves in straight lines
with the gripper pointing down and its fingers along the cube's sides: over the cube, down, close, up, and stays there.
Inverse kinematics comes from mink, a step or two a row, from the row before.
"""

from __future__ import annotations

import mink
import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.simulation.scene import Scene
from molmoact2_ros.simulation.urdf_scene import UrdfCell

Array = NDArray[np.float64]

HOVER = 0.10
"""Height of the grip point over the cube's centre from which it descends, m."""
LIFT = 0.16
"""Height of the grip point that the cube is lifted to, m."""
SPEED, TURN_SPEED = 0.18, 0.9
"""Largest speeds of the grip point, m/s and rad/s."""
WAIT_SPEED = 0.4
"""Speed of the joints of an arm that goes to its start pose, rad/s."""
DWELL_S = 0.25
"""Time between the fingers' closing and the lift, s."""
SLACK = 0.005
"""How much wider or narrower than the cube the fingers may be that hold it, m a finger."""


class PickExpert:
    """See the module. One instance serves one caller at a time."""

    def __init__(self, scene: Scene, cell: UrdfCell, lean: float = 0.0) -> None:
        """`lean` is by how much the fingers point outwards instead of straight down, rad: what a short wrist needs."""
        self._scene, self._robot, self._lean = scene, scene.robot, lean
        self._configuration = mink.Configuration(cell.build(with_objects=False))
        model = self._configuration.model
        self._qpos = np.array([model.joint(name).qposadr[0] for name in self._robot.joint_names])
        self._dofs = np.array([model.joint(name).dofadr[0] for name in self._robot.joint_names])
        self._tasks = [
            mink.FrameTask(grip.site, "site", position_cost=1.0, orientation_cost=0.3) for grip in scene.grips
        ]
        self._posture = mink.PostureTask(model, cost=0.01)
        self._posture.set_target(self._full(scene.start))
        # Seen from above, the direction of the gripper's x (across the fingers) at the start pose: grasps are turned
        # from it by at most 45 degrees, which the wrists can do.
        self._heading = []
        for grip in scene.grips:
            self._configuration.update(self._full(scene.start))
            x = self._configuration.get_transform_frame_to_world(grip.site, "site").rotation().as_matrix()[:, 0]
            self._heading.append(float(np.arctan2(x[1], x[0])))

    def _full(self, joints: Array) -> Array:
        q = np.zeros(self._configuration.model.nq)
        q[self._qpos] = joints
        return q

    def chunk(self, joints: Array, place: Array, yaw: float) -> Array:
        """Chunk (horizon, dof) of joint targets, rad and m, that continues from `joints` (dof,) towards lifting the
        cube at `place` (3,), turned by `yaw` (rad).

        Row i is the target (i + 1) / rate after the reading.
        """
        robot, scene = self._robot, self._scene
        dt = 1.0 / robot.rate_hz
        joints = robot.checked(joints, "joint positions")
        grips = [self._grip(joints, i) for i in range(len(scene.grips))]
        arm = self._arm_for(joints, grips, place)
        pose, jaw = grips[arm], float(joints[robot.gripper_indices[arm]])
        down = self._down(arm, place, yaw)
        point, turn = pose.translation(), pose.rotation()
        between = bool(np.hypot(*(point[:2] - place[:2])) < 0.022 and abs(point[2] - place[2]) < 0.02)
        half = scene.cube_half
        holding = between and half - SLACK < jaw <= half + SLACK
        closing_s = 0.0
        opened = 0.96 * float(robot.limits.upper[robot.gripper_indices[arm]])
        rows, q = np.empty((robot.horizon, robot.dof)), joints.copy()
        for i in range(robot.horizon):
            away = float(np.hypot(*(point[:2] - place[:2])))
            tilt = float(np.linalg.norm((turn.inverse() @ down).log()))
            height, jaw_target = float(point[2]), opened
            hover = place[2] + HOVER
            if holding:
                target, jaw_target = np.array([point[0], point[1], max(LIFT, height)]), 0.0
            elif closing_s > 0.0 or (away < 0.008 and height < half + 0.008 and tilt < 0.1 and jaw > half + SLACK):
                closing_s += dt
                target, jaw_target = point, 0.0
                holding = closing_s > DWELL_S
            elif away > 0.008 + 0.2 * max(height - half - 0.005, 0.0) or tilt > 0.15 or jaw < 0.8 * opened:
                # Not over the cube, or not open: rise first when low, then go across.
                target = np.array([place[0], place[1], hover])
                if height < hover - 0.03 and away > 0.012:
                    target[:2] = point[:2]
            else:
                target = np.array([place[0], place[1], half])
            point, turn = _towards(point, target, dt), _turned_towards(turn, down, dt)
            jaw += float(np.clip(max(jaw_target, half if between else 0.0) - jaw, -0.1 * dt, 0.1 * dt))
            q = self._solve(q, arm, mink.SE3.from_rotation_and_translation(turn, point))
            q = self._others_wait(q, arm, dt)
            rows[i] = q
            rows[i, robot.gripper_indices[arm]] = jaw_target
        return np.clip(rows, robot.limits.lower, robot.limits.upper)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _grip(self, joints: Array, arm: int) -> mink.SE3:
        self._configuration.update(self._full(joints))
        return self._configuration.get_transform_frame_to_world(self._scene.grips[arm].site, "site")

    def _arm_for(self, joints: Array, grips: list[mink.SE3], place: Array) -> int:
        """The arm that holds the cube, or else the one whose base is nearer to it."""
        distances = [float(np.linalg.norm(grip.translation() - place)) for grip in grips]
        nearest = int(np.argmin(distances))
        jaw = joints[self._robot.gripper_indices[nearest]]
        if distances[nearest] < 0.03 and jaw < self._scene.cube_half + SLACK:
            return nearest
        bases = np.array([chain.base_xyz for chain, _ in self._robot.chains])
        return int(np.argmin(np.linalg.norm(bases[:, :2] - place[:2], axis=1)))

    def _down(self, arm: int, place: Array, yaw: float) -> mink.SO3:
        """The gripper pointing down, its fingers along the sides of the cube at `place`."""
        heading = self._heading[arm]
        quarter = np.pi / 2
        nearest = heading + (yaw - heading + quarter / 2) % quarter - quarter / 2
        along = np.array([np.cos(nearest), np.sin(nearest), 0.0])
        outwards = np.sign(along @ (place - self._robot.chains[arm][0].base_xyz)) * np.sin(self._lean)
        z = outwards * along - np.array([0.0, 0.0, np.cos(self._lean)])
        x = np.cos(self._lean) * along + np.array([0.0, 0.0, outwards])
        return mink.SO3.from_matrix(np.column_stack([x, np.cross(z, x), z]))

    def _solve(self, q: Array, arm: int, target: mink.SE3) -> Array:
        configuration, task = self._configuration, self._tasks[arm]
        task.set_target(target)
        active = np.zeros(configuration.model.nv, dtype=bool)
        active[self._dofs[list(self._robot.chains[arm][1])]] = True
        configuration.update(self._full(q))
        for _ in range(3):
            velocity = mink.solve_ik(configuration, [task, self._posture], 1.0, "daqp", damping=1e-4)
            velocity[~active] = 0.0
            configuration.integrate_inplace(velocity, 1.0)
            error = task.compute_error(configuration)
            if np.linalg.norm(error[:3]) < 2e-4 and np.linalg.norm(error[3:]) < 2e-3:
                break
        out = q.copy()
        chain = list(self._robot.chains[arm][1])
        most = 0.8 * self._robot.max_step[chain]  # near a singular pose a joint may have far to go
        out[chain] += np.clip(configuration.q[self._qpos[chain]] - q[chain], -most, most)
        return out

    def _others_wait(self, q: Array, arm: int, dt: float) -> Array:
        for i, (_, chain) in enumerate(self._robot.chains):
            if i != arm:
                joints = [*chain, self._robot.gripper_indices[i]]
                q[joints] += np.clip(self._scene.start[joints] - q[joints], -WAIT_SPEED * dt, WAIT_SPEED * dt)
        return q


def _towards(point: Array, target: Array, dt: float) -> Array:
    step = target - point
    distance = float(np.linalg.norm(step))
    if distance < 1e-9:
        return point
    speed = min(SPEED, 0.03 + 4.0 * distance)  # slow down over the last centimetres
    return point + step * min(1.0, speed * dt / distance)


def _turned_towards(turn: mink.SO3, target: mink.SO3, dt: float) -> mink.SO3:
    way = (turn.inverse() @ target).log()
    angle = float(np.linalg.norm(way))
    if angle < 1e-9:
        return target
    speed = min(TURN_SPEED, 0.1 + 4.0 * angle)
    return turn @ mink.SO3.exp(way * min(1.0, speed * dt / angle))
