"""Is what is computed on the card right? Tiny random models, seconds.

In float32 the first steps are those of the CPU; log-probabilities noted while sampling are those of
scoring; a run that stops and goes on is held against one that does not, bit by bit; bf16-mixed
gives finite numbers; LoRA trains; what the card wrote, a CPU reads.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from datamodules import PreferenceDataset
from datamodules.types import SamplingParams
from on_gpu.card_alone import SHAPES, flash, long_text, recorded
from on_gpu.parts import Parts, Result, arguments, quiet
from on_gpu.shapes import pairs, prompts
from rlmodules import (
    DPO,
    GRPO,
    ORPO,
    PPO,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    LoraConfig,
    ModelConfig,
    ORPOConfig,
    ORPOTrainer,
    PPOConfig,
    PPOTrainer,
    RewardModel,
    RewardModelConfig,
    RewardModelTrainer,
)
from rlmodules.models import resolve_precision
from rlmodules.sampling.decoding import sample

TINY = "random:tiny"
ONLINE = {"ppo": (PPOConfig, PPOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}
OFFLINE = {"dpo": (DPOConfig, DPOTrainer), "orpo": (ORPOConfig, ORPOTrainer)}
CLASSES = {"ppo": PPO, "grpo": GRPO, "dpo": DPO, "orpo": ORPO, "reward": RewardModel}
ALGORITHMS = (*ONLINE, *OFFLINE, "reward")


def length_reward(prompts: list[str], responses: list[str], metadata: Any = None) -> list[float]:
    return [response.count("e") + len(set(response)) / 10 for response in responses]


def train(
    algorithm: str,
    device: str,
    folder: str,
    *,
    steps: int = 1,
    ckpt_path: str | None = None,
    lora: int = 0,
    **options: Any,
) -> tuple[dict[str, list[float]], Any]:
    """Train by the public API; returns metrics, by iteration or step, and the trainer."""
    options = {"logger": False, "enable_progress_bar": False, "output_dir": folder} | options
    model = ModelConfig(name=TINY, lora=LoraConfig(r=lora))
    shared = {"model_name": TINY, "device": device, "learning_rate": 1e-3,
              "gradient_accumulation_steps": 1}  # fmt: skip
    if algorithm in ONLINE:
        kind, trainer_kind = ONLINE[algorithm]
        c = kind(**shared, batch_size=16, mini_batch_size=8, max_new_tokens=24,
                 num_iterations=steps)  # fmt: skip
        trainer = trainer_kind(c, reward_fn=length_reward, model_config=model, **options)
        return trainer.train(prompts(16, 20), ckpt_path=ckpt_path), trainer
    rows = pairs(4 * steps, 12, 8, 40)
    shared |= {"batch_size": 4, "lr_scheduler_type": "constant", "eval_every": 10**6}
    if algorithm == "reward":
        plain = {"dropout_prob": 0.0, "use_lora": bool(lora)}
        judge = RewardModel(RewardModelConfig(**shared, **plain), ModelConfig(name=TINY))
        trainer = RewardModelTrainer(judge, **options)
        texts = ([row["prompt"] + row[side] for row in rows] for side in ("chosen", "rejected"))
        return trainer.train_on_preferences(*texts, num_epochs=1, batch_size=4), trainer
    kind, trainer_kind = OFFLINE[algorithm]
    trainer = trainer_kind(kind(**shared), model_config=model, **options)
    columns = ([row[name] for row in rows] for name in ("prompt", "chosen", "rejected"))
    return trainer.train(PreferenceDataset(*columns, trainer.module.tokenizer)), trainer


def in_folder(part: Callable[[str], Result]) -> Callable[[], Result]:
    def run() -> Result:
        with tempfile.TemporaryDirectory() as folder:
            return part(folder)

    return run


def first_step(algorithm: str, device: str, folder: str) -> Result:
    """The largest relative difference of a metric of the first step between CPU and card."""
    seen = {}
    for where in ("cpu", device):
        metrics, _ = train(algorithm, where, f"{folder}/{where}-{len(seen)}", precision="32-true")
        seen[f"{where}-{len(seen)}"] = {
            name: values[0] for name, values in metrics.items() if not name.startswith("time/")
        }
    cpu, card = seen.values()
    if cpu.keys() != card.keys():
        raise AssertionError(f"other metrics: {sorted(cpu.keys() ^ card.keys())}")
    off = {name: abs(cpu[name] - card[name]) / max(abs(cpu[name]), 1e-3) for name in cpu}
    worst = max(off, key=off.__getitem__)
    return {
        "same": off[worst] < 1e-3,
        "worst": worst,
        "relative_difference": off[worst],
        "loss": [cpu["train/loss"], card["train/loss"]],
        "metrics": len(cpu),
    }


def sampled_scores(device: str, precision: str) -> Result:
    """Log-probabilities noted while sampling against those of scoring the same tokens."""
    from datamodules.experience import TokenBatch

    c = PPOConfig(model_name=TINY, device=device, temperature=1.0, top_p=1.0, max_new_tokens=48)
    module = PPO(c, ModelConfig(name=TINY)).to(device)
    texts = [torch.tensor(module.tokenizer(p)["input_ids"]) for p in prompts(16, 8)]
    texts = [ids[: 3 + i % 5] for i, ids in enumerate(texts)]
    half = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
    with torch.no_grad(), half:
        said = sample(module.policy, module.tokenizer, texts,
                      SamplingParams(max_new_tokens=48), range(16))  # fmt: skip
        sequences = [torch.cat([p, torch.tensor(r.tokens)])
                     for p, r in zip(texts, said, strict=True)]  # fmt: skip
        positions = [torch.arange(len(p), len(s)) for p, s in zip(texts, sequences, strict=True)]
        tokens = TokenBatch.collate(sequences, positions).to(device)
        scored = module.policy.score(tokens).logprobs.float().cpu()
    noted = torch.tensor([value for r in said for value in r.logprobs])
    off = (noted - scored).abs()
    return {"tokens": len(off), "mean_nats": off.mean().item(), "max_nats": off.max().item(),
            "same": off.max().item() < (1e-4 if precision == "fp32" else 0.1)}  # fmt: skip


def digest(folder: str) -> str:
    """Of the trained weights and the optimizer's state in a run's last checkpoint."""
    saved = torch.load(f"{folder}/checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    found = hashlib.sha256()
    tensors = [saved["state_dict"], saved["optimizer_states"]]
    for leaf in torch.utils._pytree.tree_leaves(tensors):
        if isinstance(leaf, torch.Tensor):
            found.update(leaf.float().numpy().tobytes())
    return found.hexdigest()[:12]


def resumed(
    algorithm: str, device: str, deterministic: bool, folder: str, **options: Any
) -> Result:
    """2 + 2 iterations against 4 straight, twice: is a run itself again, and resumed the same?"""
    options |= {"deterministic": deterministic}
    for name in ("straight", "again"):
        train(algorithm, device, f"{folder}/{name}", steps=4, **options)
    train(algorithm, device, f"{folder}/first", steps=2, **options)
    train(algorithm, device, f"{folder}/second", steps=4, **options,
          ckpt_path=f"{folder}/first/checkpoints/last.ckpt")  # fmt: skip
    straight, again, second = (
        digest(f"{folder}/{name}") for name in ("straight", "again", "second")
    )
    return {"run_again_equal": straight == again, "resumed_equal": straight == second}


def finite(algorithm: str, device: str, folder: str, **options: Any) -> Result:
    """Three iterations as they come: the precision that `auto` gives, and only finite numbers."""
    metrics, trainer = train(algorithm, device, folder, steps=3, **options)
    wrong = [n for n, values in metrics.items() if not all(map(math.isfinite, values))]
    weights = [p for p in trainer.module.parameters() if p.requires_grad]
    saved = torch.load(f"{folder}/checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    module = CLASSES[algorithm](**saved["hyper_parameters"])
    module.load_weights(saved)
    theirs = dict(trainer.module.named_parameters())
    same = all(torch.equal(p, theirs[n].cpu()) for n, p in module.named_parameters())
    return {
        "finite": not wrong and all(p.isfinite().all().item() for p in weights),
        "not_finite": wrong,
        "precision_of_auto": resolve_precision("auto"),
        "device": str(trainer.module.trainer.strategy.root_device),
        "read_on_cpu": same,
        "loss": metrics["train/loss"],
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    parts, device = Parts(args.out, args.seconds, args.only), args.device
    parts.run("flash", partial(flash, device, None))
    parts.run("flash-window", partial(flash, device, 40))
    parts.run("flash-8k", partial(long_text, device))
    for shape in SHAPES:
        parts.run(f"recorded-{shape}", partial(recorded, device, shape))
    parts.run("recorded-bf16", partial(recorded, device, "all", half=True))
    parts.run("recorded-in-vain", partial(recorded, device, "all", asks=True))
    for precision in ("fp32", "bf16"):
        parts.run(f"sampled-scores-{precision}", partial(sampled_scores, device, precision))
    for name in ALGORITHMS:
        parts.run(f"first-step-{name}", in_folder(partial(first_step, name, device)))
    for name in ALGORITHMS:
        parts.run(f"finite-{name}", in_folder(partial(finite, name, device)))
        parts.run(f"lora-{name}", in_folder(partial(finite, name, device, lora=4)))
    for name in ONLINE:
        for deterministic in (False, True):
            for precision in ("32-true", "bf16-mixed"):
                part = partial(resumed, name, device, deterministic, precision=precision)
                which = "deterministic" if deterministic else "plain"
                parts.run(f"resume-{name}-{precision}-{which}", in_folder(part), seconds=40)
    torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    with quiet():
        main()
