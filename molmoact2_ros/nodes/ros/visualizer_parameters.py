"""The visualizer's parameters."""

from __future__ import annotations

from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.rendering.depth import VQVAE_FILE

ANCHORS = ("arm", "table", "depth_camera")
"""What relative depth can be fitted to."""
PARAMETERS = (
    *JOINT_STATE_PARAMETERS,
    Parameter("cameras", ["front", "wrist"], "Cameras to draw into; the first is the one of the depth codes."),
    Parameter("calibration_file", "", "Where the cameras are (YAML); cell: as in the simulated one; empty: unknown."),
    Parameter("checkpoint", "", "A checkpoint's directory, for its depth decoder; empty: none."),
    Parameter(
        "depth_decoder",
        "",
        f"File of the depth decoder ({VQVAE_FILE} for released checkpoints); empty: the checkpoint's own.",
    ),
    Parameter(
        "depth_anchors",
        list(ANCHORS),
        'What relative depth is fitted to: arm, table, depth_camera, where they are seen; [""]: not at all.',
    ),
    Parameter("table_height_m", 0.0, "Height of the table over the robot's base, m.", -2.0, 2.0),
    Parameter("point_size_m", 0.005, "About how far apart the points of the cloud are, m.", 0.001, 0.1),
    Parameter("max_rate_hz", 15.0, "Overlays a second for each camera, Hz.", 1.0, 60.0),
    Parameter("overlay_scale", 2, "Size of an overlay over the camera's image.", 1, 4),
    Parameter(
        "board_check_s",
        10.0,
        "How often cameras are held against the file's board, if any, s; 0: off.",
        0.0,
        3600.0,
    ),
    Parameter("base_frame", "base_link", "Frame of the path, the markers and the points."),
)
