"""Does a model in bfloat16 learn? Float32 copies, stochastic rounding, plain AdamW in one table.

The tiny model predicts bytes of the carried pairs. All start from the same weights, rounded to
bfloat16, and compute in bfloat16 products. The table of docs/optimizers.md.

    PYTHONPATH=. python benchmarks/half_precision.py
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from rlmodules import OptimizerConfig, make_optimizer
from rlmodules.models.embedded import tiny_model

PAIRS = Path(__file__).parents[1] / "datamodules" / "assets" / "preferences_train.jsonl"
KINDS = {
    "float32": "float32",
    "copies": "bfloat16, float32 copies",
    "stochastic": "bfloat16, rounded stochastically",
    "plain": "bfloat16, plain AdamW",
}
ROWS, BYTES = 8, 96
"""Of a batch."""
EARLY, LAST = 20, 30
"""Steps after which moved weights are counted, and steps whose mean loss counts at the end."""


def rounded_stochastically(x: Tensor) -> Tensor:
    """Float32 as bfloat16, up or down by chance, so that the mean is right."""
    chance = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32)
    return ((x.view(torch.int32) + chance) & -(1 << 16)).view(torch.float32).bfloat16()


class Stochastic:
    """AdamW over float32 copies that are made anew of the weights for each step."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.weights = groups[0]["params"]
        self.copies = [p.detach().float() for p in self.weights]
        self.adamw = torch.optim.AdamW([groups[0] | {"params": self.copies}], fused=True)

    @torch.no_grad()
    def step(self) -> None:
        for weight, copy in zip(self.weights, self.copies, strict=True):
            copy.copy_(weight)
            copy.grad = weight.grad.float()
        self.adamw.step()
        for weight, copy in zip(self.weights, self.copies, strict=True):
            weight.copy_(rounded_stochastically(copy))

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None


def optimizer(kind: str, groups: list[dict[str, Any]]) -> Any:
    if kind == "copies":
        return make_optimizer(OptimizerConfig(), groups)
    return Stochastic(groups) if kind == "stochastic" else torch.optim.AdamW(groups, fused=True)


def learned(kind: str, ids: Tensor, rate: float, steps: int, seed: int) -> tuple[float, float]:
    """Mean loss of the last steps, and the share of weights that moved in the first."""
    torch.manual_seed(seed)
    model = tiny_model()[0].bfloat16()
    start = [p.detach().clone() for p in model.parameters()]
    model = model.float() if kind == "float32" else model
    groups = [{"params": list(model.parameters()), "lr": rate, "weight_decay": 0.0}]
    stepper, losses, moved = optimizer(kind, groups), [], 0.0
    drawn = torch.Generator().manual_seed(seed)
    for step in range(steps):
        at = torch.randint(0, len(ids) - BYTES, (ROWS,), generator=drawn)
        batch = torch.stack([ids[a : a + BYTES] for a in at])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        losses.append(loss.item())
        stepper.step()
        stepper.zero_grad()
        if step + 1 == EARLY:
            pairs = zip(model.parameters(), start, strict=True)
            moved = (
                torch.cat([(p.bfloat16() != s).flatten() for p, s in pairs]).float().mean().item()
            )
    return mean(losses[-LAST:]), moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 1e-4, 1e-3])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    ids = torch.tensor(list("\n".join(row["chosen"] for row in rows).encode()))
    said = [f"{rate:g}" for rate in args.rates]
    print("| weights | " + " | ".join(f"moved at {r} | loss at {r}" for r in said) + " |")
    print("|---|" + "---:|" * 2 * len(said))
    for kind, name in KINDS.items():
        cells = []
        for rate in args.rates:
            found = [learned(kind, ids, rate, args.steps, seed) for seed in range(args.seeds)]
            losses, moved = zip(*found, strict=True)
            cells += [f"{mean(moved):.0%}", f"{mean(losses):.3f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
