"""Verified drafts give greedy decoding's own tokens, for any model, any draft and any cost of a row.

The models here are functions of the whole prefix, so a token decided behind a wrong one would differ.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.stages.speculation import Acceptance, DepthVocabulary, Script, Speculation

START, END, FIRST, CODES, VOCABULARY = 3, 4, 5, 6, 12
WORDS = DepthVocabulary(START, END, FIRST, CODES, torch.eye(VOCABULARY))
"""An identity head: hidden states are logits."""


class Language:
    """A model whose logits are drawn from a hash of everything before; `calm` makes it repeat what it said before."""

    def __init__(self, seed: int, calm: float, script: Script) -> None:
        self.seed, self.calm, self.script = seed, calm, script
        self.consumed: list[int] = []
        self.forwards = 0

    def logits(self, prefix: Sequence[int]) -> torch.Tensor:
        position = len(prefix)
        coin = random.Random(f"{self.seed} {list(prefix)}")
        calm = random.Random(f"{self.seed} {position}")
        source = calm if coin.random() < self.calm else coin
        row = torch.tensor([source.random() for _ in range(VOCABULARY)])
        if position == 0:
            row[START] += 0.9
        elif position <= self.script.cells:
            row[FIRST : FIRST + CODES] += 0.8
        else:
            row[END] += 0.7
        return row

    def forward(self, block: list[int]) -> torch.Tensor:
        self.forwards += 1
        first = self.forwards == 1
        rows = [self.logits(self.consumed)] if first else []
        for token in block:
            self.consumed.append(token)
            rows.append(self.logits(self.consumed))
        return torch.stack(rows)

    def rollback(self, length: int) -> None:
        del self.consumed[length:]


def greedy(language: Language) -> list[int]:
    """Token by token, as the reference decodes."""
    script, tokens = language.script, []
    while True:
        position, row = len(tokens), language.logits(tokens)
        if script.full or position > script.cells:
            token = int(row.argmax())
        elif position == 0:
            token = START
        elif script.forced[position - 1] is not None:
            token = FIRST + int(script.forced[position - 1] or 0)
        else:
            token = FIRST + int(row[FIRST : FIRST + CODES].argmax())
        tokens.append(token)
        if token == END and (script.full or position > script.cells):
            return tokens
        if position >= script.limit:
            raise RuntimeError("no end")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("redraft", ["auto", "prev", "jacobi"])
@pytest.mark.parametrize("row_cost", [0.0, 0.06, 1.0])
def test_drafts_never_change_the_sequence(full: bool, redraft: str, row_cost: float) -> None:
    ended, acceptance = 0, Acceptance(redraft)
    for seed in range(120):
        dice = random.Random(seed)
        cells = dice.choice([1, 4, 9, 16])
        old = [dice.randrange(CODES) for _ in range(cells)]
        forced = [code if dice.random() < 0.5 else None for code in old]
        script = Script(cells, forced, full, limit=cells + 12)
        language = Language(seed, dice.choice([0.0, 0.8, 1.0]), script)
        draft = dice.choice([None, old, [token - FIRST for token in greedy_codes(language)]])
        speculation = Speculation(WORDS, script, draft, acceptance, row_cost)
        try:
            expected = greedy(language)
        except RuntimeError:
            with pytest.raises(UnendedSequenceError, match="no <depth_end>"):
                speculation.run(language.forward, language.rollback)
            continue
        found = speculation.run(language.forward, language.rollback)
        assert found.tokens == expected
        assert language.consumed == expected, "the flow reads exactly the sequence"
        assert torch.equal(found.hidden[0], language.logits(expected)), "what follows goes on from the sequence's end"
        ended += 1
        if row_cost == 0.0 and draft is not None:
            # The tokens that follow the drafted <depth_end> come one by one.
            late = max(len(expected) - cells - 2, 0)
            assert language.forwards <= 1 + found.corrections + 1 + late
    assert ended > 60


def greedy_codes(language: Language) -> list[int]:
    """A draft that is mostly right: the greedy codes, one of them off."""
    tokens, script = [START], language.script
    for position in range(1, script.cells + 1):
        given = script.forced[position - 1]
        row = language.logits(tokens)
        tokens.append(FIRST + (int(row[FIRST : FIRST + CODES].argmax()) if given is None or script.full else given))
    tokens[len(tokens) // 2] = FIRST + (tokens[len(tokens) // 2] - FIRST + 1) % CODES
    return tokens[1:]


def test_a_right_draft_costs_one_forward() -> None:
    script = Script(9, [0] * 9, False, limit=20)
    language = Language(1, 1.0, script)
    language.logits = lambda prefix: torch.nn.functional.one_hot(  # type: ignore[method-assign]
        torch.tensor(END if len(prefix) > 9 else FIRST), VOCABULARY
    ).float()
    found = Speculation(WORDS, script, [0] * 9, Acceptance(), 0.06).run(language.forward, language.rollback)
    assert language.forwards == 1 and found.corrections == 0
    assert found.tokens == [START, *[FIRST] * 9, END]


def test_jacobi_is_dropped_where_it_fails_and_taken_where_it_helps() -> None:
    acceptance = Acceptance()
    for _ in range(60):
        acceptance.saw("jacobi", False)
        acceptance.saw("prev", True)
    assert not acceptance.prefers_jacobi("prev")
    for _ in range(60):
        acceptance.saw("jacobi", True)
        acceptance.saw("prev", False)
    assert acceptance.prefers_jacobi("prev")
    assert 0.0 < acceptance.chance("prev") < acceptance.chance("jacobi") < 1.0
