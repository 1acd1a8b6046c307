"""The flow stage: from the text model's keys and values to a chunk, by Euler steps from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from molmoact2_ros.policy.checkpoints.settings import CheckpointError
from molmoact2_ros.policy.stages.decoder import normed
from molmoact2_ros.policy.stages.guidance import Guidance, integrate


class FlowStage(nn.Module):
    """The reference's action expert, with what does not depend on the noise computed once.

    Timestep modulations are computed at construction; the context of all layers is projected in one product a call.

    Raises:
        CheckpointError: the expert attends causally, which the reference itself cannot run.
    """

    def __init__(self, model: Any, action_dim: int) -> None:
        super().__init__()
        expert, config = model.action_expert, model.config
        if expert.config.causal_attn:
            raise CheckpointError("backend torch: the action expert is causal; use backend reference")
        self.model = model
        self.expert = expert
        self.steps = int(config.flow_matching_num_steps)
        self.width = int(config.max_action_dim)
        self.heads, self.head = expert.config.num_heads, expert.action_head_dim
        # The reference zeroes the dimensions that the robot does not have, before and after every step.
        self.kept = action_dim if config.mask_action_dim_padding and action_dim < self.width else None
        with torch.inference_mode():
            self._prepare_modulations()
            self._prepare_gates()

    def noise(self, horizon: int, generator: torch.Generator) -> torch.Tensor:
        """The start of the flow, (1, horizon, width), drawn as the reference draws it."""
        weight = self.expert.action_embed.weight
        return torch.randn((1, horizon, self.width), device=weight.device, dtype=weight.dtype, generator=generator)

    def context(self, ids: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What every layer's cross attention reads, (layers, heads, n, head size) each, already normed.

        Args:
            ids: (n,) every token behind `keys` and `values` (layers, n, text kv width): prompt and depth sequence.
        """
        kind = self.expert.action_embed.weight.dtype
        return self.project(*self._conditioned(ids, keys.to(kind), values.to(kind)))

    def prepare(self, keys: torch.Tensor, values: torch.Tensor, horizon: int) -> None:
        """Make ready what later calls with chunks of `horizon` rows need: nothing. Keys and values as `project`'s."""

    def project(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (layers, n, text kv width) as the expert's heads read them, (layers, heads, n, head size)."""
        k, v = (self._projected(x, proj) for x, proj in ((keys, "context_k_proj"), (values, "context_v_proj")))
        k_norm = self.expert.blocks[0].cross_attn.k_norm
        return (k if k_norm is None else normed(k, k_norm)), v

    def _conditioned(
        self, ids: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (layers, m, width) of the tokens that the expert sees, depth tokens scaled by their gate."""
        valid = None
        if self.model.config.action_mode == "both":
            valid = self.model._get_encoder_attention_mask(ids[None], None)[0]
        if self.gate_weight is not None:
            scale = self._gate(ids, valid, values)
            keys, values = keys * scale, values * scale
        if valid is not None:
            # A masked token has weight zero: leaving it out is the same and needs no mask.
            keys, values = keys[:, valid], values[:, valid]
        return keys, values

    def _prepare_gates(self) -> None:
        """The depth gates of all layers as one: weights (layers or 1, text kv width), biases, and the depth tokens."""
        heads = self.model.action_expert_depth_gate
        weight = bias = tokens = None
        if heads is not None and self.model._depth_gate_token_ids:
            each = list(heads) if isinstance(heads, nn.ModuleList) else [heads]
            weight, bias = torch.cat([head.weight for head in each]), torch.cat([head.bias for head in each])
            tokens = torch.tensor(self.model._depth_gate_token_ids, device=weight.device)
        self.register_buffer("gate_weight", weight, persistent=False)
        self.register_buffer("gate_bias", bias, persistent=False)
        self.register_buffer("gated_tokens", tokens, persistent=False)

    def _gate(self, ids: torch.Tensor, valid: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
        """What keys and values are multiplied by, (layers or 1, n, 1): each layer's gate at depth tokens, else one.

        A gate looks at the mean of the values (layers, n, width) of all that are no depth tokens: of its own layer, or
        where there is one gate for all, of the last.
        """
        seen = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        depth = (ids[:, None] == self.gated_tokens).any(dim=-1) & seen
        pool = seen & ~depth
        pool = torch.where(pool.any(), pool, seen)
        weights = pool.to(values.dtype)[:, None]
        sources = values[-self.gate_weight.shape[0] :]
        pooled = (sources * weights).sum(dim=1) / weights.sum(dim=0).clamp_min(1.0)
        pooled = pooled.to(self.gate_weight.dtype)
        logits = torch.baddbmm(self.gate_bias[:, None, None], pooled[:, None], self.gate_weight[:, :, None])
        gate = torch.sigmoid(logits).to(values.dtype)
        return torch.where(depth[None, :, None], gate, torch.ones_like(gate))

    def forward(
        self, noise: torch.Tensor, context: tuple[torch.Tensor, torch.Tensor], guidance: Guidance | None = None
    ) -> torch.Tensor:
        """Integrate `noise` (1, horizon, width) from time 0 to 1 and return the normalised actions, same shape."""
        rope = self.rope(noise)
        return integrate(noise, lambda x, step: self.step(x, step, context, rope), self.steps, self._masked, guidance)

    def _prepare_modulations(self) -> None:
        weight = self.expert.action_embed.weight
        times = [
            torch.full((1,), step / self.steps, device=weight.device, dtype=torch.float32) for step in range(self.steps)
        ]
        prepared = self.expert.prepare_modulation_cache(times)
        blocks = [torch.stack([_ready(block) for block in step.block_modulations]) for step in prepared]
        final = [torch.stack((step.final_modulation[0], 1 + step.final_modulation[1])) for step in prepared]
        self.register_buffer("modulations", torch.stack(blocks), persistent=False)
        self.register_buffer("finals", torch.stack(final), persistent=False)

    def _projected(self, x: torch.Tensor, projection: str) -> torch.Tensor:
        flat = getattr(self.expert, projection)(x)
        if not isinstance(self.expert.context_norm, nn.Identity):
            flat = normed(flat, self.expert.context_norm)
        return flat.view(*flat.shape[:2], self.heads, self.head).transpose(1, 2)

    def rope(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cosine and signed sine of the positions in `x` (1, horizon, width); None where the expert has none."""
        rope = self.expert.blocks[0].self_attn.rope
        if rope is None:
            return None
        cos, sin = rope.build_cache(seq_len=x.shape[1], device=x.device, dtype=x.dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def _masked(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return x
        x = x.clone()
        x[..., self.kept :] = 0
        return x

    def step(
        self,
        actions: torch.Tensor,
        step: int,
        context: tuple[torch.Tensor, torch.Tensor],
        rope: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """The velocity (1, horizon, width) of `actions` at Euler step `step`; what a backend replaces."""
        return self.velocity(actions, self.modulations[step], self.finals[step], *context, rope, None)

    def velocity(
        self,
        actions: torch.Tensor,
        modulation: torch.Tensor,
        final: torch.Tensor,
        keys: Sequence[torch.Tensor] | torch.Tensor,
        values: Sequence[torch.Tensor] | torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor] | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """One pass of the expert: the one definition that every backend runs.

        Args:
            actions: (1, horizon, width). modulation: (blocks, 9, 1, expert width). final: (2, 1, expert width).
            keys, values: for each block (heads, n, head size), from `project`.
            rope: from `rope`; None where the expert has no positions.
            mask: (1, n) added to the scores of the context's tokens, None where all are seen.
        """
        x = self.expert.action_embed(actions)
        for index, block in enumerate(self.expert.blocks):
            mod = modulation[index]
            attended = self._self_attention(block.self_attn, _shifted(x, block.self_norm, mod[0], mod[1]), rope)
            x = torch.addcmul(x, mod[2], attended)
            k, v = keys[index][None], values[index][None]
            shifted = _shifted(x, block.cross_norm, mod[3], mod[4])
            x = torch.addcmul(x, mod[5], self._cross_attention(block.cross_attn, shifted, k, v, mask))
            x = torch.addcmul(x, mod[8], block.mlp(_shifted(x, block.ff_norm, mod[6], mod[7])))
        return self.expert.final_layer.linear(_shifted(x, self.expert.final_layer.norm, final[0], final[1]))

    def _self_attention(
        self, attention: Any, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        # Queries and keys together, (2, heads, rows, head size): their norms have no weights.
        qkv = attention.qkv(x).view(-1, 3, self.heads, self.head).permute(1, 2, 0, 3)
        both = qkv[:2]
        if attention.q_norm is not None:
            both = normed(both, attention.q_norm)
        if rope is not None:
            # The halves change places; their signs are in the sine.
            both = torch.addcmul(both * rope[0], both.roll(self.head // 2, dims=-1), rope[1])
        mixed = functional.scaled_dot_product_attention(both[:1], both[1:], qkv[2:])
        return attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))

    def _cross_attention(
        self, attention: Any, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        q = attention.q_proj(x).view(1, -1, self.heads, self.head).transpose(1, 2)
        if attention.q_norm is not None:
            q = normed(q, attention.q_norm)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))


def _ready(modulation: Sequence[torch.Tensor]) -> torch.Tensor:
    """Shift, one plus scale, and gate of self-attention, cross-attention and MLP, (9, 1, width)."""
    return torch.stack([1 + part if index % 3 == 1 else part for index, part in enumerate(modulation)])


def _shifted(x: torch.Tensor, norm: Any, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, normed(x, norm), scale)
