"""What `task=estimate` says, against what runs take: the high-water mark of a process each.

    python benchmarks/memory.py                 # PPO, GRPO, DPO, reward x tiny, embedded, LoRA
    python benchmarks/memory.py dpo-8bit dpo-4bit dpo-4bit+checkpointing
    PYTHONPATH=. python benchmarks/memory.py distill-tiny distill-embedded
    python benchmarks/memory.py dpo-tiny ppo-lora --trace

Each run is a process of its own, `train.py` as a user starts it, with few iterations or pairs; its
peak is the `ru_maxrss` that the kernel counted (`VmHWM`), pages of mapped files included. Both
sides get the same options. It is run twice: once as it comes, and once with `GIVE_BACK`, by which
glibc returns freed pages to the system at once instead of keeping some; the ratio is to the latter,
for what is counted is what is in use. `--trace` says how the resident memory went.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LORA = ["model=smollm2", "model.lora.r=16"]
MODELS = {
    "tiny": ["model=tiny"],
    "embedded": ["model=smollm2"],
    "lora": [*LORA],
    "8bit": [*LORA, "model.quantization=8bit"],
    "4bit": [*LORA, "model.quantization=4bit"],
    "4bit+checkpointing": [*LORA, "model.quantization=4bit", "model.gradient_checkpointing=true"],
}
ALWAYS = ("tiny", "embedded", "lora")
"""Models of the runs that are measured if none is named."""
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc's own first values, in bytes; named, they stay what they are, else they grow with what is
freed, up to 32 and 64 MiB."""
FEW = ["algo.num_iterations=1", "data.eval_size=8", "data.eval_generations=1"]
ALGORITHMS = {
    "ppo": ["algo=ppo", *FEW, "algo.batch_size=32", "algo.value_warmup_iterations=0"],
    "grpo": ["algo=grpo", *FEW, "algo.gradient_accumulation_steps=1"],
    "dpo": ["algo=dpo", "algo.num_epochs=1", "data.eval_size=8"],
    "reward": ["algo=reward", "algo.num_epochs=1", "data.eval_size=8"],
    "distill": ["algo=distill", *FEW, "algo.gradient_accumulation_steps=1"],
}
"""Two optimizer steps at least: in the second, state and gradients of the first are there."""
PAIRS = 32
"""Of the set that the project carries."""
MIB = 2**20


def command(case: str, folder: Path) -> list[str]:
    algorithm, model = case.split("-", 1)
    options = [*ALGORITHMS[algorithm], *MODELS[model], "logger=none"]
    if algorithm in ("dpo", "reward"):
        options.append(f"data.path={pairs(folder)}")
    if algorithm == "distill":
        name = larger(folder) if model == "tiny" else "wheel:smollm2"
        options.append(f"algo.teacher_model_name_or_path={name}")
    return [sys.executable, str(ROOT / "train.py"), *options]


def pairs(folder: Path) -> Path:
    """The longest of the carried pairs, and as many short ones."""
    path = folder / "pairs.jsonl"
    if not path.is_file():
        carried = ROOT / "datamodules" / "assets" / "preferences_train.jsonl"
        rows = sorted(carried.read_text(encoding="utf-8").splitlines(), key=len)
        half = PAIRS // 2
        path.write_text("\n".join([*rows[:half], *rows[-half:]]) + "\n", encoding="utf-8")
    return path


def larger(folder: Path) -> Path:
    """A random teacher of the tiny model, of 27 million weights."""
    from transformers import LlamaForCausalLM

    from rlmodules.models.embedded import tiny_config, tiny_tokenizer

    path = folder / "teacher"
    if not path.is_dir():
        config = tiny_config()
        config.hidden_size, config.intermediate_size, config.head_dim = 512, 1536, 128
        config.num_hidden_layers = 8
        LlamaForCausalLM(config).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path


def peak_of(words: list[str], folder: Path, trace: bool, **told: str) -> int:
    """Bytes at most of a process.

    Args:
        told: variables of its environment.
    """
    began = time.perf_counter()
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=os.environ | told)
        if trace:
            threading.Thread(target=show, args=(child.pid, began), daemon=True).start()
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(words)}\n{(folder / 'log').read_text()[-3000:]}")
    return usage.ru_maxrss * 1024


def show(pid: int, began: float) -> None:
    """Anonymous and mapped memory as they go, where they change by a hundredth."""
    last = 0
    while True:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        sizes = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Rss"))
        if not sizes:
            return
        anonymous, mapped = (int(sizes[k].split()[0]) // 1024 for k in ("RssAnon", "RssFile"))
        if abs(anonymous + mapped - last) > 0.01 * last:
            last = anonymous + mapped
            seconds = time.perf_counter() - began
            print(f"  {seconds:6.1f} s {anonymous} + {mapped} MiB", file=sys.stderr)
        time.sleep(0.05)


def measured(cases: list[str], trace: bool) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases:
            words, figures = command(case, folder), folder / "figures.json"
            subprocess.run(
                [*words, "task=estimate", f"task.json={figures}"],
                cwd=folder, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            said = json.loads(figures.read_text())
            yield {"case": case, "estimate": said["peak_bytes"], "moment": said["peak"],
                   "moments": said["moments"], "peak": peak_of(words, folder, trace, **GIVE_BACK),
                   "as it comes": peak_of(words, folder, trace)}  # fmt: skip


def row(found: dict) -> str:
    estimate, peak, plain = (found[name] / MIB for name in ("estimate", "peak", "as it comes"))
    return (
        f"| {found['case']} | {estimate:,.0f} | {found['moment']} | {peak:,.0f} |"
        f" {estimate / peak:.2f} | {plain:,.0f} |"
    )


def main() -> None:
    every = [f"{a}-{m}" for m in MODELS for a in ALGORITHMS]
    always = [case for case in every if case.split("-", 1)[1] in ALWAYS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=always, help=f"of {', '.join(every)}")
    parser.add_argument("--trace", action="store_true", help="how the memory went")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    args = parser.parse_args()
    if unknown := sorted(set(args.cases) - set(every)):
        parser.error(f"no such case: {unknown}")
    print("| run | estimate, MiB | at the | measured, MiB | ratio | as it comes, MiB |")
    print("|---|---:|---|---:|---:|---:|", flush=True)
    rows = []
    for found in measured(args.cases, args.trace):
        rows.append(found)
        print(row(found), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
