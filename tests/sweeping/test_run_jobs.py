"""Jobs on slots, what is shown of them, and what a repeated sweep does with them."""

import io
import json
import os
import signal
import time
from contextlib import nullcontext

import pytest
from rich.console import Console

from rlmodules.resuming.folder import held
from rlmodules.sweeping import run_jobs as module
from rlmodules.sweeping import sweep
from rlmodules.sweeping.board import Board, duration
from rlmodules.sweeping.commands import going_on, typed
from rlmodules.sweeping.jobs import (
    Job,
    Outcome,
    Progress,
    write_failure,
    write_progress,
    write_result,
)
from rlmodules.sweeping.run_jobs import Interrupts, run_jobs
from rlmodules.sweeping.summary import summarize


def jobs_in(folder, count=3):
    return [Job((f"seed={n}",), folder / f"seed={n}", {"seed": n}, n) for n in range(count)]


class Fake:
    """A job that ends as soon as it is looked at often enough."""

    def __init__(self, runner, job, looks):
        self.runner, self.job, self.looks, self.asked = runner, job, looks, ""

    def poll(self):
        if self.asked == "pause" and self.runner.obeys:
            return self.end(Outcome("paused"))
        if self.asked == "kill":
            return self.end(Outcome("failed", error="killed"))
        self.looks -= 1
        if self.looks > 0:
            return None
        if self.job.number in self.runner.failing:
            write_failure(self.job.folder, "ValueError: no")
            return self.end(Outcome("failed", error="ValueError: no"))
        write_result(self.job.folder, "val/reward", float(self.job.number))
        return self.end(Outcome("done", float(self.job.number)))

    def end(self, outcome):
        self.runner.running.discard(self.job.number)
        return outcome

    def pause(self):
        self.asked = self.asked or "pause"

    def kill(self):
        self.asked = "kill"


class Runner:
    def __init__(self, slots=2, looks=3, failing=(), obeys=True, at_start=None):
        self.slots, self.looks, self.failing, self.obeys = slots, looks, failing, obeys
        self.at_start, self.running, self.most, self.started = at_start, set(), 0, []

    def start(self, job, *, pause_at=None):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "job.log").open("a").write("$ started\n")
        if self.at_start:
            self.at_start(job)
        self.running.add(job.number)
        self.most = max(self.most, len(self.running))
        self.started.append(job.number)
        return Fake(self, job, self.looks)


def terminal(text, is_terminal=False):
    return Console(file=text, force_terminal=is_terminal, width=100, color_system=None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.001)


def run(jobs, runner, *, is_terminal=False):
    text = io.StringIO()
    console = terminal(text, is_terminal)
    with Board(jobs, "val/reward", console) as board, Interrupts() as interrupts:
        ended = run_jobs(jobs, runner, board, interrupts)
    return [outcome.status for _, outcome in ended], text.getvalue()


def test_slots_are_kept_busy_and_a_failure_ends_nothing_else(tmp_path):
    runner = Runner(failing={1})
    ended, said = run(jobs_in(tmp_path, 5), runner)
    assert sorted(ended) == ["done"] * 4 + ["failed"]
    assert runner.started == [0, 1, 2, 3, 4] and runner.most == 2
    log = tmp_path / "seed=1" / "job.log"
    assert said.count(f"seed=1 failed: ValueError: no ({log})") == 1
    assert "seed=0 has begun" in said and "seed=4 is done: val/reward 4" in said
    assert said.rstrip().endswith("(4 done, 1 failed)")


def test_a_folder_in_which_a_run_goes_on_is_left_to_it(tmp_path):
    jobs = jobs_in(tmp_path, 2)

    def start(job):
        with held(job.folder):
            pass

    with held(jobs[0].folder):
        ended, said = run(jobs, Runner(at_start=start))
    assert ended == ["done"] and "seed=0 failed: another run is going on in" in said


def test_ctrl_c_pauses_what_runs_and_starts_nothing_more(tmp_path):
    def interrupt(job):
        if job.number == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    runner = Runner(looks=10**6, at_start=interrupt)
    ended, said = run(jobs_in(tmp_path, 4), runner)
    assert ended == ["paused", "paused"] and runner.started == [0, 1]
    assert "Pausing: each job saves after its step" in said
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_what_does_not_pause(tmp_path):
    runner = Runner(looks=10**6, obeys=False)

    def interrupt(job):
        os.kill(os.getpid(), signal.SIGINT)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    runner.at_start = interrupt
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        ended, _ = run(jobs_in(tmp_path, 1), runner)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ended == ["failed"]


def test_an_error_of_our_own_leaves_no_job_unpaused(tmp_path):
    class Broken(Runner):
        def start(self, job, **more):
            if job.number == 1:
                raise RuntimeError("broken")
            self.fake = super().start(job, **more)
            return self.fake

    runner = Broken(looks=10**6)
    with pytest.raises(RuntimeError, match="broken"):
        run(jobs_in(tmp_path), runner)
    assert runner.fake.asked == "pause"


# -------------------------------------------------------------------- what is shown


def progress(done, total=10, **metrics):
    return Progress("iteration", done, total, metrics, [], 1.0)


def test_a_terminal_shows_what_runs_with_its_reward_and_the_time_left(tmp_path, monkeypatch):
    jobs, now, text = jobs_in(tmp_path, 4), [100.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for job in jobs:
        job.folder.mkdir()
    write_result(jobs[3].folder, "val/reward", 0.25)
    write_progress(jobs[2].folder, progress(5))
    board = Board(jobs, "val/reward", terminal(text))
    with board:
        (jobs[0].folder / "job.log").write_text("$ begun")
        (jobs[1].folder / "job.log").write_text("$ begun")
        write_progress(jobs[0].folder, progress(4, **{"rollout/reward": 0.5, "val/reward": 0.75}))
        now[0] += 30
        board.look()
        assert [board.line(seen) for seen in board.running()] == [
            "seed=0: iteration 4/10, reward 0.5, val/reward 0.75",
            "seed=1: beginning",
        ]
        # 0.4 of a job took 30 s; 0.6 + 1 + 0.5 are left
        assert board.summary() == "1 done, 2 running, 1 waiting; about 3 min left"
        assert round(board.seconds_left(), 1) == 157.5
        table = io.StringIO()
        terminal(table).print(board.table())
        assert "seed=0 iteration 4/10 reward 0.5 val/reward 0.75" in " ".join(
            table.getvalue().split()
        )
        now[0] += 61
        board.look()
    assert "1 of 4 jobs are done already." in text.getvalue()
    assert "about 8 min left; seed=0: iteration 4/10" in text.getvalue()


def test_on_a_terminal_failures_alone_are_printed_at_once(tmp_path):
    _, said = run(jobs_in(tmp_path), Runner(failing={2}), is_terminal=True)
    assert "seed=2 failed: ValueError: no" in said and "has begun" not in said


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.4, "3 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_short(seconds, said):
    assert duration(seconds) == said


# ----------------------------------------------------------- going on with a sweep


def test_what_is_done_is_kept_and_what_failed_is_tried_again_when_asked(tmp_path):
    jobs = jobs_in(tmp_path, 3)
    for job in jobs:
        job.folder.mkdir()
    write_result(jobs[0].folder, "val/reward", None)
    write_failure(jobs[1].folder, "no")
    assert sweep.due_jobs(jobs, retry=False) == [jobs[2]]
    assert (jobs[1].folder / "failure.json").exists()
    assert sweep.due_jobs(jobs, retry=True) == [jobs[1], jobs[2]]
    assert not (jobs[1].folder / "failure.json").exists()


@pytest.mark.parametrize("going", [True, False])
def test_jobs_that_still_go_on_are_waited_for_then_refused(tmp_path, monkeypatch, going):
    monkeypatch.setattr(sweep, "PATIENCE", 0.1)
    jobs = jobs_in(tmp_path, 1)
    refused = pytest.raises(ValueError, match=r"jobs still go on .*seed=0; wait for them")
    with held(jobs[0].folder) if going else nullcontext(), refused if going else nullcontext():
        sweep.require_idle(jobs)


def test_the_end_lists_what_failed_what_is_left_and_how_to_go_on(tmp_path):
    jobs, text = jobs_in(tmp_path, 3), io.StringIO()
    for job in jobs:
        job.folder.mkdir()
    write_result(jobs[0].folder, "val/reward", 0.125)
    write_failure(jobs[1].folder, "ValueError: no")
    failed = summarize(jobs, tmp_path, "val/reward", "python train.py -m x", terminal(text))
    said = text.getvalue()
    assert failed == [jobs[1]]
    assert "1 of 3 jobs are done, 1 failed, 1 are to be gone on with" in said
    assert f"seed=1: ValueError: no ({tmp_path}/seed=1/job.log)" in said
    assert "Go on with: python train.py -m x\n" in said
    assert "Try again what failed: python train.py -m x sweep.retry_failed=true\n" in said


def test_the_line_that_goes_on_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = typed(["train.py", "-m", "data.prompts=['a b']", "hydra.sweep.dir=x", "seed=0,1"])
    line = going_on([*command, "sweep.retry_failed=true"], tmp_path / "multirun" / "a b,c")
    assert line == (
        "python train.py -m 'data.prompts=['\"'\"'a b'\"'\"']' seed=0,1"
        " 'hydra.sweep.dir=\"multirun/a b,c\"'"
    )
    assert going_on(typed(["/bin/rlmodules-train", "-m"]), tmp_path / "m").startswith(
        "rlmodules-train -m hydra.sweep.dir=m"
    )
    assert json.dumps(typed(["a/train.py"])) == '["python", "a/train.py"]'
