"""What `molmoact2 bench policy` finds: calls of one case with one backend, and the row that comes of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.policy.calls import Call, answer

STAGES = ("preprocess", "vision", "prefill", "depth", "flow", "total")
WARM_UP = 1


@dataclass(frozen=True)
class Row:
    """One case with one backend: medians by stage and the fastest call, ms; forwards, cells anew, wrong codes in the
    draft, codes that differ from the first backend's, and bytes copied in one call."""

    backend: str
    case: str
    milliseconds: Mapping[str, float]
    best_ms: float
    forwards: int
    cells: int
    wrong: int
    other_codes: int = 0
    copied: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """All rows, and each backend's peak memory in bytes."""

    rows: list[Row]
    peaks: Mapping[str, int]
    stolen: float = 0.0
    """Share of processor time that a hypervisor took while calls were timed."""
    flips: Mapping[str, Any] = field(default_factory=dict)
    """Cheaper kinds of products against float32's (`flips.Flips`), those that were asked."""


@dataclass
class Lane:
    """One case with one backend, its calls and what came of them."""

    backend: str
    case: str
    model: Any
    calls: Sequence[Call]
    answers: list[Any] = field(default_factory=list)
    copied: Mapping[str, int] = field(default_factory=dict)
    episode: Any = None
    """What the model keeps of this case's episode; it serves other cases in between."""

    def ask(self, call: Call) -> Any:
        """One call of this case, as if no other case came between."""
        self.model.episode = self.episode
        return answer(self.model, call)

    def row(self) -> Row:
        """Medians and the fastest call, without the warm-up."""
        kept = list(zip(self.calls, self.answers, strict=True))[WARM_UP:]
        times = {stage: statistics.median(found.timings_ms[stage] for _, found in kept) for stage in STAGES}

        def middle(count: Callable[[Call, Any], int]) -> int:
            return round(statistics.median(count(call, found) for call, found in kept))

        return Row(
            self.backend,
            self.case,
            times,
            min(found.timings_ms["total"] for _, found in kept),
            middle(lambda _, found: found.forwards),
            middle(lambda _, found: 0 if found.depth_updated is None else int(found.depth_updated.sum())),
            middle(lambda call, found: _differing(call.codes, found.depth_bins)),
            sum(_differing(call.answer, found.depth_bins) for call, found in kept),
            self.copied,
        )


def _differing(before: NDArray[np.int64] | None, after: NDArray[np.int64] | None) -> int:
    return 0 if before is None or after is None else int((before != after).sum())
