"""Demonstrations as they are trained on, looked at before they are."""

import itertools

from datamodules.demonstrations.dataset import DemonstrationRows
from datamodules.examples.inspection import inspect_examples, rows_to_show
from datamodules.text.inspection import Inspection, Sample, parts


def inspect_demonstrations(
    train: DemonstrationRows, held_out: DemonstrationRows | None
) -> Inspection:
    """Counts, lengths, and what is suspicious; ``samples_of`` adds rows to look at."""
    found = inspect_examples(train, held_out, ("response",))
    found.lengths["learned"] = [len(e.learned) for e in train.examples]
    return found


def samples_of(dataset: DemonstrationRows, wanted: int) -> list[Sample]:
    """``wanted`` rows over the whole set; what is learned of them is a response."""
    return [_sample(dataset, row) for row in rows_to_show(dataset, wanted)]


def _sample(dataset: DemonstrationRows, row: int) -> Sample:
    example = dataset[row]
    (ids,), learned = example.sequences, set(example.learned.tolist())
    runs = itertools.groupby(range(len(ids)), lambda at: at in learned)
    told = [
        ("response" if is_learned else "prompt", ids[list(run)].tolist())
        for is_learned, run in runs
    ]
    gone = sum(example.cut_responses)
    cut = f", {gone} tokens are cut off its end" if gone else ""
    return Sample(f"{dataset.places[row]}{cut}", {"text": parts(*told)})
