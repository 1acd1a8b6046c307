"""The text stage: the reference's decoder layers over a preallocated key/value store that rolls back by length.

Prefill, verification of a drafted block and one decoded token are the same call with other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from molmoact2_ros.policy.checkpoints.settings import CheckpointError


class KeyValueStore:
    """Keys and values of every layer, (layers, capacity, kv heads * head size), of which the first `length` rows count.

    Invariant: rows at `length` and above are never read; setting `length` back forgets them.
    """

    def __init__(self, layers: int, capacity: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.keys = torch.zeros((layers, capacity, width), device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return self.keys.shape[1]

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that count, (layers, length, width) each, as views."""
        return self.keys[:, : self.length], self.values[:, : self.length]


MASKED = -30000.0
"""Added to the score of what may not be seen: its weight is exactly zero, and half precision and TensorRT hold it."""

Extend = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Takes a layer's index and the new rows' keys and values (n, kv width); returns all that the layer reads."""


class TextDecoder(nn.Module):
    """The reference's text model without its cache, its masks and its head.

    Where only the last rows' outputs are wanted, the last layer computes only those: of the other rows nothing but
    keys and values is ever used.

    Raises:
        CheckpointError: the text model has rotary scaling, which this decoder does not do.
    """

    def __init__(self, text: Any) -> None:
        super().__init__()
        config = text.config
        if config.rope_scaling_layers is not None or text.rotary_emb.rope_type != "default":
            raise CheckpointError("backend torch: the text model scales its rotary positions; use backend reference")
        self.blocks, self.ln_f, self.wte = text.blocks, text.ln_f, text.wte
        self.heads, self.kv_heads, self.head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.norm_after = bool(config.norm_after)
        self.scale = self.head**-0.5
        self.max_positions = int(config.max_position_embeddings)
        self.dtype = next(text.wte.parameters()).dtype
        """Of rows, keys and values; norms and rotary positions may be kept more precisely."""
        weight = text.ln_f.weight
        positions = torch.arange(self.max_positions, device=weight.device)[None]
        cos, sin = text.rotary_emb(weight.new_zeros((1, 1, 1)), positions)
        self.register_buffer("cos", cos[0, :, None].clone(), persistent=False)
        self.register_buffer("sin", sin[0, :, None].clone(), persistent=False)

    def new_store(self, capacity: int) -> KeyValueStore:
        """An empty store for at most `capacity` tokens (never more than the model has positions)."""
        rows = min(capacity, self.max_positions)
        device = self.ln_f.weight.device
        return KeyValueStore(len(self.blocks), rows, self.kv_heads * self.head, device, self.dtype)

    def store_for(self, capacity: int, present: KeyValueStore | None) -> KeyValueStore:
        """An emptied store for at most `capacity` tokens: the `present` one where it suffices."""
        if present is None or present.capacity < min(capacity, self.max_positions):
            return self.new_store(capacity)
        present.length = 0
        return present

    def prepare(self) -> None:
        """Make ready what later calls may need: nothing. What a store holds is lost."""

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (n, width) of token ids (n,), the added ones included, without joining the two tables."""
        if isinstance(self.wte, nn.Embedding):
            return self.wte(ids)
        table, added = self.wte.embedding, self.wte.new_embedding
        # Both tables for every token: to ask which are needed would wait for the device.
        rows = functional.embedding(ids.clamp(max=table.shape[0] - 1), table)
        others = functional.embedding((ids - table.shape[0]).clamp(min=0), added)
        return torch.where((ids >= table.shape[0])[:, None], others, rows)

    def forward(self, x: torch.Tensor, store: KeyValueStore, mask: torch.Tensor | None, outputs: int) -> torch.Tensor:
        """Append the rows `x` (n, width) to `store` and return the normed hidden states of the last `outputs` rows.

        Args:
            mask: (n, store.length + n) added to the attention scores; None where every row sees every key.
            outputs: how many of the last rows are wanted; 0 fills the store only.

        Raises:
            RuntimeError: the sequence would be longer than the store.
        """
        start, end = store.length, store.length + x.shape[0]
        if end > store.capacity:
            raise RuntimeError(f"a sequence of {end} tokens does not fit; the model has room for {store.capacity}")

        def extend(index: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            store.keys[index, start:end], store.values[index, start:end] = k, v
            return store.keys[index, :end], store.values[index, :end]

        last = None
        if outputs < x.shape[0]:
            first = x.shape[0] - outputs

            def last(rows: torch.Tensor) -> torch.Tensor:
                return rows[first:]

        hidden = self.layers(x, self.cos[start:end], self.sin[start:end], mask, extend, last)
        store.length = end
        return hidden

    def layers(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
        extend: Extend,
        wanted: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> torch.Tensor:
        """Every layer over the rows `x` (n, width): the one definition that every backend runs.

        Args:
            cos, sin: (n, 1, head size) of the rows' positions.
            mask: (n, m) added to the scores of the m keys that `extend` returns; None where every row sees all.
            extend: takes the rows' keys and values (n, kv width) of a layer and returns all that the layer reads.
            wanted: picks the rows whose outputs are asked for, from a tensor with a row each; None: all.
        """
        groups = self.heads // self.kv_heads
        tiled = None if mask is None else mask.repeat(groups, 1)
        for index, block in enumerate(self.blocks):
            attention = block.self_attn
            hidden = x if self.norm_after else normed(x, block.attn_norm)
            q, k, v = attention.att_proj(hidden).split(attention.fused_dims, dim=-1)
            if attention.q_norm is not None and attention.qk_norm_type != "qwen3":
                q, k = normed(q, attention.q_norm), normed(k, attention.k_norm)
            q, k = q.view(-1, self.heads, self.head), k.view(-1, self.kv_heads, self.head)
            if attention.q_norm is not None and attention.qk_norm_type == "qwen3":
                q, k = normed(q, attention.q_norm), normed(k, attention.k_norm)
            keys, values = extend(index, turned(k, cos, sin).flatten(1), v)
            if index == len(self.blocks) - 1 and wanted is not None:
                x, q, cos, sin = wanted(x), wanted(q), wanted(cos), wanted(sin)
                if x.shape[0] == 0:
                    break
                tiled = None if mask is None else wanted(mask).repeat(groups, 1)
            x = self._layer(block, x, turned(q, cos, sin), keys, values, tiled)
        return normed(x, self.ln_f)

    def _layer(
        self,
        block: Any,
        x: torch.Tensor,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiled: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention and MLP of one layer. The heads that share keys are laid after each other as more queries."""
        rows, width = q.shape[0], self.heads * self.head
        folded = q.view(rows, self.kv_heads, -1, self.head).permute(1, 2, 0, 3).reshape(1, self.kv_heads, -1, self.head)
        keys, values = (x.view(1, -1, self.kv_heads, self.head).transpose(1, 2) for x in (keys, values))
        mixed = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=tiled, scale=self.scale)
        groups = self.heads // self.kv_heads
        mixed = mixed.view(self.kv_heads, groups, -1, self.head).permute(2, 0, 1, 3).reshape(-1, width)
        mixed = block.self_attn.attn_out(mixed)
        x = x + (normed(mixed, block.attn_norm) if self.norm_after else mixed)
        up, gate = block.mlp.ff_proj(x if self.norm_after else normed(x, block.ff_norm)).chunk(2, dim=-1)
        out = block.mlp.ff_out(block.mlp.act(gate) * up)
        return x + (normed(out, block.ff_norm) if self.norm_after else out)


def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """RMS norm over the last dimension as the reference rounds it: normed in float32, stored, then weighted. A weight
    of a more precise type is applied before it is stored."""
    if norm.weight is not None and norm.weight.dtype != x.dtype:
        return functional.rms_norm(x.to(norm.weight.dtype), (x.shape[-1],), norm.weight, norm.eps).to(x.dtype)
    plain = functional.rms_norm(x, (x.shape[-1],), None, norm.eps)
    return plain if norm.weight is None else plain * norm.weight


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions applied to x (rows, heads, head size); cos and sin (rows, 1, head size)."""
    first, second = x.chunk(2, dim=-1)
    out = x * cos + torch.cat((-second, first), dim=-1) * sin
    return out if out.dtype == x.dtype else out.to(x.dtype)


def causal_mask(is_image: torch.Tensor, capacity: int, dtype: torch.dtype) -> torch.Tensor:
    """What each token may not see, (capacity, capacity), to be added to scores.

    Tokens see what came before them; the prompt's image tokens (`is_image`, bool (n,)) also see each other.
    """
    device = is_image.device
    seen = torch.ones((capacity, capacity), device=device, dtype=torch.bool).tril()
    n = is_image.shape[0]
    seen[:n, :n] |= is_image[:, None] & is_image[None]
    return torch.zeros(seen.shape, device=device, dtype=dtype).masked_fill_(~seen, MASKED)
