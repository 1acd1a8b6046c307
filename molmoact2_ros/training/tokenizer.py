"""The home-made tokenizer of a small checkpoint: byte-level BPE on the prompt's words, and the usual special tokens.

Order of the ids: the BPE, the three Qwen specials, the setup, control, state, action and depth families, padding up to
a round vocabulary size, and above it the image tokens (they have embeddings and no row in the language-model head).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE_TOKENS = (
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<low_res_im_start>",
    "<|image|>",
    "<im_low>",
    "<frame_start>",
    "<frame_end>",
    "<|video|>",
)
BPE_ENTRIES = 1000
VOCABULARY_MULTIPLE = 64
NUM_STATE_TOKENS = 256
NUM_DEPTH_TOKENS = 128

_TASK, _STATE = "<TASK>", "<STATE>"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's word pattern; `Qwen2Tokenizer` sets the same one when it loads the files."""


def family(name: str, count: int) -> tuple[str, ...]:
    """The indexed tokens of a family: `<state_0>`, `<state_1>`, ..."""
    return tuple(f"<{name}_{index}>" for index in range(count))


def special_tokens(num_action_tokens: int = 0) -> tuple[str, ...]:
    """Every special token below the vocabulary size, in the order of their ids; Qwen's three among themselves aside."""
    return (
        *QWEN_SPECIALS,
        *("<setup_start>", "<setup_end>", "<control_start>", "<control_end>"),
        *("<state_start>", "<state_end>", *family("state", NUM_STATE_TOKENS)),
        *("<action_output>", "<action_start>", "<action_end>", *family("action", num_action_tokens)),
        *("<depth_output>", "<depth_start>", "<depth_end>", *family("depth", NUM_DEPTH_TOKENS)),
    )


def prompt_texts(tasks: Iterable[str], setup_type: str, control_mode: str) -> list[str]:
    """The prompts that a checkpoint of one robot will see, with and without depth: training text for `build_tokenizer`.

    They come from the reference's own prompt builder, so that no sentence of it is missed; special tokens are left out.
    """
    from molmoact2_ros.policy.loading import modeling

    reference = modeling()
    texts: list[str] = []
    for task in tasks:
        for style in ("robot_depth_action", "robot_action"):
            text = reference._build_robot_text(
                task=reference._normalize_question_text(task),
                style=style,
                discrete_state_string=_STATE,
                setup_type=setup_type,
                control_mode=control_mode,
                add_setup_tokens=True,
                add_control_tokens=True,
                num_images=4,
            )
            for token in (*special_tokens(), "<|image|>", _STATE):
                text = text.replace(token, "\0")
            # A special token cuts the text: what follows it starts a new word.
            texts.extend(piece for piece in text.split("\0") if piece)
    return texts


def build_tokenizer(
    texts: Iterable[str], *, entries: int = BPE_ENTRIES, num_action_tokens: int = 0
) -> tuple[Qwen2Tokenizer, int]:
    """Train a byte-level BPE on `texts` and add the special tokens of a MolmoAct2 checkpoint.

    Args:
        texts: what the prompts will say. Every word of it becomes one token, as long as `entries` last.
        entries: bound on the BPE, the 256 bytes included; a short list of texts uses fewer.
        num_action_tokens: size of the discrete action family (0: continuous actions only).

    Returns:
        The tokenizer, and the vocabulary size: a multiple of 64; the image tokens have the ids from there on.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    if entries < 256:
        raise ValueError(f"a byte-level BPE has at least the 256 bytes, got entries={entries}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.train_from_iterator(
        sorted(set(texts)),
        trainers.BpeTrainer(
            vocab_size=entries,
            min_frequency=1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        bos_token="<|im_end|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )

    def add(tokens: Iterable[str]) -> None:
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])

    add(special_tokens(num_action_tokens))
    size = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    add(f"|<EXTRA_TOKENS_{index}>|" for index in range(size - len(tokenizer)))
    add(IMAGE_TOKENS)
    if len(tokenizer) != size + len(IMAGE_TOKENS):
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} entries, expected {size} + {len(IMAGE_TOKENS)}")
    return tokenizer, size
