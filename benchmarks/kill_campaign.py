"""Kill training runs at random, go on from what they left, and compare with runs left in peace.

    python benchmarks/kill_campaign.py                  # what is missing of 20 x 5; resumable
    python benchmarks/kill_campaign.py --only 'dpo'     # some configurations
    python benchmarks/kill_campaign.py --summary        # what stands so far

A schedule is drawn from a seed: several attempts, each ended by SIGKILL, SIGTERM or Ctrl-C, at a
time uniform over the undisturbed run's, or while it saves or exports; then one that may finish.
Each goes on from the newest ``last.ckpt``, as users do. Equal to the last bit have to be: weights,
optimizer moments, schedules, counters and histories in ``last.ckpt``; ``best.ckpt``; every exported
file; the report and the rows of the CSV log but for times.

An attempt is a fork of a process that has imported everything: seconds become tenths. Two
processes are started from outside, as ``torchrun`` does. Results are in
``benchmarks/.cache/kills/COMMIT.jsonl``.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "benchmarks" / ".cache" / "kills"
sys.path.insert(0, str(ROOT))

ALL = ["model=tiny", "trainer.precision=32-true", "~logger.tensorboard", "data.eval_size=4"]
EPISODES = ["reward=length", "algo.num_iterations=4", "algo.batch_size=8", "algo.mini_batch_size=4"]
EPISODES += ["algo.max_new_tokens=4", "algo.eval_every=3", "algo.save_every=1"]
PAIRS = ["data.path=pairs.jsonl", "algo.batch_size=4", "algo.num_epochs=4", "algo.save_every=2"]
PAIRS += ["algo.eval_every=5"]
ALGORITHMS = {
    "ppo": [*EPISODES, "algo.ppo_epochs=2"],
    "grpo": [*EPISODES, "env=text", "algo.num_epochs=2", "algo.num_generations=4", "algo.beta=0.1"],
    "dpo": PAIRS,
    "orpo": PAIRS,
    "reward": PAIRS,
}
LORA = {"reward": ["algo.use_lora=true"]}
HALVES = {"ppo": "mini_batch_size", "grpo": "mini_batch_size"}


def configurations() -> dict[str, tuple[list[str], int]]:
    """Name -> its overrides and its number of processes: 20, of which 4 are of two processes."""
    found = {}
    for algo, options in ALGORITHMS.items():
        lora = LORA.get(algo, ["model.lora.r=4"])
        size = 2  # a window of two batches of half the size
        window = [f"algo.{HALVES.get(algo, 'batch_size')}={size}"]
        window += ["algo.gradient_accumulation_steps=2"]
        both = (f"{algo}-lora-windows", [*lora, *window], 1)
        two = (f"{algo}-windows-two", [*window, "trainer=ddp", "trainer.devices=2"], 2)
        for name, more, processes in (
            (f"{algo}", [], 1),
            (f"{algo}-lora", lora, 1),
            (f"{algo}-windows", window, 1),
            both if algo == "orpo" else two,
        ):
            found[name] = ([f"algo={algo}", *ALL, *options, *more], processes)
    return found


# ------------------------------------------------------------------------------ attempts


def prepare() -> Any:
    """Import everything once, and start no thread; returns ``train.main``."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"PYTHONPATH": str(ROOT)}
    import lightning.pytorch.loggers
    import matplotlib.pyplot
    import peft
    import torch
    import transformers.models.llama.modeling_llama

    import rlmodules.trainers.online
    import train

    torch.set_num_threads(1)
    del lightning, matplotlib, peft, transformers, rlmodules
    return train.main


def start(main: Any, folder: Path, overrides: list[str], processes: int) -> list[int]:
    """Fork an attempt's processes, each in a session of its own; returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        sys.stdout.flush()
        if child := os.fork():
            children.append(child)
            continue
        status = 70
        try:
            os.setsid()
            log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(folder.parent)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(
                    number,
                    signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                )
            if processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                os.environ |= {"WORLD_SIZE": str(processes)}
            sys.argv = ["train.py", *overrides, f"hydra.run.dir={folder}"]
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if status == 1:
                print(end.code, flush=True)
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(status)
    return children


def ended(children: list[int], statuses: dict[int, int]) -> bool:
    """Whether all of an attempt's processes are gone; notes how."""
    for child in children:
        if child not in statuses:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                statuses[child] = os.waitstatus_to_exitcode(status)
    return len(statuses) == len(children)


def send(children: list[int], statuses: dict[int, int], number: int) -> None:
    for child in children:
        if child not in statuses:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)


def attempt(
    main: Any, folder: Path, overrides: list[str], processes: int, blow: dict[str, Any] | None
) -> tuple[list[int], float]:
    """One attempt, ended by a blow if there is one; exit statuses and seconds."""
    folder.mkdir(parents=True)
    began, statuses = time.monotonic(), {}
    children = start(main, folder, overrides, processes)
    struck_at, count, was = None, 0, False
    while not ended(children, statuses):
        now = time.monotonic() - began
        if blow and struck_at is None:
            if blow["when"] == "time":
                due = now >= blow["at"]
            else:  # in the n-th save, or in the export: while its partial folder is there
                places = {"save": (folder / "checkpoints", ".last"), "export": (folder, ".model")}
                place, prefix = places[blow["when"]]
                names = os.listdir(place) if place.is_dir() else []
                seen = any(name.startswith(prefix) for name in names)
                count, was = count + (seen and not was), seen
                due = seen and count > blow["at"]
            if due:
                time.sleep(blow.get("delay", 0.0))
                send(children, statuses, blow["signal"])
                struck_at = blow["struck"] = now
        patience = 120 if struck_at is None else struck_at + 60
        if now > patience or (any(statuses.values()) and len(statuses) < len(children)):
            time.sleep(1.0)  # a process that waits for one that is gone
            send(children, statuses, signal.SIGKILL)
        time.sleep(0.002)
    return [statuses[child] for child in children], time.monotonic() - began


def blows(seed: str, seconds: float) -> list[dict[str, Any]]:
    """How a schedule's attempts end: two to four, times uniform over an undisturbed run's."""
    draw = random.Random(seed)
    found = []
    for _ in range(draw.randint(2, 4)):
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        when = draw.choice(["time", "time", "time", "save", "export"])
        at = draw.uniform(0, seconds) if when == "time" else 0
        at = draw.randint(0, 3) if when == "save" else at
        found.append(
            {"signal": int(number), "when": when, "at": at, "delay": draw.uniform(0, 0.01)}
        )
    return found


def complete(folder: Path) -> bool:
    return (folder / "report.json").is_file() and (folder / "model").is_dir()


def run(main: Any, name: str, folder: Path, hits: list[dict[str, Any]]) -> tuple[Path, list[Any]]:
    """A run through all its attempts; the folder of the last, and how each ended.

    Raises:
        RuntimeError: an attempt that nobody disturbed failed.
    """
    overrides, processes = configurations()[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "pairs.jsonl").open("w") as file:
        for i in range(26):
            row = {"prompt": f"Question {i}?", "chosen": f" Yes {i}", "rejected": f" No, {i * 7}"}
            file.write(json.dumps(row) + "\n")
    last: list[str] = []
    story = []
    for number, blow in enumerate([*hits, None]):
        here = folder / f"attempt-{number}"
        statuses, seconds = attempt(main, here, [*overrides, *last], processes, blow)
        while blow and complete(here) and (number == 0 or "struck" not in blow):  # it was quicker
            shutil.rmtree(here)
            blow |= {"when": "time", "at": 0.8 * min(seconds, blow["at"] or seconds)}
            blow.pop("struck", None)
            statuses, seconds = attempt(main, here, [*overrides, *last], processes, blow)
        story.append({"blow": blow, "status": statuses, "seconds": round(seconds, 2)})
        if complete(here):
            return here, story
        known = {0, -9, -15, 143, 130, 1}
        if blow is None or not set(statuses) <= known:
            raise RuntimeError(f"attempt {number} ended with {statuses}: see {here}/log-0.txt")
        if (here / "checkpoints" / "last.ckpt").is_file():
            last = [f"ckpt_path={here / 'checkpoints' / 'last.ckpt'}"]
    raise AssertionError("the last attempt is complete or raises")


# ------------------------------------------------------------------------------ comparing


def differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Where two nested values differ, but for times and the folders' own names."""
    import torch

    if isinstance(left, dict) and isinstance(right, dict):
        for key in left.keys() | right.keys():
            where = f"{path}.{key}"
            if re.search(r"\.(time/|seconds|update_seconds|dirpath$|\w*_path$)", where):
                continue
            if key not in left or key not in right:
                yield f"{where} is missing on one side"
            else:
                yield from differences(left[key], right[key], where)
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) != len(right):
            yield f"{path}: {len(left)} and {len(right)} long"
        for i, (a, b) in enumerate(zip(left, right, strict=False)):
            yield from differences(a, b, f"{path}[{i}]")
    elif isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        if left.dtype != right.dtype or not torch.equal(left, right):
            yield f"{path}: tensors"
    elif left != right and not (left != left and right != right):
        yield f"{path}: {left!r} and {right!r}"


def contents(folder: Path) -> Iterator[tuple[str, Any]]:
    """All that a finished run left, as values."""
    import torch
    from safetensors.torch import load_file

    for name in ("last", "best"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        if name == "last" or path.is_file():
            checkpoint = torch.load(path, weights_only=True)
            checkpoint["loops"] = checkpoint["loops"]["fit_loop"]
            checkpoint.pop("run", None)  # its settings, folders among them
            best = [key for key in checkpoint.get("callbacks", {}) if key.startswith("SaveBest")]
            for key in best:  # its keys are paths
                state = checkpoint["callbacks"][key]
                state["best_k_models"] = list(state["best_k_models"].values())
            yield path.name, checkpoint
    for path in sorted((folder / "model").rglob("*")):
        if path.suffix == ".safetensors":
            yield f"model/{path.name}", load_file(path)
        elif path.is_file() and path.name != "README.md":
            yield f"model/{path.name}", path.read_bytes()
    report = json.loads((folder / "report.json").read_text())
    report.pop("run", None)  # when it was started, and by which commands
    yield "report.json", report


def log_rows(folder: Path) -> dict[tuple[str, str], str]:
    """(step, metric) -> value in the CSV log."""
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        (row["step"], name): value
        for row in rows
        for name, value in row.items()
        if value and not name.startswith("time/")
    }


def compare(straight: Path, resumed: Path) -> list[str]:
    """What differs between the files of two finished runs."""
    left, right = dict(contents(straight)), dict(contents(resumed))
    found = [f"{name} is there once" for name in left.keys() ^ right.keys()]
    for name in left.keys() & right.keys():
        found += differences(left[name], right[name], name)
    if (resumed / "csv" / "metrics.csv").is_file():
        whole = log_rows(straight)
        found += [
            f"log, {where}: {value} and {whole.get(where)}"
            for where, value in log_rows(resumed).items()
            if whole.get(where) != value
        ]
    return found


# ------------------------------------------------------------------------------ the campaign


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("-changed" if changed else "")


def kills(story: list[dict[str, Any]]) -> int:
    return sum("struck" in (attempt["blow"] or {}) for attempt in story)


def summary(results: Path) -> None:
    """Print n of m for each configuration, and in all."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    for name in configurations():
        mine = [row for row in rows if row["name"] == name]
        if mine:
            same = sum(not row["differences"] for row in mine)
            times = sum(kills(row["story"]) for row in mine)
            print(f"{name:22} {same}/{len(mine)}   {times} kills")
    same = sum(not row["differences"] for row in rows)
    times = sum(kills(row["story"]) for row in rows)
    print(f"{results.stem}: {same} of {len(rows)} schedules equal to the last bit, {times} kills")


def campaign(names: list[str], schedules: int, results: Path) -> None:
    """Run what is missing of ``schedules`` of each configuration."""
    results.parent.mkdir(parents=True, exist_ok=True)
    done = (
        {(r["name"], r["schedule"]) for r in map(json.loads, results.open())}
        if (results.is_file())
        else set()
    )
    main = prepare()
    for name in names:
        missing = [n for n in range(schedules) if (name, n) not in done]
        if not missing:
            continue
        home = results.with_suffix("") / name
        straight, story = run(main, name, home / "straight", [])
        seconds = story[0]["seconds"]
        for number in missing:
            folder = home / str(number)
            hits = blows(f"{name} {number}", seconds)
            try:
                resumed, story = run(main, name, folder, hits)
                found = compare(straight, resumed)
            except RuntimeError as error:
                found = [str(error)]
            row = {"name": name, "schedule": number, "differences": found[:20], "story": story}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name} {number}: {kills(story)} kills, {found[:3] or 'equal'}", flush=True)
            if not found:
                shutil.rmtree(folder)
        shutil.rmtree(home / "straight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a pattern of configurations' names")
    parser.add_argument("--schedules", type=int, default=5, help="of each configuration")
    parser.add_argument("--summary", action="store_true", help="print what stands so far")
    parser.add_argument("--to", type=Path, help="file of results; default: the commit's")
    arguments = parser.parse_args()
    file = arguments.to or CACHE / f"{commit()}.jsonl"
    chosen = [name for name in configurations() if re.search(arguments.only, name)]
    if not arguments.summary:
        campaign(chosen, arguments.schedules, file)
    summary(file)
