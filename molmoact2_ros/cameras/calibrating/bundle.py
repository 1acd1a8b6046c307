"""Cameras, boards, lenses and joints that fit all views at once: the residuals, their least squares, what they are
worth.

A view says where the board is in a camera. The arm's kinematics say where the links are that both are fixed to. Sought
are the camera's pose in its link and the board's pose in its own; on request also the lenses, how far the joints were
from their readings at each moment, the zeros of the joints and the size of the board.
"""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import Board
from molmoact2_ros.cameras.calibrating.collection import Optics, View
from molmoact2_ros.cameras.calibration import distorted, mount_poses
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

CAMERAS, BOARDS, LENSES, JOINTS, ZEROS, SCALE = "cameras", "boards", "lenses", "joints", "zeros", "scale"
"""What can be sought. Of each kind but the last two a corner depends on one block: one camera, one board, one
moment."""


def inverse(pose: Array) -> Array:
    """Inverse of rigid poses (..., 4, 4)."""
    out = np.zeros_like(pose)
    turned = np.swapaxes(pose[..., :3, :3], -1, -2)
    out[..., :3, :3] = turned
    out[..., :3, 3] = -(turned @ pose[..., :3, 3:4])[..., 0]
    out[..., 3, 3] = 1.0
    return out


def _vectors(poses: Sequence[Array]) -> Array:
    """Turn and place (n, 6) of each pose, rad and m."""
    from scipy.spatial.transform import Rotation

    given = np.reshape(poses, (-1, 4, 4))
    if not len(given):
        return np.zeros((0, 6))
    return np.hstack([Rotation.from_matrix(given[:, :3, :3]).as_rotvec(), given[:, :3, 3]])


def _poses(vectors: Array) -> Array:
    from scipy.spatial.transform import Rotation

    out = np.tile(np.eye(4), (len(vectors), 1, 1))
    if len(vectors):
        out[:, :3, :3] = Rotation.from_rotvec(vectors[:, :3]).as_matrix()
        out[:, :3, 3] = vectors[:, 3:]
    return out


@dataclass(frozen=True, eq=False)
class Bundle:
    """Views, and what is taken to be true of them.

    Attributes:
        robot, board: as told. views: those to be fitted. mounts: the link of every camera.
        cameras, lenses: of every camera its pose in its link, and its optics. boards: by placement, in the board's
            link; of a board in a hand, in the camera.
        strayed: how far the joints were from their readings, (moments, dof), rad; empty for not at all.
        zeros: what to add to all readings, (dof,). scale: size of the board over the nominal one.
    """

    robot: Embodiment
    board: Board
    views: Sequence[View]
    mounts: Mapping[str, str]
    lenses: Mapping[str, Optics]
    cameras: Mapping[str, Array] = field(default_factory=dict)
    boards: Mapping[str, Array] = field(default_factory=dict)
    strayed: Array = field(default_factory=lambda: np.zeros((0, 0)))
    zeros: Array = field(default_factory=lambda: np.zeros(0))
    scale: float = 1.0

    @cached_property
    def names(self) -> tuple[list[str], list[str], list[str]]:
        """Cameras, placements and moments of the views, in the order of the blocks."""
        return (
            list(dict.fromkeys(view.camera for view in self.views)),
            list(dict.fromkeys(view.placement for view in self.views)),
            list(dict.fromkeys(view.moment for view in self.views)),
        )

    @cached_property
    def counts(self) -> Numbers:
        """Corners of each view, (views,)."""
        return np.array([len(view.seen.ids) for view in self.views], dtype=np.int64)

    @cached_property
    def _owners(self) -> dict[str, Numbers]:
        """Of each view the number of its block, by kind."""
        cameras, placements, moments = ({name: i for i, name in enumerate(names)} for names in self.names)
        camera = np.array([cameras[view.camera] for view in self.views], dtype=np.int64)
        board = np.array([placements[view.placement] for view in self.views], dtype=np.int64)
        moment = np.array([moments[view.moment] for view in self.views], dtype=np.int64)
        none = np.zeros(len(self.views), dtype=np.int64)
        return {CAMERAS: camera, BOARDS: board, LENSES: camera, JOINTS: moment, ZEROS: none, SCALE: none}

    @cached_property
    def _read(self) -> Array:
        return np.nan_to_num(np.array([view.joints for view in self.views]))

    @cached_property
    def _pixels(self) -> tuple[Array, Array]:
        there = np.concatenate([self.board.corners[view.seen.ids] for view in self.views])
        return there, np.concatenate([view.seen.pixels for view in self.views])

    @cached_property
    def _links(self) -> list[tuple[str, str, list[int]]]:
        """Link of the camera and of the board, and the views of which they are; both empty for a hand."""
        found: dict[tuple[str, str], list[int]] = {}
        for i, view in enumerate(self.views):
            key = (self.mounts[view.camera], view.mount) if view.mount else ("", "")
            found.setdefault(key, []).append(i)
        return [(*key, rows) for key, rows in found.items()]

    def between(self, joints: Array | None = None) -> Array:
        """Pose (views, 4, 4) of the board's link in the camera's link by kinematics, for `joints` (views, dof), by
        default those that were read."""
        given = self._read if joints is None else joints
        out = np.tile(np.eye(4), (len(self.views), 1, 1))
        for camera, board, rows in self._links:
            if camera != board:
                there = mount_poses(self.robot, board, given[rows])
                out[rows] = inverse(mount_poses(self.robot, camera, given[rows])) @ there
        return out

    # -- the values as blocks ------------------------------------------------------------------------------------------

    def _blocks(self) -> dict[str, Array]:
        cameras, placements, moments = self.names
        lenses = [self.lenses[name] for name in cameras]
        dof = self.robot.dof
        return {
            CAMERAS: _vectors([self.cameras[name] for name in cameras]),
            BOARDS: _vectors([self.boards[name] for name in placements]),
            LENSES: np.array([[*lens.k[[0, 1, 0, 1], [0, 1, 2, 2]], *lens.d] for lens in lenses]),
            JOINTS: self.strayed.copy() if len(self.strayed) else np.zeros((len(moments), dof)),
            ZEROS: (self.zeros.copy() if len(self.zeros) else np.zeros(dof))[None],
            SCALE: np.array([[self.scale]]),
        }

    def _with(self, blocks: Mapping[str, Array]) -> Bundle:
        cameras, placements, _ = self.names
        lenses = {}
        for name, (fx, fy, cx, cy, *d) in zip(cameras, blocks[LENSES], strict=True):
            lenses[name] = Optics(np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]), np.array(d))
        return replace(
            self,
            cameras={**self.cameras, **dict(zip(cameras, _poses(blocks[CAMERAS]), strict=True))},
            boards={**self.boards, **dict(zip(placements, _poses(blocks[BOARDS]), strict=True))},
            lenses={**self.lenses, **lenses},
            strayed=blocks[JOINTS] if np.any(blocks[JOINTS]) else np.zeros((0, 0)),
            zeros=blocks[ZEROS][0],
            scale=float(blocks[SCALE][0, 0]),
        )

    def _misses(self, blocks: Mapping[str, Array], between: Array | None = None) -> Array:
        """How far (corners, 2) every corner is seen from where it is predicted, pixels."""
        owners, counts = self._owners, self.counts
        if between is None:
            between = self.between(self._read + blocks[JOINTS][owners[JOINTS]] + blocks[ZEROS][0])
        poses = between @ _poses(blocks[BOARDS])[owners[BOARDS]]
        fixed = np.array([bool(view.mount) for view in self.views])
        poses[fixed] = inverse(_poses(blocks[CAMERAS]))[owners[CAMERAS][fixed]] @ poses[fixed]
        poses = np.repeat(poses, counts, axis=0)
        lenses = np.repeat(blocks[LENSES][owners[LENSES]], counts, axis=0)
        there, pixels = self._pixels
        local = np.einsum("nij,nj->ni", poses[:, :3, :3], blocks[SCALE][0, 0] * there) + poses[:, :3, 3]
        # A corner behind the camera, as a fit may have it on its way, must not be divided by zero.
        depth = np.where(np.abs(local[:, 2]) > 1e-3, local[:, 2], 1e-3)
        out: Array = pixels - distorted(local[:, :2] / depth[:, None], lenses[:, 4:]) * lenses[:, :2] - lenses[:, 2:4]
        return out

    # -- how well it fits ----------------------------------------------------------------------------------------------

    def misses(self, readings: bool = True) -> Array:
        """How far (corners, 2) every corner is seen from where it is predicted, pixels; by the joints' `readings`, or
        by where the fit takes them to have been."""
        blocks = self._blocks()
        if readings:
            blocks[JOINTS] = np.zeros_like(blocks[JOINTS])
        return self._misses(blocks)

    def rms_by_view(self, readings: bool = True) -> Array:
        """Reprojection error (views,), pixels."""
        square = np.sum(self.misses(readings) ** 2, axis=1)
        return np.sqrt(np.add.reduceat(square, np.concatenate([[0], np.cumsum(self.counts)[:-1]])) / self.counts)

    def rms(self, readings: bool = True) -> float:
        """Reprojection error of all corners, pixels."""
        return float(np.sqrt(np.mean(np.sum(self.misses(readings) ** 2, axis=1))))

    def degrees_by_view(self) -> Array:
        """Reprojection error (views,) as an angle, degrees: it says the same for every number of pixels."""
        focal = np.array([self.lenses[view.camera].k[0, 0] for view in self.views])
        return np.degrees(self.rms_by_view() / focal)

    def moving(self) -> Numbers:
        """The views in which the board moves against the camera with the arm."""
        rows = [i for camera, board, found in self._links if camera != board for i in found]
        return np.array(sorted(rows), dtype=np.int64)

    # -- the fit -------------------------------------------------------------------------------------------------------

    def solved(
        self,
        sought: Names[str],
        *,
        pixels: Mapping[str, float] | None = None,
        priors: Mapping[str, float] | None = None,
        held: Names[str] = (),
        held_lenses: Names[str] = (),
    ) -> tuple[Bundle, Uncertainty]:
        """The bundle with least squares over the kinds in `sought`.

        Args:
            pixels: noise of each camera's corners, pixels; 1 otherwise.
            priors: how far the values of a kind are from what they are here, roughly (one standard deviation).
            held: cameras and placements whose poses are not sought. held_lenses: cameras whose optics are not.
        """
        from scipy.optimize import least_squares

        blocks = self._blocks()
        layout = _Layout(self, blocks, sought, set(held), set(held_lenses))
        noise = np.array([(pixels or {}).get(view.camera, 1.0) for view in self.views])
        weight = 1.0 / np.repeat(noise, 2 * self.counts)
        pulled = [(kind, sigma) for kind, sigma in (priors or {}).items() if kind in sought]
        pulls = (
            np.concatenate([layout.pull(kind, sigma) for kind, sigma in pulled])
            if pulled
            else np.zeros((0, layout.size))
        )
        start = layout.vector(blocks)
        if not len(start):
            return self, Uncertainty(layout, np.zeros((0, 0)))
        fixed = self.between(self._read + blocks[JOINTS][self._owners[JOINTS]] + blocks[ZEROS][0])
        kinematics = None if {JOINTS, ZEROS} & set(sought) else fixed

        def residuals(x: Array) -> Array:
            found = self._misses(layout.blocks(blocks, x), kinematics).ravel() * weight
            return np.concatenate([found, pulls @ (x - start)])

        def jacobian(x: Array) -> Array:
            here = layout.blocks(blocks, x)
            middle = self._misses(here, kinematics).ravel()
            out = np.zeros((len(weight), layout.size))
            for kind, component, step in layout.steps():
                moved = {**here, kind: here[kind] + step * (np.arange(here[kind].shape[1]) == component)}
                change = (self._misses(moved, kinematics).ravel() - middle) / step
                layout.scatter(out, kind, component, change)
            return np.concatenate([out * weight[:, None], pulls])

        result = least_squares(residuals, start, jac=jacobian, method="lm", x_scale="jac")
        inverted = np.linalg.pinv(result.jac.T @ result.jac)
        spare = max(1, len(weight) + len(pulls) - layout.size)
        # The noise may be larger than told; it is not taken to be smaller.
        excess = max(1.0, 2.0 * float(result.cost) / spare)
        return self._with(layout.blocks(blocks, result.x)), Uncertainty(layout, excess * inverted)


class _Layout:
    """Which values are sought, and where they are in the vector of the fit."""

    STEPS: Mapping[str, Sequence[float]] = {
        CAMERAS: (1e-6,) * 6, BOARDS: (1e-6,) * 6, LENSES: (1e-3,) * 4 + (1e-6,) * 5, SCALE: (1e-6,),
    }  # fmt: skip

    def __init__(
        self, bundle: Bundle, blocks: Mapping[str, Array], sought: Names[str], held: set[str], held_lenses: set[str]
    ) -> None:
        cameras, placements, _ = bundle.names
        self._owners = {kind: np.repeat(owner, 2 * bundle.counts) for kind, owner in bundle._owners.items()}
        self._names = {CAMERAS: cameras, LENSES: cameras, BOARDS: placements}
        self._free: dict[str, NDArray[np.bool_]] = {}
        joints = _driving(bundle)
        placed = {view.camera for view in bundle.views if view.mount}
        for kind in (kind for kind in blocks if kind in sought):
            free = np.ones(blocks[kind].shape, dtype=bool)
            if kind in (CAMERAS, BOARDS):
                free[[name in held for name in self._names[kind]]] = False
            if kind == CAMERAS:  # one that saw the board in a hand only has no place
                free[[name not in placed for name in cameras]] = False
            if kind == LENSES:
                free[[name in held_lenses for name in cameras]] = False
                free[:, 8] &= blocks[kind][:, 8] != 0.0  # the third radial term, where it is in use
            if kind in (JOINTS, ZEROS):
                free[:, [j for j in range(free.shape[1]) if j not in joints]] = False
            self._free[kind] = free
        self._at: dict[str, Numbers] = {}
        self.size = 0
        for kind, free in self._free.items():
            at = np.full(free.shape, -1, dtype=np.int64)
            at[free] = self.size + np.arange(np.count_nonzero(free))
            self._at[kind] = at
            self.size += int(np.count_nonzero(free))

    def vector(self, blocks: Mapping[str, Array]) -> Array:
        """The values that are sought."""
        parts = [blocks[kind][free] for kind, free in self._free.items()]
        return np.concatenate(parts) if parts else np.zeros(0)

    def blocks(self, blocks: Mapping[str, Array], x: Array) -> dict[str, Array]:
        """`blocks` with the values of the vector `x`."""
        out = dict(blocks)
        for kind, free in self._free.items():
            out[kind] = blocks[kind].copy()
            out[kind][free] = x[self._at[kind][free]]
        return out

    def steps(self) -> list[tuple[str, int, float]]:
        """Kind, component and step of each difference that makes the Jacobian: no corner depends on two blocks of a
        kind, so that one difference serves them all."""
        return [
            (kind, component, self.STEPS[kind][component] if kind in self.STEPS else 1e-6)
            for kind, free in self._free.items()
            for component in range(free.shape[1])
            if free[:, component].any()
        ]

    def scatter(self, out: Array, kind: str, component: int, change: Array) -> None:
        """Put a difference (rows,) into the columns of the Jacobian that it belongs to."""
        column = self._at[kind][self._owners[kind], component]
        rows = np.flatnonzero(column >= 0)
        out[rows, column[rows]] = change[rows]

    def pull(self, kind: str, sigma: float) -> Array:
        """Rows that hold the values of a kind to where they begin."""
        columns = self._at[kind][self._free[kind]]
        out = np.zeros((len(columns), self.size))
        out[np.arange(len(columns)), columns] = 1.0 / sigma
        return out

    def columns(self, kind: str, name: str) -> Numbers:
        """Where the values of one camera or placement are."""
        if kind not in self._at:
            return np.zeros(0, dtype=np.int64)
        at = self._at[kind][self._names[kind].index(name)] if kind in self._names else self._at[kind][0]
        return at[at >= 0]


def _driving(bundle: Bundle) -> set[int]:
    """The arm joints between the base and the links that the views are about."""
    links = {link for camera, board, _ in bundle._links if camera != board for link in (camera, board)}
    chains = zip(bundle.robot.wrist_links, bundle.robot.chains, strict=True)
    return {joint for link, (_, indices) in chains if link in links for joint in indices}


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What the values of a fit are worth."""

    _layout: _Layout
    _covariance: Array

    def pose(self, camera: str) -> tuple[float, float]:
        """Standard deviations of a camera's place along the worst axis, m, and of its turn about the worst one, rad."""
        at = self._layout.columns(CAMERAS, camera)
        if len(at) != 6:
            return 0.0, 0.0
        turn, place = (self._worst(part) for part in (at[:3], at[3:]))
        return place, turn

    def lens(self, camera: str) -> float:
        """Standard deviation of a camera's focal lengths and of its centre, the worst of them, pixels."""
        at = self._layout.columns(LENSES, camera)[:4]
        return self._worst(at)

    def scale(self) -> float:
        """Standard deviation of the board's size over the nominal one."""
        return self._worst(self._layout.columns(SCALE, ""))

    def _worst(self, at: Numbers) -> float:
        if not len(at):
            return 0.0
        return float(np.sqrt(max(0.0, np.max(np.linalg.eigvalsh(self._covariance[np.ix_(at, at)])))))
