"""Keeps what training made of a few sampled responses, token by token, for ``report.html``."""

import json
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.atomic import write_text
from datamodules.experience import Experience
from datamodules.types import Rollout, action_rewards, sequence_of
from rlmodules.callbacks.position import is_whole_epoch
from rlmodules.views.tokens import pieces

DIGITS = 4
"""Of the numbers that are kept."""


class TokenRecord(Callback):
    """Writes ``tokens/iteration-N.json``: a few episodes of each iteration, of rank zero.

    Those whose starting states were kept before come first, so that one can see what became of
    them; then the best and the worst paid. What is known of them when they have been played is
    written then, and again at the iteration's end, with what its updates have changed (``ratio``,
    ``entropy``). Nothing is drawn, and nothing that is trained is touched.

    Args:
        dirpath: the run's folder.
        episodes: how many.
    """

    def __init__(self, dirpath: str, episodes: int = 4) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes} must be at least 1: leave the callback out")
        self.dirpath, self.episodes = Path(dirpath) / "tokens", episodes
        self.starts: list[int] = []
        """Starting states of what was kept, in the order in which they were met."""
        self.kept: dict[str, Any] = {}
        """The iteration that goes on."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        watchers = getattr(pl_module, "watchers", None)
        if stage == "fit" and watchers is not None and trainer.is_global_zero:
            self._trainer = trainer
            pl_module.watchers = [*(w for w in watchers if w != self._note), self._note]

    def _note(self, rollout: Rollout, experience: Experience) -> None:
        """Keep episodes of an iteration that is about to be learned from."""
        rewards = [_comparable(t.total_reward) for t in rollout.trajectories]
        rows = chosen(list(rollout.starts), rewards, self.starts, self.episodes)
        module = self._trainer.lightning_module
        self.kept = {
            "iteration": self._trainer.current_epoch + 1,
            "rows": rows,
            "episodes": [described(rollout, experience, row, module.tokenizer) for row in rows],
        }
        starts = [rollout.starts[row] for row in rows if rollout.starts]
        self.starts = list(dict.fromkeys([*self.starts, *starts]))[: 16 * self.episodes]
        self._write()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what the updates have changed."""
        experience = getattr(trainer.train_dataloader, "experience", None)
        if experience is None or not is_whole_epoch(trainer):
            return
        with pl_module.whole():  # of which all processes take part, though one computes
            if self.kept:
                self._compare(pl_module, experience)

    def _compare(self, pl_module: L.LightningModule, experience: Experience) -> None:
        rows = [row for row in self.kept["rows"] if len(experience.positions[row])]
        scores = rescored(pl_module, experience, rows) if rows else []
        for row, (logprobs, entropy) in zip(rows, scores, strict=True):
            episode = self.kept["episodes"][self.kept["rows"].index(row)]
            old = experience.old_logprobs[row, : len(logprobs)]
            episode["columns"]["ratio"] = numbers((logprobs - old).exp())
            episode["columns"]["entropy"] = numbers(entropy)
        self._write()
        self.kept = {}

    def _write(self) -> None:
        path = self.dirpath / f"iteration-{self.kept['iteration']:04d}.json"
        told = {name: value for name, value in self.kept.items() if name != "rows"}
        write_text(path, json.dumps(told, allow_nan=False, separators=(",", ":")))

    def state_dict(self) -> dict[str, Any]:
        return {"starts": self.starts, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.starts, self.kept = state_dict["starts"], state_dict["kept"]


def chosen(
    starts: Sequence[int], rewards: Sequence[float], known: Sequence[int], count: int
) -> list[int]:
    """Rows of at most ``count`` episodes: one of each start that is known, then by turns the best
    and the worst paid of the others; in their order."""
    first = {start: row for row, start in reversed(list(enumerate(starts)))}
    found = [first[start] for start in known if start in first][:count]
    ranked = sorted(set(range(len(rewards))) - set(found), key=lambda row: (-rewards[row], row))
    while ranked and len(found) < count:
        found.append(ranked.pop(0))
        if ranked and len(found) < count:
            found.append(ranked.pop())
    return sorted(found)


def rescored(
    module: Any, experience: Experience, rows: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities and entropies [A_i] of these episodes' actions as the policy is now."""
    tokens = experience.minibatch(rows, 1.0).tokens.to(module.policy.device)
    with torch.no_grad(), module.inference():
        temperature = module.sampling.temperature
        scores = module.policy.score(tokens, temperature=temperature, with_entropy=True)
    counts = [len(at) for at in tokens.positions]
    both = (x.float().cpu().split(counts) for x in (scores.logprobs, scores.entropy))
    return list(zip(*both, strict=True))


def described(rollout: Rollout, experience: Experience, row: int, tokenizer: Any) -> dict[str, Any]:
    """An episode as text in pieces, with a column of numbers for each thing known of its actions.

    Columns hold a number an action (null where there is none): ``reward`` of the environment,
    ``shaped`` (with the KL penalty), ``advantage``, ``return``, ``value``, ``logprob``, ``kl``,
    ``mask`` (whether it is learned from). What an algorithm does not have is left out.
    """
    trajectory, evaluation = rollout.trajectories[row], rollout.evaluation
    count = sum(len(action) for action in trajectory.actions)
    known = 0 if trajectory.failed else count
    columns = {
        "reward": action_rewards(rollout.trajectories, evaluation.mask),
        "shaped": experience.rewards,
        "advantage": experience.advantages,
        "return": experience.returns,
        "value": experience.values,
        "logprob": evaluation.logprobs,
        "kl": evaluation.kl(),
    }
    mask = experience.mask[row, :known].tolist()
    return {
        "prompt": trajectory.observations[0].prompt,
        "start": rollout.starts[row] if rollout.starts else None,
        "reward": None if trajectory.unscored else finite(trajectory.total_reward),
        "ended": trajectory.finish_reason,
        "failed": trajectory.failed,
        "metrics": {name: finite(value) for name, value in trajectory.metrics.items()},
        "segments": segments(trajectory, tokenizer),
        "columns": {
            **{k: _column(x[row, :known], count) for k, x in columns.items() if x is not None},
            "mask": [*map(int, mask), *[0] * (count - len(mask))],
        },
    }


def segments(trajectory: Any, tokenizer: Any) -> list[tuple[str, Any]]:
    """``("prompt", text)``, then ``("response", [piece, ...])`` and ``("environment", text)``."""
    sequence, _ = sequence_of(trajectory)
    kinds = ["environment"] * len(sequence)
    for observation, action in zip(trajectory.observations, trajectory.actions, strict=True):
        start = len(observation.input_ids)
        kinds[start : start + len(action)] = ["response"] * len(action)
    begin = len(trajectory.observations[0].input_ids)
    kinds[:begin] = ["prompt"] * begin
    read = zip(kinds, pieces(tokenizer, sequence.tolist()), strict=True)
    found: list[tuple[str, Any]] = []
    for kind, group in groupby(read, key=lambda pair: pair[0]):
        texts = [text for _, text in group]
        found.append((kind, texts if kind == "response" else "".join(texts)))
    return found


def numbers(values: Tensor) -> list[float | None]:
    """Plain numbers of ``DIGITS`` digits; None for what is not finite."""
    return [finite(value) for value in values.tolist()]


def finite(value: float) -> float | None:
    """``value`` in ``DIGITS`` digits, if it is a number."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _column(values: Tensor, count: int) -> list[float | None]:
    return [*numbers(values), *[None] * (count - len(values))]


def _comparable(reward: float) -> float:
    return reward if math.isfinite(reward) else -math.inf
