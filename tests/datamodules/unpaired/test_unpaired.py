"""Unpaired preferences: rows, labels, batches with a response to another prompt."""

import json
from types import SimpleNamespace

import pytest
import torch
from template_helpers import says, user

from datamodules import UnpairedPreferenceDataModule, UnpairedPreferenceDataset
from datamodules.examples.streams import HeldOutExamples, TrainExamples, optimizer_steps
from datamodules.unpaired.rows import as_labelled
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class Trainer:
    world_size, global_rank, current_epoch = 1, 0, 0

    def __init__(self, world=1, rank=0):
        self.world_size, self.global_rank = world, rank


def dataset(prompts, labels=None):
    labels = [i % 2 == 0 for i in range(len(prompts))] if labels is None else labels
    said = [f" said {i}" for i in range(len(prompts))]
    return UnpairedPreferenceDataset(prompts, said, labels, TOKENIZER, 64, 32)


@pytest.mark.parametrize(
    ("label", "desirable"),
    [(True, True), (False, False), (1, True), (0, False), ("true", True), ("False", False),
     ("1", True), (1.0, True), (" TRUE ", True)],
)  # fmt: skip
def test_a_label_says_whether_a_response_is_desirable(label, desirable):
    (item,) = as_labelled({"prompt": "Wet?", "completion": " No.", "label": label})
    assert (item.prompt.content, item.response, item.is_desirable) == ("Wet?", " No.", desirable)


def test_a_pair_is_two_responses():
    good, bad = as_labelled({"prompt": [user("Wet?")], "chosen": [says("No.")],
                             "rejected": [says("Yes.")]})  # fmt: skip
    assert (good.is_desirable, bad.is_desirable) == (True, False)
    assert good.prompt == bad.prompt and good.response == [says("No.")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Wet?", "completion": "No."}, "there is no column 'label'"),
        ({"prompt": "Wet?", "completion": "No.", "label": None}, "label='None' must be true or"),
        ({"prompt": "Wet?", "completion": "No.", "label": "good"}, "label='good' must be true"),
        ({"prompt": "Wet?", "completion": "No.", "label": 0.5}, "label='0.5' must be true or"),
        ({"prompt": "Wet?", "label": True}, "there is no column 'completion'"),
        ({"completion": "No.", "label": True}, "there is no column 'prompt'"),
        ({"prompt": "Wet?", "completion": " ", "label": True}, "response is empty"),
        ({"prompt": "Wet?", "completion": "No.", "label": True, "context": "x"}, "'context' says"),
    ],
)
def test_what_says_neither_is_refused(row, why):
    with pytest.raises(ValueError, match=why):
        as_labelled(row)


def test_each_prompt_meets_the_response_before_it_that_is_to_another():
    """As TRL rotates them; responses to the same prompt are passed over."""
    rows = dataset(["a", "b", "b", "c"])
    batch = rows.batch([0, 1, 2, 3], rows.totals([0, 1, 2, 3]), "train")
    texts = [TOKENIZER.decode(ids) for ids in batch.mismatched(64)]
    assert texts == ["a said 3<eos>", "b said 0<eos>", "b said 0<eos>", "c said 2<eos>"]
    assert batch.desirable.tolist() == [True, False, True, False]
    assert [len(ids) for ids in batch.mismatched(4)] == [4] * 4


def test_processes_see_what_one_would():
    rows = dataset([f"p{i}" for i in range(8)])
    whole = rows.batch(range(8), {}, "train")
    shares = [rows.batch(range(8), {}, "train", slice(rank, None, 2)) for rank in range(2)]
    for rank, share in enumerate(shares):
        expected = whole.mismatched(64)[rank::2]
        assert all(map(torch.equal, share.mismatched(64), expected))


@pytest.mark.parametrize(("count", "batch", "accumulate", "world"), [
    (9, 4, 1, 1), (9, 4, 2, 1), (17, 4, 1, 2), (10, 4, 2, 2), (8, 2, 2, 1),
])  # fmt: skip
def test_no_process_is_left_with_one_row(count, batch, accumulate, world):
    steps = optimizer_steps([1] * count, batch, accumulate, 0, world, smallest=2)
    assert sorted(row for step in steps for part in step for row in part) == list(range(count))
    shares = [part[rank::world] for step in steps for part in step for rank in range(world)]
    assert min(map(len, shares)) >= 2
    held_out = dataset([f"p{i}" for i in range(count)])
    found = [
        len(share)
        for rank in range(world)
        for share in HeldOutExamples(held_out, Trainer(world, rank), 4)
    ]
    assert sum(found) == count and min(found) >= 2
    loaders = [HeldOutExamples(held_out, Trainer(world, rank), 4) for rank in range(world)]
    assert all(len(loader) == len(list(loader)) for loader in loaders)


def test_too_few_rows_for_a_comparison_are_refused():
    rows = dataset(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"3 examples are too few .* of 2 rows at least"):
        TrainExamples(rows, Trainer(), 4, 2, 0)
    with pytest.raises(ValueError, match=r"algo\.batch_size=2 must be 4 or more: each process"):
        TrainExamples(rows, Trainer(2), 2, 1, 0)
    with pytest.raises(ValueError, match=r"data\.eval_batch_size=1 must be 2 or more"):
        HeldOutExamples(rows, Trainer(), 1)


@pytest.mark.parametrize(("rows", "held_out"), [(5, 0), (12, 2), (19, 2), (40, 4)])
def test_of_a_small_file_enough_is_held_out_to_be_compared(tmp_path, rows, held_out):
    """A tenth, where nobody asked for a number, but two rows at least."""
    path = tmp_path / "thumbs.jsonl"
    lines = [{"prompt": f"q{i}", "completion": f" a{i}", "label": i % 2} for i in range(rows)]
    path.write_text("\n".join(map(json.dumps, lines)))
    data = UnpairedPreferenceDataModule(str(path))
    data.trainer = Trainer()
    data.trainer.is_global_zero = False
    data.trainer.lightning_module = SimpleNamespace(
        tokenizer=TOKENIZER, learns_from="unpaired", closes_texts=True
    )
    data.setup()
    assert len(data.eval_dataset or ()) == held_out
    assert len(data.train_dataset) == rows - held_out


def test_limits_are_checked():
    with pytest.raises(ValueError, match=r"data\.max_prompt_length=8"):
        UnpairedPreferenceDataModule("x.jsonl", max_length=8, max_prompt_length=8)
