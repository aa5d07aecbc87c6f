"""The estimate of what docs/gpu.md measured on an H100, beside it.

    PYTHONPATH=. python benchmarks/memory_gpu.py

The runs are those of `benchmarks/on_gpu/speed.py`: float32 weights under bf16-mixed. What torch
counted there has no CUDA context in it, so ours has none here.
"""

import tempfile
from pathlib import Path
from typing import Any

from on_gpu.shapes import SIZES, pairs
from qwen_shapes import config_folder

from rlmodules import (
    DPO,
    GRPO,
    PPO,
    DPOConfig,
    GRPOConfig,
    ModelConfig,
    PPOConfig,
    RewardModel,
    RewardModelConfig,
)
from rlmodules.memory.estimate import Estimate
from rlmodules.memory.longest import Episodes, Examples
from rlmodules.memory.run import Run
from rlmodules.memory.texts import Group

S = SIZES["full"]
GIB = 2**30


MEASURED = {
    ("PPO", "0.5B"): 14.97,
    ("GRPO", "0.5B"): 14.51,
    ("DPO", "0.5B"): 21.01,
    ("reward", "0.5B"): 15.81,
    ("PPO", "1.5B"): 36.30,
    ("DPO", "1.5B"): 48.94,
}
"""GiB."""


def online(algorithm: str, name: str) -> tuple[Any, Any, Any]:
    c: dict[str, Any] = {"batch_size": S["episodes"], "mini_batch_size": S["minibatch"]}
    c |= {"model_name": name, "max_new_tokens": S["response"]}
    size = S["generations"] if algorithm == "GRPO" else 1
    texts = Episodes([S["prompt"]] * (S["episodes"] // size), S["response"], [], (size, 1), 1)
    if algorithm == "PPO":
        return PPO, PPOConfig(**c), texts
    return GRPO, GRPOConfig(**c, gradient_accumulation_steps=4, beta=0.04), texts


def offline(algorithm: str, name: str) -> tuple[Any, Any, Any]:
    c: dict[str, Any] = {"model_name": name, "batch_size": S["pairs"], "max_length": 1024,
                         "gradient_accumulation_steps": 1, "max_prompt_length": 512}  # fmt: skip
    end = 1 if algorithm == "DPO" else 0
    rows = pairs(8 * S["pairs"], S["pair_prompt"], S["shortest"], S["longest"])
    sides = [[len(row[side]) + end for side in ("chosen", "rejected")] for row in rows]
    texts = Examples([Group.of_prompt(S["pair_prompt"], two) for two in sides], accumulate=1,
                     seed=0, epochs=1, held_out=[], eval_batch_size=1, exact=True)  # fmt: skip
    kind = (DPO, DPOConfig(**c)) if algorithm == "DPO" else (RewardModel, RewardModelConfig(**c))
    return *kind, texts


def main() -> None:
    print(
        "| | rows | measured, GiB | estimate, GiB | ratio | at the |\n|---|---|---:|---:|---:|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for (algorithm, size), measured in MEASURED.items():
            name = str(config_folder(size, Path(folder)))
            made = online if algorithm in ("PPO", "GRPO") else offline
            kind, config, texts = made(algorithm, name)
            run = Run(kind, config, ModelConfig(name=name), "bf16-mixed", "cuda", 1)
            peak = Estimate(run, texts, base=0).peak
            rows = "packed" if run.packs else "padded"
            found = peak.total / GIB
            print(f"| {algorithm} {size} | {rows} | {measured:.1f} | {found:.1f} |"
                  f" {found / measured:.2f} | {peak.name} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
