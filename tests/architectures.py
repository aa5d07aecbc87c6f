"""A tiny build of every causal language model, and of the encoders, that transformers knows.

``build(name)`` gives one of them with the tests' byte vocabulary and seeded random weights, of a
size at which attention matters and logits differ. A name is a model type of transformers, or such
a type and a variant: ``llama``, ``llama:longrope``. ``NOT_BUILT`` says which types have no tiny
build, and why.

Sizes are set by the names that configs have in common (``SIZES``); what a type needs beside them
is in ``SETTINGS``, a row a type.
"""

import dataclasses
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlmodules.models.embedded import tiny_tokenizer

HIDDEN, HEADS, LAYERS, WINDOW, POSITIONS = 32, 4, 2, 8, 512
ORIGINAL = 40
"""Positions below which frequencies that follow the longest row are the same for all rows."""

SIZES: dict[str, Any] = {
    # a decoder where the type has both
    "is_decoder": True,
    # tokens
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "sep_token_id", "forced_eos_token_id"), 2),
    # width
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim",
         "input_embedding_size", "lru_width", "attention_hidden_size", "backbone_hidden_size",
         "pronunciation_embed_dim", "shape_embed_dim", "hidden_size_global", "embedding_dim",
         "adapter_in_dim", "adapter_out_dim", "adapter_input_size", "adapter_output_size"), HIDDEN),
    "output_embedding_size": 48,
    # depth
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
         "encoder_layers", "num_encoder_layers", "num_decoder_layers", "num_blocks"), LAYERS),
    # heads
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
         "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
         "attention_heads", "linear_num_value_heads", "linear_num_heads", "swa_num_attention_heads",
         "mamba_num_heads", "num_swa_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads",
                     "swa_num_key_value_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "v_head_dim", "qk_nope_head_dim", "kv_channels", "d_head", "dim_head",
         "attention_head_size", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim",
         "swa_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "laurel_rank"), 16),
    # feed-forward
    **dict.fromkeys(
        ("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "n_inner", "d_inner",
         "dff", "dim_ff", "feed_forward_size", "ffn_hidden_size", "intermediate_size_mlp",
         "dense_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 16),
    # experts
    **dict.fromkeys(
        ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts",
         "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "n_group",
                     "topk_group", "first_k_dense_replace", "num_dense_layers"), 1),
    # positions
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
         "max_target_positions", "max_source_positions"), POSITIONS),
    **dict.fromkeys(
        ("sliding_window", "local_attention", "sliding_window_size", "window_size",
         "attention_window_size", "attention_chunk_size"), WINDOW),
    # recurrence
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_ssm",), 64),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    # towers of images and sounds
    **dict.fromkeys(("mm_embed_dim", "output_proj_dims", "ext_pw_out_channel", "vision_output_dim",
                     "depthwise_separable_out_channel", "nemo_conv_channels", "mlp_dim",
                     "output_channels"), HIDDEN),
    **dict.fromkeys(("position_embedding_size", "mm_posemb_size"), 16),
    # what multiplies or caps, far enough from 1 to be noticed where it is forgotten
    **dict.fromkeys(("logit_scale", "lm_head_multiplier", "attention_multiplier",
                     "residual_multiplier", "key_multiplier", "ssm_out_multiplier"), 0.5),
    **dict.fromkeys(("logits_scaling", "embedding_multiplier", "logits_mup_width_multiplier"), 2.0),
    **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping", "logits_soft_cap",
                     "output_logit_soft_cap"), 3.0),
    "query_pre_attn_scalar": 8,
    # an indexer chooses fewer tokens than texts have; of few heads its scores are often all 0, and
    # which of equal ones is chosen depends on the width of the row
    "index_topk": 4, "index_n_heads": 32,
    # the rest
    **dict.fromkeys(("type_vocab_size",), 2),
    **dict.fromkeys(("vocab_size_per_layer_input", "audio_vocab_size"), 259),
    "hidden_size_per_layer_input": 8,
}  # fmt: skip

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
MLA = {"num_key_value_heads": HEADS}
VISION = {"image_size": 28, "patch_size": 14}

UNCAPPED = {"final_logit_softcapping": None, "attn_logit_softcapping": None}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
           "indexer_budget": 4, "indexer_compress_ratio": 2}  # fmt: skip

SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "dbrx": {"rope_parameters": ROPE,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
             "ffn_config": {"ffn_hidden_size": 48, "moe_top_k": 2}},
    "dots3_note_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
                        "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 12,
                        "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "laurel_rank": 8,
                     "layer_types": ["sliding_attention", "full_attention"] * 2,
                     "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [48] * 4},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "sparse"]},
    "gemma3_text": UNCAPPED,
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"head_dim": 16},
    "minicpm3": {"dim_model_base": 16},
    "qwen2_vl_text": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
    "qwen2_vl_vision": {"depth": 2, "embed_dim": HIDDEN},
    "qwen2_5_vl_text": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
    "qwen2_5_vl_vision": {"depth": 2, "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1]},
    "qwen3_vl_vision": {"depth": 2, "out_hidden_size": HIDDEN, "deepstack_visual_indexes": [1]},
    "qwen4_exp_text": INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "autocast_kernel_dtype": "float32"},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "num_hidden_layers": 5,
              "layers_block_type": ["linear_attention", "hybrid"] * 2 + ["linear_attention"]},
    "zamba2": {"num_hidden_layers": 5,
               "layers_block_type": ["linear_attention", "hybrid"] * 2 + ["linear_attention"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a type needs beside ``SIZES``."""

LONGROPE = {
    "max_position_embeddings": POSITIONS, "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 12.8,
                        "original_max_position_embeddings": ORIGINAL,
                        "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]},
}  # fmt: skip


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


VARIANTS: dict[str, dict[str, Any]] = {
    "llama:tied": {"tie_word_embeddings": True},
    "llama:bias": {"attention_bias": True, "mlp_bias": True},
    "llama:linear": _rope("linear", factor=4.0),
    "llama:dynamic": _rope("dynamic", factor=4.0) | {"max_position_embeddings": ORIGINAL},
    "llama:yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "llama:llama3": _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=16),
    "llama:longrope": LONGROPE,
    "phi3:longrope": LONGROPE,
    "phimoe:longrope": LONGROPE | {"rope_parameters": LONGROPE["rope_parameters"]
                                   | {"short_mscale": 1.0, "long_mscale": 1.2}},
    "minicpm3:longrope": LONGROPE | {"rope_parameters": LONGROPE["rope_parameters"]
                                     | {"short_factor": [1.0] * 2, "long_factor": [2.0, 4.0]}},
    "mistral:no-window": {"sliding_window": None},
    "qwen2:window": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe:window": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3:tied": {"tie_word_embeddings": True},
    "qwen3_5:tied": {"text_config": {"tie_word_embeddings": True}},
    "gemma2:no-cap": UNCAPPED,
    "gemma3_text:capped": dict.fromkeys(UNCAPPED, 3.0),
    "gemma4_text:moe": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
                        "moe_intermediate_size": 16},
    "gemma4_text:shared": {"num_kv_shared_layers": 2, "num_hidden_layers": 4,
                           "layer_types": ["sliding_attention", "full_attention"] * 2},
    "falcon:alibi": {"alibi": True},
    "falcon:new": {"new_decoder_architecture": True},
    "mpt:learned": {"attn_config": {"alibi": False}},
    "opt:post-norm": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "gpt_neox:sequential": {"use_parallel_residual": False},
    "gpt2:untied": {"tie_word_embeddings": False},
    "stablelm:parallel": {"use_parallel_residual": True, "qk_layernorm": True},
    "deepseek_v3:full-rank": {"q_lora_rank": None},
    "deepseek_v3:wide-values": {"v_head_dim": 16},  # larger than keys; in others they are smaller
    "granitemoehybrid:recurrent": {"layer_types": ["linear_attention"] * 2},
    "doge:moe": {"is_moe": True},
    "bert:encoder": {"is_decoder": False},
    "xlm:causal": {"causal": True},
    "xlnet:causal": {"attn_type": "uni"},
}  # fmt: skip
"""``type:variant`` -> what differs from the type's own build."""

ENCODERS = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet",
            "roberta", "xlm-roberta")  # fmt: skip
"""Model types that ``build_encoder`` builds, for reward models."""

NOT_BUILT = {
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"),
                    "drafts for another model, whose keys and values it reads"),
    "gemma3n": "its vision tower needs the package timm; gemma3n_text is its language model",
    **dict.fromkeys(("musicgen", "musicgen_melody"),
                    "AutoModelForCausalLM cannot build it from its own config"),
}  # fmt: skip
"""Model types without a tiny build, and why."""

CAUSAL = tuple(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in NOT_BUILT)
"""Model types that ``build`` builds."""


def build(name: str, seed: int = 0, attention: str = "eager") -> PreTrainedModel:
    """A tiny causal language model by its type or variant, in evaluation mode, in float32."""
    return _seeded(AutoModelForCausalLM, config_of(name), seed, attention)


def build_seeing(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of images and text, whole."""
    return _seeded(AutoModelForImageTextToText, config_of(name), seed, "eager")


def build_encoder(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny encoder, without a head."""
    config = config_of(name)
    if hasattr(config, "is_decoder"):
        config.is_decoder = False
    return _seeded(AutoModel, config, seed, "eager")


def _seeded(auto: Any, config: PreTrainedConfig, seed: int, attention: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
        with torch.no_grad():
            for weight in model.parameters():
                _spread(weight)
    return model.eval()


def _spread(weight: nn.Parameter) -> None:
    """Matrices large enough that attention and logits are far from even; no two biases alike."""
    scale = 0.2 if weight.ndim > 1 else 0.05
    if weight.numel() > 1 and bool((weight == weight.flatten()[0]).all()):
        weight.add_(torch.randn_like(weight) * scale)
    elif weight.ndim > 1 and weight.std() < scale / 2:
        weight.mul_(scale / weight.std())


@cache
def vocabulary() -> int:
    return len(tiny_tokenizer())


def config_of(name: str) -> PreTrainedConfig:
    """The tiny config of a model type, or of a variant of one."""
    kind, _, variant = name.partition(":")
    if variant and name not in VARIANTS:
        raise KeyError(name)
    return _config(CONFIG_MAPPING[kind], SETTINGS.get(kind, {}) | VARIANTS.get(name, {}))


def _config(cls: type[PreTrainedConfig], more: dict[str, Any]) -> PreTrainedConfig:
    """Of ``cls``: small where it has a field of a known name, each kind of its layers present."""
    fields = {field.name for field in dataclasses.fields(cls)}
    sizes = SIZES | {"vocab_size": vocabulary()}
    small = {name: value for name, value in sizes.items() if name in fields}
    if "kv_lora_rank" in fields:
        small |= MLA
    if {"image_size", "patch_size"} <= fields:
        small |= VISION
    if "layer_types" in fields and "layer_types" not in more and "num_hidden_layers" not in more:
        kinds = list(dict.fromkeys(getattr(cls(), "layer_types", None) or ()))
        if len(kinds) > 1:
            small |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    for part, spec in cls.sub_configs_defaults.items():
        kind = spec.get_config_class(spec.model_type)
        own = SETTINGS.get(kind.model_type, {})
        small[part] = _config(kind, own | more.pop(part, {}))
    return cls(**small | more)
