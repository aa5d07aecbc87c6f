"""A search finds what was planted, and whatever ends it, the next one goes on with it."""

import json
import math
import sys

import optuna
import pytest
from search_helpers import Killed, Played, plan, run

from rlmodules.sweeping.search.ending import RESULTS
from rlmodules.sweeping.search.journal import open_journal
from rlmodules.sweeping.search.loop import Search
from rlmodules.sweeping.search.study import JOURNAL

BEST = 1e-4


def planted(options, unit):
    """The best learning rate is 1e-4; a run's curve rises, its seed shifts it a little."""
    off = abs(math.log10(options["algo.learning_rate"] / BEST)) / 2
    return {"val/reward": unit * (1 - off) + options.get("seed", 0) / 100}


@pytest.fixture(autouse=True)
def killed_is_killed(monkeypatch):
    """After ``Killed`` nothing is tidied up; what is written need not survive the machine."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    pause = Search.pause

    def unless_killed(self, stops):
        if not isinstance(sys.exc_info()[1], Killed):
            pause(self, stops)

    monkeypatch.setattr(Search, "pause", unless_killed)


def study_of(folder):
    storage = open_journal(folder / JOURNAL)
    (only,) = storage.get_all_studies()
    return optuna.load_study(study_name=only.study_name, storage=storage)


def test_twenty_trials_find_the_planted_optimum(tmp_path):
    runner = Played(planted)
    found, said = run(tmp_path, runner)
    rate = found["best_params"]["algo.learning_rate"]
    assert abs(math.log10(rate / BEST)) < 0.2  # of a space four decades wide
    assert found["best_value"] == planted({"algo.learning_rate": rate}, 4)["val/reward"]
    assert f"algo.learning_rate={rate!r} seed=0" in said
    assert (tmp_path / RESULTS).read_text() == (
        f"name: optuna\nbest_params:\n  algo.learning_rate: {rate!r}\n"
        f"best_value: {found['best_value']!r}\n"
    )
    trials = study_of(tmp_path).trials
    assert len(trials) == 20 and len(runner.spent) == 20 * 4
    values = {trial.number: dict(trial.intermediate_values) for trial in trials}
    assert sorted(values[3]) == [0, 1, 2, 3, 4]  # what was evaluated on the way is in the study


@pytest.mark.parametrize("dies_after", [1, 4, 9])
def test_a_search_that_was_killed_goes_on_to_the_same_best_and_runs_nothing_twice(
    tmp_path, dies_after
):
    whole = run(tmp_path / "whole", Played(planted, slots=1), n_trials=10)[0]
    dying = Played(planted, slots=1, dies_after=dies_after)
    with pytest.raises(Killed):
        run(tmp_path / "killed", dying, n_trials=10)
    again = Played(planted, slots=1)
    found, said = run(tmp_path / "killed", again, n_trials=10)
    assert found == whole and "going on" in said
    spent = dying.spent + again.spent
    assert len(spent) == len(set(spent)) == 10 * 4
    assert [t.params for t in study_of(tmp_path / "killed").trials] == [
        t.params for t in study_of(tmp_path / "whole").trials
    ]
    assert run(tmp_path / "killed", third := Played(planted, slots=1), n_trials=10)[0] == whole
    assert not third.started


def test_a_killed_search_on_several_slots_continues_the_jobs_that_were_running(tmp_path):
    dying = Played(planted, slots=3, dies_after=6)
    with pytest.raises(Killed):
        run(tmp_path, dying, n_trials=10)
    again = Played(planted, slots=3)
    run(tmp_path, again, n_trials=10)
    spent = dying.spent + again.spent
    assert len(spent) == len(set(spent)) == 10 * 4


def test_slots_are_never_idle_while_something_is_left(tmp_path):
    """A slot that gets free is filled at once: nobody waits for a batch."""
    lengths = iter([9, 2, 2, 2, 2, 2, 2])

    class Uneven(Played):
        def start(self, job, *, pause_at=None):
            self.total = next(lengths)
            return super().start(job, pause_at=pause_at)

    runner = Uneven(planted, slots=2)
    run(tmp_path, runner, n_trials=5)
    order = [folder for folder, _ in runner.spent]
    assert order.index("trial=004,seed=0") < len(order) - 1 - order[::-1].index("trial=000,seed=0")


@pytest.mark.parametrize("tail", [b'{"op_code": 4, "wor', b"", b"\0\0\0\0"])
def test_a_torn_journal_loses_its_torn_line_alone(tmp_path, tail):
    with pytest.raises(Killed):
        run(tmp_path, Played(planted, slots=1, dies_after=5), n_trials=8)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + tail)
    found, _ = run(tmp_path, Played(planted, slots=1), n_trials=8)
    assert found == run(tmp_path.with_name("whole"), Played(planted, slots=1), n_trials=8)[0]
    assert len(study_of(tmp_path).trials) == 8
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_every_byte_that_a_journal_can_be_cut_at_leaves_a_study_that_goes_on(tmp_path):
    run(tmp_path / "whole", Played(planted, slots=1), n_trials=2)
    data = (tmp_path / "whole" / JOURNAL).read_bytes()
    for cut in range(0, len(data), 211):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(data[:cut])
        run(folder, Played(planted, slots=1), n_trials=2)
        finished = [t for t in study_of(folder).trials if t.state.name == "COMPLETE"]
        assert len(finished) == 2, cut


def test_a_journal_with_a_bad_line_in_the_middle_is_refused(tmp_path):
    run(tmp_path, Played(planted), n_trials=2)
    lines = (tmp_path / JOURNAL).read_text().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_text("".join([*lines[:3], "nonsense\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"study\.log, line 4 is no entry"):
        run(tmp_path, Played(planted), n_trials=2)


@pytest.mark.parametrize(
    ("arguments", "changes", "named"),
    [
        ((), {"params": {"algo.learning_rate": "tag(log,interval(1e-6,1e-3))"}},
         r"algo\.learning_rate: tag\(log, interval\(1e-06, 0\.001\)\) .* 0\.01"),
        (("algo.beta=0.1,0.2",), {}, r"algo\.beta: choice\(0\.1, 0\.2\) .* not searched"),
        ((), {"params": {"algo.beta": "choice(1,2)"}}, r"algo\.beta: choice\(1, 2\)"),
        ((), {"seeds": [0, 1]}, r"hydra\.sweeper\.seeds: \[0, 1\] .* \[0\]"),
        ((), {"metrics": ["val/kl"]}, r"val/kl.*minimize.*val/reward"),
        (("model=tiny",), {}, "model=tiny: this study was begun without it"),
    ],
)  # fmt: skip
def test_a_study_of_another_search_is_refused_by_name(tmp_path, arguments, changes, named):
    run(tmp_path, Played(planted), n_trials=2)
    with pytest.raises(ValueError, match=named):
        run(tmp_path, Played(planted), *arguments, n_trials=2, **changes)


def test_more_trials_and_another_logger_may_be_asked_for_later(tmp_path):
    run(tmp_path, Played(planted), n_trials=2)
    runner = Played(planted)
    run(tmp_path, runner, "logger=none", n_trials=3)
    assert {folder for folder, _ in runner.spent} == {"trial=002,seed=0"}


def test_a_moved_folder_is_the_same_study(tmp_path):
    run(tmp_path / "here", Played(planted), n_trials=2)
    (tmp_path / "here").rename(tmp_path / "there")
    runner = Played(planted)
    run(tmp_path / "there", runner, n_trials=2)
    assert not runner.started


def test_a_database_keeps_the_study_as_the_journal_does(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(Killed):
        run(tmp_path / "a", Played(planted, slots=1, dies_after=3), storage=url, n_trials=4)
    found, _ = run(tmp_path / "a", Played(planted, slots=1), storage=url, n_trials=4)
    assert found == run(tmp_path / "b", Played(planted, slots=1), n_trials=4)[0]
    assert not (tmp_path / "a" / JOURNAL).exists()


def test_two_sweeps_share_a_study_and_leave_each_other_s_trials_alone(tmp_path):
    shared = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "both", "n_trials": 3}
    with pytest.raises(Killed):
        run(tmp_path / "a", Played(planted, slots=1, dies_after=2), **shared)
    run(tmp_path / "b", Played(planted, slots=1), **shared)
    last = Played(planted, slots=1)
    run(tmp_path / "a", last, **shared)
    study = optuna.load_study(study_name="both", storage=shared["storage"])
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 6
    assert len({t.params["algo.learning_rate"] for t in study.trials}) == 6


def test_a_setting_that_comes_up_again_is_not_run_again(tmp_path):
    runner = Played(planted)
    found, said = run(
        tmp_path, runner, params={"algo.learning_rate": "choice(1e-5,1e-4,1e-3)"}, n_trials=12
    )
    assert len(runner.started) == 3 and found["best_params"] == {"algo.learning_rate": 1e-4}
    assert "as 0" in said
    assert all(trial.state.name == "COMPLETE" for trial in study_of(tmp_path).trials)


def diverging(options, unit):
    if options["algo.learning_rate"] > 1e-4 and unit == 2:
        raise RuntimeError("ValueError: the loss is not finite")
    return planted(options, unit)


def test_failures_are_listed_and_the_others_go_on(tmp_path):
    found, said = run(tmp_path, Played(diverging), max_failure_rate=1.0, n_trials=8)
    assert found["best_params"]["algo.learning_rate"] <= 1e-4
    states = [trial.state.name for trial in study_of(tmp_path).trials]
    assert states.count("FAIL") > 0 and "RUNNING" not in states
    listed = said[said.index("Failed:") :]
    assert listed.count("ValueError: the loss is not finite") == states.count("FAIL")
    assert "job.log" in listed


@pytest.mark.parametrize(("rate", "failed"), [(0.0, 1), (0.5, 2)])
def test_too_many_failures_end_the_search(tmp_path, rate, failed):
    def broken(options, unit):
        raise RuntimeError("OSError: no such model")

    with pytest.raises(ValueError, match=f"{failed} of {failed} trials failed.*no such model"):
        try:
            run(tmp_path, Played(broken, slots=1), max_failure_rate=rate)
        except ValueError as error:
            raise ValueError(str(error).replace("\n", " ")) from None


def test_failed_trials_are_tried_again_where_they_stopped_if_asked(tmp_path):
    broken = Played(diverging, slots=1)
    run(tmp_path, broken, max_failure_rate=1.0, n_trials=6)
    failed = [t.number for t in study_of(tmp_path).trials if t.state.name == "FAIL"]
    _, said = run(tmp_path, idle := Played(planted), max_failure_rate=1.0, n_trials=6)
    assert not idle.started and said.count("the loss is not finite") == len(failed) > 1
    made = plan(max_failure_rate=1.0, n_trials=6)
    mended = Played(planted, slots=1)
    _, said = run(tmp_path, mended, plan_=made, retry_failed=True)
    assert {name for name, _ in mended.started} == {f"trial={n:03d},seed=0" for n in failed}
    assert len(mended.spent) == len(failed) * 3  # from their second unit on
    assert "Failed" not in said
    states = [trial.state.name for trial in study_of(tmp_path).trials]
    assert states.count("COMPLETE") == 6 and states.count("FAIL") == len(failed)
    run(tmp_path, idle, plan_=made, retry_failed=True)
    assert not idle.started


def test_a_value_that_is_no_number_is_a_failure(tmp_path):
    with pytest.raises(ValueError, match="val/reward is nan"):
        run(tmp_path, Played(lambda o, u: {"val/reward": math.nan}), n_trials=2)
    with pytest.raises(ValueError, match="val/kl was never logged"):
        run(tmp_path / "b", Played(planted), n_trials=2, metrics=["val/kl"])


def test_more_jobs_than_slots_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"n_jobs=3: the launcher has 2 slots"):
        run(tmp_path, Played(planted), n_jobs=3)


def test_a_folder_is_searched_by_one_at_a_time(tmp_path):
    class Nested(Played):
        def start(self, job, *, pause_at=None):
            with pytest.raises(ValueError, match="another run is going on"):
                run(tmp_path, Played(planted))
            return super().start(job, pause_at=pause_at)

    run(tmp_path, Nested(planted), n_trials=1)


def test_the_same_search_proposes_the_same(tmp_path):
    both = [run(tmp_path / name, Played(planted), plan_=plan(n_trials=8))[0] for name in "ab"]
    assert both[0] == both[1]
