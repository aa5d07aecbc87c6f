"""Every option, by what changing it in a resumed run does to the result."""

from collections.abc import Iterator
from enum import Enum
from typing import Any


class Effect(Enum):
    """Of changing an option when a run goes on."""

    NONE = "the result is the same, so nothing is said"
    LENGTH = "the run is longer or shorter; said where the learning rate follows its length"
    APPLIED = "it takes effect from the next step or rollout on, and is said"
    REFUSED = "the result would be of neither run; refused, unless resume.allow names it"
    ORDER = "as REFUSED, and never within an epoch, whose batches are those of the old value"


N, L, A, R, O = Effect  # noqa: E741
GROUPS_AROUND = ("callbacks", "logger", "paths", "task", "export", "resume", "run", "sweep")
OPTIONS_AROUND = (
    "ckpt_path", "longest_batch_first", "optimized_metric", "suggested", "out", "runs",
)  # fmt: skip
"""What stands around a run: none of it makes another one."""
TABLE: dict[str, dict[Effect, str]] = {
    "algo": {
        N: "save_every eval_samples",
        L: "num_iterations num_epochs",
        A: """learning_rate value_learning_rate weight_decay max_grad_norm
            lr_scheduler_type warmup_ratio warmup_steps value_warmup_iterations
            optimizer.betas optimizer.eps optimizer.momentum optimizer.nesterov
            optimizer.ns_steps optimizer.adjust_lr_fn
            kl_penalty_coef kl_target kl_horizon early_stop_kl target_kl beta
            clip_ratio value_clip epsilon epsilon_high delta sampler_is sampler_is_cap
            entropy_coef value_coef center_rewards_coefficient loss_weights
            desirable_weight undesirable_weight
            eval_every precompute_ref_log_probs device""",
        R: """model_name max_length max_prompt_length max_new_tokens temperature top_p top_k
            optimizer.name
            loss_type label_smoothing reference_free discopop_tau simpo_gamma
            sapo_temperature_pos sapo_temperature_neg
            gamma lam kl_estimator whiten_advantages missing_eos_penalty reward_clip
            kl_in_reward importance_sampling_level scale_rewards baseline
            multi_objective_aggregation
            mask_truncated_completions max_resamples
            completion_only_loss assistant_only_loss
            teacher_model_name_or_path teacher_model_revision teacher_quantization lmbda
            num_labels pooling_strategy dropout_prob objectives objective_weights
            use_lora lora_rank lora_alpha lora_dropout""",
        O: """seed batch_size mini_batch_size gradient_accumulation_steps ppo_epochs
            num_generations""",
    },
    "model": {
        N: "gradient_checkpointing activation_offload",
        R: """name adapter dtype quantization attn_implementation compile trust_remote_code revision
            lora.r lora.alpha lora.dropout lora.target_modules""",
    },
    "data": {  # of what path, prompts and split name, the rows themselves are compared
        N: "path prompts split name columns on_error eval_path eval_prompts eval_split",
        A: "eval_size eval_generations eval_batch_size rows.held_out",
        R: """env prompt_column chat chat_template_kwargs objectives max_length max_prompt_length
            max_resamples completion_only_loss assistant_only_loss""",
        O: """rows batch_size mini_batch_size epochs num_generations seed
            gradient_accumulation_steps""",
    },
    "env": {
        A: "on_error timeout_s sandbox",
        R: """reward_fn preference_model human_feedback_fn
            max_length stop_sequences temperature difficulty
            num_problems num_held_out seed path eval_path split eval_split name
            reasoning chat reward_weights heldout
            time_limit_s memory_mb demonstrations max_turns tool_bonus error_penalty
            task config answer_format instruction
            id args eval_args url action observation reset""",
    },
    "reward": {
        N: "concurrency retries cache run_in api_key_env",
        A: "timeout_s batch_size device",
        R: """path max_length label components weights
            url model rubric scale response_format on_unreadable temperature max_tokens""",
    },
    "sampler": {  # none of them is the policy; with another sampler than own, no two runs are equal
        N: "command url model arguments weights_dir max_mismatch timeout_s start_timeout_s",
        A: "dtype *",
    },
    "trainer": {
        N: """logger callbacks limit_test_batches limit_predict_batches num_sanity_val_steps
            log_every_n_steps enable_checkpointing enable_progress_bar enable_model_summary
            inference_mode use_distributed_sampler profiler detect_anomaly default_root_dir
            enable_autolog_hparams model_registry
            strategy.timeout_s strategy.save_distributed_checkpoint
            devices num_nodes""",  # of these, how many processes there are is compared
        L: "max_epochs min_epochs max_steps min_steps max_time",
        A: """accelerator strategy gradient_clip_val limit_val_batches val_check_interval
            check_val_every_n_epoch deterministic benchmark""",
        R: """fast_dev_run plugins precision gradient_clip_algorithm limit_train_batches
            overfit_batches barebones sync_batchnorm reload_dataloaders_every_n_epochs""",
        O: "accumulate_grad_batches",
    },
    "processes": {A: ""},
    "module": {R: ""},
    "seed": {O: ""},
    **{group: {N: "*"} for group in GROUPS_AROUND},
    **{name: {N: ""} for name in OPTIONS_AROUND},
}
"""Group -> effect -> its options; an empty name is the group itself, ``*`` all that it holds."""
BEFORE: dict[str, Any] = {
    "algo.lr_scheduler_type": "constant",
    "algo.warmup_steps": 0,
    "algo.warmup_ratio": 0.0,
    "algo.optimizer.name": "adamw",
    "algo.optimizer.betas": [0.9, 0.999],
    "algo.optimizer.eps": 1e-8,
    "algo.optimizer.momentum": 0.95,
    "algo.optimizer.nesterov": True,
    "algo.optimizer.ns_steps": 5,
    "algo.optimizer.adjust_lr_fn": "match_rms_adamw",
    "algo.sampler_is": "none",
    "algo.sampler_is_cap": 3.0,
    "model.quantization": "none",
    "model.compile": False,
    "model.activation_offload": False,
}
"""What runs did that are older than an option."""
NEVER = ("algo.optimizer.name",)
"""What not even ``resume.allow`` changes: a checkpoint holds the state of the one it names."""
OF_ALGORITHM = {
    ("GRPO", "algo.num_epochs"): O,  # passes over an iteration's episodes
    ("SFT", "algo.max_new_tokens"): N,  # of samples that are looked at
}


def names() -> Iterator[tuple[str, Effect]]:
    """Every option of the table."""
    for group, effects in TABLE.items():
        for effect, options in effects.items():
            yield from ((f"{group}.{option}", effect) for option in options.split())
            if not options:
                yield group, effect


KNOWN = dict(names())


def effect_of(option: str, algorithm: str = "") -> Effect:
    """What changing ``option`` does; one that the table does not know changes the result.

    Args:
        option: as one overrides it: ``algo.learning_rate``.
        algorithm: name of the module's class, for options that mean something else there.
    """
    group = option.partition(".")[0]
    owner = option  # of a dict's entry, env.reward_weights.correct, the option that holds it
    while owner and owner not in KNOWN:
        owner = owner.rpartition(".")[0]
    found = OF_ALGORITHM.get((algorithm, option)) or KNOWN.get(owner) or KNOWN.get(f"{group}.*")
    return found or Effect.REFUSED
