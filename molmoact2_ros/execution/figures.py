"""The executor's present values, ready to print."""

from __future__ import annotations

from molmoact2_ros.execution.config import Counters
from molmoact2_ros.execution.feedback import Feedback
from molmoact2_ros.execution.handover import Handover
from molmoact2_ros.execution.mover import Mover
from molmoact2_ros.execution.watch import Watch


def shown(
    now_ns: int, mover: Mover, feedback: Feedback, watch: Watch, handover: Handover, counters: Counters
) -> dict[str, object]:
    """Who drives and who has the arm, ages in ms, the tracking error in rad, what is left of a stop, the counters."""
    leader = handover.leader
    chunk, due = mover.timeline.chunk, mover.stops.due_ns
    return {
        "drives": mover.drives,
        "handover": handover.phase.value,
        "leader_age_ms": "" if leader.position is None else f"{(now_ns - leader.stamp_ns) * 1e-6:.1f}",
        "chunk_age_ms": "" if chunk is None else f"{(now_ns - chunk.stamp_ns) * 1e-6:.1f}",
        "joint_state_age_ms": "" if feedback.position is None else f"{(now_ns - feedback.stamp_ns) * 1e-6:.1f}",
        "tracking_error_rad": f"{watch.tracking_error:.4f}",
        "limited_ticks": mover.limiter.limited_ticks,
        "stop_left_ms": "" if due is None else f"{max(0, due - now_ns) * 1e-6:.0f}",
        "pace": f"{1.0 / mover.timeline.stretch:.3f}",
        **vars(counters),
    }
