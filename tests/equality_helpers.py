"""Runs of algorithms, by as many processes as they are told: what they come to.

    python equality_helpers.py NAME,NAME STRATEGY PROCESSES FOLDER [FOLDER_TO_GO_ON_FROM]

Half of the responses have 3 tokens, half 300; of two processes one has all the short ones.
"""

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import distillation_helpers
import lightning as L
import torch
from torch.distributed.tensor import DTensor

from datamodules import (
    DemonstrationDataModule,
    DemonstrationDataset,
    PreferenceDataModule,
    PreferenceDataset,
    RolloutDataModule,
    TextGenerationEnv,
    UnpairedPreferenceDataModule,
    UnpairedPreferenceDataset,
)
from rlmodules import (
    DPO,
    GRPO,
    KTO,
    ORPO,
    PPO,
    SFT,
    Distillation,
    DistillationConfig,
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    ORPOConfig,
    PPOConfig,
    SFTConfig,
)
from rlmodules.callbacks import (
    AtomicCheckpointIO,
    ExportModel,
    PreferenceReport,
    RunReport,
    SaveLast,
)
from rlmodules.models import LoraConfig, ModelConfig
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models.config import RewardModelConfig
from rlmodules.reward_models.multi_objective import MultiObjectiveConfig, MultiObjectiveRewardModel
from rlmodules.reward_models.pairwise import PairwiseRewardModel
from rlmodules.reward_models.scalar import RewardModel
from rlmodules.sampling.decoding import Decoding
from rlmodules.strategies import Replicated, Sharded

SHORT, LONG = 3, 300
ONLINE = {"batch_size": 8, "mini_batch_size": 4, "gradient_accumulation_steps": 2,
          "max_new_tokens": LONG, "num_iterations": 2, "learning_rate": 1e-3, "device": "cpu",
          "eval_every": 1, "max_grad_norm": 0.05}  # fmt: skip
PAIRS = {"batch_size": 4, "gradient_accumulation_steps": 2, "num_epochs": 2, "learning_rate": 1e-3,
         "eval_every": 2, "device": "cpu", "max_length": 512, "max_grad_norm": 0.05,
         "max_prompt_length": 128}  # fmt: skip


def taught(config, model):
    """By a teacher of another size."""
    return Distillation(config, model, teacher=distillation_helpers.teacher())


RUNS = {
    "ppo": (PPO, PPOConfig, ONLINE | {"ppo_epochs": 2}),
    "ppo_warmup": (PPO, PPOConfig, ONLINE | {"ppo_epochs": 1, "value_warmup_iterations": 1}),
    "ppo_stop": (PPO, PPOConfig, ONLINE | {"ppo_epochs": 3, "early_stop_kl": 1e-7}),
    "grpo": (GRPO, GRPOConfig, ONLINE | {"num_generations": 2, "beta": 0.1}),
    "distillation": (taught, DistillationConfig, ONLINE),
    "sft": (SFT, SFTConfig, {k: v for k, v in PAIRS.items() if k != "max_prompt_length"}),
    "kto": (KTO, KTOConfig, PAIRS),
    "dpo": (DPO, DPOConfig, PAIRS),
    "dpo_table": (DPO, DPOConfig, PAIRS | {"precompute_ref_log_probs": True}),
    "orpo": (ORPO, ORPOConfig, PAIRS),
    "reward": (RewardModel, RewardModelConfig, PAIRS | {"dropout_prob": 0.0}),
    "pairwise": (PairwiseRewardModel, RewardModelConfig, PAIRS | {"dropout_prob": 0.0}),
    "objectives": (MultiObjectiveRewardModel, MultiObjectiveConfig,
                   PAIRS | {"dropout_prob": 0.0, "objectives": ["true", "kind"]}),
}  # fmt: skip
SIXTHS = {"batch_size": 12, "mini_batch_size": 6}
"""Of which three processes can take as many as two or one."""
PROMPTS = ["One", "Two words", "A third prompt, longer", "And four"]


def count_e(prompts, responses, metadata=None):
    return [response.count("e") / len(response) if response else 0.0 for response in responses]


class Unequal:
    """Our sampler; the first half of all processes' rows ends after ``SHORT`` tokens."""

    def __init__(self, module):
        self.module = module

    def __call__(self, prompts, params, seeds):
        trainer, decoding = self.module.trainer, Decoding(self.module.policy, self.module.tokenizer)
        mine, first = len(prompts), trainer.global_rank * len(prompts)
        half = mine * trainer.world_size // 2
        if trainer.validating:
            half = 0
            params = dataclasses.replace(params, max_new_tokens=20)
        lengths = [SHORT if first + i < half else params.max_new_tokens for i in range(mine)]
        each = [dataclasses.replace(params, max_new_tokens=n) for n in lengths]
        responses = decoding.admit(prompts, each, seeds)
        while decoding.rows:
            decoding.step()
        return responses


class SaveMiddle(SaveLast):
    """Keeps the first checkpoint: after the first iteration, or the first optimizer step."""

    def _save(self, trainer, *, epoch_ended=False):
        if self._saved is None:
            trainer.save_checkpoint(self.path.with_name("middle.ckpt"))
            self._saved = (trainer.global_step, epoch_ended)

    def on_validation_end(self, trainer, pl_module):
        """The weights are still whole, under ``fsdp``, which has to be seen to."""
        if self._training:
            trainer.save_checkpoint(self.path.with_name("judged.ckpt"))


def online_data(c):
    epochs = getattr(c, "ppo_epochs", None) or c.num_epochs
    return RolloutDataModule(
        lambda tokenizer, prompts: TextGenerationEnv(tokenizer, prompts, reward_fn=count_e),
        prompts=PROMPTS, eval_prompts=PROMPTS[:3], eval_size=3, epochs=epochs, seed=c.seed,
        batch_size=c.batch_size, mini_batch_size=c.mini_batch_size,
        num_generations=getattr(c, "num_generations", 1),
        gradient_accumulation_steps=c.gradient_accumulation_steps,
    )  # fmt: skip


def pair_data(c):
    count = 8 if c.batch_size == 4 else 4 * c.batch_size
    words = ["e" * (SHORT if i % 2 else LONG) for i in range(count)]
    texts = [f" {word} is it" for word in words]
    names = [f"Name {i}" for i in range(count)]
    data = PreferenceDataset(names, texts, texts[::-1], tiny_tokenizer(), max_length=512)
    held_out = PreferenceDataset(["A", "B", "C"], texts[:3], texts[1:4], tiny_tokenizer(),
                                 max_length=512)  # fmt: skip
    return PreferenceDataModule(
        train_dataset=data, eval_dataset=held_out, batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps, seed=c.seed,
    )  # fmt: skip


def demonstrated_data(c):
    texts = [f" {'e' * (SHORT if i % 2 else LONG)} is it" for i in range(8)]
    data, held_out = (
        DemonstrationDataset(
            texts[:count], tiny_tokenizer(), 512, prompts=[f"Name {i}" for i in range(count)]
        )
        for count in (8, 3)
    )
    return DemonstrationDataModule(
        train_dataset=data, eval_dataset=held_out, batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps, seed=c.seed,
    )  # fmt: skip


def labelled_data(c):
    texts = [f" {'e' * (SHORT if i % 2 else LONG)} is it" for i in range(8)]
    data, held_out = (
        UnpairedPreferenceDataset(
            [f"Name {i}" for i in range(count)], texts[:count],
            [i % 3 > 0 for i in range(count)], tiny_tokenizer(), 512,
        )
        for count in (8, 5)
    )  # fmt: skip
    return UnpairedPreferenceDataModule(
        train_dataset=data, eval_dataset=held_out, batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps, seed=c.seed,
    )  # fmt: skip


def scored_data(c, folder):
    """Some scores are missing, so that processes hold different numbers of them."""
    for split, count in (("train", 8), ("eval", 3)):
        rows = [
            {"prompt": f"Name {i}", "response": f" {'e' * (SHORT if i % 2 else LONG)} is it",
             "true": i % 3, "kind": None if i % 4 == 1 else i % 5} for i in range(count)
        ]  # fmt: skip
        lines = [json.dumps(row) + "\n" for row in rows]
        Path(folder, f"{split}.jsonl").write_text("".join(lines))
    return PreferenceDataModule(
        f"{folder}/train.jsonl", eval_path=f"{folder}/eval.jsonl", max_length=512, seed=c.seed,
        objectives=c.objectives, batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
    )  # fmt: skip


def run(name, strategy, processes, folder, going_on_from=None, **options):
    """Train; writes the trained weights by name, and the metrics of each iteration or step.

    Args:
        going_on_from: a checkpoint.
    """
    name, *more = name.split("+")
    kind, config, settings = RUNS[name]
    if "sixths" in more:
        settings |= {k: v for k, v in SIXTHS.items() if k in settings}
    c = config(model_name="random:tiny", **settings)
    model = ModelConfig(
        "random:tiny",
        lora=LoraConfig(r=4 if "lora" in more else 0),
        gradient_checkpointing="again" in more,
    )
    module = kind(c, model)
    online = hasattr(c, "num_iterations")
    if online:
        module.sampler = Unequal(module)
        data, report = online_data(c), RunReport(folder)
        evaluate = {"check_val_every_n_epoch": 1}
    else:
        scored = hasattr(c, "objectives")
        data = scored_data(c, folder) if scored else pair_data(c)
        own = {SFT: demonstrated_data, KTO: labelled_data}
        data = own[kind](c) if kind in own else data
        report = PreferenceReport(folder)
        every = c.eval_every * c.gradient_accumulation_steps
        evaluate = {"check_val_every_n_epoch": None, "val_check_interval": every}
    report.on_train_end = lambda *_: None
    if kind is PPO:
        module.policy.value_head.output.weight.data.fill_(0.01)
    every = {"every_n_epochs": 1} if online else {"every_n_train_steps": 1}
    middle = [] if going_on_from else [SaveMiddle(f"{folder}/checkpoints", **every)]
    kinds = {"one": "auto", "ddp": Replicated, "fsdp": Sharded}
    strategy = kinds[strategy] if strategy == "one" else kinds[strategy](timeout_s=600)
    trainer = L.Trainer(
        strategy=strategy, accelerator="cpu", devices=processes,
        max_epochs=c.num_iterations if online else c.num_epochs,
        accumulate_grad_batches=c.gradient_accumulation_steps, gradient_clip_val=c.max_grad_norm,
        logger=False, callbacks=[report, ExportModel(f"{folder}/model"), *middle],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, inference_mode=False, default_root_dir=folder,
        **evaluate, **options,
    )  # fmt: skip
    if going_on_from is None:
        trainer.validate(module, data, verbose=False)
    trainer.fit(module, data, ckpt_path=going_on_from)
    together = mock.patch.object(DTensor, "full_tensor", side_effect=AssertionError("gathered"))
    with together if isinstance(strategy, Sharded) else nullcontext():
        trainer.save_checkpoint(f"{folder}/end.ckpt")
    history = report.history + getattr(report, "evaluations", [])
    if trainer.is_global_zero:
        saved = AtomicCheckpointIO().load_checkpoint(f"{folder}/end.ckpt")
        torch.save({"checkpoint": saved, "history": history}, f"{folder}/end.pt")


def differences(one, other):
    """Largest difference of trained weights, and of each metric, of two folders of ``run``.

    That of a metric above 1 is relative.
    """
    one, other = (torch.load(f"{folder}/end.pt", weights_only=True) for folder in (one, other))
    mine, others = (end["checkpoint"]["state_dict"] for end in (one, other))
    assert mine.keys() == others.keys()
    weights = max(float((mine[n].double() - others[n].double()).abs().max()) for n in mine)
    metrics: dict[str, float] = {}
    for row, row_of_other in zip(one["history"], other["history"], strict=True):
        assert row.keys() == row_of_other.keys(), row.keys() ^ row_of_other.keys()
        for name, value in row.items():
            if not name.startswith("time/") and value == value:
                apart = abs(value - row_of_other[name]) / max(1.0, abs(value))
                metrics[name] = max(metrics.get(name, 0.0), apart)
    return weights, metrics


if __name__ == "__main__":
    names, strategy, processes, folder, *before = sys.argv[1:]
    for name in names.split(","):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        middle = f"{before[0]}/{name}/checkpoints/middle.ckpt" if before else None
        run(name, strategy, int(processes), f"{folder}/{name}", middle)
