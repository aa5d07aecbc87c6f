"""PreferenceDataModule: a file in, batches out; what is held out; the cache of tokens."""

import json
import re
from types import SimpleNamespace

import pair_helpers
import pytest
import torch

from datamodules.preferences.datamodule import PreferenceDataModule
from datamodules.preferences.dataset import PreferenceDataset
from rlmodules import DPO, DPOConfig
from rlmodules.callbacks import PreferenceReport
from rlmodules.models.embedded import tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path):
    def write(rows: list, name: str = "pairs.jsonl") -> str:
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


def made(path=None, *, closes: bool = True, zero: bool = True, tokenizer=None, **options):
    """A data module that was set up."""
    module = SimpleNamespace(
        tokenizer=tokenizer or tiny_tokenizer(), learns_from="preferences", closes_texts=closes
    )
    data = PreferenceDataModule(path, **options)
    data.trainer = SimpleNamespace(
        lightning_module=module,
        is_global_zero=zero,
        world_size=1,
        global_rank=0,
        current_epoch=0,
    )
    data.setup("fit")
    return data


def pair(prompt, i=0) -> dict:
    return {"prompt": prompt, "chosen": f" good {i}", "rejected": f" bad {i}", "margin": i}


def texts(loader) -> list:
    """(prompt, first response, ...) of all examples, sorted."""
    decode = tiny_tokenizer().decode
    return sorted(
        (decode(sequences[0][:length]), *(decode(s[length:]) for s in sequences))
        for batch in loader
        for sequences, length in zip(batch.sequences, batch.prompt_lengths, strict=True)
    )


def prompts(loader) -> set:
    return {text[0] for text in texts(loader)}


# ------------------------------------------------------------------------ file in, batches out


def test_a_file_becomes_batches(write, capsys):
    data = made(write([pair(f"p{i}", i) for i in range(7)]), batch_size=2, eval_size=0)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches].count(2) >= 2
    assert texts(batches) == [(f"p{i}", f" good {i}<eos>", f" bad {i}<eos>") for i in range(7)]
    margins = {int(row): m for b in batches for row, m in zip(b.rows, b.margins, strict=True)}
    assert margins == {i: float(i) for i in range(7)}
    printed = capsys.readouterr().out
    assert "7 pairs" in printed and "0 held out" in printed and "skipped" not in printed
    made(write([pair("p")]), zero=False)
    assert capsys.readouterr().out == ""


def test_json_and_csv_are_read_too(write):
    expected = [("p", " NA<eos>", " é, 0<eos>"), ("q", " NA<eos>", " é, 1<eos>")]
    rows = [{"prompt": p, "chosen": " NA", "rejected": f" é, {i}"} for i, p in enumerate("pq")]
    table = ["rejected,prompt,chosen", '" é, 0",p, NA', '" é, 1",q, NA']
    for path in (write([json.dumps(rows)], "a.json"), write(table, "a.csv")):
        assert texts(made(path, eval_size=0).train_dataloader()) == expected


def test_limits_and_the_wish_for_an_end_reach_the_texts(write):
    path = write([pair("prompt")])
    data = made(path, max_length=5, max_prompt_length=2)
    assert texts(data.train_dataloader()) == [("pt", " g<eos>", " b<eos>")]
    data = made(path, closes=False)
    assert texts(data.train_dataloader()) == [("prompt", " good 0", " bad 0")]


def test_scored_rows_are_read_by_objectives(write):
    rows = [{"prompt": "p", "response": f"r{i}", "a": i, "b": None} for i in range(4)]
    rows[2]["b"] = 0.5
    data = made(write(rows), objectives=["b", "a"], eval_size=0, batch_size=4)
    (batch,) = data.train_dataloader()
    order = batch.rows.argsort()
    assert batch.targets[order, 1].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert batch.targets[order, 0].isnan().tolist() == [True, True, False, True]


# ------------------------------------------------------------------------ held out


@pytest.mark.parametrize(("eval_size", "expected"), [(None, 10), (4, 4)])
@pytest.mark.parametrize("chat", [True, False])
def test_a_tenth_at_most_eval_size_is_held_out_with_its_prompts(write, eval_size, expected, chat):
    asked = [f"p{i // 2}" for i in range(100)]
    asked = [[{"role": "user", "content": p}] if chat else p for p in asked]
    path = write([pair(p, i) for i, p in enumerate(asked)])
    data = made(path, eval_size=eval_size)
    train, held_out = data.train_dataloader(), data.val_dataloader()
    assert len(data.eval_dataset) == expected and len(data.train_dataset) == 100 - expected
    assert not prompts(train) & prompts(held_out)
    assert len(set(texts(train) + texts(held_out))) == 100
    again = made(path, eval_size=eval_size)
    assert texts(again.val_dataloader()) == texts(held_out)
    other = made(path, eval_size=eval_size, seed=1)
    assert texts(other.val_dataloader()) != texts(held_out)


def test_something_is_held_out_where_each_prompt_has_more_than_a_tenth(write):
    data = made(write([pair(f"p{i // 10}", i) for i in range(90)]))  # a ninth each
    assert data.eval_dataset is not None and len(data.eval_dataset) == 10


@pytest.mark.parametrize("given", [True, False])
def test_eval_size_0_evaluates_nothing(write, given):
    path = write([pair(f"p{i}") for i in range(50)])
    data = made(path, eval_size=0, eval_path=path if given else None)
    assert len(data.train_dataset) == 50 and data.eval_dataset is None
    assert list(data.val_dataloader()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 3},
        {"val_check_interval": 0.5, "check_val_every_n_epoch": 1},
        {"val_check_interval": 1.0, "check_val_every_n_epoch": 1},
    ],
)
def test_a_run_without_held_out_pairs_trains_and_evaluates_nothing(options):
    c = DPOConfig(model_name="random:tiny", batch_size=2, gradient_accumulation_steps=2)
    module, data = DPO(c), pair_helpers.data(c)
    report = PreferenceReport("unused")
    report.on_train_end = lambda *_: None
    run = pair_helpers.trainer(c, report=report, max_epochs=2, **options)
    assert run.validate(module, data, verbose=False) == []
    run.fit(module, data)
    assert len(report.history) == run.global_step == 4
    assert report.evaluations == []
    assert not any(name.startswith("val/") for name in run.callback_metrics)
    assert run.limit_val_batches == 1.0


def test_eval_path_is_evaluated_up_to_eval_size(write):
    path = write([pair(f"p{i}") for i in range(40)])
    other = write([pair(f"q{i}") for i in range(5)], "held.jsonl")
    data = made(path, eval_path=other, eval_batch_size=2)
    assert len(data.train_dataset) == 40 and len(data.val_dataloader()) == 3
    assert prompts(data.val_dataloader()) == {f"q{i}" for i in range(5)}
    assert [len(batch) for batch in data.val_dataloader()] == [2, 2, 1]
    assert len(made(path, eval_path=other, eval_size=3).eval_dataset) == 3


def test_datasets_may_be_given_instead_of_files(write, tokenizer):
    train, held_out = (PreferenceDataset([p], ["c"], ["r"], tokenizer) for p in ("p", "q"))
    data = made(train_dataset=train, eval_dataset=held_out)
    assert prompts(data.train_dataloader()) == {"p"} and prompts(data.val_dataloader()) == {"q"}
    for options in ({}, {"path": "x.jsonl", "train_dataset": train}):
        with pytest.raises(ValueError, match=r"path.*train_dataset"):
            PreferenceDataModule(**options)


def test_a_dataset_may_be_held_out_from_a_file(write, tokenizer):
    held_out = PreferenceDataset(["q"], ["c"], ["r"], tokenizer)
    data = made(write([pair(f"p{i}") for i in range(20)]), eval_dataset=held_out)
    assert prompts(data.val_dataloader()) == {"q"} and len(data.train_dataset) == 20


def test_setup_reads_once(write, capsys):
    data = made(write([pair(f"p{i}") for i in range(20)]))
    before = data.train_dataset, data.eval_dataset
    data.setup("validate")
    assert (data.train_dataset, data.eval_dataset) == before
    assert capsys.readouterr().out.count("held out") == 1


# ------------------------------------------------------------------------ mistakes


SAME = {"prompt": "p", "chosen": "long a", "rejected": "long b"}
BAD_LINES = {
    "no JSON": "{oops",
    "column": {"prompt": "p", "chosen": "c"},
    "equal": {"prompt": "p", "chosen": "c", "rejected": "c"},
    "equal once cut": SAME,
    "margin": pair("p") | {"margin": "x"},
    "role": {"prompt": "p", "chosen": [{"role": "user", "content": "x"}], "rejected": []},
    "template": {
        "prompt": [{"role": "tool", "content": "x"}],
        "chosen": [{"role": "assistant", "content": "y"}],
        "rejected": [{"role": "assistant", "content": "z"}],
    },
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_or_skipped(write, name, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        + tokenizer.chat_template
    )
    path = write([pair("a"), "", BAD_LINES[name], pair("b")])
    options = {"tokenizer": tokenizer, "max_length": 7, "max_prompt_length": 3}
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3:")):
        made(path, **options)
    with pytest.warns(UserWarning, match=re.escape(f"{path}, line 3:")):
        data = made(path, on_error="skip", **options)
    assert len(data.train_dataset) == 2 and "1 skipped" in capsys.readouterr().out
    good = write([pair("a")], "good.jsonl")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3:")):
        made(good, eval_path=path, **options)


def test_a_missing_objective_is_named_with_the_columns(write):
    path = write([{"prompt": "p", "response": "r", "helpful": 1}])
    with pytest.raises(ValueError, match=r"line 1:.*'safe'.*helpful.*data\.objectives"):
        made(path, objectives=["safe"])


def test_skipping_works_wherever_the_bad_row_falls(write):
    """Ten rows, one held out: for some seeds it is the bad one."""
    path = write([pair(f"p{i}") for i in range(9)] + [SAME])
    for seed in range(40):
        with pytest.warns(UserWarning, match="line 10"):
            data = made(path, on_error="skip", seed=seed, max_length=7, max_prompt_length=3)
        assert len(data.train_dataset) + len(data.eval_dataset or []) == 9


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("rows", [[], ["{oops"], [{"prompt": "p"}] * 20])
def test_nothing_to_learn_from_is_always_an_error(write, rows, on_error):
    with pytest.raises(ValueError, match=r"no rows|cannot be learned from"):
        made(write(rows), on_error=on_error)


# ------------------------------------------------------------------------ the cache


PROMPTS, CHOSEN, REJECTED = ["p"] * 1000, [f"c{i}" for i in range(1000)], ["r"] * 1000


@pytest.fixture
def build(monkeypatch):
    """Builds a dataset; returns its digest, and whether a tokenizer was called."""
    calls, kind = [], type(tiny_tokenizer())
    inner = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *a, **k: (calls.append(1), inner(*a, **k))[1])

    def build(prompts=PROMPTS, chosen=CHOSEN, rejected=REJECTED, tokenizer=None, **options):
        calls.clear()
        tokenizer = tokenizer or tiny_tokenizer()
        dataset = PreferenceDataset(prompts, chosen, rejected, tokenizer, **options)
        assert len(dataset) == len(chosen) and dataset[0].sequences[0].dtype == torch.int64
        return dataset.digest(), bool(calls)

    return build


def test_two_thousand_texts_are_tokenized_once(build, cache):
    few = PROMPTS[:999], CHOSEN[:999], REJECTED[:999]
    assert build(*few)[1] and build(*few)[1] and not cache.exists()
    first, called = build()
    assert called and build() == (first, False)
    assert len(list(cache.rglob("*.safetensors"))) == 1 == len(list(cache.rglob("*.*")))


def test_another_input_gets_another_entry(build, cache):
    first, _ = build()
    tokenizer, template = tiny_tokenizer(), tiny_tokenizer()
    tokenizer.add_tokens(["c1"])
    template.chat_template = "{{ messages[0]['content'] }}"
    for options in ({"max_length": 500}, {"max_prompt_length": 255}):  # texts are kept whole
        assert build(**options) == (first, False), options
    for same, options in [
        (False, {"tokenizer": tokenizer}),
        (True, {"tokenizer": template}),
        (False, {"close": False}),
        (False, {"prompts": ["q", *PROMPTS[1:]]}),
        (False, {"prompts": ["", *PROMPTS[1:]], "chosen": ["pc0", *CHOSEN[1:]]}),
        (False, {"rejected": [*REJECTED[1:], "rr"]}),
    ]:
        digest, called = build(**options)
        assert called and (digest == first) is same, options
    assert len(list(cache.rglob("*.safetensors"))) == 7


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_corrupt_entry_is_made_again(build, cache, damage):
    first, _ = build()
    (file,) = cache.rglob("*.safetensors")
    file.write_bytes({"empty": b"", "cut": file.read_bytes()[:-7], "text": b"none" * 9}[damage])
    assert build() == (first, True)
    assert build() == (first, False)


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_an_unwritable_cache_only_warns(build, tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") + below)
    with pytest.warns(UserWarning, match="could not be written"):
        assert build()[1]


# ------------------------------------------------------------------------ columns, splits


def test_columns_are_mapped_and_the_unused_ones_named(write, capsys):
    rows = [{"q": f"p{i}", "good": f" a{i}", "bad": f" b{i}", "note": "x"} for i in range(3)]
    path = write(rows)
    data = made(path, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert texts(data.train_dataloader())[0] == ("p0", " a0<eos>", " b0<eos>")
    assert f"{path}: columns that are not used: note" in capsys.readouterr().out
    reading = data.readings["data.path"]
    assert reading.columns.used == ("q", "good", "bad")
    assert reading.places == [f"{path}, line {i}" for i in (1, 2, 3)] and reading.rows == 3
    with pytest.raises(ValueError, match=r"3 of 3 rows cannot be (.|\n)*no column 'chosen'"):
        made(path)
    with pytest.raises(ValueError, match=r"columns=\{note2: null\}: no row of .* 'note2'"):
        made(path, columns=data.columns | {"note2": None})
    with pytest.raises(ValueError, match="nothing is read as 'propmt'"):
        made(path, columns={"propmt": "q"})


def test_numbers_of_a_table_are_answers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,margin\n2+2?,4,5,0.5\n1.0?,007,1e3,1\n")
    items = made(str(path)).train_dataset.items
    assert [(i.prompt.content, i.chosen, i.rejected, i.margin) for i in items] == [
        ("2+2?", "4", "5", 0.5),
        ("1.0?", "007", "1e3", 1.0),
    ]


def test_one_system_message_makes_conversations_of_all_rows(write):
    rows = [pair("a") | {"system": None}, pair("b", 1) | {"system": "Be brief."}]
    first, second = made(write(rows)).train_dataset.items
    assert first.prompt.content == [{"role": "user", "content": "a"}]
    assert [m["role"] for m in second.prompt.content] == ["system", "user"]


def test_a_datasets_own_test_split_is_held_out(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    splits = {"train": [pair(f"a{i}", i) for i in range(20)], "test": [pair("b"), pair("c", 1)]}
    sets = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "set")
    path = str(tmp_path / "set")
    data = made(path)
    assert (len(data.train_dataset), len(data.eval_dataset)) == (20, 2)
    assert f"2 held out (the split test of {path})" in capsys.readouterr().out
    assert made(path, eval_size=0).eval_dataset is None
    assert len(made(path, split="test", eval_size=1).train_dataset) == 1


def test_as_many_are_held_out_as_asked_for_or_none(write):
    path = write([pair(f"p{i // 4}", i) for i in range(40)])
    assert len(made(path, eval_size=8).eval_dataset) == 8
    with pytest.raises(ValueError, match=r"eval_size=10: rows of one prompt .* makes 8 here"):
        made(path, eval_size=10)
    with pytest.raises(ValueError, match=r"eval_size=40 would hold out all 40"):
        made(path, eval_size=40)


def test_a_row_without_a_prompt_among_others_that_have_one_is_refused(write):
    gap = {"chosen": "yes", "rejected": "no"}
    for row in (gap, gap | {"prompt": None}):
        with pytest.raises(ValueError, match=r"line 2: there is no prompt, as other rows have one"):
            made(write([pair("a"), row, pair("b", 1)]))
    assert len(made(write([gap, gap | {"chosen": "ja"}]), eval_size=0).train_dataset) == 2
    assert len(made(write([pair("a"), gap | {"prompt": ""}]), eval_size=0).train_dataset) == 2


def test_what_may_not_be_meant_is_said(write, capsys):
    turns = [{"role": r, "content": c} for r, c in zip("ua" * 2, "wxyz", strict=True)]
    names = {"u": "user", "a": "assistant"}
    turns = [{**m, "role": names[m["role"]]} for m in turns]
    other = [turns[0], {"role": "assistant", "content": "n"}]
    twice = {"prompt": "Q: a", "chosen": "Q: a yes", "rejected": "Q: a no"}
    for row, said in [
        ({"chosen": turns, "rejected": other}, "responses of 1 rows (the first is line 1) hold"),
        (twice, "both sides of 1 rows (the first is line 1) begin with the text of their prompt"),
        ({"chosen": "yes", "rejected": "no"}, "1 rows (the first is line 1) have no prompt"),
    ]:
        made(write([row]))
        assert said in capsys.readouterr().out
    made(write([pair("a")]))
    assert ":" not in capsys.readouterr().out
    assert made(write([twice]), columns={"prompt": None}).train_dataset.items[0].chosen == " yes"
