"""The tiny runs in which options are changed, and to what, where their type does not say."""

from rlmodules.schemas.fields import Field

PROBED = (
    "model=tiny",
    "algo.device=cpu",
    "trainer.precision=32-true",
    "~logger.tensorboard",
    "~callbacks.report",
    "~callbacks.progress",
    "+callbacks.probe._target_=rlmodules.tasks.option_walk.Probe",
    "+callbacks.probe.path=${paths.output_dir}/probe.json",
    "algo.eval_every=1",
    "algo.save_every=1",
    "data.eval_size=4",
)
ONLINE = (
    *PROBED,
    "algo.learning_rate=0.01",  # ratios leave 1 at once
    "algo.num_iterations=2",
    "algo.batch_size=8",
    "algo.mini_batch_size=4",
    "algo.gradient_accumulation_steps=1",
    "algo.max_new_tokens=6",
)
TEXT = ("env=text", "reward=length")
PPO = ("algo=ppo", *TEXT, *ONLINE, "algo.ppo_epochs=2", "algo.value_warmup_iterations=0")
GRPO = ("algo=grpo", *ONLINE, "algo.num_generations=2", "algo.num_epochs=2")
OFFLINE = (
    *PROBED,
    "algo.learning_rate=0.01",
    "algo.batch_size=4",
    "algo.gradient_accumulation_steps=2",
    "algo.num_epochs=2",
    "algo.max_length=64",
    "algo.max_prompt_length=32",
    "data.path=${oc.env:WALKED}/pairs.jsonl",
)
SCORED = "data.path=${oc.env:WALKED}/scored.jsonl"
DPO = ("algo=dpo", *OFFLINE)
DISTILL = ("algo=distill", *PPO[1:], "algo.teacher_model_name_or_path=random:tiny")
KTO = ("algo=kto", *OFFLINE)
SFT = (
    "algo=sft",
    *(o for o in OFFLINE if "prompt_length" not in o),
    "algo.eval_samples=1",
    "algo.max_new_tokens=4",
)
BASES = {
    "algo": {
        "ppo": PPO,
        "grpo": (*GRPO, *TEXT),
        "distill": DISTILL,
        "dpo": DPO,
        "orpo": ("algo=orpo", *OFFLINE),
        "sft": SFT,
        "kto": KTO,
        "reward": ("algo=reward", *OFFLINE),
        "multi_objective": ("algo=multi_objective", *OFFLINE, SCORED),
    },
    "data": {"rollouts": PPO, "preferences": DPO, "demonstrations": SFT, "unpaired": KTO},
    "env": {
        "text": PPO,
        "math": (*GRPO, "env=math", "env.num_problems=40"),
        "code": (*GRPO, "env=code"),
        "preference": (*GRPO, "env=preference", "reward=length"),
        "calculator": (*GRPO, "env=calculator", "env.num_problems=20", "env.max_turns=2"),
        "booking": (*GRPO, "env=booking", "env.num_problems=20", "env.max_turns=2"),
        "reasoning_gym": (*GRPO, "env=reasoning_gym", "env.num_problems=20"),
    },
    "reward": {"length": PPO, "sentiment": (*PPO, "reward=sentiment")},
    "task": {
        "collect_preferences": (
            *(o for o in GRPO if "callbacks" not in o and "logger" not in o),
            *TEXT,
            "task=collect_preferences",
            "out=collected.jsonl",
            "task.num_prompts=6",
            "task.min_gap=0",
            "task.truncated=keep",  # the tiny model ends nothing
        )
    },
}
"""Group -> its choice -> the run in which its options are changed; ``PPO`` for all others."""
PROMPTS = "data.prompts=[One,Two,Three,Four,Five,Six,Seven,Eight]"
OWN_PROMPTS = ("data.path=null", "data.eval_path=null", PROMPTS)
LORA = "model.lora.r=4"
ADAPTED = "algo.use_lora=true"
MUON = "algo.optimizer.name=muon"
FALLING = "algo.lr_scheduler_type=linear"
CHANGES: dict[str, tuple[str, ...]] = {
    # [OPTION:]PATH -> overrides; the last is the change, both runs have those before it
    "algo.model_name": ("algo.model_name=other",),
    "algo.kl_target": ("algo.num_iterations=3", "algo.kl_target=1e-6"),
    "algo.device": ("algo.device=gpuu",),
    "algo.max_grad_norm": ("algo.max_grad_norm=0.001",),
    "algo.top_k": ("algo.top_k=5",),
    "algo.kl_estimator": ("algo.kl_estimator=k2",),
    "algo.reward_clip": ("algo.reward_clip=0.001",),
    "algo.early_stop_kl": ("algo.early_stop_kl=1e-9",),
    "algo.target_kl": ("algo.target_kl=1e-9",),
    "algo.value_clip": ("algo.value_clip=0.0001",),
    "algo.clip_ratio": ("algo.clip_ratio=0.0001",),
    "algo.epsilon": ("algo.epsilon=0.0001",),
    "algo.epsilon_high": ("algo.epsilon_high=0.0001",),
    "algo.delta": ("algo.epsilon_high=0.0001", "algo.delta=1.0002"),
    "algo.sapo_temperature_pos": ("algo.loss_type=sapo", "algo.sapo_temperature_pos=3.0"),
    "algo.sapo_temperature_neg": ("algo.loss_type=sapo", "algo.sapo_temperature_neg=3.0"),
    "algo.kl_in_reward": ("algo.beta=0.1", "algo.kl_in_reward=true"),
    "grpo:algo.loss_type": ("algo.loss_type=grpo",),
    "algo.importance_sampling_level": ("algo.importance_sampling_level=sequence",),
    "grpo:algo.multi_objective_aggregation": (
        "reward=weighted",
        "reward.components={one: length, other: length}",
        "algo.multi_objective_aggregation=normalize_then_sum",
    ),
    "algo.scale_rewards": ("algo.scale_rewards=none",),
    "algo.sampler_is": ("algo.sampler_is=token",),
    "algo.sampler_is_cap": ("algo.sampler_is=token", "algo.sampler_is_cap=0.5"),
    "algo.baseline": ("algo.baseline=batch",),
    "algo.max_resamples": ("algo.max_resamples=1",),
    "algo.lr_scheduler_type": ("algo.lr_scheduler_type=cosine",),
    "algo.optimizer.name": (MUON,),
    "algo.optimizer.betas": ("algo.optimizer.betas=[0.5,0.9]",),
    "algo.optimizer.eps": ("algo.optimizer.eps=0.1",),
    "algo.optimizer.momentum": (MUON, "algo.optimizer.momentum=0.5"),
    "algo.optimizer.nesterov": (MUON, "algo.optimizer.nesterov=false"),
    "algo.optimizer.ns_steps": (MUON, "algo.optimizer.ns_steps=2"),
    "algo.optimizer.adjust_lr_fn": (MUON, "algo.optimizer.adjust_lr_fn=original"),
    "algo.max_length": ("algo.max_prompt_length=8", "algo.max_length=12"),
    "algo.max_prompt_length": ("algo.max_prompt_length=4",),
    "algo.warmup_ratio": (FALLING, "algo.warmup_ratio=0.9"),
    "algo.warmup_steps": (FALLING, "algo.warmup_steps=1"),
    "reward:algo.warmup_steps": ("algo.warmup_steps=0",),
    "multi_objective:algo.warmup_steps": ("algo.warmup_steps=0",),
    "algo.label_smoothing": ("algo.label_smoothing=0.1",),
    "dpo:algo.loss_type": ("algo.loss_type=ipo",),
    "kto:algo.loss_type": ("algo.loss_type=apo_zero_unpaired",),
    "sft:algo.loss_type": ("algo.loss_type=dft",),
    "sft:algo.max_length": ("algo.max_length=8",),
    "algo.completion_only_loss": ("algo.completion_only_loss=false",),
    "algo.assistant_only_loss": ("algo.assistant_only_loss=true",),
    "algo.loss_weights": ("algo.loss_type=[sigmoid,sft]", "algo.loss_weights=[1.0,0.2]"),
    "algo.simpo_gamma": (
        "algo.loss_type=simpo",
        "algo.reference_free=true",
        "algo.simpo_gamma=2.0",
    ),
    "algo.discopop_tau": ("algo.loss_type=discopop", "algo.discopop_tau=0.5"),
    "algo.pooling_strategy": ("algo.pooling_strategy=mean",),
    "algo.lora_rank": (ADAPTED, "algo.lora_rank=2"),
    "algo.lora_alpha": (ADAPTED, "algo.lora_alpha=64"),
    "algo.lora_dropout": (ADAPTED, "algo.lora_dropout=0.5"),
    "algo.dropout_prob": ("algo.dropout_prob=0.5",),
    "algo.objectives": ("algo.objectives=[helpfulness,safety]",),
    "algo.objective_weights": ("algo.objective_weights=[1.0,0.2,0.1]",),
    "model.name": ("model.name=./no-such-model",),
    "model.dtype": ("model.dtype=bfloat16",),
    "model.attn_implementation": ("model.attn_implementation=sdpa",),
    "model.lora.r": (LORA,),
    "model.lora.alpha": (LORA, "model.lora.alpha=64"),
    "model.lora.dropout": (LORA, "model.lora.dropout=0.5"),
    "model.lora.target_modules": (LORA, "model.lora.target_modules=[q_proj]"),
    "model.compile": ("model.compile=true",),
    "model.quantization": (LORA, "model.quantization=4bit"),
    "model.adapter": ("model.adapter=merged",),
    "model.revision": ("model.revision=main",),
    "data.prompts": (*OWN_PROMPTS, PROMPTS.replace("One", "Other")),
    "data.path": ("data.path=package:preferences_heldout.jsonl",),
    "preferences:data.path": ("data.path=${oc.env:WALKED}/others.jsonl",),
    "preferences:data.eval_size": ("data.eval_size=1",),
    "preferences:data.eval_batch_size": ("data.eval_batch_size=1",),
    "rollouts:data.max_resamples": ("data.num_generations=2", "data.max_resamples=1"),
    "data.eval_prompts": (*OWN_PROMPTS, "data.eval_prompts=[Nine,Ten]"),
    "data.eval_path": ("data.eval_path=null",),
    "preferences:data.eval_path": ("data.eval_path=${oc.env:WALKED}/others.jsonl",),
    "data.eval_batch_size": ("data.eval_batch_size=2",),
    "data.chat_template_kwargs": ("data.chat_template_kwargs={enable_thinking:false}",),
    "data.split": ("data.split=test",),
    "data.eval_split": ("data.eval_split=validation",),
    "data.prompt_column": (
        "data.path=${oc.env:WALKED}/pairs.jsonl",
        "data.eval_path=null",
        "data.prompt_column=chosen",
    ),
    "data.columns": ("data.columns={prompt:nowhere}",),
    "data.name": ("data.name=main",),
    "data.on_error": ("data.on_error=never",),
    "env.stop_sequences": ("env.stop_sequences=[e,a,o]",),
    "env.max_length": ("env.max_length=7",),
    "env.temperature": ("env.temperature=0.3",),
    "env.on_error": ("env.on_error=never",),
    "math:env.difficulty": ("env.difficulty=3",),
    "env.path": ("env.path=./nowhere.jsonl",),
    "env.split": ("env.split=test",),
    "env.eval_split": ("env.eval_split=test",),
    "env.name": ("env.name=main",),
    "env.eval_path": ("env.eval_path=./nowhere.jsonl",),
    "env.sandbox": ("env.sandbox=nosuch",),
    "env.chat": ("env.chat=true",),
    "env.answer_format": ("env.answer_format=last_line",),
    "env.instruction": ("env.instruction='Say it.'",),
    "env.task": ("env.task=countdown",),
    "env.config": ("env.config={leg_counting:{max_animals:3}}",),
    "env.demonstrations": ("env.demonstrations=1",),
    "math:env.num_problems": ("env.num_problems=20",),
    "env.num_held_out": ("env.num_held_out=2",),
    "task.truncated": ("task.truncated=drop",),
    "task.out": ("out=elsewhere.jsonl",),
    "task.max_pairs": ("task.num_generations=4", "task.max_pairs=2"),
    "task.min_gap": ("task.min_gap=0.015",),
    "task.num_prompts": ("task.num_prompts=2",),
    "trainer.accelerator": ("trainer.accelerator=gpu",),
    "trainer.num_nodes": ("trainer.num_nodes=0",),
    "trainer.strategy": ("trainer.strategy=ddp",),
    "trainer.precision": ("trainer.precision=bf16-mixed",),
    "trainer.gradient_clip_val": ("trainer.gradient_clip_val=0.1",),
    "trainer.check_val_every_n_epoch": ("trainer.check_val_every_n_epoch=2",),
    "trainer.limit_val_batches": ("data.eval_batch_size=1", "trainer.limit_val_batches=2"),
    "trainer.default_root_dir": ("trainer.default_root_dir=/tmp/elsewhere",),
    "trainer.max_epochs": ("trainer.max_epochs=1",),
    "paths.output_root": ("paths.output_root=elsewhere",),
    "paths.output_dir": ("paths.output_dir=./elsewhere",),
    "ckpt_path": ("ckpt_path=./nowhere.ckpt",),
    "longest_batch_first": ("longest_batch_first=never",),
    "optimized_metric": ("optimized_metric=val/rewards",),
    "export.merge": ("export.merge=true",),
    "export.dtype": ("export.dtype=bfloat16",),
    "resume.allow": ("resume.allow=[nosuch]",),
}


def base_of(field: Field) -> tuple[str, ...]:
    """The run in which an option is changed."""
    group = field.path.partition(".")[0]
    return BASES.get(group, {}).get(field.option, PPO)
