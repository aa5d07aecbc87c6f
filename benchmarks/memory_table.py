"""Writes the table of docs/memory.md: which models fit on which cards, by the figures of
`task=estimate`.

    PYTHONPATH=. python benchmarks/memory_table.py

Computed, not measured. The models are Qwen2.5's by their config.json; nothing is loaded, and no
card is needed. Prompts have 256 tokens and responses 256; gradients are accumulated, so that an
optimizer step has as many rows as one likes. Weights are float32 under bf16-mixed, or bfloat16
where they are frozen.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_shapes import SHAPES, config_folder

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
from rlmodules.memory.longest import Episodes, Examples, of_limits
from rlmodules.memory.machine import base_bytes
from rlmodules.memory.run import Run
from rlmodules.models import LoraConfig

CARDS = (16, 24, 48, 80)
"""GiB."""
PROMPT, RESPONSE = 256, 256
EPISODES = 64
"""Of an iteration."""
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": LoraConfig(r=16)},
    "QLoRA": {"lora": LoraConfig(r=16), "quantization": "4bit"},
}
GIB = 2**30


def settings(algorithm: str, name: str) -> tuple[Any, Any]:
    """The algorithm, and its settings; one row a backward pass, to begin with."""
    online = {"model_name": name, "batch_size": EPISODES, "mini_batch_size": 1,
              "gradient_accumulation_steps": 8, "max_new_tokens": RESPONSE}  # fmt: skip
    pairs = {"model_name": name, "batch_size": 1, "gradient_accumulation_steps": 8,
             "max_length": PROMPT + RESPONSE, "max_prompt_length": PROMPT}  # fmt: skip
    return {
        "PPO": lambda: (PPO, PPOConfig(**online)),
        "GRPO": lambda: (GRPO, GRPOConfig(**online, beta=0.04)),
        "DPO": lambda: (DPO, DPOConfig(**pairs)),
        "reward": lambda: (RewardModel, RewardModelConfig(**pairs)),
    }[algorithm]()


def estimate_of(algorithm: str, folder: Path, mode: str) -> Estimate:
    kind, config = settings(algorithm, str(folder))
    run = Run(kind, config, ModelConfig(name=str(folder), **MODES[mode]), "bf16-mixed", "cuda", 1)
    if run.is_online:
        generations = (getattr(config, "num_generations", 1), 1)
        texts: Any = Episodes([PROMPT] * EPISODES, RESPONSE, [], generations, EPISODES)
    else:
        one = of_limits(config.max_length, PROMPT, 2, reads_prompts=False)
        texts = Examples([one], accumulate=8, seed=0, epochs=1, held_out=[], eval_batch_size=1,
                         exact=False)  # fmt: skip
    return Estimate(run, texts, base=base_bytes("cuda"))


def row(size: str, algorithm: str, mode: str, found: Estimate) -> str:
    others = max(m.total for m in found.moments if m.name != "update")
    cells = []
    for card in CARDS:
        rows = found.largest(card * GIB) if others <= card * GIB else 0
        most = EPISODES if found.run.is_online else rows
        cells.append(str(min(rows, most) or "-"))
    least = max(found.update(1).total, others) / GIB
    return f"| {size} | {algorithm} | {mode} | {least:.1f} | {' | '.join(cells)} |"


def rows(sizes: list[str], modes: list[str]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        for size in sizes:
            folder = config_folder(size, Path(name))
            for algorithm in ("PPO", "GRPO", "DPO", "reward"):
                for mode in modes:
                    yield row(size, algorithm, mode, estimate_of(algorithm, folder, mode))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    args = parser.parse_args()
    cards = " | ".join(f"{card} GiB" for card in CARDS)
    print(f"| | | | least, GiB | {cards} |\n|---|---|---|---:|{'---:|' * len(CARDS)}")
    for line in rows(args.sizes, args.modes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
