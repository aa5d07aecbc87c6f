"""The longest batch that a run will compute, of its own data, as its algorithm takes it."""

from typing import Any

import lightning as L
import torch

from datamodules.examples.dataset import ExampleBatch
from datamodules.experience import Experience, Minibatch
from rlmodules.memory.longest import Episodes, Examples


def longest_batch(trainer: L.Trainer, module: Any, texts: Episodes | Examples) -> Any:
    """The batch of this process, on the CPU.

    Args:
        texts: how long the texts of the run are.
    """
    if isinstance(texts, Examples):
        return _of_examples(trainer, module, texts)
    return _of_episodes(trainer, module, texts)


def _of_examples(trainer: L.Trainer, module: Any, texts: Examples) -> ExampleBatch[Any]:
    """The heaviest batch of the first epochs."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    packs = getattr(module, "policy", module).packs
    rows = texts.heaviest(data.batch_size, trainer.world_size, packs)
    share = data.accumulate * trainer.world_size
    counts = data.train_dataset.totals(rows)
    totals = {name: count / share for name, count in counts.items()}
    return data.train_dataset.batch(rows, totals, "train")


def _of_episodes(trainer: L.Trainer, module: Any, texts: Episodes) -> Minibatch:
    """The longest prompts, each with a response of ``max_new_tokens``, none of it sampled."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    groups = texts.minibatch(data.plan.mini_batch_size // trainer.world_size)
    known = module.policy.num_logits
    sequences = [ids.clamp(max=known - 1) for group in groups for ids in group.texts()]
    spans = [span for group in groups for span in zip(group.starts, group.lengths, strict=True)]
    positions = [torch.arange(start, end) for start, end in spans]
    nothing = torch.zeros(len(positions), max(map(len, positions)))
    lengths = torch.tensor([len(at) for at in positions])
    mask = torch.arange(nothing.shape[1])[None] < lengths[:, None]
    experience = Experience(
        sequences, positions, mask, old_logprobs=nothing, advantages=nothing, values=nothing,
        returns=nothing, ref_logprobs=nothing if module.has_reference else None,
    )  # fmt: skip
    return experience.minibatch(range(len(sequences)), float(mask.sum()))
