"""The images of other people's drivers as RGB: ROS's names of encodings, raw and compressed.

Plain layouts are taken with numpy; YUV, Bayer patterns, JPEG and PNG through OpenCV, loaded when the first such comes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_PLAIN = {
    "rgb8": (3, False),
    "bgr8": (3, True),
    "rgba8": (4, False),
    "bgra8": (4, True),
    "8UC3": (3, True),
    "8UC4": (4, True),
    "mono8": (1, False),
    "8UC1": (1, False),
}
"""Channels, and whether blue comes first. `8UCn` does not say it: OpenCV's own order (blue first) is meant."""
_WIDE = {"mono16": "mono8", "rgb16": "rgb8", "bgr16": "bgr8", "rgba16": "rgba8", "bgra16": "bgra8"}
"""Sixteen bits a value; the upper eight are the image. `16UC1` and `32FC1` are depth, not images."""
_PACKED_YUV = {
    "yuv422_yuy2": "COLOR_YUV2RGB_YUY2",
    "yuyv": "COLOR_YUV2RGB_YUY2",
    "yuv422": "COLOR_YUV2RGB_UYVY",
    "uyvy": "COLOR_YUV2RGB_UYVY",
}
_PLANAR_YUV = {"nv12": "COLOR_YUV2RGB_NV12", "nv21": "COLOR_YUV2RGB_NV21"}
_BAYER = {
    "bayer_rggb8": "COLOR_BayerRGGB2RGB",
    "bayer_bggr8": "COLOR_BayerBGGR2RGB",
    "bayer_gbrg8": "COLOR_BayerGBRG2RGB",
    "bayer_grbg8": "COLOR_BayerGRBG2RGB",
}
_WIDE |= {name[:-1] + "16": name for name in _BAYER}
ENCODINGS = (*_PLAIN, *_WIDE, *_PACKED_YUV, *_PLANAR_YUV, *_BAYER)


def rows_of(data: Bytes, height: int, row_bytes: int, step: int) -> Bytes:
    """The rows (height, row_bytes) of an image's bytes, without a copy and without padding.

    A `step` of 0 means rows without padding; the last row may lack its padding.

    Raises:
        ValueError: the size does not fit the data.
    """
    step = step or row_bytes
    fits = (height - 1) * step + row_bytes <= data.size <= height * step
    if height < 1 or row_bytes < 1 or step < row_bytes or not fits:
        raise ValueError(
            f"{height} rows of {row_bytes} bytes at {step} bytes a row do not fit {data.size} bytes of data; the "
            "driver must set height, width, step and encoding to what it sends"
        )
    return as_strided(data, (height, row_bytes), (step, 1), writeable=False)


def rgb_of(data: Bytes, encoding: str, height: int, width: int, step: int, big_endian: bool = False) -> Bytes:
    """The image (height, width, 3), RGB, of the bytes of a raw image; without a copy where it is rgb8.

    Raises:
        ValueError: an encoding that is no image or not known, or a size that does not fit the data.
    """
    if encoding in _WIDE:
        narrow = _WIDE[encoding]
        pair = 2 * _PLAIN.get(narrow, (1, False))[0] * width
        values = rows_of(data, height, pair, step)
        upper = np.ascontiguousarray(values[:, 0 if big_endian else 1 :: 2])
        return rgb_of(upper.ravel(), narrow, height, width, 0)
    if encoding in _PLAIN:
        channels, reverse = _PLAIN[encoding]
        pixels = rows_of(data, height, channels * width, step).reshape(height, width, channels)
        if channels == 1:
            return np.repeat(pixels, 3, axis=2)
        return pixels[..., 2::-1] if reverse else pixels[..., :3]
    if encoding in _PACKED_YUV:
        return _converted(rows_of(data, height, 2 * width, step).reshape(height, width, 2), _PACKED_YUV[encoding])
    if encoding in _PLANAR_YUV:
        if height % 2 or width % 2:
            raise ValueError(f"{encoding} images have an even size, got {width} x {height}")
        return _converted(rows_of(data, height * 3 // 2, width, step), _PLANAR_YUV[encoding])
    if encoding in _BAYER:
        return _converted(rows_of(data, height, width, step), _BAYER[encoding])
    raise ValueError(f"encoding is {encoding!r}, expected one of {', '.join(ENCODINGS)}; set it in the camera's driver")


def rgb_of_compressed(data: Bytes, described: str) -> Bytes:
    """The image (height, width, 3), RGB, of a JPEG or PNG file.

    `described` is the message's `format`, such as `jpeg` or `bgr8; jpeg compressed bgr8`.

    Raises:
        ValueError: a depth image, or bytes that cannot be decoded.
    """
    import cv2

    if "compressedDepth" in described or described.startswith(("16UC1", "32FC1")):
        raise ValueError(f"format is {described!r}: a depth image, expected a colour one")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(data, flags) if data.size else None
    if bgr is None:
        raise ValueError(f"{data.size} bytes of format {described!r} cannot be decoded; expected a JPEG or PNG image")
    found = np.asarray(bgr, dtype=np.uint8)
    # Old drivers pack red as blue, and say so by what follows the word.
    swapped = described.partition("compressed")[2].strip().startswith("rgb")
    return found if swapped else found[..., ::-1]


def rgb_of_message(message: Any) -> Bytes:
    """The image (height, width, 3), RGB, of a sensor_msgs Image or CompressedImage, whatever library decoded it: what
    is live and what comes from a recording are the same to the last byte.

    Raises:
        ValueError: as `rgb_of` and `rgb_of_compressed`.
    """
    data = np.frombuffer(message.data, dtype=np.uint8)
    if not hasattr(message, "encoding"):
        return rgb_of_compressed(data, message.format)
    size = int(message.height), int(message.width), int(message.step)
    return rgb_of(data, message.encoding, *size, bool(message.is_bigendian))


def _converted(values: Bytes, code: str) -> Bytes:
    import cv2

    try:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(values), getattr(cv2, code)), dtype=np.uint8)
    except cv2.error as error:
        raise ValueError(f"the image cannot be converted ({code}): {error}") from None
