"""DemonstrationDataModule: files in, batches out, and what is said of them."""

import json
from types import SimpleNamespace

import pytest
import torch

from datamodules import DemonstrationDataModule, PreferenceDataModule
from rlmodules import SFT, SFTConfig
from rlmodules.models.embedded import tiny_tokenizer

ROWS = [{"prompt": f"p{i}", "completion": f" said {i}"} for i in range(12)]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(rows):
        path = tmp_path / "texts.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return str(path)

    return write


def made(path, kind=DemonstrationDataModule, learns_from="demonstrations", **options):
    data = kind(path, **options)
    module = SimpleNamespace(tokenizer=tiny_tokenizer(), learns_from=learns_from, closes_texts=True)
    data.trainer = SimpleNamespace(
        lightning_module=module, is_global_zero=True, world_size=1, global_rank=0, current_epoch=0
    )
    data.setup("fit")
    return data


def test_a_file_becomes_batches_and_held_out_rows(write, capsys):
    data = made(write(ROWS), batch_size=4, eval_size=4)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4]
    for batch in batches:
        tokens = sum(len(example.learned) for example in batch.examples)
        assert batch.totals == {"num_examples": 4.0, "num_tokens": float(tokens)}
    said = capsys.readouterr().out
    assert "8 demonstrations to train on (" in said and "4 held out" in said
    assert "the loss is of 79% of them" in said or "the loss is of 80% of them" in said


def test_what_is_chosen_is_learned_of_pairs_and_said(write, capsys):
    rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " no"} for r in ROWS]
    data = made(write(rows), eval_size=0)
    (ids,) = data.train_dataset[3].sequences
    assert tiny_tokenizer().decode(ids) == "p3 said 3<eos>"
    assert "12 rows are preferences: what was chosen is learned from" in capsys.readouterr().out


def test_columns_are_named(write):
    rows = [{"frage": r["prompt"], "antwort": r["completion"]} for r in ROWS]
    data = made(write(rows), columns={"prompt": "frage", "completion": "antwort"}, eval_size=0)
    assert len(data.train_dataset) == 12
    with pytest.raises(ValueError, match="nothing is read as 'margin'"):
        made(write(rows), columns={"margin": "frage"})


def test_what_is_suspicious_is_found_and_rows_are_shown(write):
    data = made(write([*ROWS, ROWS[0]]), eval_size=0, max_length=8)
    assert data.findings() == [
        "13 of 13 rows have a response cut on the right (max_length=8)",
        "1 of 13 rows repeat another one",
    ]
    sample = data.samples(1)[0]
    assert [part.kind for part in sample.sides["text"]] == ["prompt", "response"]
    assert "2 tokens are cut off its end" in sample.title


@pytest.mark.parametrize(
    ("kind", "learns_from", "why"),
    [
        (PreferenceDataModule, "demonstrations", "learns from demonstrations: data=preferences"),
        (DemonstrationDataModule, "preferences", "learns from preferences: data=demonstrations"),
    ],
)
def test_rows_of_another_kind_than_the_algorithms_are_refused(write, kind, learns_from, why):
    with pytest.raises(ValueError, match=why):
        made(write(ROWS), kind=kind, learns_from=learns_from)


def test_a_batch_is_a_step_of_the_module(write):
    data = made(write(ROWS), batch_size=12, eval_size=0)
    module = SFT(SFTConfig(model_name="random:tiny", device="cpu"))
    (batch,) = data.train_dataloader()
    loss, metrics = module.losses(batch)
    torch.testing.assert_close(loss, metrics["nll"])
