"""What `molmoact2 bench policy` is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("torch", "onnxruntime", "tensorrt", "reference")
"""What can be measured, where it is installed and the machine can run it."""
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Of the depth cells, that changed since the last call."""
RATIO_SHARE = 0.1
"""The share that the ratios are about."""
IDENTICAL = "think, identical pictures"


@dataclass(frozen=True)
class PolicyBench:
    """What is measured.

    Attributes:
        size: of a random model, see `random_model.SIZES`. checkpoint: a trained one instead, or empty.
        cameras: images a call, 1 to 3. changed: share of the depth cells that changed; None: all of `SHARES`.
        repeats: rounds for a median. threads: of torch; 0 is its own choice.
        backends: which; empty: all that this machine can run. chunk: rows of a chunk; 0: the robot's.
        device: cpu, cuda or auto (the GPU for size full, else the CPU).
    """

    size: str = "small"
    checkpoint: str = ""
    cameras: int = 2
    changed: float | None = None
    repeats: int = 5
    threads: int = 0
    robot: str = "so101"
    backends: tuple[str, ...] = ()
    chunk: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.cameras <= 3:
            raise ValueError(f"--cameras must be 1 to 3, got {self.cameras}")
        if self.changed is not None and not 0.0 <= self.changed <= 1.0:
            raise ValueError(f"--changed is a share of 0 to 1, got {self.changed}")
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {self.repeats}")
        if not 0 <= self.chunk <= 30:
            raise ValueError(f"--chunk must be 0 (the robot's) or 1 to 30 rows, got {self.chunk}")
        unknown = set(self.backends) - set(BACKENDS)
        if unknown:
            raise ValueError(f"unknown backend {', '.join(sorted(unknown))}; this version has: {', '.join(BACKENDS)}")

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of changed cells that are measured."""
        return SHARES if self.changed is None else (self.changed,)

    @property
    def ratio_case(self) -> str:
        """The case that the ratios are about."""
        return think(RATIO_SHARE if self.changed is None else self.changed)


def think(share: float) -> str:
    """Name of the case with `share` of the cells changed."""
    return f"think, {share:.0%} changed"
