"""Preference collection: an environment's prompts and a policy -> pairs for DPO and reward models.

Each prompt is answered several times; of the answers, as the environment scores them, the best
becomes ``chosen`` and the worst ``rejected``. Rows have TRL's columns ``prompt``, ``chosen`` and
``rejected``, messages where the prompt is a conversation, as ``preferences.rows`` reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from datamodules.checks import require_finite, require_seed, require_whole
from datamodules.ends import before_end
from datamodules.environments.base import Environment
from datamodules.environments.text import TextGenerationEnv
from datamodules.rollouts.episodes import act_out, score
from datamodules.rollouts.pairs_file import PairsFile
from datamodules.seeding import derive_seed
from datamodules.text.prompts import Content
from datamodules.types import Observation, Policy, Trajectory

TRUNCATED = ("rejected", "drop", "keep")


@dataclass(frozen=True)
class Answer:
    """A response to a prompt, and what it earned."""

    text: str
    """Up to its end token or stop string, without special tokens."""
    score: float
    finish_reason: str
    """``eos``, ``stop``, or ``length`` where ``max_new_tokens`` cut it."""

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Collected:
    """What a collection came to, earlier parts of its file included."""

    path: str
    prompts: int
    pairs: int
    without_pair: int
    """Prompts whose answers gave no pair."""
    mean_chosen: float
    """Mean score; NaN where there is no pair."""
    mean_rejected: float
    sampled: int
    """Answers of this session."""
    mean_sampled: float
    """Mean score of those that were scored; NaN if none was."""
    failed: int
    """Answers of this session that the environment gave up (``env.on_error=skip``)."""
    unscored: int = 0
    """Answers of this session that no reward applies to: they are in no pair."""

    def __str__(self) -> str:
        share = self.without_pair / self.prompts
        lines = [
            f"{self.pairs} pairs from {self.prompts} prompts in {self.path}",
            f"mean score: {self.mean_chosen:.3f} chosen, {self.mean_rejected:.3f} rejected",
            f"prompts without a pair, as no two of their answers differed enough:"
            f" {self.without_pair} ({share:.1%})",
        ]
        if self.sampled:
            scored = f"mean score {self.mean_sampled:.3f}"
            lines.append(f"answers sampled in this run: {self.sampled}, {scored}")
        if self.failed:
            lines.append(f"answers that the environment gave up: {self.failed}")
        if self.unscored:
            lines.append(f"answers that no reward applies to, left out of pairs: {self.unscored}")
        return "\n".join(lines)


class PreferenceCollector:
    """Plays groups of episodes and writes the pairs that they give.

    Texts are a function of the seed and the prompt, so a collection that was interrupted and goes
    on, in batches of whatever size, writes the same file. Prompts are taken in an order drawn by
    the seed: those of a smaller ``num_prompts`` are the first of a larger.

    Args:
        num_generations: answers to each prompt.
        num_prompts: how many; None takes all.
        batch_size: answers sampled at once.
        max_pairs: pairs a prompt: the best answer with the worst, the second best with the second
            worst, and so on; no answer is in two.
        min_gap: the scores of a pair must differ by more than this.
        truncated: answers that ``max_new_tokens`` cut: ``rejected`` never takes them for chosen,
            ``drop`` leaves them out, ``keep`` treats them as any other.
        seed: of the order of prompts and of texts.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        num_generations: int = 8,
        num_prompts: int | None = None,
        batch_size: int = 64,
        max_pairs: int = 1,
        min_gap: float = 0.0,
        truncated: str = "rejected",
        seed: int = 0,
    ) -> None:
        require_whole("task", 2, num_generations=num_generations)
        require_whole("task", 1, batch_size=batch_size, max_pairs=max_pairs)
        if num_prompts is not None:  # null takes all
            require_whole("task", 1, num_prompts=num_prompts)
        require_seed("task.seed", seed)
        require_finite("task", min_gap=min_gap)
        if min_gap < 0:
            raise ValueError(f"task.min_gap={min_gap} must be 0 or more")
        if truncated not in TRUNCATED:
            raise ValueError(f"task.truncated={truncated!r}: use one of {', '.join(TRUNCATED)}")
        self.num_generations, self.num_prompts = num_generations, num_prompts
        self.batch_size, self.max_pairs = batch_size, max_pairs
        self.min_gap, self.truncated, self.seed = min_gap, truncated, seed

    @property
    def source(self) -> dict[str, Any]:
        """The options that pairs depend on."""
        names = ("num_generations", "max_pairs", "min_gap", "truncated", "seed")
        return {name: getattr(self, name) for name in names}

    def collect(
        self, policy: Policy, env: Environment, file: PairsFile, starts: Sequence[int]
    ) -> Collected:
        """Answer the prompts that ``file`` does not yet cover, and append their pairs.

        Args:
            policy: what answers.
            starts: starting states of ``env`` to choose from.

        Raises:
            ValueError: an episode took several turns; ``num_prompts`` are not there; or the file
                was made from other prompts.
            EpisodeError: as of ``datamodules.rollouts.episodes``.
        """
        order = self._order(starts)
        done = self._covered(env, file, order)
        size = max(self.batch_size // self.num_generations, 1)
        batches = [order[i : i + size] for i in range(done, len(order), size)]
        scores: list[float] = []
        failed = unscored = 0
        for batch in track(batches, description="Collecting", transient=True):
            for start, group in zip(batch, self._groups(policy, env, batch), strict=True):
                intact = [(t, answer) for t, answer in group if not (t.failed or t.unscored)]
                failed += sum(t.failed for t, _ in group)
                unscored += sum(t.unscored for t, _ in group)
                answers = [answer for _, answer in intact]
                scores += [answer.score for answer in answers]
                pairs = choose_pairs(answers, self.max_pairs, self.min_gap, self.truncated)
                if pairs:
                    prompt = intact[0][0].observations[0]
                    file.append([_row(start, prompt, *pair) for pair in pairs])
        return _summary(file, len(order), scores, failed, unscored)

    def _order(self, starts: Sequence[int]) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(starts), generator=generator)[: self.num_prompts].tolist()
        if self.num_prompts is not None and len(drawn) < self.num_prompts:
            raise ValueError(
                f"task.num_prompts={self.num_prompts}, but the environment has {len(starts)} to"
                " collect from: lower it, or set it to null for all"
            )
        return [starts[i] for i in drawn]

    def _covered(self, env: Environment, file: PairsFile, order: Sequence[int]) -> int:
        """How many starting states, from the first, the file has behind it."""
        if not file.rows:
            return 0
        last = file.rows[-1]
        position = order.index(last["index"]) if last["index"] in order else None
        if position is None or _prompt(env.fork().reset(last["index"])) != last["prompt"]:
            raise ValueError(
                f"out={str(file.path)!r} ends with a prompt that is none of these"
                f" {len(order)}, or another one by now: give another file"
            )
        return position + 1

    def _groups(
        self, policy: Policy, env: Environment, starts: Sequence[int]
    ) -> list[list[tuple[Trajectory, Answer]]]:
        """The episodes of each starting state, with the answers they gave."""
        rows = [(start, i) for start in starts for i in range(self.num_generations)]
        seeds = [derive_seed(self.seed, start, i) for start, i in rows]
        with torch.no_grad():
            episodes, trajectories = act_out(policy, env, [start for start, _ in rows], seeds)
            score(env, episodes, trajectories)
        turns = max(len(trajectory.actions) for trajectory in trajectories)
        if turns > 1:
            raise ValueError(
                f"an episode of {type(env).__name__} took {turns} turns: a pair holds one response"
                " to one prompt, so collect from an environment of one turn"
            )
        answers = [
            Answer(response_text(policy.tokenizer, e, t), t.total_reward, t.finish_reason)
            for e, t in zip(episodes, trajectories, strict=True)
        ]
        both, size = list(zip(trajectories, answers, strict=True)), self.num_generations
        return [both[i : i + size] for i in range(0, len(both), size)]


def choose_pairs(
    answers: Sequence[Answer], max_pairs: int, min_gap: float, truncated: str
) -> list[tuple[Answer, Answer]]:
    """``(chosen, rejected)`` of one prompt's answers; see ``PreferenceCollector``.

    Empty answers are left out, and of equal ones (up to space around them, which chat templates
    drop) all but one, for nothing can be learned from them. Of answers that are equally good, one
    that was not cut goes first, then the one that was sampled first.
    """
    ranked = sorted(answers, key=lambda answer: answer.is_cut)
    if truncated == "drop":
        ranked = [answer for answer in ranked if not answer.is_cut]
    distinct: dict[str, Answer] = {}
    for answer in ranked:
        if text := answer.text.strip():
            distinct.setdefault(text, answer)
    left = list(distinct.values())
    pairs: list[tuple[Answer, Answer]] = []
    while len(pairs) < max_pairs:
        best = [answer for answer in left if truncated == "keep" or not answer.is_cut]
        if not best:
            break
        chosen = max(best, key=lambda answer: answer.score)
        rejected = min(left, key=lambda answer: answer.score)
        if chosen.score - rejected.score <= min_gap:
            break
        pairs.append((chosen, rejected))
        left = [answer for answer in left if answer not in (chosen, rejected)]
    return pairs


def response_text(
    tokenizer: PreTrainedTokenizerBase, episode: Environment, trajectory: Trajectory
) -> str:
    """The response as text, as far as the environment judged it."""
    if isinstance(episode, TextGenerationEnv):
        return episode.response
    said = before_end(tokenizer, trajectory.actions[-1].tolist())
    return str(tokenizer.decode(said, skip_special_tokens=True))


def _prompt(observation: Observation) -> Content:
    messages: list[dict[str, str]] | None = observation.metadata.get("messages")
    return observation.prompt if messages is None else messages


def _row(start: int, observation: Observation, chosen: Answer, rejected: Answer) -> dict[str, Any]:
    prompt = _prompt(observation)

    def content(text: str) -> Content:
        return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]

    tools = observation.metadata.get("tools")
    return ({"tools": tools} if tools else {}) | {
        "prompt": prompt,
        "chosen": content(chosen.text),
        "rejected": content(rejected.text),
        "score_chosen": chosen.score,
        "score_rejected": rejected.score,
        "finish_chosen": chosen.finish_reason,
        "finish_rejected": rejected.finish_reason,
        "index": start,
    }


def _summary(
    file: PairsFile, prompts: int, scores: list[float], failed: int, unscored: int
) -> Collected:
    def mean(values: list[float]) -> float:
        return float(torch.tensor(values, dtype=torch.float64).mean())

    return Collected(
        path=str(file.path),
        prompts=prompts,
        pairs=len(file.rows),
        without_pair=prompts - len({row["index"] for row in file.rows}),
        mean_chosen=mean([row["score_chosen"] for row in file.rows]),
        mean_rejected=mean([row["score_rejected"] for row in file.rows]),
        sampled=len(scores) + failed + unscored,
        mean_sampled=mean(scores),
        failed=failed,
        unscored=unscored,
    )
