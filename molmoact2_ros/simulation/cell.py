"""A simulated workcell: joint targets in, encoder readings and camera frames out, and a physical measure of success.

The cell knows nothing of policies or ROS. Time advances only through `advance`; randomness comes from the seed and the
episode number alone, so that an episode can be repeated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.simulation.calibration import camera_calibration, camera_names
from molmoact2_ros.simulation.so101_scene import CUBE_HALF, DISTRACTORS, scene_xml

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco  # reads MUJOCO_GL when imported

Array = NDArray[np.float64]

TICK = 2.0 * np.pi / 4096.0
"""Resolution of the STS3215's encoder, rad."""
PAN_AXIS = np.array([0.0388, 0.0])
"""Where the shoulder pan axis stands on the table, m."""
START = np.array([0.0, -0.46, 0.66, 1.37, 0.0, 0.55])
"""Start pose of an episode: gripper down, half open, above the middle of the table, rad."""


@dataclass(frozen=True)
class CellRandomisation:
    """What differs between episodes.

    Attributes:
        radius: distance of the cube from the pan axis, m. bearing: its direction, +- rad. Both uniform.
        start: standard deviation of the start pose, rad.
        light, colour: relative change of light and colours, +-.
        camera_m, camera_rad: standard deviation of the camera poses.
    """

    radius: tuple[float, float] = (0.145, 0.225)
    bearing: float = 0.75
    start: float = 0.03
    light: float = 0.15
    colour: float = 0.08
    camera_m: float = 0.002
    camera_rad: float = 0.004


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


class So101Cell:
    """The SO-101 cell.

    Success: the cube's centre has been at least 5 cm above where it rests on the table for 1 s without a break, and it
    touches nothing but the gripper. Reached: the grip point was within 2 cm of the cube, seen from above, and at most
    2 cm above its top.
    """

    LIFT_M = 0.05
    HOLD_S = 1.0
    REACH_M = 0.02

    def __init__(self, seed: int = 0, randomisation: CellRandomisation | None = None, render: bool = True) -> None:
        self.randomisation = randomisation or CellRandomisation()
        self.seed = seed
        self.model = mujoco.MjModel.from_xml_string(scene_xml())
        self.data = mujoco.MjData(self.model)
        self.cameras = camera_names("so101")
        self.episode = Episode(seed=seed)
        self._renderers: dict[bool, mujoco.Renderer] = {}
        if render:
            calibration = camera_calibration("so101", self.cameras[0])
            for depth in (False, True):
                renderer = mujoco.Renderer(self.model, calibration.height, calibration.width)
                if depth:
                    renderer.enable_depth_rendering()
                self._renderers[depth] = renderer
        model = self.model
        self._grip = model.site("grip").id
        self._cube = model.body("red").id
        self._cube_geom = model.geom("red").id
        self._pads = {model.geom("fixed_pad").id, model.geom("moving_pad").id}
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
        """Set the servos' targets (6,), rad, ROS order; values outside the joint ranges are clamped as a servo does."""
        joints = SO101.checked(joints, "command")
        self.data.ctrl[:] = np.clip(joints, SO101.limits.lower, SO101.limits.upper)

    def joints(self) -> tuple[Array, Array]:
        """Encoder positions (6,) rad, quantised to the servo's ticks, and velocities (6,) rad/s."""
        return np.round(self.data.qpos[:6] / TICK) * TICK, self.data.qvel[:6].copy()

    def render(self, camera: str) -> NDArray[np.uint8]:
        """Colour picture (240, 320, 3) of `camera`."""
        renderer = self._renderers[False]
        renderer.update_scene(self.data, camera)
        return renderer.render().copy()

    def render_depth(self, camera: str) -> NDArray[np.float32]:
        """Distance along the optical axis (240, 320), m."""
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
        spread = self.randomisation
        mujoco.mj_resetData(self.model, self.data)
        start = START + spread.start * rng.standard_normal(6) * np.array([3.0, 1.0, 1.0, 1.0, 1.0, 3.0])
        self.data.qpos[:6] = np.clip(start, SO101.limits.lower, SO101.limits.upper)
        self.data.ctrl[:] = self.data.qpos[:6]
        self._place_objects(rng)
        self._vary_looks(rng)
        for _ in range(100):  # let the objects settle
            mujoco.mj_step(self.model, self.data)
        self.episode = Episode(number=number, seed=self.seed)
        return self.episode

    def place(self, name: str, x: float, y: float, yaw: float, z: float = CUBE_HALF + 0.001) -> None:
        """Put the object `name` at (x, y, z) in the base frame, turned by `yaw`."""
        joint = self.model.joint(name)
        self.data.qpos[joint.qposadr[0] : joint.qposadr[0] + 7] = [x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self.data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0

    def object_pose(self) -> tuple[Array, Array]:
        """Position (3,) m and quaternion (4,) wxyz of the cube in the base frame."""
        return self.data.xpos[self._cube].copy(), self.data.xquat[self._cube].copy()

    def grip_point(self) -> Array:
        """Position (3,) of the middle between the pads in the base frame, m."""
        return self.data.site_xpos[self._grip].copy()

    def cube_height(self) -> float:
        """Height of the cube's centre above its resting height, m."""
        return float(self.data.xpos[self._cube][2] - CUBE_HALF)

    def grasped(self) -> bool:
        """Both pads press on the cube."""
        return self._touching() >= self._pads

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
        episode = self.episode
        offset = self.grip_point() - self.data.xpos[self._cube]
        distance = float(np.hypot(offset[0], offset[1]))
        if -CUBE_HALF <= offset[2] <= CUBE_HALF + self.REACH_M:
            episode.min_distance_m = min(episode.min_distance_m, distance)
            episode.reached = episode.reached or distance <= self.REACH_M
        touching = self._touching()
        if self.cube_height() >= self.LIFT_M and touching and touching <= self._pads:
            episode.held_s += step
            episode.success = episode.success or episode.held_s >= self.HOLD_S
        else:
            episode.held_s = 0.0

    def _place_objects(self, rng: np.random.Generator) -> None:
        spread = self.randomisation
        places = [self._polar(rng.uniform(*spread.radius), rng.uniform(-spread.bearing, spread.bearing))]
        while len(places) <= len(DISTRACTORS):
            radius = rng.uniform(spread.radius[0] - 0.02, spread.radius[1] + 0.08)
            place = self._polar(radius, rng.uniform(-spread.bearing - 0.3, spread.bearing + 0.3))
            # Room for the open jaw around the cube: with less, even the scripted expert knocks a neighbour over.
            if all(np.hypot(*(place - other)) > (0.075 if i == 0 else 0.04) for i, other in enumerate(places)):
                places.append(place)
        for name, (x, y) in zip(("red", *DISTRACTORS), places, strict=True):
            self.place(name, float(x), float(y), float(rng.uniform(-np.pi, np.pi)))

    @staticmethod
    def _polar(radius: float, bearing: float) -> Array:
        return PAN_AXIS + radius * np.array([np.cos(bearing), np.sin(bearing)])

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
