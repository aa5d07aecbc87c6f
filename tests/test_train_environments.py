"""GRPO, environments and the other tasks by ``train.py``."""

import json
from pathlib import Path

import pytest

QUICK = [
    "algo=grpo",
    "model=tiny",
    "trainer.precision=32-true",
    "logger=none",
    "algo.num_iterations=1",
    "algo.batch_size=8",
    "algo.mini_batch_size=8",
    "algo.gradient_accumulation_steps=1",
    "algo.num_generations=4",
    "algo.max_new_tokens=6",
    "data.eval_size=4",
]
HOTEL = """
class HotelEnv:
    def __init__(self, city="Rome"):
        self.city = city

    def build_dataset(self, tokenizer):
        return [{"prompt": f"Hotel {i} in {self.city}:", "case_idx": i} for i in range(12)]

    def score_episode(self, model, tokenizer, completion, case_idx):
        return len(set(completion)) / 10 + case_idx
"""


def report(folder):
    (path,) = folder.glob("outputs/*/*/report.json")
    return json.loads(path.read_text())


def test_grpo_on_maths_reports_solved_problems_with_an_exact_test_and_evaluates_the_end(
    tmp_path, command
):
    output = command(*QUICK, "data.eval_generations=2", "algo.eval_every=9")
    assert "exact McNemar test" in output and "pass@2" in output
    found = report(tmp_path)
    assert found["problems"] == 4 and 0 <= found["mcnemar_p"] <= 1
    assert {"val/pass@1", "rollout/equal_groups"} <= set(found["history"][-1])


def test_a_peers_environment_runs_unchanged(tmp_path, command):
    (tmp_path / "hotels.py").write_text(HOTEL)
    command(*QUICK, "env=custom", "env._target_=hotels.HotelEnv", "+env.city=Oslo")
    found = report(tmp_path)
    assert found["history"][0]["rollout/reward"] > 0.1
    (samples,) = tmp_path.glob("outputs/*/*/samples/iteration-0000.csv")
    assert "in Oslo:" in samples.read_text()


def test_ppo_plays_in_the_same_environment(tmp_path, command):
    arguments = [a for a in QUICK if "num_generations" not in a and a != "algo=grpo"]
    command(*arguments, "algo=ppo", "env=math")
    assert "rollout/reward_correctness" in report(tmp_path)["history"][0]


def test_a_model_is_judged_without_being_trained(tmp_path, command):
    output = command(*QUICK, "task=evaluate")
    assert "random:tiny on held-out data:" in output and "val/pass@1" in output
    (path,) = tmp_path.glob("outputs/*/*/evaluation.json")
    written = json.loads(path.read_text())
    assert written["model"] == "random:tiny"
    assert all(f"  {name}  {value:.4f}" in output for name, value in written["metrics"].items())
    result = json.loads((path.parent / "result.json").read_text())
    assert result == {"metric": "val/reward", "value": written["metrics"]["val/reward"]}
    assert not list(tmp_path.glob("outputs/*/*/model"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env=math", "reward=length"], "has no use for reward="),
        (["env=text", "reward=none"], "needs a reward: reward=sentiment"),
        (["env=math", "env.difficulty=9"], r"env.difficulty=9: the levels are 1 to 6"),
        (["env=gsm8k"], "what was chosen leaves open: env.path=..."),
        (["env=custom"], "leaves open: env._target_=..."),
        (["task=evaluate", "model=hf"], "leaves open: model.name=..."),
        (["task=collect_preferences"], "leaves open: out=..."),
        (["env=text", "reward=model"], "leaves open: reward.path=..."),
        (["algo.batch_size=0"], "algo.batch_size=0 must be at least 1"),
        (["env=gsm8k", "env.path=nowhere.jsonl"], "env.path='nowhere.jsonl': there is no such"),
        (["env=math", "data.prompts=[One,Two]"], "takes no prompts: leave out data.prompts"),
        (["env=code", "env.sandbox=none"], "env.sandbox='none'"),
        (["env=custom", "env._target_=nowhere.Env"], "nowhere"),
        (["algo.loss_type=ppo"], "algo.loss_type='ppo' must be one of"),
        (["algo.num_generations=3"], "algo.batch_size=8 must be a multiple of num_generations"),
        (["task=evaluate", "data.eval_size=0"], "nothing is held out"),
    ],
)
def test_mistakes_are_named_with_their_remedy(command, arguments, message):
    assert message in refused(command, *QUICK, *arguments)


def test_an_experiment_names_what_it_needs(command):
    said = refused(command, "experiment=chat_lora", "reward.path=x")
    assert "leaves open: model.name=..., data.path=..." in said


def refused(command, *arguments):
    """The sentence that ``train.py`` ends with."""
    output = command(*arguments, status=1)
    said, _, place = output.strip().partition("\n(the traceback is in ")
    assert Path(place.rstrip(")")).read_text().startswith("Traceback")
    said = said.rpartition("\n\n")[2]
    assert len(said.splitlines()) <= 3
    return said
