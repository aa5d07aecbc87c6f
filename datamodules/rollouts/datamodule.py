"""RolloutDataModule: an environment and the policy in training -> minibatches.

It reads the prompts, makes the environment and holds out what is evaluated on; the loaders are in
``streams.py``.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from datamodules.checks import require_seed, require_whole
from datamodules.ends import model_ends, note_model_ends
from datamodules.environments.adapters import make_environment
from datamodules.environments.base import Environment
from datamodules.rewards.devices import set_own_device
from datamodules.rollouts.streams import HeldOutEpisodes, IterationPlan, TrainEpisodes
from datamodules.template_options import set_template_defaults
from datamodules.text.cache import digest, plain
from datamodules.text.prompts import Prompt, gather_prompts
from datamodules.text.tables import require_dataset, require_path
from datamodules.types import as_policy


class RolloutDataModule(L.LightningDataModule):
    """Episodes of an environment as training data for an online algorithm.

    The algorithm is ``trainer.lightning_module``, a ``datamodules.types.Policy``.

    Args:
        env: an environment; or what makes one, called as ``env(tokenizer=..., prompts=[...])`` if
            there are prompts, else as ``env(tokenizer=...)`` (see ``make_environment``).
        prompts, path: training prompts, or where they are read from (``load_prompts``); neither
            for an environment that has its own.
        eval_prompts, eval_path: held-out prompts; without them ``eval_size`` of the training ones
            are held out, but no more than half.
        eval_size: starting states to hold out for evaluation, or at most to evaluate on; 0
            evaluates nothing. An environment that is given as an object holds out its own alone.
        eval_generations: episodes of each held-out starting state; ``val/pass@k`` wants several.
        prompt_column, split, chat: see ``load_prompts``; the first two are of a path.
        chat_template_kwargs: what the chat template reads beside the conversation, such as
            ``{"enable_thinking": False}``; written into the template (``set_template_defaults``).
            A column of that name says it for single prompts.
        batch_size: episodes an iteration, over all processes.
        num_generations: episodes of each starting state (a group) in an iteration.
        max_resamples: how often an iteration's groups whose rewards are all equal are replaced by
            groups of other starting states.
        mini_batch_size: episodes a backward pass, over all processes.
        epochs: passes over each iteration's episodes.
        gradient_accumulation_steps: backward passes an optimizer step, as the Trainer is told.
        eval_batch_size: held-out episodes played at once, over all processes.
        seed: of prompts' order, of texts and of minibatches.

    Attributes:
        env: what makes the environment; from ``setup`` on, the environment.
        train_starts, eval_starts: its starting states, to train on and held out.
    """

    trainer: L.Trainer

    def __init__(
        self,
        env: Callable[..., Environment] | Environment,
        *,
        prompts: Sequence[Any] | None = None,
        path: str | None = None,
        eval_prompts: Sequence[Any] | None = None,
        eval_path: str | None = None,
        eval_size: int = 64,
        eval_generations: int = 1,
        prompt_column: str | None = None,
        split: str | None = None,
        chat: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 16,
        num_generations: int = 1,
        max_resamples: int = 0,
        mini_batch_size: int = 4,
        epochs: int = 4,
        gradient_accumulation_steps: int = 1,
        eval_batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _refuse_unread(env, prompts, path, eval_prompts, eval_path)
        if max_resamples and num_generations == 1:
            raise ValueError(
                f"data.max_resamples={max_resamples} replaces groups of equal rewards, and with"
                " data.num_generations=1 there are no groups: leave it out"
            )
        require_path("data.prompt_column", prompt_column, path, eval_path)
        require_dataset("data.split", split, path, eval_path)
        sizes = {"batch_size": batch_size, "mini_batch_size": mini_batch_size, "epochs": epochs}
        sizes |= {"num_generations": num_generations, "eval_batch_size": eval_batch_size}
        sizes |= {"eval_generations": eval_generations}
        sizes |= {"gradient_accumulation_steps": gradient_accumulation_steps}
        require_whole("data", 1, **sizes)
        require_whole("data", 0, eval_size=eval_size, max_resamples=max_resamples)
        require_seed("data.seed", seed)
        self.env, self.prompts, self.path = env, prompts, path
        self.eval_prompts, self.eval_path, self.eval_size = eval_prompts, eval_path, eval_size
        self.chat_template_kwargs = chat_template_kwargs
        self._gather = partial(gather_prompts, column=prompt_column, split=split, chat=chat)
        self.plan = IterationPlan(
            batch_size=batch_size,
            num_generations=num_generations,
            max_resamples=max_resamples,
            mini_batch_size=mini_batch_size,
            epochs=epochs,
            accumulate=gradient_accumulation_steps,
            seed=seed,
        )
        self.eval_batch_size, self.eval_generations = eval_batch_size, eval_generations
        self.seed = seed
        self.train_starts: Sequence[int] | None = None
        self.eval_starts: Sequence[int] = ()
        self._prompts: list[Prompt] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the prompts, make the environment and hold out what it is evaluated on, once.

        Raises:
            ValueError: the algorithm is no ``Policy``, or nothing is left to train on.
        """
        if self.train_starts is not None:
            return
        set_own_device(self.trainer.strategy.root_device)
        policy = as_policy(self.trainer.lightning_module)
        self._set_template(policy.tokenizer)
        whole = isinstance(self.env, Environment)
        held_out: Sequence[int] | None = None
        prompts: list[Prompt] | None = None
        if not whole and (self.prompts is not None or self.path is not None):
            prompts, count = self._load()
            held_out = range(len(prompts) - count, len(prompts)) if count else None
        env = self.env = make_environment(self.env, policy.tokenizer, prompts)
        env.attach(policy.base_model)
        own = getattr(env, "tokenizer", None)
        if isinstance(own, PreTrainedTokenizerBase) and own is not policy.tokenizer:
            _require_same_tokens(own, policy.tokenizer)
            note_model_ends(own, model_ends(policy.tokenizer))
            self._set_template(own)
        if held_out is None:
            held_out = env.held_out
        if self.eval_size and held_out is None and not whole:
            held_out = self._draw(len(env))
        self.eval_starts = list(held_out or ())[: self.eval_size]
        taken = set(held_out or ())
        self.train_starts = [i for i in range(len(env)) if i not in taken]
        self._prompts = prompts
        if not self.train_starts:
            raise ValueError(
                f"all {len(env)} starting states of the environment are held out for"
                " evaluation: nothing is left to train on"
            )

    def contents(self) -> dict[str, dict[str, str]]:
        """What the starting states are, once they are known, for runs to be told apart by."""
        if self.train_starts is None:
            return {}
        sets = {"data.rows": self.train_starts, "data.rows.held_out": self.eval_starts}
        return {
            name: {"shown": f"{self.path or len(starts)}", "digest": self._digest(starts)}
            for name, starts in sets.items()
            if starts
        }

    def _set_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        set_template_defaults(tokenizer, self.chat_template_kwargs, "data.chat_template_kwargs")

    def _digest(self, starts: Sequence[int]) -> str:
        """Of prompts by what they say, of an environment's own starting states by number."""
        if self._prompts is None:
            return digest(list(starts))
        return digest([(p.content, plain(p.metadata)) for i in starts if (p := self._prompts[i])])

    def train_dataloader(self) -> TrainEpisodes:
        assert isinstance(self.env, Environment) and self.train_starts, "setup comes first"
        return TrainEpisodes(self.trainer, self.env, self.train_starts, self.plan)

    def val_dataloader(self) -> HeldOutEpisodes | list[Any]:
        if not self.eval_starts:
            return []
        assert isinstance(self.env, Environment), "setup comes first"
        sizes = (self.eval_generations, self.eval_batch_size)
        return HeldOutEpisodes(self.trainer, self.env, self.eval_starts, *sizes, self.seed)

    def _load(self) -> tuple[list[Prompt], int]:
        """Prompts, and how many of the last ones are given for evaluation alone."""
        train = self._gather(self.prompts, self.path)
        if not self.eval_size or (self.eval_prompts is None and self.eval_path is None):
            return train, 0
        held_out = self._gather(self.eval_prompts, self.eval_path, option="data.eval_path")
        held_out = held_out[: self.eval_size]
        return train + held_out, len(held_out)

    def _draw(self, count: int) -> list[int]:
        """``eval_size`` of the ``count`` starting states."""
        if count <= self.eval_size:
            raise ValueError(
                f"data.eval_size={self.eval_size} would hold out all {count} prompts:"
                " lower it, set it to 0, or give data.eval_path"
            )
        size = min(self.eval_size, count // 2)
        if size < self.eval_size:
            warnings.warn(
                f"data.eval_size={self.eval_size} of {count} prompts: half of them, {size}, are"
                f" held out, and {count - size} trained on; set data.eval_size, or give"
                " data.eval_path",
                stacklevel=2,
            )
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(count, generator=generator).tolist()[:size]


def _refuse_unread(env: Any, prompts: Any, path: Any, eval_prompts: Any, eval_path: Any) -> None:
    if prompts is not None and path is not None:
        raise ValueError("give either data.prompts (a list) or data.path (a file), not both")
    if eval_prompts is not None and eval_path is not None:
        raise ValueError("give either data.eval_prompts (a list) or data.eval_path (a file)")
    given = {"prompts": prompts, "path": path, "eval_prompts": eval_prompts, "eval_path": eval_path}
    names = [name for name, value in given.items() if value is not None]
    if isinstance(env, Environment) and names:
        raise ValueError(
            f"data.{names[0]} has no use: the environment is made already, and has starting states"
            " of its own; leave it out, or give what makes an environment of prompts"
        )
    if names and prompts is None and path is None:
        raise ValueError(
            f"data.{names[0]} goes with data.path or data.prompts; an environment without prompts"
            " holds out its own starting states"
        )


def _require_same_tokens(
    tokenizer: PreTrainedTokenizerBase, policys: PreTrainedTokenizerBase
) -> None:
    """
    Raises:
        ValueError: an environment writes tokens that are others to the policy.
    """
    known = policys.get_vocab()
    other = next((t for t, i in tokenizer.get_vocab().items() if known.get(t) != i), None)
    if other is not None:
        raise ValueError(
            f"the environment's tokenizer is not the policy's: {other!r} has the id"
            f" {tokenizer.convert_tokens_to_ids(other)} there and {known.get(other)} here, so the"
            " policy would read other words. Make the environment with the policy's tokenizer"
        )
