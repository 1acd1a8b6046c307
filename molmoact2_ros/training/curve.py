"""The loss curve of a training run as an image: `python -m molmoact2_ros.training.curve runs/so101_cell/loss.csv
out.png`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

LOSSES = {"flow": "flow matching (chunk)", "depth": "cross-entropy (depth tokens)", "place": "place (auxiliary)"}


def read_losses(path: Path) -> dict[str, list[float]]:
    """Columns of `loss.csv`; a resumed run repeats steps, of which the last line counts."""
    with path.open(newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    if not rows:
        raise ValueError(f"{path} has no rows; has the training logged anything yet?")
    ordered = [rows[step] for step in sorted(rows)]
    return {"step": [float(row["step"]) for row in ordered]} | {
        name: [float(row[name]) for row in ordered] for name in LOSSES
    }


def draw(path: Path, picture: Path) -> None:
    """Draw the losses in `path` into `picture` (PNG), on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = read_losses(path)
    figure, axes = pyplot.subplots(figsize=(7, 3.6), constrained_layout=True)
    for name, label in LOSSES.items():
        axes.semilogy(columns["step"], columns[name], label=label)
    axes.set_xlabel("step (batch 32)")
    axes.set_ylabel("mean over 50 steps")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
