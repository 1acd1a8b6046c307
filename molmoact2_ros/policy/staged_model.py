"""The reference's weights run in stages, with the answers of `predict_action` and less work.

The depth sequence is verified from the last frame's draft inside the prefill (`stages/speculation.py`); codes are equal
to the reference's in float32. In half precision the reference does not agree with itself either where two codes are
nearly tied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.discrete import DiscreteActions, open_action_tokenizer
from molmoact2_ros.policy.loading import load_model, open_processor
from molmoact2_ros.policy.options import InferenceOptions as InferenceOptions
from molmoact2_ros.policy.reference import Answer, DepthCache, StageClock, bins_of_sequence, robot_stats, steps_of
from molmoact2_ros.policy.rtc import Prefix
from molmoact2_ros.policy.stages.change import SeenCells, changed_cells, predicted, see_again
from molmoact2_ros.policy.stages.decoder import KeyValueStore, causal_mask
from molmoact2_ros.policy.stages.guidance import Guidance
from molmoact2_ros.policy.stages.preprocess import Preprocess, Template
from molmoact2_ros.policy.stages.speculation import Acceptance, DepthVocabulary, Script, Speculation
from molmoact2_ros.policy.stages.stage_set import OpenStages, torch_stages
from molmoact2_ros.policy.tensors import WeightTypes

CPU_ROW_COST = 0.06
"""One more row of a verified block on a CPU, as a share of a forward of one row; from the prototypes' timings."""


@dataclass
class _Prefix:
    """What the store holds from the last call: keys and values of `template` up to its state tokens, if nothing fails.

    `mask` is made for the template and the store's capacity; `table` holds the embeddings of its fixed tokens.
    """

    template: Template
    store: KeyValueStore
    mask: torch.Tensor
    table: torch.Tensor
    usable: bool = False


@dataclass
class Drafts:
    """What an episode has taught about its depth sequences: `draft` the codes (cells,) that the next call tries first,
    `acceptance` how often drafts were right, and the calls since every cell was predicted anew."""

    acceptance: Acceptance
    draft: list[int] | None = None
    calls_since_refresh: int = 0


class StagedModel:
    """Answers like `ReferenceModel`, by stages.

    `open_stages` makes the stages of the loaded model: a backend is another one of these, all else is the same.
    `loaded` is a model that has its weights already, on any device; None loads the checkpoint's.

    Invariant: rejected tokens are out of the store before the flow reads it; a failed call leaves no trace but time.

    `sequence` holds the tokens of the last depth sequence, `corrections` how many drafts in it were wrong. `episode` is
    what the present episode has taught: whoever alternates between episodes sets it. Whatever its draft holds, the
    answer is the same.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype | WeightTypes,
        log: Callable[[str], None],
        options: InferenceOptions | None = None,
        open_stages: OpenStages = torch_stages,
        loaded: Any = None,
    ) -> None:
        self.options = options or InferenceOptions()
        self.checkpoint = checkpoint
        self.clock = StageClock(device)
        self.corrections = 0
        self.sequence: list[int] = []
        self.model = loaded
        if loaded is None:
            self.model = load_model(checkpoint, device, dtype)
        config = self.model.config
        processor = open_processor(checkpoint, config)
        self._stats = robot_stats(checkpoint)
        tag = checkpoint.norm_tag
        self._dof = int(self._stats.get_action_dim(tag) or config.max_action_dim)
        self._horizon = int(self._stats.get_action_horizon(tag) or self.model.model._resolve_action_horizon())
        self._first_row = int(config.n_obs_steps) - 1
        self._rows = int(self._stats.get_n_action_steps(tag) or self._horizon)
        self._depth = checkpoint.depth_side is not None
        self._preprocess = Preprocess(
            processor, config, checkpoint.metadata, self._depth, device, log, steps_of(checkpoint)
        )
        self.stages = open_stages(self.model.model, self._dof)
        # What a backend left elsewhere (see `tensorrt_stages`): embeddings and the head.
        self.model.to(device)
        self._vision, self._decoder, self._flow = self.stages.vision, self.stages.decoder, self.stages.flow
        self._discrete: DiscreteActions | None = None
        if self.options.action_mode == "discrete":
            tokenizer = open_action_tokenizer(checkpoint.directory, self.options.action_tokenizer)
            head = self.model.lm_head.weight
            self._discrete = DiscreteActions(config, head, tokenizer, self._horizon, self._dof)
        usual = 0.0 if device.type == "cuda" else CPU_ROW_COST
        costs = (self.options.row_cost, self.stages.row_cost, usual)
        self._row_cost = next(cost for cost in costs if cost is not None)
        self.episode = self.new_episode()
        self._prefix: _Prefix | None = None
        self._prepared = False

    @property
    def guidable(self) -> bool:
        """Whether a prefix can guide it: action tokens cannot be."""
        return self._discrete is None

    def new_episode(self) -> Drafts:
        """An episode's beginning: no draft, nothing learnt about drafts."""
        return Drafts(Acceptance(self.options.redraft))

    def reset(self) -> None:
        """Begin an episode. Kept features belong to identical images only."""
        self.episode = self.new_episode()

    def predict(
        self,
        images: list[NDArray[np.uint8]],
        task: str,
        state: NDArray[np.float64],
        *,
        depth_cache: DepthCache | None,
        generator: torch.Generator,
        bound: Prefix | None = None,
    ) -> Answer:
        """One call; see `ReferenceModel.predict`. `task` as `normalized_task` gives it; `bound` guides the flow.

        Raises:
            UnendedSequenceError: the model ended its depth or action tokens too late.
            RuntimeError: the model gave another number of codes, or action tokens that make no chunk.
        """
        clock = self.clock
        clock.reset()
        with torch.inference_mode(), clock.stage("total"):
            with clock.stage("preprocess"):
                scaled = np.asarray(self._stats.normalize_state(state, self.checkpoint.norm_tag), dtype=np.float32)
                template, ids = self._preprocess.prompt(task, scaled, images)
            with clock.stage("change"):
                now, updated = self._changed(images[0], depth_cache)
            # From here on the vision stage may hold other images than the store: whatever fails, it is filled anew.
            usable = self._give_up_prefix()
            with clock.stage("vision"):
                features, same = self._vision.see(images, template.pooling, self._timed_patches)
            prefix = self._open_prefix(template, usable and same)
            if not self._prepared:
                # Before anything can fail: what the model makes of a first, made up image is of no account.
                self._prepared = True
                self._vision.prepare(len(images))
                self._decoder.prepare()
                self._flow.prepare(prefix.store.keys[:, :1], prefix.store.values[:, :1], self._horizon)
            tokens, hidden = self._decode(prefix, template, ids, features, depth_cache, updated)
            with clock.stage("flow"):
                if self._discrete is None:
                    actions = self._actions(torch.cat((ids, tokens)), prefix.store, generator, bound)
                else:
                    actions = self._written(self._discrete, prefix, tokens, hidden)
            prefix.usable = template.state.stop > 0 and bool(np.all(np.isfinite(actions)))
        bins, cache = self._codes(tokens, now, depth_cache, updated)
        return Answer(actions, bins, updated, cache, self._milliseconds(), clock.forwards)

    def depth_logits(
        self, images: list[NDArray[np.uint8]], task: str, state: NDArray[np.float64], codes: NDArray[np.int64]
    ) -> torch.Tensor:
        """What the model makes of every cell when the cells before it hold `codes` (cells,): float32 (cells, codes)."""
        words = self._vocabulary()
        with torch.inference_mode():
            scaled = np.asarray(self._stats.normalize_state(state, self.checkpoint.norm_tag), dtype=np.float32)
            template, ids = self._preprocess.prompt(task, scaled, images)
            self._give_up_prefix()
            features, _ = self._vision.see(images, template.pooling, self._timed_patches)
            prefix = self._open_prefix(template, False)
            tokens = torch.tensor([words.start, *(words.first_code + codes[:-1])], device=ids.device)
            rows = torch.cat((self._embedded(prefix, template, ids, features), self._decoder.embed(tokens)))
            hidden = self._append(prefix, rows, len(codes))
            return functional.linear(hidden, words.head[words.first_code : words.first_code + words.num_codes]).float()

    # -- stages ------------------------------------------------------------------------------------------------------

    def _timed_patches(self, images: Any) -> list[torch.Tensor]:
        with self.clock.stage("patches"):
            return self._preprocess.patches(images)

    def _changed(
        self, image: NDArray[np.uint8], cache: DepthCache | None
    ) -> tuple[SeenCells | None, NDArray[np.bool_] | None]:
        """This frame's cells, and which are predicted anew (cells,); None without depth reasoning."""
        side = self.checkpoint.depth_side
        if side is None:
            return None, None
        before = None if cache is None else cache.get("cells")
        if before is None and cache is not None:
            before = see_again(cache["image"], None, side)
        now = see_again(image, before, side)
        every = self.options.refresh_every
        if (
            before is None
            or self.options.depth_mode == "full"
            or (every and self.episode.calls_since_refresh + 1 >= every)
        ):
            return now, np.ones(side * side, bool)
        return now, changed_cells(now, before)

    def _give_up_prefix(self) -> bool:
        """Whether the last call's prefix was usable; it is not any more."""
        prefix = self._prefix
        usable = prefix is not None and prefix.usable
        if prefix is not None:
            prefix.usable = False
        return usable

    def _open_prefix(self, template: Template, keep: bool) -> _Prefix:
        """The store for this prompt; emptied, or down to the state tokens where `keep` says that images are the same
        and the last call went well."""
        prefix = self._prefix
        if prefix is None or prefix.template is not template:
            side = self.checkpoint.depth_side or 0
            steps = max(8, self._max_horizon()) + side * side + 1
            if self.options.depth_mode == "full":
                steps = self._full_steps()
            if self._discrete is not None:
                steps += self._discrete.limit
            needed, keep = template.ids.shape[0] + steps, False
            store = self._decoder.store_for(needed, None if prefix is None else prefix.store)
            mask = causal_mask(template.is_image, store.capacity, store.keys.dtype)
            prefix = self._prefix = _Prefix(template, store, mask, self._decoder.embed(template.ids))
        # Image tokens precede the state and see only each other and what precedes them: with the same images, keys
        # and values up to the state tokens are those of the last call.
        prefix.store.length = template.state.start if keep else 0
        return prefix

    def _decode(
        self,
        prefix: _Prefix,
        template: Template,
        ids: torch.Tensor,
        features: list[torch.Tensor],
        cache: DepthCache | None,
        updated: NDArray[np.bool_] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefill and depth: the depth sequence's tokens (m,), none without depth reasoning, and the hidden state
        (1, width) of the last token, none where the flow does not ask for it."""
        clock, store, episode = self.clock, prefix.store, self.episode
        with clock.stage("prompt"):
            x = self._embedded(prefix, template, ids, features)[store.length :]
        if updated is None:
            with clock.stage("first"):
                hidden = self._append(prefix, x, 0 if self._discrete is None else 1)
            self.sequence = []
            return ids[:0], hidden
        prompt, waiting = ids.shape[0], [x]

        def forward(block: list[int]) -> torch.Tensor:
            rows = self._decoder.embed(torch.tensor(block, device=ids.device)) if block else x[:0]
            if not waiting:
                return self._append(prefix, rows, len(block))
            with clock.stage("first"):
                return self._append(prefix, torch.cat((waiting.pop(), rows)), len(block) + 1)

        def rollback(length: int) -> None:
            store.length = prompt + length

        with clock.stage("decode"):
            sequence = Speculation(
                self._vocabulary(), self._script(cache, updated), episode.draft, episode.acceptance, self._row_cost
            ).run(forward, rollback)
        self.corrections, self.sequence = sequence.corrections, sequence.tokens
        return torch.tensor(sequence.tokens, device=ids.device, dtype=ids.dtype), sequence.hidden

    def _embedded(
        self, prefix: _Prefix, template: Template, ids: torch.Tensor, features: list[torch.Tensor]
    ) -> torch.Tensor:
        """The prompt's rows (n, width), images included."""
        x = prefix.table.clone()
        x[template.state] = self._decoder.embed(ids[template.state])
        x[template.patches] += torch.cat(features).to(x.dtype)
        return x

    def _append(self, prefix: _Prefix, rows: torch.Tensor, outputs: int) -> torch.Tensor:
        """One pass through the language model: `rows` into the store, hidden states of the last `outputs` out."""
        self.clock.forwards += 1
        start, end = prefix.store.length, prefix.store.length + rows.shape[0]
        mask = None if rows.shape[0] == 1 else prefix.mask[start:end, :end]
        return self._decoder(rows, prefix.store, mask, outputs)

    def _actions(
        self, ids: torch.Tensor, store: KeyValueStore, generator: torch.Generator, bound: Prefix | None
    ) -> NDArray[np.float32]:
        """The chunk (rows, dof) in the checkpoint's units, by the flow."""
        noise = self._flow.noise(self._horizon, generator)
        guidance = None
        if bound is not None:
            rows = self._stats.action_normalizers[self.checkpoint.norm_tag].normalize(bound.actions)
            guidance = Guidance.of_rows(rows, bound.weights, bound.max_weight, self._first_row, noise)
        return self._unscaled(self._flow(noise, self._flow.context(ids, *store.states()), guidance))

    def _written(
        self, discrete: DiscreteActions, prefix: _Prefix, depth: torch.Tensor, hidden: torch.Tensor
    ) -> NDArray[np.float32]:
        """The chunk (rows, dof) in the checkpoint's units, from action tokens behind the depth sequence."""

        def forward(block: list[int]) -> torch.Tensor:
            rows = self._decoder.embed(torch.tensor(block, device=hidden.device))
            return self._append(prefix, rows, len(block))

        self.sequence = depth.tolist() + discrete.sequence(hidden, forward)
        return self._unscaled(torch.from_numpy(discrete.chunk(self.sequence))[None])

    def _unscaled(self, chunk: torch.Tensor) -> NDArray[np.float32]:
        """What the robot gets of a chunk (1, horizon, width) in -1 .. 1: (rows, dof) in the checkpoint's units."""
        chosen = chunk[..., : self._dof][:, self._first_row : self._first_row + self._rows]
        scaled = self._stats.unnormalize_action(chosen, self.checkpoint.norm_tag)
        actions: NDArray[np.float32] = torch.as_tensor(scaled, dtype=torch.float32)[0].cpu().numpy()
        return actions

    # -- depth -------------------------------------------------------------------------------------------------------

    def _vocabulary(self) -> DepthVocabulary:
        config = self.model.config
        return DepthVocabulary(
            int(config.depth_start_token_id),
            int(config.depth_end_token_id),
            int(config.depth_token_start_id),
            int(config.num_depth_tokens),
            self.model.lm_head.weight,
        )

    def _script(self, cache: DepthCache | None, updated: NDArray[np.bool_]) -> Script:
        cells = updated.size
        if self.options.depth_mode == "full":
            return Script(cells, [None] * cells, True, self._full_steps() - 1)
        old = [None] * cells if cache is None else [int(code) for code in cache["depth_bins"]]
        forced = [None if anew else code for anew, code in zip(updated, old, strict=True)]
        return Script(cells, forced, False, cells + max(8, self._max_horizon()))

    def _codes(
        self,
        tokens: torch.Tensor,
        now: SeenCells | None,
        cache: DepthCache | None,
        updated: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.int64] | None, DepthCache | None]:
        """The codes of a sequence and the cache for the next call; the draft is renewed."""
        if now is None or updated is None:
            return None, cache
        words, sequence = self._vocabulary(), tokens.tolist()
        if self.options.depth_mode == "full":
            bins = bins_of_sequence(sequence, words.start, words.end, words.first_code, words.num_codes)
        else:
            bins = [token - words.first_code for token in sequence[1 : updated.size + 1]]
        if len(bins) != updated.size:
            raise RuntimeError(f"the model gave {len(bins)} depth codes, expected {updated.size}")
        self.episode.draft = bins
        self.episode.calls_since_refresh = 0 if updated.all() else self.episode.calls_since_refresh + 1
        codes = np.array(bins, dtype=np.int64)
        before = None if cache is None else cache.get("cells")
        cells = predicted(now, before, updated) if self.options.drift_safe else now
        return codes, {"image": now.image, "depth_bins": codes, "cells": cells}

    def _max_horizon(self) -> int:
        return int(self.model.model._resolve_action_horizon())

    def _full_steps(self) -> int:
        return int(self.model._max_depth_decode_steps())

    def _milliseconds(self) -> dict[str, float]:
        """Stage times without overlap."""
        raw = {name: 1e3 * value for name, value in self.clock.seconds().items()}
        patches, first = raw.get("patches", 0.0), raw.get("first", 0.0)
        return {
            "preprocess": raw["preprocess"] + raw["change"] + patches,
            "vision": raw["vision"] - patches,
            "prefill": raw["prompt"] + first,
            "depth": max(raw.get("decode", first) - first, 0.0),
            "flow": raw["flow"],
            "total": raw["total"],
        }
