"""The training loss of a small MolmoAct2: flow matching for the chunk, cross-entropy for the depth tokens, and place.

The reference class offers only the language-model loss and lerobot's policy only the flow loss; both come from one
forward here. A third, small head reads the cube's place from the last prompt token. It exists during training only:
it makes the vision tower learn to localise within minutes instead of hours, since the flow loss alone hardly rewards
it at first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from molmoact2_ros.policy.loading import modeling

if TYPE_CHECKING:
    from lerobot.policies.molmoact2.molmoact2_hf_model.modeling_molmoact2 import MolmoAct2ForConditionalGeneration
    from lerobot.policies.molmoact2.molmoact2_hf_model.processing_molmoact2 import MolmoAct2Processor


@dataclass(frozen=True)
class PromptTemplate:
    """The token ids of one prompt, in which only the state tokens and the images change from example to example."""

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    state_positions: torch.Tensor
    token_pooling: torch.Tensor

    @staticmethod
    def build(
        model: MolmoAct2ForConditionalGeneration, processor: MolmoAct2Processor, metadata: dict[str, Any], task: str
    ) -> PromptTemplate:
        """Tokenise the reference's own prompt for `metadata` (one tag of norm_stats.json) and `task`, with depth."""
        reference = modeling()
        cameras, dof = len(metadata["camera_keys"]), len(metadata["state_stats"]["q01"])
        text = reference._build_robot_text(
            task=reference._normalize_question_text(task),
            style="robot_depth_action",
            discrete_state_string=reference._build_discrete_state_string(np.zeros(dof), model.config.num_state_tokens),
            setup_type=metadata["setup_type"],
            control_mode=metadata["control_mode"],
            add_setup_tokens=model.config.add_setup_tokens,
            add_control_tokens=model.config.add_control_tokens,
            num_images=cameras,
        )
        blank = [np.zeros((240, 320, 3), np.uint8)] * cameras
        inputs = processor(text=text, images=blank, return_tensors="pt")
        ids = inputs["input_ids"][0]
        first = int(model.config.state_token_start_id)
        positions = ((ids >= first) & (ids < first + model.config.num_state_tokens)).nonzero().flatten()
        if len(positions) != dof:
            raise RuntimeError(f"the prompt has {len(positions)} state tokens, expected {dof}")
        _, pooling = model.model.build_batched_images(
            inputs["input_ids"],
            inputs["pixel_values"],
            inputs["image_token_pooling"],
            inputs["image_grids"],
            inputs["image_num_crops"],
        )
        return PromptTemplate(ids, inputs["token_type_ids"][0], positions, pooling[0])


def patches(images: NDArray[np.uint8], patch: int) -> torch.Tensor:
    """Pictures (n, cameras, s, s, 3) to uint8 patches (n, cameras, (s/patch)^2, patch*patch*3), as the processor lays
    them out."""
    n, cameras, side = images.shape[:3]
    grid = side // patch
    cut = images.reshape(n, cameras, grid, patch, grid, patch, 3).transpose(0, 1, 2, 4, 3, 5, 6)
    return torch.from_numpy(np.ascontiguousarray(cut.reshape(n, cameras, grid * grid, patch * patch * 3)))


class Objective(nn.Module):
    """Losses of a batch. Holds the model and the auxiliary head; only the model is written to a checkpoint."""

    def __init__(
        self, model: MolmoAct2ForConditionalGeneration, template: PromptTemplate, flow_samples: int = 4
    ) -> None:
        super().__init__()
        self.model = model
        self.template = template
        self.flow_samples = flow_samples
        width = model.config.text_config.hidden_size
        self.place_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3))

    def forward(
        self,
        images: torch.Tensor,
        state_bins: torch.Tensor,
        chunks: torch.Tensor,
        codes: torch.Tensor,
        place: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a batch.

        Args:
            images: (n, cameras, patches, pixels) uint8. state_bins: (n, dof) int64. chunks: (n, horizon, dof) in [-1,
            1]. codes: (n, cells) int64 depth codes. place: (n, 3) normalised place of the cube.
        """
        hidden, kv_states, depth_ids = self._encode(images, state_bins, codes)
        prompt = len(self.template.input_ids)
        logits = self.model.lm_head(hidden[:, prompt - 1 : -1])
        return {
            "flow": self._flow_loss(kv_states, chunks),
            "depth": functional.cross_entropy(logits.flatten(0, 1).float(), depth_ids.flatten()),
            "place": functional.mse_loss(self.place_head(hidden[:, prompt - 1]).float(), place),
        }

    @torch.no_grad()
    def act(self, images: torch.Tensor, state_bins: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Normalised chunks (n, horizon, max_action_dim) by Euler steps, with the true depth codes in the prompt.

        Quicker than `predict_action` by the decoding of the depth tokens; for gathering and for a first look only.
        """
        _, kv_states, _ = self._encode(images, state_bins, codes)
        config, expert = self.model.config, self.model.model.action_expert
        n, steps = len(images), int(config.flow_matching_num_steps)
        context = expert.prepare_context(
            encoder_kv_states=kv_states,
            batch_size=n,
            seq_len=config.max_action_horizon,
            device=images.device,
            dtype=kv_states[0][0].dtype,
        )
        chunk = torch.randn(n, config.max_action_horizon, config.max_action_dim)
        valid = torch.zeros(config.max_action_dim)
        valid[: state_bins.shape[1]] = 1.0
        chunk = chunk * valid
        for step in range(steps):
            chunk = chunk + self._velocity(chunk, torch.full((n,), step / steps), context) * valid / steps
        return chunk

    def _encode(self, images: torch.Tensor, state_bins: torch.Tensor, codes: torch.Tensor) -> Any:
        """One forward over prompt and depth tokens: last hidden states, K/V of every layer, ids of the depth tokens."""
        from transformers.cache_utils import DynamicCache

        config, backbone = self.model.config, self.model.model
        n = len(images)
        ids = self.template.input_ids.repeat(n, 1)
        ids[:, self.template.state_positions] = state_bins + int(config.state_token_start_id)
        ends = torch.tensor([[int(config.depth_start_token_id), int(config.depth_end_token_id)]]).expand(n, 2)
        depth_ids = torch.cat([ends[:, :1], codes + int(config.depth_token_start_id), ends[:, 1:]], dim=1)
        ids = torch.cat([ids, depth_ids], dim=1)
        types = functional.pad(self.template.token_type_ids, (0, depth_ids.shape[1])).expand(n, -1)

        embeds, _ = backbone.build_input_embeddings(ids, images, self.template.token_pooling.expand(n, -1, -1))
        bias = backbone._build_native_attention_bias(
            inputs_embeds=embeds, attention_mask=None, token_type_ids=types, past_key_values=None
        )
        cache = DynamicCache()
        out = backbone.transformer(
            attention_mask=bias,
            inputs_embeds=embeds,
            past_key_values=cache,
            use_cache=True,
            cache_position=torch.arange(ids.shape[1]),
        )
        return out.last_hidden_state, backbone._extract_kv_states(out.past_key_values), depth_ids

    def _velocity(self, chunk: torch.Tensor, times: torch.Tensor, context: Any) -> torch.Tensor:
        """The action expert's velocity for `chunk` at flow `times` (n,), 0 being noise: the one call that training and
        use share, since a model that learned from other times than the reference asks with would move wrongly."""
        velocity: torch.Tensor = self.model.model.action_expert.forward_with_context(chunk, times, context=context)
        return velocity

    def _flow_loss(self, kv_states: Any, chunks: torch.Tensor) -> torch.Tensor:
        config, expert = self.model.config, self.model.model.action_expert
        n, horizon, dof = chunks.shape
        repeats = self.flow_samples
        context = expert.prepare_context(
            encoder_kv_states=kv_states,
            batch_size=n,
            seq_len=horizon,
            device=chunks.device,
            dtype=kv_states[0][0].dtype,
        )
        context.kv_contexts = [
            (k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)) for k, v in context.kv_contexts
        ]
        target = functional.pad(chunks, (0, config.max_action_dim - dof)).repeat_interleave(repeats, 0)
        noise = torch.randn_like(target)
        noise[..., dof:] = 0.0
        beta = torch.distributions.Beta(config.flow_matching_beta_alpha, config.flow_matching_beta_beta)
        upper = min(config.flow_matching_cutoff, config.flow_matching_time_offset + config.flow_matching_time_scale)
        low = config.flow_matching_time_offset
        times = low + (upper - low) * beta.sample((n * repeats,))
        mixed = (1.0 - times[:, None, None]) * noise + times[:, None, None] * target
        velocity = self._velocity(mixed, times, context)
        return functional.mse_loss(velocity[..., :dof].float(), (target - noise)[..., :dof])
