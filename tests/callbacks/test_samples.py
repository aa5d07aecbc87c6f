"""The tables of held-out samples: one a evaluation, the first and the last kept."""

import csv
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from rlmodules.callbacks import SampleTable


class Tracker:
    def __init__(self):
        self.tables = []

    def log_rows(self, name, rows, axes):
        self.tables.append((name, rows, axes))


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


def test_trackers_that_show_tables_get_some_of_the_rows_at_the_step_of_their_metrics(tmp_path):
    tracker, table = Tracker(), SampleTable(tmp_path, rows=2)
    run = trainer(1, loggers=[SimpleNamespace(), tracker])
    table.on_validation_start(run, None)
    table.on_validation_batch_end(run, None, rows("a", "b", "c"), None, 0)
    table.on_validation_end(run, SimpleNamespace(axes=lambda: {"iteration": 2.0}))
    ((name, shown, axes),) = tracker.tables
    assert (name, axes) == ("samples", {"step": 7.0, "iteration": 2.0})
    values = {"prompt": "p, with a comma", "kl": 0.1}
    assert shown == [
        values | {"response": "a", "reward": 0.0},
        values | {"response": "b", "reward": 0.5},
    ]
