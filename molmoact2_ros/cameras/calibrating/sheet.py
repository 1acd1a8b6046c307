"""The board on a sheet of paper: a PDF at true scale, with a ruler that shows whether the printer has kept it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molmoact2_ros.cameras.calibrating.board import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPERS_MM = {"a4": (297.0, 210.0), "a3": (420.0, 297.0), "letter": (279.4, 215.9)}
"""Width and height, lying."""
MARGIN_MM = 6.0
"""What common printers leave white."""
RULER_MM = 100.0
_FOOT_MM = 17.0
"""Room for ruler and words below the board."""
_INCH_MM = 25.4


def sheet(board: Board, paper: str = "a4") -> Figure:
    """The board as a figure of the paper's size, lying; its axes are in mm from the paper's lower left corner.

    Raises:
        ValueError: there is no such paper, or the board does not fit on it.
    """
    from matplotlib.figure import Figure

    if paper not in PAPERS_MM:
        raise ValueError(f"paper must be one of {', '.join(PAPERS_MM)}, got {paper!r}")
    (width, height), (wide, high) = PAPERS_MM[paper], board.size_mm
    room = width - 2 * MARGIN_MM, height - 2 * MARGIN_MM - _FOOT_MM
    if wide > room[0] or high > room[1]:
        most = min(room[0] / board.columns, room[1] / board.rows)
        raise ValueError(
            f"{board.squares} squares of {board.square_mm:g} mm are {wide:g} x {high:g} mm; {paper} has room for "
            f"{room[0]:.0f} x {room[1]:.0f} mm: squares of at most {most:.1f} mm, fewer of them, or a larger paper"
        )
    figure = Figure(figsize=(width / _INCH_MM, height / _INCH_MM))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0.0, width)
    axes.set_ylim(0.0, height)
    axes.set_axis_off()
    left, top = (width - wide) / 2.0, height - MARGIN_MM - (height - 2 * MARGIN_MM - _FOOT_MM - high) / 2.0
    axes.add_patch(_black(board, left, top))
    foot = top - high
    _ruler(axes, left, foot - 9.0)
    axes.text(
        left + RULER_MM + 8.0,
        foot - 9.0,
        f"ChArUco {board.said()}, DICT_4X4\nPrint at 100 % (actual size). The ruler must be 100 mm long.\n"
        "Glue it flat onto something stiff; measure a row of squares.",
        fontsize=7,
        va="center",
    )
    return figure


def write_sheet(board: Board, path: Path, paper: str = "a4") -> None:
    """Write the PDF; see `sheet`."""
    sheet(board, paper).savefig(path, format="pdf", metadata={"Title": f"ChArUco board, {board.said()}"})


def _black(board: Board, left: float, top: float) -> Any:
    """All that is black as one shape, so that no viewer draws a line between two parts of it."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    boxes = [(x, y, board.square_mm) for x, y in _squares(board)]
    grid, dictionary = board.opencv()
    bits = dictionary.markerSize + 2  # with its border
    cell = board.marker_mm / bits
    for number, corners in zip(grid.getIds().ravel(), grid.getObjPoints(), strict=True):
        x0, y0 = (1e3 * float(value) for value in np.asarray(corners)[0, :2])
        black = dictionary.generateImageMarker(int(number), bits) == 0
        boxes += [(x0 + column * cell, y0 + row * cell, cell) for row, column in np.argwhere(black)]
    points: list[tuple[float, float]] = []
    codes: list[Any] = []
    for x, y, side in boxes:
        xs, ys = (left + x, left + x + side), (top - y, top - y - side)
        points += [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1]), (xs[0], ys[0])]
        codes += [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    return PathPatch(Outline(points, codes), facecolor="black", linewidth=0.0, edgecolor="none")


def _squares(board: Board) -> list[tuple[float, float]]:
    """Upper left corners of the black squares, mm: those that hold no marker."""
    side = board.square_mm
    return [
        (column * side, row * side)
        for row in range(board.rows)
        for column in range(board.columns)
        if not (row + column) % 2
    ]


def _ruler(axes: Any, left: float, y: float) -> None:
    axes.plot([left, left + RULER_MM], [y, y], color="black", linewidth=0.6, solid_capstyle="butt")
    for mm in range(0, int(RULER_MM) + 1, 5):
        high = 3.0 if mm % 10 == 0 else 1.8
        axes.plot([left + mm, left + mm], [y, y + high], color="black", linewidth=0.5, solid_capstyle="butt")
        if mm % 20 == 0:
            axes.text(left + mm, y - 1.0, f"{mm} mm" if mm == RULER_MM else f"{mm}", fontsize=6, ha="center", va="top")
