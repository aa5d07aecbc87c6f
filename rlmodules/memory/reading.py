"""The lengths of a run's texts, read from its data with the tokenizer alone."""

from types import SimpleNamespace
from typing import Any

import torch

from datamodules import RolloutDataModule
from datamodules.environments.text import TextGenerationEnv
from datamodules.examples.datamodule import ExampleDataModule
from datamodules.rollouts.lengths import prompt_lengths
from rlmodules.memory.longest import Episodes, Examples, groups_of, longest_first, of_limits
from rlmodules.memory.run import Run
from rlmodules.models import load_tokenizer

LOOKED_AT = 200
"""Starting states of an environment of several turns that are begun, to see how long they are."""


def texts_of(run: Run, data: Any, prompt_length: int | None = None) -> Episodes | Examples:
    """What the run reads and writes.

    Args:
        data: its data module, set up, if its data are to be looked at.
        prompt_length: tokens of every prompt, instead; other texts are then as long as the limits
            allow.
    """
    if isinstance(data, ExampleDataModule):
        return _examples(run, data, prompt_length)
    assert isinstance(data, RolloutDataModule), "there are no others"
    return _episodes(run, data, prompt_length)


def set_up(run: Run, data: Any) -> None:
    """Have ``data`` read its texts, with the tokenizer of the run's model alone."""

    def unused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nothing is computed here")

    computing = {"act", "evaluate", "experience", "sum_over_ranks", "train", "whole"}
    learner = SimpleNamespace(
        tokenizer=load_tokenizer(run.model),
        learns_from=getattr(run.algorithm, "learns_from", None),
        closes_texts=getattr(run.algorithm, "closes_texts", True),
        base_model=SimpleNamespace(config=None),
        fits=lambda observation, env: True,
        **dict.fromkeys(computing, unused),
    )
    data.trainer = SimpleNamespace(
        lightning_module=learner,
        is_global_zero=True,
        world_size=run.world,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.setup()


def _examples(run: Run, data: ExampleDataModule, prompt_length: int | None) -> Examples:
    c = run.config
    common = {"accumulate": c.gradient_accumulation_steps, "seed": data.seed,
              "epochs": c.num_epochs, "eval_batch_size": data.eval_batch_size}  # fmt: skip
    if prompt_length is None:
        train, held_out = (
            groups_of(dataset, reads_prompts=run.reads_prompts)
            for dataset in (data.train_dataset, data.eval_dataset)
        )
        smallest = data.train_dataset.smallest_batch
        return Examples(train, held_out=held_out, exact=True, smallest=smallest, **common)
    one = of_limits(c.max_length, prompt_length, data.sides, reads_prompts=run.reads_prompts)
    held_out = [] if data.eval_size == 0 else [one] * data.eval_batch_size
    return Examples([one], held_out=held_out, exact=False, **common)


def _episodes(run: Run, data: RolloutDataModule, prompt_length: int | None) -> Episodes:
    plan = data.plan
    common: dict[str, Any] = {
        "new": run.config.max_new_tokens,
        "generations": (plan.num_generations, data.eval_generations),
        "eval_batch_size": data.eval_batch_size,
    }
    if prompt_length is not None:
        count = max(plan.batch_size, data.eval_batch_size)
        held_out = [] if data.eval_size == 0 else [prompt_length] * count
        return Episodes([prompt_length] * count, held_out=held_out, **common)
    env = data.env
    train, held_out = (_lengths(env, starts) for starts in (data.train_starts, data.eval_starts))
    if not isinstance(env, TextGenerationEnv):
        common["context"] = env.max_length
    return Episodes(train, held_out=held_out, **common)


def _lengths(env: Any, starts: Any) -> list[int]:
    """Tokens of the first observation of each starting state, the longest first."""
    if isinstance(env, TextGenerationEnv):
        return longest_first(prompt_lengths(env, starts))
    every = max(len(starts) // LOOKED_AT, 1)
    return longest_first(len(env.fork().reset(start).input_ids) for start in starts[::every])
