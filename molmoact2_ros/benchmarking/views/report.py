"""The page of `molmoact2 bench views`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.benchmarking.views.load import Cost
from molmoact2_ros.benchmarking.views.truth import NEAR_M, DepthError, PathError

BEGIN, END = "<!-- drawn: written by molmoact2 bench views -->", "<!-- drawn: end -->"
"""What lies between is the bench's; what others measure of views may stand on the same page."""


def page(
    exact: Sequence[PathError],
    shaken: Sequence[PathError],
    predicted: DepthError | None,
    fitted: Mapping[str, Sequence[DepthError]],
    costs: Sequence[Cost],
) -> str:
    """The bench's part of `benchmarks/views.md`."""
    lines = [
        BEGIN,
        "## What is drawn, against the simulator",
        "",
        f"`molmoact2 bench views`, {date.today().isoformat()}.",
        "",
        "### Path in the image",
        "",
        "Distance between the drawn path and the tip that the simulator renders at each row's joints, pixels of the",
        "camera's image (320 x 240, 320 x 180). Shaken: the cell moves its cameras at every episode, so that a policy",
        "does not learn one view by heart (2 mm and 0.23 degrees, standard deviation); what is drawn knows the",
        "calibration only.",
        "",
        "| robot | camera | rows | median | worst | shaken: median | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    other = {(error.robot, error.camera): error for error in shaken}
    for error in exact:
        moved = other.get((error.robot, error.camera))
        beside = "- | -" if moved is None else f"{moved.median_px:.2f} | {moved.worst_px:.2f}"
        figures = f"{error.rows} | {error.median_px:.2f} | {error.worst_px:.2f}"
        lines.append(f"| {error.robot} | {error.camera} | {figures} | {beside} |")
    if predicted is not None:
        lines += [
            "",
            "### Cloud of the small checkpoint",
            "",
            f"Predicted depth against the simulator's, {predicted.images} placements that it was not trained on, every",
            f"pixel: median error {predicted.median_cm:.2f} cm; nearer than {NEAR_M} m {predicted.near_cm:.2f} cm.",
        ]
    lines += [
        "",
        "### Relative depth, fitted",
        "",
        "The simulator's inverse depth, scaled to 0..1 an image, coded by 128 patches of 32 x 32 pixels as the",
        "released VQ-VAE codes it (10 x 10 codes, 320 x 320 pixels), decoded, and fitted. Error of the fitted distance",
        "against the simulator's over all pixels that have one (floor and walls too), over those nearer than",
        f"{NEAR_M} m, and the error that the fit says of itself; medians, cm. A depth camera shows what is left when",
        "everything is known: the error of the coding. The cameras are shaken, as above.",
        "",
        "| robot | fitted to | images | all | near | said |",
        "|---|---|---|---|---|---|",
    ]
    for robot, errors in fitted.items():
        for depth in errors:
            lines.append(
                f"| {robot} | {depth.what} | {depth.images} | {depth.median_cm:.2f} | {depth.near_cm:.2f} | "
                f"{depth.said_cm:.2f} |"
            )
    if costs:
        lines += [
            "",
            "### What it costs",
            "",
            "The visualizer as a process of its own: the YAM, joint states and commands at 100 Hz, three cameras",
            "of 640 x 480 at 30 Hz, chunks at 30 Hz, depth codes at 5 Hz. Share of one core by processor time;",
            "latency from an image's stamp to the overlay's arrival. The command loop is the executor's, at 100 Hz,",
            "with and without a visualizer.",
            "",
            "| subscribed | share of a core | overlay: p50 | p99 | overlays a second | command loop: period p99 |",
            "|---|---|---|---|---|---|",
        ]
        for cost in costs:
            ms = [f"{value:.0f} ms" if np.isfinite(value) else "-" for value in (cost.p50_ms, cost.p99_ms)]
            lines.append(
                f"| {cost.what} | {100.0 * cost.core:.0f} % | {ms[0]} | {ms[1]} | {cost.overlay_hz:.1f} | "
                f"{cost.loop_p99_ms:.2f} ms |"
            )
    lines += ["", *(f"- {name}: {value}" for name, value in machine().items()), END]
    return "\n".join(lines) + "\n"


def placed(old: str, part: str) -> str:
    """`old`, a page, with `part` in the place of the bench's last one, or after what is there."""
    if BEGIN in old and END in old:
        before, _, rest = old.partition(BEGIN)
        return before + part + rest.partition(END)[2].lstrip("\n")
    return (old or "# Views\n") + "\n" + part
