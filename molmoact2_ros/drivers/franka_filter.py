"""What a Franka's control box may be sent: a curve at 1 kHz that keeps the robot's limits, whatever the set-points do.

Set-points come at about 100 Hz, early, late, twice or not at all, and may jump. `Reference` makes a smooth motion of
them, whatever the limits; `SetpointFilter` is on it wherever the limits allow, else each joint goes the fastest way
there that Ruckig finds within them; where that way would lead out of what the joint may do, it brakes.

Invariant: after every step each joint could stop within its limits, so there is always a next step that keeps them.
Velocity, acceleration and jerk are differences of the positions of successive milliseconds, as the box computes them.
No clock and no robot in here: times are handed in.
"""

from __future__ import annotations

import numpy as np
import ruckig
from numpy.typing import NDArray

from molmoact2_ros.embodiments.franka_droid import ARM_JOINTS, ArmModel

Array = NDArray[np.float64]

STEP_S = 0.001
VELOCITY_SHARE, ACCELERATION_SHARE, JERK_SHARE = 0.97, 0.93, 0.85
"""Of the box's own limits that are used. What is left covers the rounding of a state (it comes as 32 bit numbers, which
is up to 0.3 rad/s2 and 700 rad/s3 in the millisecond after a lost packet)."""
VELOCITY_MARGIN = 0.02
"""Rad/s below the position-dependent limit of the velocity."""
POSITION_MARGIN = 1e-3
"""Rad inside the position limits."""
BRAKING_SHARE = 0.45
"""Of the acceleration, to be slow enough in time in front of the end of a joint: the rest is for the jerk."""
CALM_SHARE = 0.3
"""Of the velocity limits."""
CLOSING = 100.0
"""Stiffness of the law that closes what is left to the reference, 1/s."""
AHEAD_S = 0.005
"""So far ahead Ruckig's velocity limit is looked up."""
SAME = 5e-8
"""Rad: what the box wants is what it was sent, in 32 bit. A lost packet may differ by no more than a ten-millionth, and
overlooking that would be some 1000 rad/s3 two milliseconds later."""
LANDING = 200.0
"""Of the last of braking: acceleration by velocity, 1/s."""
_LEAST = 0.01
_ZEROS = [0.0] * ARM_JOINTS


class Reference:
    """The smooth motion that set-points mean: position, velocity, acceleration and jerk (7,), a step a millisecond.

    Set-points carry no time, so the moment at which one comes is taken for its own. Errors of it are smoothed by an
    alpha-beta filter, whose line from set-point to set-point a critically damped filter of third order makes a curve.
    When the next set-point does not come within `RIDE_S`, it rests at the last one. The limits are not its affair.

    Args:
        position: where it begins, (7,), rad.
        fastest: velocity limits (7,), rad/s.
    """

    MEMORY = 0.65
    """Share of what was known that a new set-point leaves: 0 believes the set-point alone."""
    STIFFNESS = 60.0
    """Of the filter of third order, 1/s."""
    RIDE_S = 0.045
    PAUSE_S = 0.1
    """After such a silence the next set-point says nothing about a velocity."""
    USUAL, BEND = 0.002, 10.0
    """How far a set-point may be from the line: rad, and rad/s2 of what an arm may have been accelerated since the one
    before. Further away it was late, as long as the next one does not say the same."""

    def __init__(self, position: Array, fastest: Array) -> None:
        self._fastest = fastest
        self.rest(position)

    def rest(self, position: Array) -> None:
        """Stay at `position` (7,) until the next set-point."""
        self._rest = zero = np.zeros_like(position)
        self._last, self._at, self._slope, self._bend = position.copy(), position.copy(), zero, zero
        self._beside = zero
        self._heard_s, self._period_s = -np.inf, 0.01
        self.position, self.velocity, self.acceleration, self.jerk = position.copy(), zero, zero, zero

    def take(self, setpoint: Array, now_s: float) -> None:
        """A set-point (7,) has come, at `now_s` of any clock that does not jump."""
        since = max(now_s - self._heard_s, 0.0)
        self._heard_s, self._last = now_s, setpoint.copy()
        if since > self.PAUSE_S:
            self._at, self._slope, self._bend, self._beside = setpoint.copy(), *np.zeros((3, len(setpoint)))
            return
        self._period_s = min(max(0.9 * self._period_s + 0.1 * since, 0.004), 0.04)
        ahead, slope = self._curve(min(since, self.RIDE_S))
        off = setpoint - ahead
        usual = self.USUAL + 0.5 * self.BEND * max(since, self._period_s) ** 2
        beside = np.where(np.abs(off) > usual, np.sign(off), 0.0)
        again = (beside != 0.0) & (beside == self._beside)
        self._beside = beside
        off = np.where(again, off, np.clip(off, -usual, usual))
        old, new = self.MEMORY, 1.0 - self.MEMORY
        self._at = np.where(again, setpoint, ahead + (1.0 - old**3) * off)
        slope = slope + 1.5 * new**2 * (1.0 + old) / self._period_s * off
        self._slope = np.clip(slope, -self._fastest, self._fastest)
        bend = self._bend + new**3 / self._period_s**2 * off
        self._bend = np.where(again, 0.0, np.clip(bend, -self.BEND, self.BEND))

    def _curve(self, since: float) -> tuple[Array, Array]:
        return self._at + (self._slope + 0.5 * since * self._bend) * since, self._slope + since * self._bend

    def step(self, now_s: float) -> None:
        """Advance by a millisecond."""
        since = now_s - self._heard_s
        at, slope, bend = self._last, self._rest, self._rest
        if since <= self.RIDE_S:
            (at, slope), bend = self._curve(since), self._bend
        k = self.STIFFNESS
        p, v, a = self.position, self.velocity, self.acceleration
        self.jerk = jerk = k**3 * (at - p) + 3.0 * k**2 * (slope - v) + 3.0 * k * (bend - a)
        self.position = p + v * STEP_S + a * (STEP_S**2 / 2.0) + jerk * (STEP_S**3 / 6.0)
        self.velocity = v + a * STEP_S + jerk * (STEP_S**2 / 2.0)
        self.acceleration = a + jerk * STEP_S


class SetpointFilter:
    """The commanded motion of seven joints: position, velocity and acceleration (7,), one `step` a millisecond.

    Args:
        arm: whose limits are kept.
        start: position at which it rests, (7,), rad.
    """

    def __init__(self, arm: ArmModel, start: Array) -> None:
        self.max_velocity = VELOCITY_SHARE * arm.velocity
        self.max_acceleration = ACCELERATION_SHARE * arm.acceleration
        self.max_jerk = JERK_SHARE * arm.jerk
        self._lower, self._upper = arm.lower + POSITION_MARGIN, arm.upper - POSITION_MARGIN
        self._braking = BRAKING_SHARE * self.max_acceleration
        if arm.offset is None or arm.deceleration is None:
            self._offset: Array = np.zeros_like(arm.velocity)
            self._deceleration: Array = self._braking
        else:
            self._offset, self._deceleration = arm.offset + VELOCITY_MARGIN, arm.deceleration
        self._closed: Array = self._offset**2 / (2.0 * self._deceleration)
        """So close to its end a joint may not move towards it, rad."""
        self._calm: Array = CALM_SHARE * self.max_velocity
        room = np.maximum(
            (self._calm + self._offset) ** 2 / (2.0 * self._deceleration),
            self._calm**2 / (2.0 * self._braking) + self._closed,
        )
        self._calm_lower, self._calm_upper = self._lower + room, self._upper - room
        """Between these every joint may go at `_calm`: most steps need no further look."""
        self._planner = ruckig.Ruckig(ARM_JOINTS, STEP_S)
        self._input = ruckig.InputParameter(ARM_JOINTS)
        self._input.synchronization = ruckig.Synchronization.No
        self._input.max_acceleration = self.max_acceleration.tolist()
        self._input.max_jerk = self.max_jerk.tolist()
        self._input.target_velocity = self._input.target_acceleration = _ZEROS
        self._output = ruckig.OutputParameter(ARM_JOINTS)
        self.reference = Reference(start, self.max_velocity)
        self.holding = False
        """True from `hold` until the next set-point."""
        self.steps = self.planned = self.braked = 0
        """Steps; those in which some joint went Ruckig's way; those in which some joint had to brake."""
        self.position = np.array(start, dtype=np.float64)
        self.velocity, self.acceleration = np.zeros_like(self.position), np.zeros_like(self.position)

    def told(self, position: Array, velocity: Array, acceleration: Array) -> None:
        """The box says what it wants since the last step (7,): what it was sent, unless packets were lost. Then it has
        gone on by itself, and the motion goes on from there.

        The box's are differences over the last millisecond: the velocity is that of half a millisecond ago.
        """
        if np.abs(position - self.position.astype(np.float32)).max() <= SAME:
            return
        self.position, self.acceleration = position, acceleration
        self.velocity = velocity + 0.5 * STEP_S * acceleration

    def setpoint(self, position: Array, now_s: float) -> None:
        """Take a set-point (7,), rad; one beyond the limits counts as one at them, one that is no number as none."""
        if not np.isfinite(position).all():
            return
        if self.holding:
            self.reference.rest(self.position)
            self.reference.velocity, self.reference.acceleration = self.velocity, self.acceleration
            self.holding = False
        self.reference.take(np.clip(position, self._lower, self._upper), now_s)

    def hold(self) -> None:
        """Stop as fast as the limits allow, and stay there until the next set-point."""
        self.holding = True

    def step(self, now_s: float) -> Array:
        """Advance by a millisecond; return the position (7,) to command."""
        self.steps += 1
        if self.holding:
            states = self._plan()
        else:
            self.reference.step(now_s)
            jerk, near = self._law()
            if near.all():
                states = self._advance(jerk)
            else:
                self.planned += 1
                states = self._plan()
                if near.any():
                    for mine, other in zip(states, self._advance(np.where(near, jerk, 0.0)), strict=True):
                        mine[near] = other[near]
        unsafe = ~self._safe(*states)
        if unsafe.any():
            self.braked += 1
            for mine, other in zip(states, self._advance(self._brake()), strict=True):
                mine[unsafe] = other[unsafe]
        self.position, self.velocity, self.acceleration = states
        return self.position

    def _law(self) -> tuple[Array, NDArray[np.bool_]]:
        """Jerk (7,) that closes the distance to the reference, and the joints whose limits leave room for it."""
        to, k = self.reference, CLOSING
        off, gap = k**3 * (to.position - self.position), 3.0 * k**2 * (to.velocity - self.velocity)
        bend = 3.0 * k * (to.acceleration - self.acceleration)
        jerk = to.jerk + off + gap + bend
        # The sum of the parts, not what is left of them: the way on must keep the limits too, not this step alone.
        near = np.abs(off) + np.abs(gap) + np.abs(bend) < self.max_jerk
        near &= np.abs(jerk) < self.max_jerk
        near &= np.abs(self.acceleration + jerk * STEP_S) < self.max_acceleration
        return jerk, near

    def _advance(self, jerk: Array) -> tuple[Array, Array, Array]:
        p, v, a = self.position, self.velocity, self.acceleration
        return (
            p + v * STEP_S + a * (STEP_S**2 / 2.0) + jerk * (STEP_S**3 / 6.0),
            v + a * STEP_S + jerk * (STEP_S**2 / 2.0),
            a + jerk * STEP_S,
        )

    def _plan(self) -> tuple[Array, Array, Array]:
        """The next millisecond of the fastest way to the reference, or to rest in a hold."""
        given, to = self._input, self.reference
        low, high = self._bounds(self.position + AHEAD_S * self.velocity)
        interfaces = ruckig.ControlInterface
        given.control_interface = interfaces.Velocity if self.holding else interfaces.Position
        goal = np.clip(to.position, self._lower, self._upper)
        given.current_position, given.target_position = (self.position - goal).tolist(), _ZEROS
        given.current_acceleration = self.acceleration.tolist()
        # Ruckig finds no way between some states (0.19.4); to a goal that stands still there is nearly always one.
        for share in [0.0] if self.holding else [0.95, 0.0]:
            # Seen from a goal that goes on at its speed: what is planned is the way to meet it.
            speed = np.clip(to.velocity, share * low, share * high)
            given.current_velocity = (self.velocity - speed).tolist()
            given.max_velocity = np.maximum(high - speed, _LEAST).tolist()
            given.min_velocity = np.minimum(low - speed, -_LEAST).tolist()
            try:
                result = self._planner.update(given, self._output)
            except ruckig.RuckigError:
                continue
            if result in (ruckig.Result.Working, ruckig.Result.Finished):
                out = self._output
                return (
                    np.array(out.new_position) + goal + STEP_S * speed,
                    np.array(out.new_velocity) + speed,
                    np.array(out.new_acceleration),
                )
        return self._advance(self._brake())

    def _brake(self) -> Array:
        """Jerk (7,) towards rest."""
        speed = np.abs(self.velocity)
        # Gently at the end: braking that overshoots rest would be a motion towards the other side.
        wanted = -np.sign(self.velocity) * np.minimum(
            self.max_acceleration, np.minimum(np.sqrt(0.8 * self.max_jerk * speed), LANDING * speed)
        )
        out: Array = np.clip((wanted - self.acceleration) / STEP_S, -self.max_jerk, self.max_jerk)
        return out

    def _safe(self, position: Array, velocity: Array, acceleration: Array) -> NDArray[np.bool_]:
        """Tell which joints (7,) may be in this state: within acceleration, and slow enough for what lies ahead."""
        fits = np.abs(acceleration) <= self.max_acceleration * (1.0 + 1e-6)
        # Where each joint would be once its acceleration is taken back: nowhere is it faster than there.
        lasts = np.abs(acceleration) / self.max_jerk
        top = velocity + 0.5 * acceleration * lasts
        there = position + velocity * lasts + acceleration * lasts**2 / 3.0
        calm = fits & (np.abs(top) <= self._calm) & (there >= self._calm_lower) & (there <= self._calm_upper)
        if calm.all():
            return calm
        low, high = self._bounds(there)
        out: NDArray[np.bool_] = fits & (top <= high + 1e-9) & (top >= low - 1e-9)
        return out

    def _bounds(self, position: Array) -> tuple[Array, Array]:
        """Lowest and highest velocity (7,) at `position`: the FR3's, and what can be braked in front of the end."""
        return -self._reach(position - self._lower), self._reach(self._upper - position)

    def _reach(self, distance: Array) -> Array:
        distance = np.maximum(distance, 0.0)
        there = np.sqrt(2.0 * self._deceleration * distance) - self._offset
        brakes = np.sqrt(2.0 * self._braking * np.maximum(distance - self._closed, 0.0))
        out: Array = np.maximum(np.minimum(np.minimum(there, brakes), self.max_velocity), 0.0)
        return out
