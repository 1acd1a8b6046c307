"""`molmoact2 bench views`: see `truth` and `load`."""

from __future__ import annotations

import sys
from pathlib import Path

from molmoact2_ros.benchmarking.views.load import measure_costs
from molmoact2_ros.benchmarking.views.report import page, placed
from molmoact2_ros.benchmarking.views.truth import ROBOTS, fitted_clouds, path_errors, predicted_cloud


def bench_views(images: int, seed: int, seconds: float, place: Path) -> Path:
    """Measure, write the bench's part of `place` (Markdown) and return it.

    Args:
        images: placements for each figure of depth. seed: where they come from.
        seconds: length of each run that costs are measured in; 0: none.
    """
    exact, shaken, fitted = [], [], {}
    for robot in ROBOTS:
        print(f"{robot}: path and fitted depth", file=sys.stderr)
        exact += path_errors(robot, seed=seed)
        shaken += path_errors(robot, seed=seed, shaken=True)
        fitted[robot] = fitted_clouds(robot, images, seed)
    print("so101: predicted depth", file=sys.stderr)
    predicted = predicted_cloud(images, seed)
    costs = measure_costs(seconds) if seconds > 0.0 else []
    place.parent.mkdir(parents=True, exist_ok=True)
    old = place.read_text() if place.is_file() else ""
    place.write_text(placed(old, page(exact, shaken, predicted, fitted, costs)))
    return place
