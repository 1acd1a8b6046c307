"""The depth sequence by verified drafts: the codes of greedy decoding, in as many forwards as the draft has errors.

The draft is the last frame's sequence. One forward verifies a block of it; from the first wrong token on, keys and
values are rolled back, the token is corrected, and the rest is drafted anew: from the last frame again ("prev"), or
from what the verifying forward itself predicted behind the error ("jacobi"), whichever has been right more often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from molmoact2_ros.policy.interface import UnendedSequenceError

RATE = 0.05
"""Weight of one more cell in the acceptance of a kind of draft."""
BOUNDARY = 0.99
"""How often `<depth_start>` and `<depth_end>` are where they are expected."""


@dataclass(frozen=True)
class DepthVocabulary:
    """Token ids of the depth sequence, and the head's weight (vocabulary, width)."""

    start: int
    end: int
    first_code: int
    num_codes: int
    head: torch.Tensor


@dataclass(frozen=True)
class Script:
    """What decides each token of the sequence `<depth_start>`, cells, `<depth_end>`.

    Attributes:
        cells: cells of the grid.
        forced: (cells,) codes that are replayed and not asked for, None where the model decides.
        full: every token is the argmax over the whole vocabulary (plain greedy decoding); otherwise `<depth_start>` is
            given, cells choose among the codes, and only what follows them asks the whole vocabulary.
        limit: the last position at which `<depth_end>` may come; later is an error.
    """

    cells: int
    forced: Sequence[int | None]
    full: bool
    limit: int


@dataclass
class Acceptance:
    """How often each kind of draft has been right, as a running mean over decided cells; starts hopeful.

    `redraft` holds the choice after an error to one kind: "prev" or "jacobi"; "auto" takes the better one so far.
    """

    redraft: str = "auto"
    rates: dict[str, float] = field(default_factory=lambda: {"prev": 0.9, "jacobi": 0.85, "near": 0.5})

    def saw(self, kind: str, right: bool) -> None:
        """Count one decided cell."""
        self.rates[kind] += RATE * (right - self.rates[kind])

    def prefers_jacobi(self, other: str) -> bool:
        """Whether a cell that both kinds can draft is drafted by "jacobi"."""
        if self.redraft == "auto":
            return self.chance("jacobi") > self.chance(other)
        return self.redraft == "jacobi"

    def chance(self, kind: str) -> float:
        """How likely the next draft of this kind is right; never quite 0 or 1, so that it can recover."""
        return min(max(self.rates[kind], 0.05), 0.995)


Forward = Callable[[list[int]], torch.Tensor]
"""Appends these tokens to the keys and values; returns hidden states of one row more than it was asked to append in
the first call (the prompt's last row comes first), of as many rows afterwards."""


@dataclass(frozen=True)
class DepthSequence:
    """Every token of the sequence up to `<depth_end>`, how often a draft was wrong and rolled back, and the hidden
    state (1, width) of `<depth_end>`."""

    tokens: list[int]
    corrections: int
    hidden: torch.Tensor


class Speculation:
    """Decodes one depth sequence.

    Args:
        vocabulary: of the model.
        script: what decides each token.
        previous: the last frame's codes (cells,), or None.
        acceptance: shared between frames; kept up to date.
        row_cost: what one more row of a block costs, as a share of a forward of one row. 0 where blocks are
            free (a GPU): then all that is drafted rides along. On a CPU a block stops where the rows after a likely
            error would cost more than the forward that they may save.
    """

    def __init__(
        self,
        vocabulary: DepthVocabulary,
        script: Script,
        previous: Sequence[int] | None,
        acceptance: Acceptance,
        row_cost: float,
    ) -> None:
        self._words, self._script, self._acceptance, self._row_cost = vocabulary, script, acceptance, row_cost
        self._previous = None if previous is None else [vocabulary.first_code + code for code in previous]
        self._side = max(round(script.cells**0.5), 1)
        self._jacobi: dict[int, int] = {}
        self._decided: list[int] = []
        self._corrections = 0

    def run(self, forward: Forward, rollback: Callable[[int], None]) -> DepthSequence:
        """Decode to the end: `forward` appends tokens, `rollback(n)` forgets what follows the sequence's first n.

        Raises:
            UnendedSequenceError: `<depth_end>` did not come within the limit.
        """
        consumed = 0
        if not self._script.full:
            self._decided.append(self._words.start)
        first = True
        while True:
            block = self._decided[consumed:] + self._draft(len(self._decided))
            hidden = forward(block)
            # Row i of hidden tells the token at position `ahead + i`.
            ahead = consumed if first else consumed + 1
            first = False
            kept = self._verify(hidden, block, consumed, ahead)
            consumed = min(consumed + len(block), kept)
            rollback(consumed)
            if self._decided[-1] == self._words.end and self._ends_at(len(self._decided) - 1):
                last = len(self._decided) - ahead
                if consumed < len(self._decided):
                    hidden, last = forward(self._decided[consumed:]), -1
                return DepthSequence(self._decided, self._corrections, hidden[last][None])

    # -- drafting ----------------------------------------------------------------------------------------------------

    def _draft(self, start: int) -> list[int]:
        """The tokens from position `start` on that are worth verifying in the next block."""
        tokens: list[int] = []
        alive, position = 1.0, start
        while position <= self._script.cells + 1:
            choice = self._candidate(position, tokens)
            if choice is None:
                break
            segment = [choice[0]]
            alive *= choice[1]
            while (replayed := self._forced(position + len(segment))) is not None:
                segment.append(replayed)
            if alive < (1.0 - alive) * self._row_cost * len(segment):
                break
            tokens += segment
            position += len(segment)
        return tokens

    def _candidate(self, position: int, ahead: list[int]) -> tuple[int, float] | None:
        """The draft at `position` and its chance; `ahead` are the drafts since the last decided token."""
        replayed = self._forced(position)
        if replayed is not None:
            return replayed, 1.0
        if position == 0:
            return self._words.start, BOUNDARY
        if position == self._script.cells + 1:
            return self._words.end, BOUNDARY
        kind = "near" if self._previous is None else "prev"
        if position in self._jacobi and self._acceptance.prefers_jacobi(kind):
            kind = "jacobi"
        token = self._drafted(kind, position, ahead)
        return None if token is None else (token, self._acceptance.chance(kind))

    def _drafted(self, kind: str, position: int, ahead: list[int]) -> int | None:
        """What a kind of draft says at a cell's `position`; near: the code above, or else the one before."""
        if kind == "jacobi":
            return self._jacobi.get(position)
        if kind == "prev":
            return None if self._previous is None else self._previous[position - 1]
        source = position - (self._side if position > self._side else 1)
        if source < 1:
            return None
        decided = len(self._decided)
        token = self._decided[source] if source < decided else ahead[source - decided]
        return token if self._is_code(token) else None

    # -- verifying ---------------------------------------------------------------------------------------------------

    def _verify(self, hidden: torch.Tensor, block: list[int], consumed: int, ahead: int) -> int:
        """Decide what the rows of `hidden` allow, and return how many tokens of the sequence hold."""
        predicted = self._predictions(hidden, ahead)
        asked = consumed + len(block)
        row = len(self._decided) - ahead
        while row < len(predicted):
            position = ahead + row
            token = predicted[row]
            row += 1
            self._decide(position, token)
            ended = token == self._words.end and self._ends_at(position)
            if not ended and position >= self._script.limit:
                raise UnendedSequenceError(
                    f"the model gave no <depth_end> within {self._script.limit + 1} tokens of the depth sequence"
                )
            if position < asked and block[position - consumed] != token:
                self._corrections += 1
                self._jacobi.update({ahead + later: predicted[later] for later in range(row, len(predicted))})
                return position
            if ended:
                return position + 1
        return asked

    def _predictions(self, hidden: torch.Tensor, ahead: int) -> list[int]:
        """The token that each row of `hidden` calls for, for positions `ahead` and following; one look at the device.

        Cells read 128 rows of the head, whatever may be any token all of it, replayed cells none.
        """
        words, cells = self._words, self._script.cells
        rows = hidden.shape[0]
        answers: list[int | None] = [self._forced(ahead + row) for row in range(rows)]
        open_rows = [row for row in range(rows) if answers[row] is None]
        codes = [] if self._script.full else [row for row in open_rows if ahead + row <= cells]
        anything = [row for row in open_rows if self._script.full or ahead + row > cells]
        parts = []
        if codes:
            table = words.head[words.first_code : words.first_code + words.num_codes]
            parts.append(functional.linear(hidden[codes], table).argmax(dim=-1) + words.first_code)
        if anything:
            parts.append(functional.linear(hidden[anything], words.head).argmax(dim=-1))
        if parts:
            for row, token in zip(codes + anything, torch.cat(parts).tolist(), strict=True):
                answers[row] = int(token)
        return [answer for answer in answers if answer is not None]

    def _decide(self, position: int, token: int) -> None:
        """Fix the token at `position`, and count which drafts would have been right."""
        if 1 <= position <= self._script.cells and self._forced(position) is None:
            for kind in ("prev", "near", "jacobi"):
                said = self._drafted(kind, position, [])
                if said is not None:
                    self._acceptance.saw(kind, said == token)
        self._decided.append(token)

    def _forced(self, position: int) -> int | None:
        """The token at `position` that is given and not asked for, or None."""
        if self._script.full or position > self._script.cells:
            return None
        if position == 0:
            return self._words.start
        code = self._script.forced[position - 1]
        return None if code is None else self._words.first_code + code

    def _ends_at(self, position: int) -> bool:
        """Whether `<depth_end>` at `position` ends the sequence (inside adaptive cells it cannot occur)."""
        return self._script.full or position > self._script.cells

    def _is_code(self, token: int) -> bool:
        return self._words.first_code <= token < self._words.first_code + self._words.num_codes
