"""A ChArUco board in the simulated SO-101 cell: rendered pictures of it, or its corners alone, with the truth
beside."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from molmoact2_ros.cameras.calibrating.board import Board, Seen
from molmoact2_ros.cameras.calibrating.bundle import inverse
from molmoact2_ros.cameras.calibrating.collection import Collection, CollectionWriter, View, places
from molmoact2_ros.cameras.calibrating.solving import usual_mounts
from molmoact2_ros.cameras.calibration import CameraCalibration, distorted, mount_poses, undistorted
from molmoact2_ros.cameras.cell_cameras import camera_calibration, camera_names
from molmoact2_ros.embodiments import Embodiment, embodiment, so101
from molmoact2_ros.embodiments.kinematics import pose_of
from molmoact2_ros.simulation.so101_scene import scene_xml

os.environ.setdefault("MUJOCO_GL", "egl")

BOARD = Board(7, 5, 30.0, 22.0)
BENT = np.array([-0.12, 0.03, 0.001, -0.0008, 0.0])
"""The distortion of a common webcam."""


def enlarged(calibration: CameraCalibration, scale: float, d: NDArray[np.float64] | None = None) -> CameraCalibration:
    """The camera with `scale` times the pixels, and a lens."""
    k = np.diag([scale, scale, 1.0]) @ calibration.k
    size = round(scale * calibration.width), round(scale * calibration.height)
    return replace(calibration, width=size[0], height=size[1], k=k, d=np.zeros(5) if d is None else d)


def cameras_of(robot: Embodiment, scale: float = 2.0, d: NDArray[np.float64] | None = None):
    """The cell's cameras as they really are, with more pixels."""
    return {name: enlarged(camera_calibration(robot.name, name), scale, d) for name in camera_names(robot.name)}


def on_table(x: float = 0.23, y: float = 0.0, yaw: float = 0.1, board: Board = BOARD) -> NDArray[np.float64]:
    """Pose of a board that lies on the table of the SO-101 with its middle at (x, y): its z axis points down."""
    wide, high = (1e-3 * side for side in board.size_mm)
    flat = pose_of(Rotation.from_euler("zx", [yaw, np.pi]), (x, y, 0.0))
    return flat @ pose_of(Rotation.identity(), (-wide / 2, -high / 2, -0.001))


def in_gripper(board: Board = BOARD) -> NDArray[np.float64]:
    """Pose in the SO-101's gripper link of a board that its jaws hold at one edge, its face towards the front camera
    when the gripper points down."""
    wide, _ = (1e-3 * side for side in board.size_mm)
    turn = Rotation.from_matrix(np.column_stack([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]]))
    return pose_of(turn, (0.006, -wide / 2, -0.095))


@dataclass
class BoardCell:
    """What is true: cameras, board and where it is; `poses(count)` finds joints at which a camera sees it."""

    robot: Embodiment = field(default_factory=lambda: embodiment("so101"))
    board: Board = BOARD
    place: str = "cell"
    pose: NDArray[np.float64] = field(default_factory=on_table)
    cameras: dict[str, CameraCalibration] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        self.cameras = self.cameras or cameras_of(self.robot)
        self.rng = np.random.default_rng(self.seed)
        self.mount = places(self.robot)[self.place]

    def in_camera(self, name: str, joints: NDArray[np.float64]) -> NDArray[np.float64]:
        """The board's pose in a camera."""
        camera = self.cameras[name]
        there = mount_poses(self.robot, self.mount, joints) @ self.pose
        return inverse(mount_poses(self.robot, camera.mount, joints) @ camera.pose) @ there

    def pixels(self, name: str, joints: NDArray[np.float64], corners=None, pose=None) -> NDArray[np.float64]:
        """Where the corners are in a camera's picture, (n, 2); NaN behind it."""
        camera, pose = self.cameras[name], self.in_camera(name, joints) if pose is None else pose
        local = (self.board.corners if corners is None else corners) @ pose[:3, :3].T + pose[:3, 3]
        flat = np.where(local[:, 2:] > 0.03, local[:, :2] / np.maximum(local[:, 2:], 0.03), np.nan)
        return distorted(flat, camera.d) @ camera.k[:2, :2].T + camera.k[:2, 2]

    def visible(self, name: str, joints: NDArray[np.float64], pose=None, share: float = 1.0) -> bool:
        """Whether the camera sees the face of the board, and `share` of its corners, large enough."""
        camera = self.cameras[name]
        pose = self.in_camera(name, joints) if pose is None else pose
        pixels = self.pixels(name, joints, pose=pose)
        inside = np.all((pixels > 6) & (pixels < np.array([camera.width, camera.height]) - 6), axis=1)
        slant = pose[:3, 2] @ (pose[:3, 3] / np.linalg.norm(pose[:3, 3]))
        near = camera.k[0, 0] * 1e-3 * self.board.square_mm / max(pose[2, 3], 1e-3)
        return bool(inside.mean() >= share and slant > 0.45 and near > 14)

    def poses(self, count: int, by: str, spread: float = 1.0, share: float = 1.0) -> list[NDArray[np.float64]]:
        """Joints at which `by` sees the board, at random about the rest position."""
        robot, found = self.robot, []
        lower, upper = robot.limits.lower, robot.limits.upper
        if robot.family == "so101":  # at the far ends of an arm's reach a board is seen too much from the side
            half = np.radians(so101.TRAVEL[:-1]) / 2.0
            lower, upper = lower.copy(), upper.copy()
            lower[:-1], upper[:-1] = np.maximum(lower[:-1], -half), np.minimum(upper[:-1], half)
        for _ in range(200_000):
            joints = robot.rest_position + spread * self.rng.normal(0.0, 0.45, robot.dof)
            joints = np.clip(joints, lower, upper)
            tips = [chain.tip(joints[list(indices)])[2, 3] for chain, indices in robot.chains]
            if min(tips) > 0.02 and self.visible(by, joints, share=share):
                found.append(joints)
            if len(found) == count:
                return found
        raise AssertionError(f"only {len(found)} of {count} poses at which {by} sees the board")

    def hand_poses(self, count: int, camera: str) -> list[NDArray[np.float64]]:
        """Poses in a camera of a board that a hand holds, all over the picture."""
        found = []
        wide, high = (0.5e-3 * side for side in self.board.size_mm)
        size = np.array([self.cameras[camera].width, self.cameras[camera].height])
        k = self.cameras[camera].k
        for _ in range(100_000):
            distance = self.rng.uniform(0.25, 0.7)
            flat = (self.rng.uniform(0.15, 0.85, 2) * size - k[:2, 2]) / k[0, 0]
            pose = pose_of(Rotation.from_euler("xyz", self.rng.uniform(-0.7, 0.7, 3)), [*(flat * distance), distance])
            pose = pose @ pose_of(Rotation.identity(), (-wide, -high, 0.0))
            if self.visible(camera, self.robot.rest_position, pose):
                found.append(pose)
            if len(found) == count:
                return found
        raise AssertionError("no poses of the board in a hand")

    # -- without pictures ---------------------------------------------------------------------------------------------

    def view(
        self, name: str, moment: str, joints, placement: str = "01", pixel_noise=0.15, read=None, pose=None
    ) -> View:
        """A view as a detector gives it: corners inside the picture, with noise. `read`: the joints that are told;
        `pose`: of a board in a hand."""
        camera, pixels = self.cameras[name], self.pixels(name, joints, pose=pose)
        ids = np.flatnonzero(np.all((pixels > 0) & (pixels < [camera.width, camera.height]), axis=1))
        noisy = pixels[ids] + self.rng.normal(0.0, pixel_noise, (len(ids), 2))
        seen = Seen(ids, noisy, np.zeros(0, np.int64), np.zeros((0, 4, 2)))
        told = joints if read is None else read
        mount = self.mount if pose is None else ""
        size = camera.width, camera.height
        return View(f"{placement}/{moment}_{name}.png", name, size, moment, placement, mount, told, seen)

    def views(self, poses, names, joint_noise: float = 1e-3, **options) -> list[View]:
        """Views of every camera that sees enough of the board, with noise in the joints that are told, rad."""
        out = []
        for i, joints in enumerate(poses):
            read = joints + self.rng.normal(0.0, joint_noise, self.robot.dof)
            for name in names:
                if self.visible(name, joints, share=0.5):
                    out.append(self.view(name, f"{i:03d}", joints, read=read, **options))
        return out

    def in_hand(self, count: int, name: str, placement: str = "00") -> list[View]:
        """Views of a board in a hand."""
        nowhere = np.full(self.robot.dof, np.nan)
        return [
            self.view(name, f"h{i:03d}", nowhere, placement, pose=pose)
            for i, pose in enumerate(self.hand_poses(count, name))
        ]

    def collection(self, views: list[View]) -> Collection:
        return Collection(self.robot.name, self.board, tuple(views))

    def mounts(self) -> dict[str, str]:
        return usual_mounts(self.robot, list(self.cameras), {})


# -- with pictures -----------------------------------------------------------------------------------------------------


def texture(board: Board, pixels_a_mm: float = 12.0) -> bytes:
    """The board as PNG, without a margin."""
    size = tuple(round(pixels_a_mm * side) for side in board.size_mm)
    picture = board.opencv()[0].generateImage(size, marginSize=0)
    return bytes(cv2.imencode(".png", picture)[1])


class Rendered:
    """The SO-101's cell with the board of `cell` in it, rendered through the lenses of its cameras."""

    MARGIN = 0.008
    """White paper around the board, m: a marker at the edge needs it."""

    def __init__(self, cell: BoardCell) -> None:
        import mujoco

        self.cell = cell
        self._mujoco = mujoco
        wide, high = (0.5e-3 * side for side in cell.board.size_mm)
        # A board turns its face to -z of its own frame: the geom is turned about x, so that its face is on +z.
        pose = cell.pose @ pose_of(Rotation.from_euler("x", np.pi), (wide, high, 0.0))
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        place = " ".join(map(str, pose[:3, 3]))
        margin = self.MARGIN
        light = 'type="box" contype="0" conaffinity="0" mass="1e-4"'
        body = (
            f'<body name="sheet" pos="{place}" quat="{w} {x} {y} {z}">'
            f'<geom {light} pos="0 0 -0.0002" size="{wide} {high} 0.0002" material="sheet"/>'
            f'<geom {light} pos="0 0 -0.001" size="{wide + margin} {high + margin} 0.0005" rgba="1 1 1 1"/></body>'
        )
        text = scene_xml(with_objects=False)
        if cell.place == "cell":
            text = text.replace("</worldbody>", f"{body}</worldbody>")
        else:
            text = text.replace('<body name="moving_jaw_link"', f'{body}<body name="moving_jaw_link"')
        text = text.replace(
            "<asset>",
            '<asset><texture name="sheet" type="2d" file="sheet.png"/>'
            '<material name="sheet" texture="sheet" specular="0" shininess="0"/>',
        ).replace('offwidth="640" offheight="480"', 'offwidth="1280" offheight="960"')
        self.model = mujoco.MjModel.from_xml_string(text, assets={"sheet.png": texture(cell.board)})
        self.data = mujoco.MjData(self.model)
        self._qpos = [self.model.joint(name).qposadr[0] for name in cell.robot.joint_names]
        self._renderers: dict[tuple[int, int], object] = {}

    def picture(self, name: str, joints: NDArray[np.float64], noise: float = 3.0) -> NDArray[np.uint8]:
        """RGB picture of a camera, with its lens and with noise."""
        camera = self.cell.cameras[name]
        self.data.qpos[self._qpos] = joints
        self._mujoco.mj_forward(self.model, self.data)
        size = camera.height, camera.width
        if size not in self._renderers:
            self._renderers[size] = self._mujoco.Renderer(self.model, *size)
        renderer = self._renderers[size]
        renderer.update_scene(self.data, name)
        sharp = renderer.render()
        if np.any(camera.d):
            u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
            k = camera.k
            flat = undistorted(np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]], axis=-1), camera.d)
            where = (flat * np.diag(k)[:2] + k[:2, 2] - 0.5).astype(np.float32)
            sharp = cv2.remap(sharp, where, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        noisy = sharp + self.cell.rng.normal(0.0, noise, sharp.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    def write(self, folder: Path, poses, names, joint_noise: float = 1e-3, tick: float = 2 * np.pi / 4096) -> None:
        """A folder as the collecting node writes it, with joints as an encoder reads them."""
        writer = CollectionWriter(folder, self.cell.robot, self.cell.board, self.cell.place)
        for joints in poses:
            read = joints + self.cell.rng.normal(0.0, joint_noise, len(joints))
            read = np.round(read / tick) * tick
            pictures = {name: self.picture(name, joints) for name in names}
            writer.add(pictures, dict.fromkeys(names, 1), read)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
