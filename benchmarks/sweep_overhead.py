"""What a sweep costs besides its jobs: six smoke runs on two slots, and the same six by hand.

    PYTHONPATH=. python benchmarks/sweep_overhead.py [--jobs 6] [--slots 2]

By hand is ``python train.py`` with the same overrides, one after the other, and as many at a time
as there are slots (``xargs -P``, the fair comparison; with the threads that a slot gives). Wall
seconds; run it where nothing else runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlmodules.sweeping.slots import cores

TRAIN = Path(__file__).parents[1] / "train.py"
OPTIONS = ["experiment=smoke", "algo.device=cpu", "logger=none"]


def run(folder: Path, *arguments: str, threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    environment.pop("HYDRA_FULL_ERROR", None)
    command = [sys.executable, str(TRAIN), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def by_hand(folder: Path, jobs: int, at_once: int, threads: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        made = [
            pool.submit(run, folder, *OPTIONS, f"seed={seed}", threads=threads)
            for seed in range(jobs)
        ]
        for one in made:
            one.result()
    return time.perf_counter() - began


def by_sweep(folder: Path, jobs: int, slots: int, threads: int) -> float:
    began = time.perf_counter()
    options = [*OPTIONS, f"seed=range({jobs})", f"hydra.launcher.slots={slots}"]
    run(folder, "-m", *options, "hydra.sweep.dir=sweep", threads=threads)
    seconds = time.perf_counter() - began
    ended = len(list(folder.glob("sweep/*/result.json")))
    if ended != jobs:
        sys.exit(f"{ended} of {jobs} jobs have a result")
    return seconds


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--slots", type=int, default=2)
    given = parser.parse_args()
    threads = max(cores() // given.slots, 1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run(folder, *OPTIONS, "seed=99", threads=threads)  # reads all from the disk once
        together = by_hand(folder, given.jobs, given.slots, threads)
        sweep = by_sweep(folder, given.jobs, given.slots, threads)
        alone = by_hand(folder, given.jobs, 1, cores())
    print(f"{given.jobs} smoke runs, {cores()} cores, wall seconds:")
    print(f"  by hand, one after the other  {alone:6.1f}")
    print(f"  by hand, {given.slots} at a time          {together:6.1f}")
    print(f"  as a sweep, {given.slots} slots           {sweep:6.1f}  ({sweep / together:.2f} x)")


if __name__ == "__main__":
    main()
