"""The static frames of a robot's cameras."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.spatial.transform import Rotation

from molmoact2_ros.bringup.options import Options, namespace_of
from molmoact2_ros.cameras.cell_cameras import CELL, calibrations_of
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.parameter_files import parameters_for, robot_files, user_files


@dataclass(frozen=True)
class StaticFrame:
    """A frame that never moves in its parent: `xyz` in m, `wxyz` a unit quaternion."""

    parent: str
    child: str
    xyz: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]


def camera_frames(options: Options) -> tuple[StaticFrame, ...]:
    """Where the cameras' optical frames are, by the calibration file that the config names or by the simulated cell.

    A camera without a calibration has no frame.
    """

    robot = embodiment(options.robot)
    files = (*robot_files(robot.family), *user_files(options.config))
    written = parameters_for(files, f"{namespace_of(options).rstrip('/')}/visualizer").get("calibration_file", "")
    found = calibrations_of(written or (CELL if options.sim else ""), robot.name, robot.camera_names)
    out = []
    for name, calibration in found.items():
        x, y, z = (float(v) for v in calibration.pose[:3, 3])
        qx, qy, qz, qw = (float(v) for v in Rotation.from_matrix(calibration.pose[:3, :3]).as_quat(canonical=True))
        out.append(StaticFrame(calibration.mount, f"{name}_optical_frame", (x, y, z), (qw, qx, qy, qz)))
    return tuple(out)
