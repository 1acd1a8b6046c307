"""Which episode of the simulated cell a recording follows."""

from __future__ import annotations

from dataclasses import dataclass

RUNNING, DECIDED = "running", ("success", "failure")


@dataclass
class Following:
    """The episode that was followed last. It is kept when a user ends its bag early, so that it stays ended.

    Attributes:
        number: of the episode that runs and is followed; None between episodes.
    """

    number: int | None = None

    def heard(self, number: int, state: str, may_begin: bool) -> tuple[str, bool]:
        """Take what `sim/episode` says: the number of an episode, and its state.

        Returns:
            The outcome of the episode that is over by that, empty if none is, and whether one begins.
        """
        runs, outcome = state == RUNNING, ""
        if self.number is not None and not (runs and number == self.number):
            outcome = state if state in DECIDED and number == self.number else "interrupted"
            self.number = None
        begins = runs and self.number is None and may_begin
        if begins:
            self.number = number
        return outcome, begins
