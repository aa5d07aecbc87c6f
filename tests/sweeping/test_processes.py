"""Jobs as processes, with a little program in the place of ``train.py``."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlmodules.resuming.folder import ForeignFolderError, held
from rlmodules.sweeping.errors import last_error, meaning
from rlmodules.sweeping.jobs import Job, Outcome, read_failure, write_job, write_result
from rlmodules.sweeping.processes import Processes, arguments, begin_anew, quoted

ROOT = Path(__file__).parents[2]
PROGRAM = f"""
import json, os, pathlib, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from rlmodules.sweeping.jobs import PAUSED, forget_pause, pause_at, write_result
from rlmodules.sweeping.parent import stop_with_parent
stop_with_parent()
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder, does = pathlib.Path(words["hydra.run.dir"].strip('"')), words["does"]
print("told", sys.argv[1:], flush=True)
if does == "result":
    write_result(folder, "val/reward", 0.5, argv=sys.argv[1:], env=dict(os.environ))
elif does == "wait":
    (folder / "begun").touch()
    while pause_at(folder) is None:
        time.sleep(0.02)
    forget_pause(folder)
    sys.exit(PAUSED)
elif does == "raise":
    raise ValueError("of this")
elif does == "say":
    sys.exit("\\nValueError: two\\n  lines\\n(the traceback is in here)")
elif does == "die":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def runner(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    made = Processes([str(program)], [{"OMP_NUM_THREADS": "7"}, {"OMP_NUM_THREADS": "8"}], tmp_path)
    yield made
    for process in made._on.values():
        process.kill()
        ended(process)


def job(tmp_path, does, name="a=1,b=2"):
    return Job((f"does={does}",), tmp_path / name, {"a": 1})


def ended(running):
    until = time.monotonic() + 30
    while running.poll() is None:
        assert time.monotonic() < until, "it goes on"
        time.sleep(0.02)
    return running.poll()


def begun(folder):
    until = time.monotonic() + 30
    while not (folder / "begun").exists():
        assert time.monotonic() < until, "it does not begin"
        time.sleep(0.02)


def test_a_job_runs_in_its_folder_with_its_threads_and_leaves_its_result(tmp_path, runner):
    first, second = (
        runner.start(replace(job(tmp_path, "result", name), number=3)) for name in ("x y", "z")
    )
    assert [ended(first), ended(second)] == [Outcome("done", 0.5)] * 2
    folder = tmp_path / "x y"
    said = (folder / "job.log").read_text()
    assert "program.py does=result" in said and "told ['does=result'" in said
    assert f'hydra.run.dir="{folder}"' in said and "hydra.job.num=3" in said
    assert '"swept": {' in (folder / "job.json").read_text()
    assert '"OMP_NUM_THREADS": "7"' in (folder / "result.json").read_text()
    assert '"OMP_NUM_THREADS": "8"' in (tmp_path / "z" / "result.json").read_text()
    assert "HYDRA_FULL_ERROR" not in (folder / "result.json").read_text()


@pytest.mark.parametrize(
    ("does", "error"),
    [
        ("raise", "exit status 1: ValueError: of this"),
        ("say", "exit status 1: ValueError: two"),
        ("die", "killed by signal 9 (SIGKILL), most likely for want of memory"),
        ("nothing", "ended without a result: told ["),
    ],
)
def test_a_failure_says_how_and_why_and_is_noted_until_the_next_start(
    tmp_path, runner, does, error
):
    outcome = ended(runner.start(job(tmp_path, does)))
    assert outcome.status == "failed" and outcome.error.startswith(error)
    assert read_failure(tmp_path / "a=1,b=2")["error"] == outcome.error
    ended(runner.start(job(tmp_path, "result")))
    assert read_failure(tmp_path / "a=1,b=2") is None


def test_a_job_is_paused_goes_on_and_is_killed(tmp_path, runner):
    running = runner.start(job(tmp_path, "wait"))
    begun(tmp_path / "a=1,b=2")
    assert running.poll() is None
    running.pause()
    assert ended(running) == Outcome("paused")
    assert ended(runner.start(job(tmp_path, "wait"), pause_at=3)) == Outcome("paused")
    running = runner.start(job(tmp_path, "wait"))
    running.kill()
    assert ended(running).status == "failed"
    assert read_failure(tmp_path / "a=1,b=2") is None, "that was no failure of its own"


def test_there_are_as_many_slots_as_environments(tmp_path, runner):
    for name in "ab":
        runner.start(job(tmp_path, "wait", name))
    with pytest.raises(AssertionError, match="all slots"):
        runner.start(job(tmp_path, "wait", "c"))


STARTS = """
import sys, pathlib, time
sys.path.insert(0, {root!r})
from rlmodules.sweeping.jobs import Job
from rlmodules.sweeping.processes import Processes
folder = pathlib.Path(sys.argv[1])
running = Processes([str(folder / "program.py")], [{{}}]).start(Job(("does=wait",), folder / "j"))
print(running.process.pid, flush=True)
time.sleep(60)
"""


def test_a_job_does_not_outlive_a_killed_sweep(tmp_path, runner):
    code = STARTS.format(root=str(ROOT))
    sweep = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    number = int(sweep.stdout.readline())
    begun(tmp_path / "j")
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{number}") and " Z " not in status(number):
        assert time.monotonic() < until, "it outlives the sweep"
        time.sleep(0.02)


def status(number):
    try:
        return Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return " Z "


def test_a_job_goes_on_from_its_own_checkpoint(tmp_path):
    begins = Job(("seed=1", "ckpt_path=elsewhere"), tmp_path / "seed=1,x")
    assert arguments(begins) == [*begins.overrides, f'hydra.run.dir="{tmp_path}/seed=1,x"']
    last = tmp_path / "seed=1,x" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert arguments(begins)[:2] == ["seed=1", f'ckpt_path="{last}"']


def test_only_the_traces_of_the_same_job_that_saved_nothing_are_removed(tmp_path):
    mine = Job(("does=result",), tmp_path / "mine")
    for other, last, left in [
        (None, False, True),
        (("seed=1",), False, True),
        (mine.overrides, True, True),
        (mine.overrides, False, False),
    ]:
        (mine.folder / "csv").mkdir(parents=True, exist_ok=True)
        (mine.folder / "config.yaml").touch()
        if other:
            write_job(Job(other, mine.folder), [])
        if last:
            (mine.folder / "checkpoints").mkdir()
            (mine.folder / "checkpoints" / "last.ckpt").touch()
        begin_anew(mine)
        assert (mine.folder / "csv").exists() == (mine.folder / "config.yaml").exists() == left
        if last:
            (mine.folder / "checkpoints" / "last.ckpt").unlink()
    with held(mine.folder), pytest.raises(ForeignFolderError, match="going on in"):
        begin_anew(mine)


@pytest.mark.parametrize(
    "text",
    ["a=1,b=2", 'say "x"', "back\\slash", "end\\", 'b\\"c', 'b\\\\"c"', "a b", "[1]{2}", "ö"],
)
def test_what_is_quoted_is_read_back(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"a={quoted(text)}")
    assert parsed.value() == text


@pytest.mark.parametrize(
    ("status", "said"),
    [(3, "exit status 3"), (0, "ended without a result"), (-11, "killed by signal 11 (SIGSEGV)")],
)
def test_exit_statuses_have_words(status, said):
    assert meaning(status) == said


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("iteration 1/3\n", "iteration 1/3"),
        ("x\n\nNo option lr;\n  do you mean\n", "No option lr;"),
        ("x\n\nKeyError: 3\n  more\n(the traceback is in y)\n", "KeyError: 3"),
        ("Traceback (most recent call last):\n  File x\nA.B: c\n  d\n", "A.B: c"),
        (
            "Traceback (most recent call last):\n  x\nA: b\n\nTraceback (most recent call last):\n"
            "[rank1]: C: d\n",
            "[rank1]: C: d",
        ),
        ("x\rbar 1\rbar 2\n\nlast\n", "last"),
    ],
)
def test_the_line_that_says_what_went_wrong_is_found(tmp_path, log, said):
    (tmp_path / "job.log").write_text("Traceback (most recent call last):\nOld: one\n" + log)
    start = (tmp_path / "job.log").stat().st_size - len(log)
    assert last_error(tmp_path / "job.log", start) == said
    assert last_error(tmp_path / "nowhere") == ""


def test_a_result_that_is_there_counts_whatever_the_exit_status(tmp_path, runner):
    folder = tmp_path / "a=1,b=2"
    folder.mkdir()
    write_result(folder, "val/reward", None)
    assert ended(runner.start(job(tmp_path, "raise"))) == Outcome("done", None)
