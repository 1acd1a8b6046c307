"""Pictures as JPEG, and back from JPEG or PNG with bounds that are looked at before anything is decoded."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

MOST_SIDE = 4096
LEAST_SIDE = 8
MOST_PIXELS = 4_000_000
"""Of one picture; 1920 x 1200 has 2.3 million."""
END_OF_JPEG = b"\xff\xd9"


class PictureError(ValueError):
    """What came is no picture that a camera would send."""


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """RGB uint8 (height, width, 3) as JPEG of `quality` 1 to 100."""
    import cv2

    done, packed = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise PictureError(f"a picture of {image.dtype} {image.shape} cannot be packed as JPEG")
    return packed.tobytes()


def decode(data: bytes) -> NDArray[np.uint8]:
    """The picture in `data` (JPEG or PNG) as RGB uint8 (height, width, 3).

    Raises:
        PictureError: it is none, damaged, or too large.
    """
    from PIL import Image

    try:
        # Reads the header alone.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            check_size(picture.height, picture.width)
            if picture.mode not in ("RGB", "L"):
                raise PictureError(f"a picture must be RGB or grey, got mode {picture.mode}")
            if picture.format == "PNG":
                return np.array(picture.convert("RGB"))
            return _jpeg(data, (picture.height, picture.width, 3))
    except PictureError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{len(data)} bytes are no JPEG or PNG picture: {error}") from error


def _jpeg(data: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The JPEG in `data`, by OpenCV: two thirds of the time."""
    import cv2

    if not data.rstrip(b"\0").endswith(END_OF_JPEG):
        # It would be filled up with grey.
        raise PictureError(f"{len(data)} bytes are no JPEG or PNG picture: it breaks off")
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise PictureError(f"{len(data)} bytes are no JPEG or PNG picture: {error}") from error
    if found is None or found.shape != shape:
        raise PictureError(f"{len(data)} bytes are no JPEG or PNG picture")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), dtype=np.uint8)


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
