"""Means over an iteration: sums and counts that outlast a checkpoint and add up over processes."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor


class Means:
    """Running means by name; what a device has computed is left there until somebody asks."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self._unread: list[tuple[str, float | Tensor, float]] = []

    @property
    def sums(self) -> dict[str, float]:
        """By name; what is still to be read is read at once, and added in the order it came."""
        if self._unread:
            waiting, self._unread = self._unread, []
            values = _read([value for _, value, _ in waiting])
            for (name, _, weight), value in zip(waiting, values, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value * weight
        return self._sums

    def add(self, values: Mapping[str, float | Tensor], weight: float = 1.0) -> None:
        """Add one observation of each; ``weight`` is how many elements it is the mean of."""
        for name, value in values.items():
            self.counts[name] = self.counts.get(name, 0.0) + weight
            kept = value.detach().reshape(()) if isinstance(value, Tensor) else float(value)
            self._unread.append((name, kept, weight))

    def add_minibatch(
        self, values: Mapping[str, float | Tensor], *, divisor: float, actions: float
    ) -> None:
        """Add a minibatch, so that each mean is one over all actions, however they lie in
        minibatches and processes.

        Args:
            values: what ends in ``loss`` is a sum divided by ``divisor``, the rest means over the
                ``actions`` of the minibatch; where there are none, they say nothing.
        """
        for name, value in values.items():
            if weight := float(divisor if name.endswith("loss") else actions):
                self.add({name: value}, weight)

    def merge(self, state: dict[str, dict[str, float]]) -> None:
        """Add the observations behind the ``state_dict`` of another."""
        for mine, others in ((self.sums, state["sums"]), (self.counts, state["counts"])):
            for name, value in others.items():
                mine[name] = mine.get(name, 0.0) + value

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over all processes, NaN where nothing was observed.

        ``reduce`` sums a tensor over processes.
        """
        names = sorted(self.sums)
        if not names:
            return {}
        pairs = [[self.sums[name], self.counts[name]] for name in names]
        totals = reduce(torch.tensor(pairs, dtype=torch.float64))
        return {name: (s / c).item() for name, (s, c) in zip(names, totals, strict=True)}

    def clear(self) -> None:
        self._unread.clear()
        self._sums.clear()
        self.counts.clear()

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        self._unread.clear()
        self._sums, self.counts = dict(state["sums"]), dict(state["counts"])


def _read(values: Sequence[float | Tensor]) -> list[float]:
    """Numbers, those of a device at once: to ask for one is to wait for all that it has to do."""
    read = [0.0 if isinstance(value, Tensor) else value for value in values]
    tensors = {i: value for i, value in enumerate(values) if isinstance(value, Tensor)}
    for kind in {(value.device, value.dtype) for value in tensors.values()}:
        some = {i: x for i, x in tensors.items() if (x.device, x.dtype) == kind}
        for i, number in zip(some, torch.stack(list(some.values())).tolist(), strict=True):
            read[i] = number
    return read


class Stopwatch:
    """Seconds between ``start`` and the last ``lap``."""

    def __init__(self) -> None:
        self.start()

    def start(self, seconds: float = 0.0) -> None:
        """Args: seconds: those of an earlier process, which count too."""
        self._began, self.seconds = time.perf_counter() - seconds, seconds

    def lap(self) -> None:
        self.seconds = time.perf_counter() - self._began


def distinct_bigrams(texts: Iterable[str]) -> float:
    """Different word pairs over all word pairs (distinct-2, Li et al. 2016, arXiv:1510.03055).

    Falls when texts repeat themselves or each other. 1 where there is no pair at all.
    """
    words = [text.lower().split() for text in texts]
    pairs = [pair for w in words for pair in itertools.pairwise(w)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0
