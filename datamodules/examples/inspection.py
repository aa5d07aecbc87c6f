"""What there is to see in examples of any kind before they are trained on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.examples.dataset import Example, ExampleDataset
from datamodules.kept import earlier_thoughts
from datamodules.text.controls import doubled_in, found_in
from datamodules.text.inspection import Inspection, spread


def inspect_examples(
    train: ExampleDataset[Any], held_out: ExampleDataset[Any] | None, sides: Sequence[str]
) -> Inspection:
    """Counts, lengths, and what is suspicious.

    Args:
        sides: what the responses of an example are called.
    """
    found, tokenizer = Inspection(), train.tokenizer
    found.counts["rows to train on"] = f"{len(train)}"
    found.counts["held out"] = f"{len(held_out) if held_out else 0}"
    examples, count = train.examples, len(train)
    found.lengths["prompt"] = [e.prompt_length for e in examples]
    for number, side in enumerate(sides):
        found.lengths[side] = [len(e.sequences[number]) - e.prompt_length for e in examples]
    cut = sum(e.cut_prompt > 0 for e in examples)
    limit = f"max_prompt_length={train.limits.max_prompt_length}"
    found.suspect(cut, count, f"prompts are cut on the left ({limit})")
    cut, limit = sum(any(e.cut_responses) for e in examples), train.limits.max_length
    found.suspect(cut, count, f"rows have a response cut on the right (max_length={limit})")
    twice = sum(any(doubled_in(tokenizer, s.tolist()) for s in e.sequences) for e in examples)
    found.suspect(twice, count, "rows have a special token twice in a row, as <s><s>")
    written = sum(bool(_controls(tokenizer, item)) for item in train.items)
    found.suspect(written, count, "rows hold special tokens in a message, which are read as text")
    thoughts = sum(_earlier_thoughts(item) for item in train.items)
    found.suspect(
        thoughts, count, "rows have thoughts before their last turn, which many templates drop"
    )
    items = [*train.items, *(held_out.items if held_out else ())]
    keys = Counter((repr(i.prompt.content), *map(repr, i.responses)) for i in items)
    found.suspect(sum(n - 1 for n in keys.values()), len(items), "rows repeat another one")
    if held_out is not None:
        known = {repr(item.prompt.content) for item in train.items if item.prompt.content}
        both = sum(repr(item.prompt.content) in known for item in held_out.items)
        found.suspect(both, len(held_out), "held-out rows have a prompt that is trained on too")
    return found


def rows_to_show(dataset: ExampleDataset[Any], wanted: int) -> list[int]:
    """``wanted`` rows over the whole set, one that is cut among them if there is one."""
    rows = spread(len(dataset), wanted)
    cut = next((i for i, e in enumerate(dataset.examples) if is_cut(e)), None)
    if cut is not None and rows and not any(is_cut(dataset.examples[i]) for i in rows):
        rows[-1] = cut
    return rows


def is_cut(example: Example) -> bool:
    return example.cut_prompt > 0 or any(example.cut_responses)


def _controls(tokenizer: PreTrainedTokenizerBase, item: Any) -> list[str]:
    texts = (item.prompt.content, *item.responses)
    return [t for text in texts if not isinstance(text, str) for t in found_in(tokenizer, text)]


def _earlier_thoughts(item: Any) -> bool:
    start = item.prompt.content
    ends = [side for side in item.responses if not isinstance(side, str)]
    asked = [] if isinstance(start, str) else start
    return any(earlier_thoughts([*asked, *end]) for end in ends)
