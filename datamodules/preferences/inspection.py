"""Pairs and scored responses as they are trained on, looked at before they are."""

from collections.abc import Sequence
from typing import Any

from datamodules.examples.inspection import inspect_examples, rows_to_show
from datamodules.preferences.dataset import PreferenceRows
from datamodules.preferences.rows import Pair, Scored
from datamodules.text.encoding import encode_whole, render_all
from datamodules.text.inspection import Inspection, Part, Sample, cut_at


def inspect_preferences(
    train: PreferenceRows, held_out: PreferenceRows | None, *, scored: bool
) -> Inspection:
    """Counts, lengths, and what is suspicious; ``samples_of`` adds rows to look at."""
    sides = ("response",) if scored else ("chosen", "rejected")
    found, count = inspect_examples(train, held_out, sides), len(train)
    no_prompt = sum(not item.prompt.content for item in train.items)
    what = "sides begin with nothing in common, so they have no prompt"
    found.suspect(no_prompt, count, "rows have no prompt" if scored else what)
    if scored:
        return found
    turned = _turned([*train.items, *(held_out.items if held_out else ())])
    found.suspect(turned, count, "pairs prefer what another pair rejects")
    longer = sum(len(e.sequences[0]) > len(e.sequences[1]) for e in train.examples)
    found.counts["chosen is the longer side"] = f"{longer / count:.0%}"
    return found


def samples_of(dataset: PreferenceRows, wanted: int) -> list[Sample]:
    """``wanted`` rows over the whole set, one that is cut among them if there is one."""
    return [_sample(dataset, row) for row in rows_to_show(dataset, wanted)]


def _turned(items: Sequence[Pair]) -> int:
    """Pairs that others contradict."""
    keys = {(repr(i.prompt.content), *map(repr, i.responses)) for i in items}
    return sum((prompt, rejected, chosen) in keys for prompt, chosen, rejected in keys)


def _sample(dataset: PreferenceRows, row: int) -> Sample:
    item, example = dataset.items[row], dataset.examples[row]
    tokenizer = dataset.tokenizer
    texts = render_all(tokenizer, item.prompt, item.responses)
    whole = encode_whole(tokenizer, texts, close=dataset.close)
    names = ("chosen", "rejected") if isinstance(item, Pair) else ("response",)
    sides: dict[str, list[Part]] = {}
    for name, sequence, (prompt, response) in zip(names, example.sequences, whole, strict=True):
        ids = sequence.tolist()
        start, answer = ids[: example.prompt_length], ids[example.prompt_length :]
        sides[name] = [
            *cut_at(prompt, start, left=True, kind="prompt"),
            *cut_at(response, answer, left=False, kind="response"),
        ]
    return Sample(f"{dataset.places[row]}{_said(item)}", sides)


def _said(item: Pair | Scored) -> str:
    said: Any = item.margin if isinstance(item, Pair) else list(item.targets)
    return "" if said is None else f", {'margin' if isinstance(item, Pair) else 'scores'} {said}"
