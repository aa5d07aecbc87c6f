"""``report.html``: complete, harmless, small, and the same when it is made again."""

import json
from types import SimpleNamespace

import helpers
import pytest
from helpers import SignalAt
from page_helpers import Page

from rlmodules import PPO
from rlmodules.callbacks import RunReport, SampleTable, SaveLast, TokenRecord
from rlmodules.callbacks.stopping import StoppedBySignal
from rlmodules.reports.reading import read_run
from rlmodules.reports.run_page import changed, duration, findings, samples, write_run_page
from rlmodules.reports.runs import Run
from rlmodules.reports.token_files import read_tokens
from rlmodules.tasks.report import newest, report

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x>"


def evil(prompts, responses, metadata=None):
    return [len(set(response)) / 10 for response in responses]


def fit(folder, *callbacks, iterations=2):
    """A whole small run, with all that leaves something in its folder."""
    import lightning as L
    from lightning.pytorch.loggers import CSVLogger

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"algo: {{num_iterations: {iterations}}}\nseed: 0\n")
    c = helpers.config(num_iterations=iterations)
    c.device = "cpu"
    module = PPO(c)
    keep = [SampleTable(folder), TokenRecord(folder), *callbacks, RunReport(folder)]
    trainer = L.Trainer(
        max_epochs=iterations, accelerator="cpu", num_sanity_val_steps=0,
        callbacks=[*keep, SaveLast(folder / "checkpoints")], log_every_n_steps=1,
        logger=CSVLogger(folder, name="csv", version=""),
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    prompts = [f"{EVIL} {i}" for i in range(4)]
    data = helpers.data(c, evil, prompts=prompts, eval_prompts=prompts[:3], eval_size=3)
    trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "done"
    fit(place)
    return place


def test_a_run_leaves_a_page_that_can_be_made_again(folder):
    first = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    said = report(str(folder), "outputs", "multirun")
    assert (folder / "report.html").read_text() == first
    assert "Held-out reward" in said and said.endswith(f"See {folder / 'report.html'}")
    assert said.splitlines()[0] in (folder / "report.txt").read_text().replace("\n", " ")
    assert len(first) < 5_000_000


def test_the_page_fetches_nothing_and_what_a_model_wrote_stays_text(folder):
    page = Page((folder / "report.html").read_text())
    assert not page.fetched() and "img" not in page.names()
    assert EVIL in page.text and page.text.count("95% interval") >= 2
    titles = {data.get("title") for data in page.data}
    assert {"reward", "kl", "entropy", "loss", "rollout s"} <= titles


def test_the_page_shows_the_numbers_that_were_kept(folder):
    held = Page((folder / "report.html").read_text()).data[-1]
    kept = [json.loads(path.read_text()) for path in sorted((folder / "tokens").iterdir())]
    assert held["iterations"] == kept and held["of"] == 2
    assert list(held["columns"])[:2] == ["advantage", "reward"]


def test_held_out_points_stand_where_they_were_evaluated(folder):
    run = read_run(folder)
    assert [x for x, _ in run.curve("val/reward")] == [0, 1, 2]
    history = json.loads((folder / "report.json").read_text())["history"]
    assert [row["iteration"] for row in history] == [1, 2]


def test_an_interrupted_run_has_a_page_too(tmp_path):
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "run", SignalAt(2, 1), iterations=3)
    assert not (tmp_path / "run" / "report.json").exists()
    left = Page((tmp_path / "run" / "report.html").read_text())
    assert "This run is not finished: 2 iterations are done" in left.text
    assert "It ended with: it was asked to stop." in left.text
    (tmp_path / "run" / "report.html").unlink()
    report(str(tmp_path / "run"), "outputs", "multirun")  # from what is on disk alone
    again = Page((tmp_path / "run" / "report.html").read_text())
    assert "This run is not finished" in again.text and "Held-out reward" in again.text
    assert {"reward", "kl"} <= {data.get("title") for data in again.data}
    assert len(again.data[-1]["iterations"]) == 3  # the one that had begun as well


def test_what_the_health_check_finds_in_a_csv_is_counted_in_iterations(tmp_path):
    (tmp_path / "csv").mkdir()
    lines = [f"{i},{16 * i},0.5,0.0,0.1" for i in range(1, 7)]
    names = "iteration,step,rollout/reward,rollout/reward_std,train/loss"
    (tmp_path / "csv" / "metrics.csv").write_text("\n".join([names, *lines]))
    (found,) = findings(Run(tmp_path, {"algo.num_iterations": 9}))
    assert (found.name, found.unit) == ("equal_rewards", "iteration") and found.began <= 6


def test_many_tokens_are_thinned_to_what_a_page_may_carry(tmp_path):
    for i in range(1, 41):
        path = tmp_path / "tokens" / f"iteration-{i:04d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"iteration": i, "episodes": ["x" * 1000]}))
    kept, count = read_tokens(tmp_path, budget=10_000)
    assert count == 40 and (kept[0]["iteration"], kept[-1]["iteration"]) == (1, 40)
    assert 5 <= len(kept) <= 10
    (tmp_path / "tokens" / "iteration-0041.json").write_text('{"torn')
    assert len(read_tokens(tmp_path)[0]) == 40


def test_options_that_differ_are_those_typed_and_those_of_the_conf():
    start = {"defaults": {"algo": {"lr": 1e-5, "lam": 0.95, "top_p": 0.9}}}
    settings = {"algo.lr": 3e-5, "algo.lam": 0.95, "algo.top_p": 1.0, "seed": 1}
    run = SimpleNamespace(settings=settings, overrides=("algo=ppo", "algo.lr=3e-5", "seed=1"))
    assert changed(run, start) == [
        ("algo.lr", "3e-05", "1e-05", "command"),
        ("seed", "1", "", "command"),
        ("algo.top_p", "1", "0.9", "conf/"),
    ]


def test_samples_that_changed_most_come_first(tmp_path, monkeypatch):
    gains = {"a": 0.1, "b": 0.9, "c": -0.8, "d": 0.0}
    before = [{"prompt": p, "response": "x", "reward": "0", "kl": ""} for p in gains]
    after = [{"prompt": p, "response": "y", "reward": str(g), "kl": ""} for p, g in gains.items()]
    monkeypatch.setattr(Run, "samples", lambda self: {0: before, 5: after})
    shown = samples(Run(tmp_path))
    assert [row["prompt"] for _, row in shown["rows"]] == ["b", "c", "a", "d"]
    assert shown["of"] == 4


def test_the_newest_run_is_the_last(tmp_path):
    import os

    for name, at in (("a", 100), ("b", 300), ("c", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0")
        os.utime(tmp_path / name / "config.yaml", (at, at))
    assert newest([str(tmp_path), str(tmp_path / "none")]) == tmp_path / "b"
    with pytest.raises(ValueError, match="run=last: there is no run below"):
        newest([str(tmp_path / "none")])
    with pytest.raises(ValueError, match="is no run's folder"):
        report(str(tmp_path), "outputs", "multirun")


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (185, "3 min 5 s"), (4325, "1 h 12 min"), (0, "0 s")]
)
def test_durations_are_told_as_people_do(seconds, text):
    assert duration(seconds) == text


def test_a_page_of_nothing_is_a_page(tmp_path):
    write_run_page(Run(tmp_path))
    assert "Nothing was logged" in Page((tmp_path / "report.html").read_text()).text
