"""RolloutDataModule: an environment and the policy in training -> minibatches.

It reads the prompts, makes the environment and holds out what is evaluated on; the loaders are in
``streams.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from datamodules.checks import require_seed, require_whole
from datamodules.ends import model_ends, note_model_ends
from datamodules.environments.adapters import make_environment
from datamodules.environments.base import Environment
from datamodules.environments.text import TextGenerationEnv
from datamodules.rewards.devices import set_own_device
from datamodules.rollouts.inspection import inspect_episodes
from datamodules.rollouts.lengths import without_overlong
from datamodules.rollouts.prompt_source import PromptSource
from datamodules.rollouts.streams import HeldOutEpisodes, IterationPlan, TrainEpisodes
from datamodules.template_options import set_template_defaults
from datamodules.text.cache import digest, plain
from datamodules.text.columns import Reading
from datamodules.text.held_out import how_many
from datamodules.text.inspection import Inspection
from datamodules.text.prompts import Prompt
from datamodules.types import Policy, as_policy

AT_MOST = 200
"""Held-out starting states, where no number was asked for."""


class RolloutDataModule(L.LightningDataModule):
    """Episodes of an environment as training data for an online algorithm.

    The algorithm is ``trainer.lightning_module``, a ``datamodules.types.Policy``.

    Args:
        env: an environment; or what makes one, called as ``env(tokenizer=..., prompts=[...])`` if
            there are prompts, else as ``env(tokenizer=...)`` (see ``make_environment``).
        prompts, path: training prompts, or where they are read from (``load_prompts``); neither
            for an environment that has its own.
        eval_prompts, eval_path: held-out prompts; without them the data set's own test split is
            held out, or what the environment holds out, or else ``eval_size`` of the training ones.
        eval_size: starting states to hold out for evaluation, or at most to evaluate on; 0
            evaluates nothing. null holds out a tenth of the training ones, one at least, and takes
            at most 200. An environment that is given as an object holds out its own alone.
        eval_generations: episodes of each held-out starting state; ``val/pass@k`` wants several.
        chat_template_kwargs: what the chat template reads beside the conversation, such as
            ``{"enable_thinking": False}``; written into the template (``set_template_defaults``).
            A column of that name says it for single prompts.
        prompt_column: of ``path``: the column that holds the prompt.
        columns: of ``path``: what it calls otherwise, ``{prompt: frage, system: rolle}``; null for
            a column that is no part of the prompt, but the reward's alone.
        chat: make each plain text the user's message of a conversation.
        split, eval_split, name: of folders and Hugging Face datasets, see ``read_rows``; default
            ``train`` and ``test``. The name of a configuration is of both paths.
        on_error: ``raise``, or ``skip`` rows that hold no prompt, or one too long to be answered
            (as ``env.on_error=skip`` does too).
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
        eval_size: int | None = None,
        eval_generations: int = 1,
        prompt_column: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        split: str | None = None,
        eval_split: str | None = None,
        name: str | None = None,
        chat: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
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
        given, parts = (prompts, path, eval_prompts, eval_path), (split, eval_split, name)
        _refuse_unread(env, *given)
        self.source = PromptSource(*given, *parts, prompt_column, columns, chat, on_error)
        if max_resamples and num_generations == 1:
            raise ValueError(
                f"data.max_resamples={max_resamples} replaces groups of equal rewards, and with"
                " data.num_generations=1 there are no groups: leave it out"
            )
        sizes = {"batch_size": batch_size, "mini_batch_size": mini_batch_size, "epochs": epochs}
        sizes |= {"num_generations": num_generations, "eval_batch_size": eval_batch_size}
        sizes |= {"eval_generations": eval_generations}
        sizes |= {"gradient_accumulation_steps": gradient_accumulation_steps}
        require_whole("data", 1, **sizes)
        wanted = 0 if eval_size is None else eval_size
        require_whole("data", 0, eval_size=wanted, max_resamples=max_resamples)
        require_seed("data.seed", seed)
        self.chat_template_kwargs = chat_template_kwargs
        self.env, self.eval_size = env, eval_size
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
        said = "of the environment's own"
        if not whole and not self.source.is_empty:
            prompts, count, said = self.source.load(self._most)
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
        if self.eval_size != 0 and held_out is None and not whole:
            held_out, said = self._draw(len(env)), "drawn from them"
        self.eval_starts = list(held_out or ())[: self._most]
        taken = set(held_out or ())
        self.train_starts = [i for i in range(len(env)) if i not in taken]
        self._prompts = prompts
        if not self.train_starts:
            raise ValueError(
                f"all {len(env)} starting states of the environment are held out for"
                " evaluation: nothing is left to train on"
            )
        self._leave_out_overlong(policy, env)
        if not whole and self.trainer.is_global_zero:
            print(self._counts(said), flush=True)

    def _leave_out_overlong(self, policy: Policy, env: Environment) -> None:
        """See ``without_overlong``; of what was read, errors say file and line."""
        assert self.train_starts is not None, "they are known by now"
        self.train_starts, self.eval_starts = without_overlong(
            policy,
            env,
            self.train_starts,
            self.eval_starts,
            places=self.source.places,
            skip="skip" in (self.source.on_error, env.on_error),
        )

    @property
    def readings(self) -> dict[str, Reading]:
        """What was read of each file, by the option that names it."""
        return self.source.readings

    @property
    def _most(self) -> int:
        return AT_MOST if self.eval_size is None else self.eval_size

    def _counts(self, said: str) -> str:
        held_out = f"{len(self.eval_starts)} held out" + (f" ({said})" if self.eval_starts else "")
        lines = [f"{len(self.train_starts or ())} starting states to train on, {held_out}"]
        return "\n".join([*lines, *(text for r in self.readings.values() if (text := str(r)))])

    def inspection(self) -> Inspection:
        """What there is to see in the prompts, once they are read."""
        assert isinstance(self.env, Environment) and self.train_starts, "setup comes first"
        tokenizer = as_policy(self.trainer.lightning_module).tokenizer
        return inspect_episodes(self.env, tokenizer, self.train_starts, self.eval_starts)

    def findings(self) -> list[str]:
        """What is suspicious in the prompts; nothing of environments that do more than ask one,
        which a look at them might change."""
        return self.inspection().findings if isinstance(self.env, TextGenerationEnv) else []

    def contents(self) -> dict[str, dict[str, str]]:
        """What the starting states are, once they are known, for runs to be told apart by."""
        if self.train_starts is None:
            return {}
        sets = {"data.rows": self.train_starts, "data.rows.held_out": self.eval_starts}
        return {
            name: {"shown": f"{self.source.path or len(starts)}", "digest": self._digest(starts)}
            for name, starts in sets.items()
            if starts
        }

    def _set_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        set_template_defaults(tokenizer, self.chat_template_kwargs, "data.chat_template_kwargs")

    def _digest(self, starts: Sequence[int]) -> str:
        """Of prompts by what they say, of an environment's own starting states by number."""
        if self._prompts is None:
            return digest(list(starts))
        prompts = [self._prompts[i] for i in starts]
        return digest([(p.content, plain(p.metadata), *p.tools) for p in prompts])

    def train_dataloader(self) -> TrainEpisodes:
        assert isinstance(self.env, Environment) and self.train_starts, "setup comes first"
        return TrainEpisodes(self.trainer, self.env, self.train_starts, self.plan)

    def val_dataloader(self) -> HeldOutEpisodes | list[Any]:
        if not self.eval_starts:
            return []
        assert isinstance(self.env, Environment), "setup comes first"
        sizes = (self.eval_generations, self.eval_batch_size)
        return HeldOutEpisodes(self.trainer, self.env, self.eval_starts, *sizes, self.seed)

    def _draw(self, count: int) -> list[int]:
        """Some of the ``count`` starting states."""
        size = how_many(count, self.eval_size, AT_MOST)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(count, generator=generator).tolist()[:size]


def _refuse_unread(env: Any, prompts: Any, path: Any, eval_prompts: Any, eval_path: Any) -> None:
    given = {"prompts": prompts, "path": path, "eval_prompts": eval_prompts, "eval_path": eval_path}
    names = [name for name, value in given.items() if value is not None]
    if isinstance(env, Environment) and names:
        raise ValueError(
            f"data.{names[0]} has no use: the environment is made already, and has starting states"
            " of its own; leave it out, or give what makes an environment of prompts"
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
