"""The reference's private functions that are called here, by the arguments that they had when it was tested.

Another release of lerobot may change them without a word; then the first load names the one that changed.
"""

from __future__ import annotations

import inspect
from types import ModuleType

CALLED = {
    "_normalize_question_text": "text",
    "_compute_depth_update_mask": "current_image previous_image num_depth_codes",
    "_extract_first_image": "images",
    "_normalize_image_for_cache": "image",
    "_resize_depth_reasoning_image": "image target_size",
    "_build_robot_text": "task style discrete_state_string setup_type control_mode add_setup_tokens add_control_tokens "
    "num_images",
    "_build_discrete_state_string": "state num_state_tokens",
    "_discretize_normalized_state": "state num_state_tokens",
    "_extract_discrete_token_bins": "generated_ids start_token_id end_token_id token_id_to_bin",
    "_RobotStats": "payload",
    "_RobotStats.get_action_dim": "norm_tag",
    "_RobotStats.get_action_horizon": "norm_tag",
    "_RobotStats.get_n_action_steps": "norm_tag",
    "_RobotStats.normalize_state": "state norm_tag",
    "_RobotStats.unnormalize_action": "action norm_tag",
    "MolmoAct2ForConditionalGeneration.predict_action": "processor images task state norm_tag inference_action_mode "
    "enable_depth_reasoning enable_adaptive_depth depth_cache action_tokenizer num_steps n_action_steps generator "
    "normalize_language enable_cuda_graph return_dict",
    "MolmoAct2ForConditionalGeneration._run_ar_decode_step": "token_ids past_key_values attention_bias",
    "MolmoAct2ForConditionalGeneration._generate_depth_prefix": "inputs latest_first_image depth_cache "
    "enable_adaptive_depth",
    "MolmoAct2ForConditionalGeneration._max_depth_decode_steps": "",
    "MolmoAct2Model._get_encoder_attention_mask": "input_ids attention_mask",
    "MolmoAct2Model._depth_gate_from_condition": "input_ids encoder_attention_mask layer_kv_states",
    "MolmoAct2Model._apply_depth_gate_to_layer_kv_states": "layer_kv_states depth_mask gate",
    "MolmoAct2Model._resolve_action_horizon": "action_horizon",
}
"""Names in `modeling_molmoact2`, and the names of their arguments in order."""


def broken(module: ModuleType) -> list[str]:
    """What in `module` is not as it was tested, one line each."""
    found = []
    for name, expected in CALLED.items():
        value: object = module
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            found.append(f"{name} is gone")
            continue
        arguments = " ".join(key for key in inspect.signature(value).parameters if key != "self")  # type: ignore[arg-type]
        if arguments != expected:
            found.append(f"{name} takes ({arguments}), expected ({expected})")
    return found
