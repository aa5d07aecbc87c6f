"""Does a commit train what an earlier one trained? Tiny runs of both, compared number by number.

    python benchmarks/compare_commits.py REV [dpo grpo ppo reward ...]

Each run is ``train.py`` in a process of its own, of the working tree and of REV's (unpacked into a
temporary folder). Compared are the trained weights (by shape and value, for names may change), the
optimizer's moments, and every metric of each iteration or step but the times: bit by bit, and where
they differ, by how much. The first rows of the metrics matter most: later ones are of other tokens
once a sampled token has changed.
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["model=tiny", "logger=none", "trainer.precision=32-true", "algo.device=cpu", "seed=3"]
ONLINE = [
    "algo.num_iterations=3",
    "algo.max_new_tokens=12",
    "algo.learning_rate=1e-3",
    "algo.eval_every=2",
    "data.eval_size=8",
]
OFFLINE = ["algo.num_epochs=1", "algo.learning_rate=1e-3", "algo.max_length=96",
           "algo.max_prompt_length=48", "data.eval_size=16"]  # fmt: skip
LORA = ["model.lora.r=4"]
RUNS = {
    "ppo": ["algo=ppo", "algo.batch_size=16", "algo.mini_batch_size=4", "algo.ppo_epochs=2",
            "algo.entropy_coef=0.01", *ONLINE],
    "ppo_lora": ["algo=ppo", "algo.batch_size=16", "algo.mini_batch_size=4", *LORA, *ONLINE],
    "grpo": ["algo=grpo", "algo.batch_size=32", "algo.mini_batch_size=16", "algo.beta=0.04",
             "algo.gradient_accumulation_steps=1", "env.num_held_out=8", *ONLINE],
    "dpo": ["algo=dpo", *OFFLINE],
    "dpo_lora": ["algo=dpo", *LORA, *OFFLINE],
    "orpo": ["algo=orpo", *OFFLINE],
    "reward": ["algo=reward", *OFFLINE],
    "pairwise": ["algo=pairwise", *OFFLINE],
}  # fmt: skip


def unpacked(revision: str, folder: Path) -> Path:
    archive = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def run(tree: Path, name: str, folder: Path) -> dict:
    command = [sys.executable, str(tree / "train.py"), *RUNS[name], *COMMON]
    done = subprocess.run(
        [*command, f"hydra.run.dir={folder}"], cwd=folder.parent, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{name} failed in {tree}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    moments = checkpoint["optimizer_states"][0]["state"]
    report = json.loads((folder / "report.json").read_text())
    rows = [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in report["history"]
    ]
    return {
        "names": sorted(checkpoint["state_dict"]),
        "weights": list(checkpoint["state_dict"].values()),
        "moments": [x for state in moments.values() for x in state.values()],
        "metrics": rows,
    }


def distance(old: list[torch.Tensor], new: list[torch.Tensor]) -> float | None:
    """Largest difference; None where they are not tensors of the same shapes in the same order."""
    if [x.shape for x in old] != [x.shape for x in new]:
        return None
    return max(((a.double() - b.double()).abs().max().item() for a, b in zip(old, new)), default=0)  # noqa: B905


def first_row(old: list[dict], new: list[dict]) -> float:
    """Largest relative difference of the first iteration's (or step's) metrics."""
    a, b = old[0], new[0]
    both = {k for k in a if k in b and a[k] == a[k]}
    return max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-3) for k in both)


def main() -> None:
    revision, *wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        before = unpacked(revision, Path(temporary) / "before")
        for name in wanted or RUNS:
            sides = []
            for side, tree in (("old", before), ("new", ROOT)):
                folder = Path(temporary) / side / name
                folder.mkdir(parents=True)
                sides.append(run(tree, name, folder))
            old, new = sides
            words = {k: "equal" if old[k] == new[k] else "differ" for k in ("metrics", "names")}
            print(
                f"{name:10}  weights differ by {distance(old['weights'], new['weights'])},"
                f" moments by {distance(old['moments'], new['moments'])};"
                f" {len(new['metrics'])} rows of metrics {words['metrics']}, the first by"
                f" {first_row(old['metrics'], new['metrics']):.2g}; names {words['names']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
