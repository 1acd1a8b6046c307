"""Pictures as JPEG, and back from JPEG or PNG with bounds that are looked at before anything is decoded."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_SIDE = 4096
LEAST_SIDE = 8
MOST_PIXELS = 4_000_000
"""Of one picture; 1920 x 1200 has 2.3 million."""


class PictureError(ValueError):
    """What came is no picture that a camera would send."""


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """RGB uint8 (height, width, 3) as JPEG of `quality` 1 to 100."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return out.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    """The picture in `data` (JPEG or PNG) as RGB uint8 (height, width, 3).

    Raises:
        PictureError: it is none, damaged, or too large.
    """
    try:
        # Reads the header alone.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            check_size(picture.height, picture.width)
            if picture.mode not in ("RGB", "L"):
                raise PictureError(f"a picture must be RGB or grey, got mode {picture.mode}")
            return np.array(picture.convert("RGB"))
    except PictureError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{len(data)} bytes are no JPEG or PNG picture: {error}") from error


def check_size(height: int, width: int) -> None:
    """Refuse what no camera sends.

    Raises:
        PictureError: too small or too large.
    """
    if not (min(height, width) >= LEAST_SIDE and max(height, width) <= MOST_SIDE and height * width <= MOST_PIXELS):
        raise PictureError(
            f"a picture of {width} x {height}; each side must be {LEAST_SIDE} to {MOST_SIDE} and the whole at most "
            f"{MOST_PIXELS} pixels"
        )


def checked(value: object) -> NDArray[np.uint8]:
    """An array that is a picture: RGB uint8 (height, width, 3).

    Raises:
        PictureError: it is none, or too large.
    """
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.shape[2] != 3 or value.dtype != np.uint8:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise PictureError(f"expected RGB uint8 (height, width, 3), got {found}")
    check_size(value.shape[0], value.shape[1])
    # What came from the wire is read-only, which torch does not take.
    return value if value.flags.writeable else value.copy()
