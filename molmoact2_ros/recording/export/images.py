"""The images of the frames that were chosen, decoded as the policy node does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.encodings import rgb_of_message
from molmoact2_ros.recording.export.moments import Frame
from molmoact2_ros.recording.export.settings import ExportError
from molmoact2_ros.recording.export.source import Source, Topics

Images = dict[str, NDArray[np.uint8]]


def with_images(source: Source, topics: Topics, frames: Sequence[Frame]) -> Iterator[tuple[Frame, Images]]:
    """`frames`, in order of time, each with its images (height, width, 3), RGB. One pass over the bag.

    Raises:
        ExportError: an image cannot be decoded, or a camera changes its size.
    """
    cameras = list(frames[0].images)
    camera_of = {topics.cameras[name]: name for name in cameras}
    wanted = {name: {frame.images[name] for frame in frames} for name in cameras}
    numbers = dict.fromkeys(cameras, 0)
    kept: dict[tuple[str, int], NDArray[np.uint8]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    waiting = iter(frames)
    frame = next(waiting, None)
    for topic, _, data in source.messages(camera_of):
        name = camera_of[topic]
        number = numbers[name]
        numbers[name] += 1
        if number not in wanted[name]:
            continue
        try:
            image = np.ascontiguousarray(rgb_of_message(source.decoded(topic, data)))
        except ValueError as error:
            raise ExportError(f"{source.path}: {topic}: {error}") from None
        if sizes.setdefault(name, image.shape) != image.shape:
            raise ExportError(f"{source.path}: {topic} changes its size from {sizes[name][:2]} to {image.shape[:2]}")
        kept[name, number] = image
        while frame is not None and all((camera, n) in kept for camera, n in frame.images.items()):
            yield frame, {camera: kept[camera, n] for camera, n in frame.images.items()}
            frame = next(waiting, None)
            if frame is None:
                return
            for camera, n in list(kept):
                if n < frame.images[camera]:
                    del kept[camera, n]
