"""A process that does nothing but run the policy of the simulated cell: what the command loop has to live beside."""

from __future__ import annotations

import time

import numpy as np

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.share import bundled_checkpoint


def main() -> None:
    """Infer until the process is ended; prints a line when the first call is done."""
    from molmoact2_ros.policy import Observation, open_policy

    robot = embodiment("so101")
    policy = open_policy(bundled_checkpoint(robot.family), robot, robot.norm_tag, backend="torch", device="cpu")
    rng = np.random.default_rng(0)
    calls = 0
    while True:
        pictures = {name: rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for name in policy.checkpoint.cameras}
        now = time.time_ns()
        policy.infer(
            Observation(pictures, dict.fromkeys(pictures, now), robot.rest_position, now, "pick up the red cube")
        )
        calls += 1
        if calls == 1:
            print("ready", flush=True)


if __name__ == "__main__":
    main()
