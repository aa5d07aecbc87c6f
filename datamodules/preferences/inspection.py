"""Pairs and scored responses as they are trained on, looked at before they are."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.kept import earlier_thoughts
from datamodules.preferences.dataset import Example, ExampleDataset
from datamodules.preferences.rows import Pair, Scored
from datamodules.text.controls import doubled_in, found_in
from datamodules.text.encoding import Limits, encode_whole, render_all
from datamodules.text.inspection import Inspection, Part, Sample, cut_at, spread


def inspect_preferences(
    train: ExampleDataset, held_out: ExampleDataset | None, *, scored: bool
) -> Inspection:
    """Counts, lengths, and what is suspicious; ``samples_of`` adds rows to look at."""
    found, tokenizer = Inspection(), train.tokenizer
    sides = ("response",) if scored else ("chosen", "rejected")
    found.counts["rows to train on"] = f"{len(train)}"
    found.counts["held out"] = f"{len(held_out) if held_out else 0}"
    examples = train.examples
    found.lengths["prompt"] = [e.prompt_length for e in examples]
    for number, side in enumerate(sides):
        found.lengths[side] = [len(e.sequences[number]) - e.prompt_length for e in examples]
    _cuts(found, examples, train.limits)
    count = len(examples)
    no_prompt = sum(not item.prompt.content for item in train.items)
    what = "sides begin with nothing in common, so they have no prompt"
    found.suspect(no_prompt, count, what if len(sides) == 2 else "rows have no prompt")
    twice = sum(any(doubled_in(tokenizer, s.tolist()) for s in e.sequences) for e in examples)
    found.suspect(twice, count, "rows have a special token twice in a row, as <s><s>")
    written = sum(bool(_controls(tokenizer, item)) for item in train.items)
    found.suspect(written, count, "rows hold special tokens in a message, which are read as text")
    thoughts = sum(_earlier_thoughts(item) for item in train.items)
    found.suspect(
        thoughts, count, "rows have thoughts before their last turn, which many templates drop"
    )
    _repeats(found, [*train.items, *(held_out.items if held_out else ())])
    if held_out is not None:
        known = {repr(item.prompt.content) for item in train.items if item.prompt.content}
        both = sum(repr(item.prompt.content) in known for item in held_out.items)
        found.suspect(both, len(held_out), "held-out rows have a prompt that is trained on too")
    if len(sides) == 2:
        longer = sum(len(e.sequences[0]) > len(e.sequences[1]) for e in examples)
        found.counts["chosen is the longer side"] = f"{longer / count:.0%}"
    return found


def samples_of(dataset: ExampleDataset, wanted: int) -> list[Sample]:
    """``wanted`` rows over the whole set, one that is cut among them if there is one."""
    rows = spread(len(dataset), wanted)
    cut = next((i for i, e in enumerate(dataset.examples) if _is_cut(e)), None)
    if cut is not None and rows and not any(_is_cut(dataset.examples[i]) for i in rows):
        rows[-1] = cut
    return [_sample(dataset, row) for row in rows]


def _cuts(found: Inspection, examples: Sequence[Example], limits: Limits) -> None:
    count = len(examples)
    prompts = sum(e.cut_prompt > 0 for e in examples)
    found.suspect(
        prompts,
        count,
        f"prompts are cut on the left (max_prompt_length={limits.max_prompt_length})",
    )
    responses = sum(any(e.cut_responses) for e in examples)
    found.suspect(
        responses, count, f"rows have a response cut on the right (max_length={limits.max_length})"
    )


def _is_cut(example: Example) -> bool:
    return example.cut_prompt > 0 or any(example.cut_responses)


def _controls(tokenizer: PreTrainedTokenizerBase, item: Pair | Scored) -> list[str]:
    texts = (item.prompt.content, *item.responses)
    return [t for text in texts if not isinstance(text, str) for t in found_in(tokenizer, text)]


def _earlier_thoughts(item: Pair | Scored) -> bool:
    start = item.prompt.content
    ends = [side for side in item.responses if not isinstance(side, str)]
    return not isinstance(start, str) and any(earlier_thoughts([*start, *end]) for end in ends)


def _repeats(found: Inspection, items: Sequence[Pair | Scored]) -> None:
    """Rows that stand there twice, and pairs that others contradict."""
    keys = Counter((repr(i.prompt.content), *map(repr, i.responses)) for i in items)
    found.suspect(sum(n - 1 for n in keys.values()), len(items), "rows repeat another one")
    turned = sum(len(k) == 3 and (k[0], k[2], k[1]) in keys for k in keys)
    found.suspect(turned, len(items), "pairs prefer what another pair rejects")


def _sample(dataset: ExampleDataset, row: int) -> Sample:
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
