"""Figures of the executor, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact2_ros.embodiments import Embodiment, Workspace

UNSTAMPED = ("refuse", "receive")


@dataclass(frozen=True)
class ExecutorConfig:
    """Figures of the executor; seconds, rad, Hz, m.

    Attributes:
        rate_hz: set-points a second.
        lead_s: how long after its own period a set-point takes effect, for its way to the robot.
        blend_s: shortest time in which the difference to a new chunk is faded out.
        slow_down_s: how long the arm slows down to rest, half of it before the end of a chunk's horizon.
        joint_state_timeout_s: oldest encoder reading to move on.
        chunk_timeout_s: oldest observation whose chunk is followed, however long the chunk; also how recent a chunk
            must have come for arming, where `arm_needs_chunk`.
        acknowledgement_timeout_s: a driver that acknowledges commands must have done so within this; 0: it does not.
        max_future_s: how far a stamp may lie in the future.
        unstamped_joint_states: what becomes of joint states with stamp 0: `refuse`, or `receive`: as if they were read
            when they come.
        arming_steady_s: for so long joint states must have come, and agreed, before arming; 0: the newest is enough.
        arming_spread: how far the readings of an arm joint may lie apart in that time, rad.
        position_margin: of a target or a reading before it is refused, rad; see `Embodiment.beyond`.
        max_tracking_error: largest distance of a measured arm joint from the commands of the last `tracking_window_s`.
        tracking_window_s: covers the lag of the servos.
        tracking_error_s: how long the error must last to be a fault.
        frozen_s, frozen_travel: an arm whose reading has been the same to the last bit for so long, while its command
            moved so far, is a fault.
        refusal_s: how long the planner of the limits may refuse, which brakes, before the motion is halted.
        max_tick_gap_s: a longer gap between ticks, or a step back in time, halts the motion.
        start_pose: where the ramp goes and what arming is measured against, (dof,); empty: the robot's rest position.
        start_tolerance: arming is refused further away than this from the start pose, arm joints only; 0: anywhere.
        ramp_on_arming: go to the start pose at once after arming.
        ramp_speed: share of the velocity limits that a ramp reaches.
        speed_scale: so many times the robot's own speed chunks may ask for, see `Embodiment.scaled_limits`.
        arm_needs_chunk: arming is refused while no policy sends usable chunks.
        ensemble: how many overlapping chunks are averaged; 1 follows the newest alone.
        ensemble_decay: see `Ensemble`.
        binary_grippers: grippers are told to be open or closed, never between.
        workspaces: one box an arm; None takes the robot's own, which is generous.
        leader_timeout_s: a leader whose newest reading is older is lost, and the arm holds.
        leader_max_speed: of a hand at a leader, rad/s; two readings further apart are none of one leader.
        leader_match_rad: how near the leader's arm joints must be to the arm's before it drives; 0: anywhere, it then
            drives relative to where it was until both meet.
        leader_match_timeout_s: how long a leader may take to come that near.
    """

    rate_hz: float = 100.0
    lead_s: float = 0.0
    blend_s: float = 0.2
    slow_down_s: float = 0.3
    joint_state_timeout_s: float = 0.25
    chunk_timeout_s: float = 2.0
    acknowledgement_timeout_s: float = 0.0
    max_future_s: float = 0.1
    unstamped_joint_states: str = "refuse"
    arming_steady_s: float = 0.3
    arming_spread: float = 0.05
    position_margin: float = 0.05
    max_tracking_error: float = 0.25
    tracking_window_s: float = 0.3
    tracking_error_s: float = 0.2
    frozen_s: float = 0.3
    frozen_travel: float = 0.05
    refusal_s: float = 0.1
    max_tick_gap_s: float = 0.25
    start_pose: tuple[float, ...] = ()
    start_tolerance: float = 0.0
    ramp_on_arming: bool = False
    ramp_speed: float = 0.25
    speed_scale: float = 1.0
    arm_needs_chunk: bool = False
    ensemble: int = 1
    ensemble_decay: float = 0.01
    binary_grippers: bool = False
    workspaces: tuple[Workspace, ...] | None = None
    leader_timeout_s: float = 0.25
    leader_max_speed: float = 15.0
    leader_match_rad: float = 0.0
    leader_match_timeout_s: float = 5.0

    def check(self, robot: Embodiment) -> None:
        """Hold what depends on the robot against it.

        Raises:
            ValueError: the start pose has another size or lies outside the limits, `unstamped_joint_states` is
                something else, or `speed_scale` is more than the robot can do.
        """
        robot.scaled_limits(self.speed_scale)
        if self.unstamped_joint_states not in UNSTAMPED:
            raise ValueError(
                f"unstamped_joint_states is {self.unstamped_joint_states!r}, expected one of {', '.join(UNSTAMPED)}"
            )
        pose = self.start_pose
        if not pose:
            return
        if len(pose) != robot.dof:
            raise ValueError(
                f"start_pose must have {robot.dof} positions ({', '.join(robot.joint_names)}), got {len(pose)}"
            )
        for name, value, low, high in zip(robot.joint_names, pose, robot.limits.lower, robot.limits.upper, strict=True):
            if not low <= value <= high:
                raise ValueError(f"start_pose has {value:g} for {name}, its limits are {low:g} to {high:g}")


@dataclass
class Counters:
    """What became of the chunks and readings, and what the limits and clocks did."""

    chunks_accepted: int = 0
    chunks_previewed: int = 0
    chunks_refused: int = 0
    chunks_ignored: int = 0
    joint_states_refused: int = 0
    joint_states_unstamped: int = 0
    joint_state_jumps: int = 0
    joint_states_repeated: int = 0
    joint_states_out_of_order: int = 0
    takeovers: int = 0
    leader_refused: int = 0
    leader_repeated: int = 0
    leader_out_of_order: int = 0
    slow_downs: int = 0
    clock_jumps: int = 0
    late_rows: int = 0
    """Rows of the present chunk that had passed when it was adopted."""
    stops_on_path: int = 0
    stops_off_path: int = 0
    """Stops for which the path had no room in good time: each joint stopped as fast as it could."""
    last_refusal: str = ""
    last_ignored: str = ""
    last_leader_refusal: str = ""
