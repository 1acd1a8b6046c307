"""The visualizer with a decoder that gives one relative picture, from the file RELATIVE_PICTURE (.npy), whatever the
codes: the released decoder's weights are not here, and what it gives has no unit either."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.nodes.visualizer_node import main
from molmoact2_ros.rendering import depth


class RelativeDecoder(depth.DepthDecoder):
    num_codes, metric, near_is_small, limits = 128, False, False, None

    def _decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(np.load(os.environ["RELATIVE_PICTURE"]), np.float32)


def load(checkpoint_dir: str | Path) -> depth.DepthDecoder:
    return RelativeDecoder()


if __name__ == "__main__":
    depth.load_depth_decoder = load  # type: ignore[assignment]
    main()
