"""The ChArUco board: what is on it, where its corners are, and where they are in a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

LEAST_CORNERS = 8
"""A view with fewer says little: six numbers are to come out of it, and a corner that is wrong must show."""
_SIZES = (50, 100, 250, 1000)
"""Markers of OpenCV's dictionaries of 4 x 4 bits; the smaller ones are the beginning of the larger."""


@dataclass(frozen=True)
class Board:
    """A ChArUco board in OpenCV's layout, with markers of 4 x 4 bits, which are readable from furthest away.

    Its frame: origin in the outer corner of the first square, x along the columns, y along the rows, z into the sheet.

    Attributes:
        columns, rows: how many squares.
        square_mm, marker_mm: their sides.
    """

    columns: int = 7
    rows: int = 5
    square_mm: float = 30.0
    marker_mm: float = 22.0

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 3 or self.columns * self.rows > 2 * _SIZES[-1]:
            raise ValueError(
                f"a board needs 3 x 3 squares and at most {2 * _SIZES[-1]}, got {self.columns}x{self.rows}; "
                "7x5 fits a sheet"
            )
        if not 0.0 < 0.4 * self.square_mm <= self.marker_mm <= 0.9 * self.square_mm:
            raise ValueError(
                f"markers must have 0.4 to 0.9 of a square's side, got {self.marker_mm:g} mm in squares of "
                f"{self.square_mm:g} mm; usual are 22 in 30"
            )

    @classmethod
    def of(cls, squares: str, square_mm: float, marker_mm: float) -> Board:
        """The board with `squares` such as `7x5`.

        Raises:
            ValueError: it is of another form, or no such board can be.
        """
        found = re.fullmatch(r"(\d+)x(\d+)", squares)
        if not found:
            raise ValueError(f"squares are columns and rows, such as 7x5, got {squares!r}")
        return cls(int(found[1]), int(found[2]), square_mm, marker_mm)

    @property
    def squares(self) -> str:
        """Columns and rows, such as `7x5`."""
        return f"{self.columns}x{self.rows}"

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        return self.columns * self.square_mm, self.rows * self.square_mm

    @property
    def markers(self) -> int:
        """How many markers; their numbers count from 0."""
        return self.columns * self.rows // 2

    @cached_property
    def corners(self) -> Array:
        """The inner corners (n, 3) in the board's frame, m; the index is a corner's number."""
        return np.asarray(self.opencv()[0].getChessboardCorners(), dtype=np.float64)

    def said(self) -> str:
        """The board in words."""
        return f"{self.squares} squares of {self.square_mm:g} mm with markers of {self.marker_mm:g} mm"

    def as_dict(self) -> dict[str, Any]:
        """What `board_from` reads."""
        return {"squares": self.squares, "square_mm": self.square_mm, "marker_mm": self.marker_mm}

    def opencv(self) -> tuple[Any, Any]:
        """OpenCV's board, in m, and its dictionary of markers."""
        import cv2

        size = next(size for size in _SIZES if size >= self.markers)
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_4X4_{size}"))
        board = cv2.aruco.CharucoBoard(
            (self.columns, self.rows), self.square_mm / 1e3, self.marker_mm / 1e3, dictionary
        )
        return board, dictionary


def board_from(values: Mapping[str, Any]) -> Board:
    """The board of `Board.as_dict`.

    Raises:
        ValueError: a value is missing, or no such board can be.
    """
    try:
        return Board.of(str(values["squares"]), float(values["square_mm"]), float(values["marker_mm"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"a board needs squares, square_mm and marker_mm: {error!r}") from None


@dataclass(frozen=True, eq=False)
class Seen:
    """What of a board a picture shows.

    Attributes:
        ids: numbers (n,) of its inner corners. pixels: where they are, (n, 2), counted from the picture's upper left
            corner, as the intrinsics of this package are (OpenCV's ChArUco detector does so, its other ones do not).
        markers: numbers (m,) of all markers, also of ones that the board does not have. marker_pixels: their corners,
            (m, 4, 2).
    """

    ids: Ids
    pixels: Array
    markers: Ids
    marker_pixels: Array


class Detector:
    """Finds a board in pictures. Not for several threads at once."""

    def __init__(self, board: Board) -> None:
        import cv2

        self.board = board
        self._grid, dictionary = board.opencv()
        options = cv2.aruco.DetectorParameters()
        options.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        # Wide enough for a marker that fills the picture, narrow enough for one of 15 pixels.
        options.adaptiveThreshWinSizeMax = 53
        self._markers = cv2.aruco.ArucoDetector(dictionary, options)
        charuco = cv2.aruco.CharucoParameters()
        charuco.tryRefineMarkers = True
        self._detector = cv2.aruco.CharucoDetector(self._grid, charuco, options)

    def find(self, picture: NDArray[np.uint8]) -> Seen:
        """What `picture` (height, width) or (height, width, 3), RGB, shows of the board; nothing is no error."""
        import cv2

        grey = picture if picture.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
        corners, numbers, _ = self._markers.detectMarkers(grey)
        markers = np.zeros(0, np.int64) if numbers is None else np.asarray(numbers, np.int64).ravel()
        outlines = np.asarray(corners, np.float64).reshape(-1, 4, 2)
        ids, pixels = np.zeros(0, np.int64), np.zeros((0, 2))
        if len(markers):
            found, which, _, _ = self._detector.detectBoard(grey)
            if which is not None and len(which):
                ids, pixels = np.asarray(which, np.int64).ravel(), np.asarray(found, np.float64).reshape(-1, 2)
        return Seen(ids, pixels, markers, outlines)
