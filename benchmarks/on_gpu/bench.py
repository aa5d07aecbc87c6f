"""What the parts that measure speed share: the card and its limits, sizes, clocks."""

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch

from on_gpu.parts import Result
from on_gpu.shapes import SIZES, counts, model_folder


class Bench:
    """What all parts share: device, sizes, checkpoints, and the card's limits."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.device, self.tiny, self.folder = args.device, args.tiny, folder
        self.size: dict[str, int] = SIZES["tiny" if args.tiny else "full"]
        self.peak = self.bandwidth = float("nan")

    def model(self, size: str) -> Path:
        return model_folder("tiny" if self.tiny else size, self.folder, self.device)

    def counts(self, size: str) -> dict[str, int]:
        return counts("tiny" if self.tiny else size)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def fresh(self) -> None:
        """Forget the memory of the part before."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        if self.device != "cuda":
            return {}
        return {
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }

    def seconds(self, run: Callable[[], Any], repeats: int = 10) -> float:
        for _ in range(3):
            run()
        taken = []
        for _ in range(repeats):
            self.synchronize()
            start = time.perf_counter()
            run()
            self.synchronize()
            taken.append(time.perf_counter() - start)
        return median(taken)

    def limits(self) -> Result:
        """The card's bf16 products and its copies."""
        n, mebibytes = (512, 16) if self.tiny else (8192, 4096)
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        self.peak = 2 * n**3 / self.seconds(lambda: a @ b)
        source = torch.randn(mebibytes * 2**18, device=self.device)
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / self.seconds(lambda: target.copy_(source))
        return {
            "card": torch.cuda.get_device_name() if self.device == "cuda" else "CPU",
            "bf16_tflops": self.peak / 1e12,
            "copy_gb_s": self.bandwidth / 1e9,
        }


class Clock(L.Callback):
    """Wall seconds of each iteration, and of each batch."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.epochs: list[float] = []
        self.stamps: list[float] = []
        self.examples: list[Any] = []

    def now(self) -> float:
        self.bench.synchronize()
        return time.perf_counter()

    def on_train_start(self, *_: Any) -> None:
        self.stamps.append(self.now())

    def on_train_epoch_start(self, *_: Any) -> None:
        self._began = self.now()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.epochs.append(self.now() - self._began)

    def on_train_batch_end(self, *args: Any) -> None:
        self.examples.append(getattr(args[3], "examples", None))
        self.stamps.append(self.now())
