"""Does `python train.py` itself run on the card, and does a CPU go on with what it left?

Each command is a process of its own, several at once: nothing here is timed.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from on_gpu.parts import Parts, Result, arguments

ROOT = Path(__file__).resolve().parent.parent.parent
ONLINE = ("ppo", "grpo", "gspo", "rloo", "reinforce_plus_plus")
OFFLINE = ("dpo", "orpo", "kto", "sft", "reward", "pairwise")
SMOKE = ["experiment=smoke"]
GROUPS = [*SMOKE, "env=text", "algo.num_generations=2", "algo.gradient_accumulation_steps=1"]
FEW = ["model=tiny", "algo.num_epochs=1", "+trainer.limit_train_batches=4", "algo.eval_every=2"]
"""As short as a smoke run, for algorithms that learn from pairs."""
LONG = ["algo.max_new_tokens=96"]
"""Enough tokens for decoding steps to be recorded."""
TAUGHT = [*SMOKE, *LONG, "algo=distill", "algo.teacher_model_name_or_path=random:tiny"]
VARIANTS: dict[str, list[str]] = {
    "distill": TAUGHT,
    "distill-own-teacher-mix": [*TAUGHT, "algo.lmbda=0.5", "algo.beta=0.5"],
    "long-ppo": [*SMOKE, *LONG, "algo=ppo"],
    "long-lora": [*GROUPS, *LONG, "algo=grpo", "model.lora.r=4"],
    "rolled-back": [
        *SMOKE,
        *LONG,
        "algo=ppo",
        "callbacks.health.on_failure=rollback",
        "algo.learning_rate=1.0",
        "algo.num_iterations=6",
        "algo.save_every=1",
    ],
    "doctor-ppo": ["task=doctor", "model=tiny", "algo=ppo"],
    "doctor-grpo-lora": ["task=doctor", "model=tiny", "algo=grpo", "model.lora.r=4"],
    "doctor-dpo": ["task=doctor", "model=tiny", "algo=dpo"],
    "doctor-sft": ["task=doctor", "model=tiny", "algo=sft"],
    "doctor-reward": ["task=doctor", "model=tiny", "algo=reward"],
    "doctor-bf16-true": ["task=doctor", "model=tiny", "algo=ppo", "trainer.precision=bf16-true"],
    "estimate": ["task=estimate", "model=tiny", "algo=ppo"],
    "weights-bf16": [*SMOKE, "algo=ppo", "model.dtype=bfloat16"],
    "bf16-true": [*SMOKE, "algo=ppo", "trainer.precision=bf16-true"],
    "16-mixed": [*SMOKE, "algo=ppo", "trainer.precision=16-mixed"],
    "16-mixed-dpo": [*FEW, "algo=dpo", "trainer.precision=16-mixed"],
    "deterministic-ppo": [*SMOKE, "algo=ppo", "trainer.deterministic=true"],
    "deterministic-grpo": [*GROUPS, "algo=grpo", "trainer.deterministic=true"],
    "deterministic-dpo": [*FEW, "algo=dpo", "trainer.deterministic=true"],
    "deterministic-reward": [*FEW, "algo=reward", "trainer.deterministic=true"],
    "eager": [*SMOKE, "algo=ppo", "model.attn_implementation=eager"],
    "lora": [*GROUPS, "algo=grpo", "model.lora.r=4"],
    "checkpointing": [*SMOKE, "algo=ppo", "model.gradient_checkpointing=true"],
    "top-p": [*SMOKE, "algo=ppo", "algo.top_p=0.5", "algo.temperature=0.9"],
    "on-cpu": [*SMOKE, "algo=ppo", "algo.device=cpu"],
    "no-such-card": [*SMOKE, "algo=ppo", "algo.device=cuda:7"],
}
REFUSED = {"no-such-card", "rolled-back"}
"""Those that end with an error: the second one after three rollbacks."""
THEN = {
    "evaluated-on-cpu": ["task=evaluate"],
    "resumed-on-cpu": ["algo.num_iterations=3"],
    "resumed-on-card": ["algo.num_iterations=3"],
}
"""What follows `algo=ppo`, from its folder."""


def command(options: list[str], folder: Path, device: str, limit: float = 120) -> Result:
    """One run of train.py, of at most ``limit`` seconds; its last lines."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", **hidden}
    argv = [sys.executable, "train.py", *options, "logger=none", f"hydra.run.dir={folder}"]
    start = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=limit, check=False)  # fmt: skip
    said = f"{done.stderr}\n{done.stdout if not done.returncode else ''}".strip().splitlines()
    result = {"rc": done.returncode, "took_s": time.monotonic() - start,
              "options": " ".join(options), "said": said[-1][:300]}  # fmt: skip
    if done.returncode:
        trace = folder / "error.txt"
        lines = trace.read_text("utf-8").splitlines() if trace.is_file() else said
        result |= {"said": said[-14:], "traceback": lines[-16:]}
    return result


def one(parts: Parts, folder: Path, device: str, name: str, options: list[str]) -> None:
    """Run a command, note it, and what follows it."""
    try:
        result = command(options, folder / name, device)
    except subprocess.TimeoutExpired as error:
        result = {"error": str(error)[:200]}
    if (result.get("rc") == 0) == (name in REFUSED):
        result["error"] = f"ended with {result.get('rc')}"
    parts.note(f"train.py-{name}", result, result.pop("took_s", 120.0))
    if name != "ppo":
        return
    for then, more in THEN.items():
        where = device if then.endswith("card") else "cpu"
        options = [*SMOKE, "algo=ppo", *more, f"ckpt_path={folder / name}"]
        result = command(options, folder / then, where)
        if result["rc"]:
            result["error"] = f"ended with {result['rc']}"
        parts.note(f"train.py-{then}", result, result.pop("took_s"))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--at-once", type=int, default=8)
    args = parser.parse_args()
    parts = Parts(args.out, args.seconds, args.only)
    asked = {name: [*(SMOKE if name == "ppo" else GROUPS), f"algo={name}"] for name in ONLINE}
    asked |= {name: [*FEW, f"algo={name}"] for name in OFFLINE} | VARIANTS
    asked = {n: o for n, o in asked.items() if not args.only or n in args.only}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.at_once) as pool:
        run = partial(one, parts, Path(folder), args.device)
        list(pool.map(run, asked, asked.values()))


if __name__ == "__main__":
    main()
