"""A file ``pause`` stops a run, which then goes on as if nothing had been; and what it tells."""

import json
import shutil

import pytest
import torch

from rlmodules.sweeping.jobs import (
    PAUSED,
    ask_to_pause,
    pause_at,
    read_progress,
    read_result,
    reported,
)

RUNS = {
    "ppo": [
        "experiment=smoke",
        "trainer.precision=32-true",
        "algo.num_iterations=3",
        "algo.learning_rate=1e-3",
        "algo.value_warmup_iterations=0",
    ],
    "dpo": [
        "algo=dpo",
        "model=tiny",
        "data.eval_size=4",
        "+trainer.max_steps=6",
        "algo.eval_every=2",
        "algo.batch_size=2",
        "algo.gradient_accumulation_steps=2",
    ],
}
OPTIONS = ["algo.device=cpu", "logger=none"]


def weights(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["global_step"]


@pytest.mark.parametrize(("name", "pauses"), [("ppo", [0, 1, 2]), ("dpo", [0, 2, 3, 3])])
def test_a_paused_run_goes_on_bit_by_bit(name, pauses, command, tmp_path):
    options = [*RUNS[name], *OPTIONS]
    there, here = tmp_path / "there", tmp_path / "here"
    command(*options, f"hydra.run.dir={there}")
    goes_on = []
    for at in pauses:
        ask_to_pause(here, at or None)
        said = command(*options, *goes_on, f"hydra.run.dir={here}", status=PAUSED)
        assert f"Paused, as {here}/pause asked" in said and not (here / "pause").exists()
        assert read_result(here) is None
        if not at:  # before its first step: there is nothing to go on from
            shutil.rmtree(here)
        else:
            goes_on = [f"ckpt_path={here}"]
            assert read_progress(here).done == at
            evaluated = [done for done, _ in read_progress(here).held_out]
            every = 1 if name == "ppo" else 2
            assert evaluated == list(range(0, at + 1, every)), "paused before it was evaluated"
    command(*options, *goes_on, f"hydra.run.dir={here}")
    (ours, steps), (theirs, expected) = weights(here), weights(there)
    assert steps == expected and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    same = [read_progress(folder).held_out for folder in (here, there)]
    assert same[0] == same[1] and len(same[0]) == 4
    progress = read_progress(here)
    assert progress.done == progress.total and progress.seconds > 0
    assert read_result(here) == read_result(there) != None  # noqa: E711
    assert read_result(here)["value"] == reported(here, read_result(here)["metric"])


def test_a_run_that_ended_before_it_said_so_says_so_when_it_is_repeated(command, tmp_path):
    run = [*RUNS["ppo"], *OPTIONS, f"hydra.run.dir={tmp_path}/run"]
    command(*run, "algo.num_iterations=1")
    result = read_result(tmp_path / "run")
    assert result["metric"] == "val/reward" and result["value"] > 0
    (tmp_path / "run" / "result.json").unlink()
    more = [f"ckpt_path={tmp_path}/run"]
    assert "it is complete in" in command(*run, "algo.num_iterations=1", *more)
    assert read_result(tmp_path / "run") == result
    ask_to_pause(tmp_path / "run", 0)
    command(*run, "algo.num_iterations=2", *more, status=PAUSED)
    assert read_result(tmp_path / "run") is None, "that of the shorter run"


@pytest.mark.parametrize("said", ["1.5", "now", "-1"])
def test_a_pause_that_is_no_number_is_refused(tmp_path, said):
    assert pause_at(tmp_path) is None
    (tmp_path / "pause").write_text(said)
    with pytest.raises(ValueError, match=rf"pause holds '{said}': leave it empty"):
        pause_at(tmp_path)


def test_progress_is_plain_json(command, tmp_path):
    command(*RUNS["ppo"], *OPTIONS, "algo.num_iterations=1", f"hydra.run.dir={tmp_path}/run")
    found = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert list(found) == ["unit", "done", "total", "metrics", "held_out", "seconds"]
    assert (found["unit"], found["done"], found["total"]) == ("iteration", 1, 1)
    assert found["metrics"]["rollout/reward"] >= 0
