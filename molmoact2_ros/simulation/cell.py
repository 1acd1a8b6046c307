"""A simulated workcell: joint targets in, encoder readings and camera frames out, and a physical measure of success.

The cell knows nothing of policies or ROS. Time advances only through `advance`; randomness comes from the seed and the
episode number alone, so that an episode can be repeated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.cell_cameras import camera_calibration, camera_names
from molmoact2_ros.simulation.scene import CUBE, DISTRACTORS, CellRandomisation, Scene
from molmoact2_ros.simulation.so101_scene import SO101_SCENE

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco  # reads MUJOCO_GL when imported

Array = NDArray[np.float64]


@dataclass
class Episode:
    """Progress of the present episode, judged by physics."""

    number: int = 0
    seed: int = 0
    elapsed_s: float = 0.0
    held_s: float = 0.0
    success: bool = False
    reached: bool = False
    min_distance_m: float = field(default=float("inf"))


class Cell:
    """A robot's cell.

    Success: the cube's centre has been at least 5 cm above where it rests on the table for 1 s without a break, and it
    touches nothing but grippers. Reached: a grip point was within 2 cm of the cube, seen from above, and at most
    2 cm above its top.
    """

    LIFT_M = 0.05
    HOLD_S = 1.0
    REACH_M = 0.02

    def __init__(
        self, scene: Scene, seed: int = 0, randomisation: CellRandomisation | None = None, render: bool = True
    ) -> None:
        self.scene, self.robot = scene, scene.robot
        self.randomisation = randomisation or scene.randomisation
        self.seed = seed
        self.model = model = scene.build()
        self.data = mujoco.MjData(model)
        self.cameras = camera_names(self.robot.name)
        self.episode = Episode(seed=seed)
        self._renderers: dict[bool, mujoco.Renderer] = {}
        if render:
            calibration = camera_calibration(self.robot.name, self.cameras[0])
            for depth in (False, True):
                renderer = mujoco.Renderer(model, calibration.height, calibration.width)
                if depth:
                    renderer.enable_depth_rendering()
                self._renderers[depth] = renderer
        names = self.robot.joint_names
        self._qpos = np.array([model.joint(name).qposadr[0] for name in names])
        self._qvel = np.array([model.joint(name).dofadr[0] for name in names])
        self._ctrl = np.array([model.actuator(name).id for name in names])
        self._followers = [
            (model.joint(follower).qposadr[0], model.joint(name).qposadr[0]) for follower, name in scene.followers
        ]
        self._grips = [model.site(grip.site).id for grip in scene.grips]
        self._fingers = [[{model.geom(name).id for name in finger} for finger in grip.fingers] for grip in scene.grips]
        self._pads = set().union(*(finger for grip in self._fingers for finger in grip))
        self._cube = model.body(CUBE).id
        self._cube_geom = model.geom(CUBE).id
        self._nominal = {
            "light_diffuse": model.light_diffuse.copy(),
            "light_pos": model.light_pos.copy(),
            "geom_rgba": model.geom_rgba.copy(),
            "mat_rgba": model.mat_rgba.copy(),
            "cam_pos": model.cam_pos.copy(),
            "cam_quat": model.cam_quat.copy(),
        }
        self.reset(0)

    # -- the outside of hardware --------------------------------------------------------------------------------------

    def command(self, joints: Array) -> None:
        """Set the servos' targets (dof,), rad and m, ROS order; values outside the joint ranges are clamped as a servo
        does."""
        joints = self.robot.checked(joints, "command")
        self.data.ctrl[self._ctrl] = np.clip(joints, self.robot.limits.lower, self.robot.limits.upper)

    def hold(self) -> None:
        """Stay where the arms are, as a driver's command timeout does; the grippers keep their last target, and so
        their grip."""
        target, _ = self.joints()
        grippers = list(self.robot.gripper_indices)
        target[grippers] = self.data.ctrl[self._ctrl[grippers]]
        self.command(target)

    def joints(self) -> tuple[Array, Array]:
        """Encoder positions (dof,), rad and m, quantised as the robot's encoders are, and velocities (dof,)."""
        exact, tick = self.data.qpos[self._qpos], self.scene.tick
        coarse = tick > 0.0
        exact[coarse] = np.round(exact[coarse] / tick[coarse]) * tick[coarse]
        return exact, self.data.qvel[self._qvel]

    def place_arm(self, joints: Array) -> None:
        """Put the joints (dof,) at a position, at rest, and command them to stay; for the begin of an episode."""
        joints = self.robot.checked(joints, "position")
        self.data.qpos[self._qpos] = np.clip(joints, self.robot.limits.lower, self.robot.limits.upper)
        for follower, leader in self._followers:
            self.data.qpos[follower] = self.data.qpos[leader]
        self.data.qvel[self._qvel] = 0.0
        self.data.ctrl[self._ctrl] = self.data.qpos[self._qpos]

    def render(self, camera: str) -> NDArray[np.uint8]:
        """Colour image (height, width, 3) of `camera`."""
        renderer = self._renderers[False]
        renderer.update_scene(self.data, camera)
        return renderer.render().copy()

    def render_depth(self, camera: str) -> NDArray[np.float32]:
        """Distance along the optical axis (height, width), m."""
        renderer = self._renderers[True]
        renderer.update_scene(self.data, camera)
        return renderer.render().copy()

    # -- time and episodes --------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Advance physics by `seconds`, rounded to whole steps, and judge the episode."""
        step = self.model.opt.timestep
        for _ in range(max(1, round(seconds / step))):
            mujoco.mj_step(self.model, self.data)
            self.episode.elapsed_s += step
            self._judge(step)

    def reset(self, number: int) -> Episode:
        """Start episode `number`: arm to the start pose, objects placed anew."""
        rng = np.random.default_rng([self.seed, number])
        mujoco.mj_resetData(self.model, self.data)
        scene = self.scene
        self.place_arm(scene.start + self.randomisation.start * rng.standard_normal(self.robot.dof) * scene.start_scale)
        self._place_objects(rng)
        self._vary_looks(rng)
        for _ in range(100):  # let the objects settle
            mujoco.mj_step(self.model, self.data)
        self.episode = Episode(number=number, seed=self.seed)
        return self.episode

    def place(self, name: str, x: float, y: float, yaw: float, z: float | None = None) -> None:
        """Put the object `name` at (x, y, z) in the base frame, turned by `yaw`; without `z` on the table."""
        z = self.scene.cube_half + 0.001 if z is None else z
        joint = self.model.joint(name)
        self.data.qpos[joint.qposadr[0] : joint.qposadr[0] + 7] = [x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self.data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0

    def object_pose(self) -> tuple[Array, Array]:
        """Position (3,) m and quaternion (4,) wxyz of the cube in the base frame."""
        return self.data.xpos[self._cube].copy(), self.data.xquat[self._cube].copy()

    def grip_point(self) -> Array:
        """Position (3,) in the base frame of the middle between the pads, m; of several grippers the one nearest to the
        cube."""
        points = self.data.site_xpos[self._grips]
        return points[np.argmin(np.linalg.norm(points - self.data.xpos[self._cube], axis=1))].copy()

    def cube_height(self) -> float:
        """Height of the cube's centre above its resting height, m."""
        return float(self.data.xpos[self._cube][2] - self.scene.cube_half)

    def grasped(self) -> bool:
        """All fingers of a gripper press on the cube."""
        touching = self._touching()
        return any(all(finger & touching for finger in grip) for grip in self._fingers)

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _touching(self) -> set[int]:
        contacts = self.data.contact.geom
        mine = contacts[(contacts == self._cube_geom).any(axis=1)]
        return set(int(g) for g in mine.ravel()) - {self._cube_geom}

    def _judge(self, step: float) -> None:
        episode, half = self.episode, self.scene.cube_half
        offset = self.grip_point() - self.data.xpos[self._cube]
        distance = float(np.hypot(offset[0], offset[1]))
        if -half <= offset[2] <= half + self.REACH_M:
            episode.min_distance_m = min(episode.min_distance_m, distance)
            episode.reached = episode.reached or distance <= self.REACH_M
        touching = self._touching()
        if self.cube_height() >= self.LIFT_M and touching and touching <= self._pads:
            episode.held_s += step
            episode.success = episode.success or episode.held_s >= self.HOLD_S
        else:
            episode.held_s = 0.0

    def _place_objects(self, rng: np.random.Generator) -> None:
        spread, scene = self.randomisation, self.scene
        places = [self._polar(rng.uniform(*spread.radius), rng.uniform(-spread.bearing, spread.bearing))]
        nearer, further = scene.distractor_radius
        bearing = spread.bearing + scene.distractor_bearing
        from_cube, between = scene.room
        while len(places) <= len(DISTRACTORS):
            radius = rng.uniform(spread.radius[0] - nearer, spread.radius[1] + further)
            place = self._polar(radius, rng.uniform(-bearing, bearing))
            # Room for the open jaw around the cube: with less, even the scripted expert knocks a neighbour over.
            if all(np.hypot(*(place - other)) > (between if i else from_cube) for i, other in enumerate(places)):
                places.append(place)
        for name, (x, y) in zip((CUBE, *DISTRACTORS), places, strict=True):
            self.place(name, float(x), float(y), float(rng.uniform(-np.pi, np.pi)))

    def _polar(self, radius: float, bearing: float) -> Array:
        return self.scene.pole + radius * np.array([np.cos(bearing), np.sin(bearing)])

    def _vary_looks(self, rng: np.random.Generator) -> None:
        spread, model = self.randomisation, self.model
        model.light_diffuse[:] = self._nominal["light_diffuse"] * rng.uniform(1 - spread.light, 1 + spread.light)
        model.light_pos[:] = self._nominal["light_pos"] + spread.light * rng.standard_normal(3)
        for colours, nominal in ((model.geom_rgba, "geom_rgba"), (model.mat_rgba, "mat_rgba")):
            change = rng.uniform(1 - spread.colour, 1 + spread.colour, (len(colours), 3))
            colours[:, :3] = np.clip(self._nominal[nominal][:, :3] * change, 0, 1)
        # A geom colour other than the default would override its material.
        with_material = model.geom_matid >= 0
        model.geom_rgba[with_material] = self._nominal["geom_rgba"][with_material]
        model.cam_pos[:] = self._nominal["cam_pos"] + spread.camera_m * rng.standard_normal((model.ncam, 3))
        turn = np.empty(4)
        for i in range(model.ncam):
            axis = rng.standard_normal(3)
            mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), spread.camera_rad * rng.standard_normal())
            mujoco.mju_mulQuat(model.cam_quat[i], self._nominal["cam_quat"][i], turn)


class So101Cell(Cell):
    """The SO-101 cell."""

    def __init__(self, seed: int = 0, randomisation: CellRandomisation | None = None, render: bool = True) -> None:
        super().__init__(SO101_SCENE, seed, randomisation, render)
