"""The tables of held-out samples: one a evaluation, the first and the last kept."""

import csv
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from rlmodules.callbacks import SampleTable


class Wandb(WandbLogger):
    def __init__(self):
        self.tables = []

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, columns, data, step))


def trainer(epoch, fn=TrainerFn.FITTING, loggers=(), **attributes):
    settings = {"sanity_checking": False, "is_global_zero": True, "global_step": 7}
    state = SimpleNamespace(fn=fn)
    return SimpleNamespace(
        current_epoch=epoch, state=state, loggers=loggers, **settings | attributes
    )


def rows(*responses):
    return [
        {"prompt": "p, with a comma", "response": r, "reward": i / 2, "kl": 0.1, "other": None}
        for i, r in enumerate(responses)
    ]


def evaluate(table, run, *batches):
    table.on_validation_start(run, None)
    for i, batch in enumerate(batches):
        table.on_validation_batch_end(run, None, batch, None, i)
    table.on_validation_end(run, None)


def test_each_evaluation_is_a_file_named_by_the_iteration(tmp_path):
    table = SampleTable(tmp_path)
    evaluate(table, trainer(0, TrainerFn.VALIDATING), rows("one"))
    evaluate(table, trainer(4), rows("two\nlines", "three"), None, rows("four"))
    folder = tmp_path / "samples"
    assert sorted(p.name for p in folder.iterdir()) == ["iteration-0000.csv", "iteration-0005.csv"]
    written = list(csv.DictReader((folder / "iteration-0005.csv").open(newline="")))
    assert [row["response"] for row in written] == ["two\nlines", "three", "four"]
    assert written[1] == {
        "prompt": "p, with a comma",
        "response": "three",
        "reward": "0.5",
        "kl": "0.1",
    }


def test_the_first_and_the_last_evaluation_are_kept_also_by_a_checkpoint(tmp_path):
    table = SampleTable(tmp_path)
    for epoch, response in enumerate(("first", "second", "third")):
        evaluate(table, trainer(epoch), rows(response))
    other = SampleTable(tmp_path)
    other.load_state_dict(table.state_dict())
    for some in (table, other):
        assert [row["response"] for row in some.before] == ["first"]
        assert [row["response"] for row in some.latest] == ["third"]


@pytest.mark.parametrize("attributes", [{"sanity_checking": True}, {"is_global_zero": False}])
def test_nothing_is_written_by_a_sanity_check_or_another_process(tmp_path, attributes):
    table = SampleTable(tmp_path)
    evaluate(table, trainer(0, **attributes), rows("one"))
    assert list(tmp_path.iterdir()) == [] and table.before == []


def test_weights_and_biases_gets_some_of_the_rows(tmp_path):
    logger = Wandb()
    evaluate(SampleTable(tmp_path, rows=2), trainer(1, loggers=[logger]), rows("a", "b", "c"))
    ((key, columns, data, step),) = logger.tables
    assert (key, columns, step) == ("samples", ["prompt", "response", "reward", "kl"], 7)
    assert data == [["p, with a comma", "a", 0.0, 0.1], ["p, with a comma", "b", 0.5, 0.1]]
