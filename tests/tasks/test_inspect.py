"""``task=inspect``: what is read, what is not, and every token as what it is."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import torch
from test_train_preferences import QUICK

from datamodules import Environment, RolloutDataModule, TextGenerationEnv
from datamodules.rollouts.inspection import sample_of
from datamodules.types import Observation, Trajectory
from rlmodules import PPO, PPOConfig
from rlmodules.models.embedded import tiny_tokenizer

ROWS = [
    {"prompt": f"Question {i}? ", "chosen": f"Yes {i}", "rejected": f"No, {i * 7}", "id": i}
    for i in range(24)
]


def write(folder, rows=ROWS, name="pairs.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"data.path={name}"


class Tokens(HTMLParser):
    """The text of a page by the class of its tokens, and what it would load."""

    def __init__(self, page):
        super().__init__()
        self.kinds, self.loads, self._kind = {}, [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loads += [given[name] for name in ("src", "href") if name in given]
        if "title" in given and given["class"].startswith("token "):  # the legend has no titles
            self._kind = given["class"].split()[1]

    def handle_endtag(self, tag):
        self._kind = None

    def handle_data(self, data):
        if self._kind is not None:
            self.kinds[self._kind] = self.kinds.get(self._kind, "") + data


def test_pairs_are_shown_with_all_that_becomes_of_them(tmp_path, command):
    long = {"prompt": "long " * 9, "chosen": "good " * 9, "rejected": "bad " * 9, "id": 99}
    bad = {"prompt": "q", "chosen": "same", "rejected": "same"}
    twin = {"prompt": "Question 1? ", "chosen": "No, 7", "rejected": "Yes 1"}
    path = write(tmp_path, [*ROWS, long, bad, twin, ROWS[3]])
    limits = ["algo.max_length=48", "algo.max_prompt_length=24", "out=seen.html"]
    said = command(
        *QUICK[:-1], "data.eval_size=0", "task=inspect", "algo=dpo", path, *limits, "task.rows=40"
    )
    said = " ".join(said.split())
    assert "columns used prompt, chosen, rejected" in said and "columns not used id" in said
    assert "pairs.jsonl, line 26: 'chosen' and 'rejected' are equal" in said
    assert "1 of 27 prompts are cut on the left (max_prompt_length=24)" in said
    assert "1 of 27 rows have a response cut on the right (max_length=48)" in said
    assert "pairs prefer what another pair rejects" in said
    assert "rows repeat another one" in said
    page = Tokens((tmp_path / "seen.html").read_text())
    assert page.loads == []
    assert "Question 5?" in page.kinds["prompt"] and "No, 35" in page.kinds["response"]
    assert "long long" in page.kinds["cut"] and "good" in page.kinds["cut"]
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("*.ckpt"))


def test_an_environments_prompts_and_episodes_are_shown(tmp_path, command):
    small = ["model=tiny", "trainer.precision=32-true", "algo.max_new_tokens=4", "data.eval_size=4"]
    options = ["task=inspect", "algo=grpo", "env=math", "env.num_problems=40", "out=seen.html"]
    said = command(*small, *options, "task.rows=1", "task.episodes=2")
    assert "starting states to train on" in said and re.search(r"episode of \d+: reward", said)
    page = Tokens((tmp_path / "seen.html").read_text())
    assert set(page.kinds) == {"prompt", "response"} and page.loads == []


def test_what_an_environment_wrote_between_turns_is_told_apart():
    seen = torch.tensor([1, 2, 3])
    later = torch.tensor([1, 2, 3, 10, 11, 4, 5])
    observations = [Observation(ids, torch.ones_like(ids), "p") for ids in (seen, later)]
    actions = [torch.tensor([10, 11]), torch.tensor([12])]
    played = Trajectory(observations, actions, [0.0, 1.0], [], True, 1.0, finish_reason="eos")
    sample = sample_of("episode", played)
    assert [(part.kind, part.ids) for part in sample.sides["episode"]] == [
        ("prompt", [1, 2, 3]),
        ("response", [10, 11]),
        ("environment", [4, 5]),
        ("response", [12]),
    ]


def test_a_training_says_in_one_line_what_is_suspicious_and_how_to_see_it(tmp_path, command):
    path = write(tmp_path, [*ROWS, ROWS[3]])
    options = [*QUICK, "algo=dpo", path, "algo.num_epochs=1"]
    said = command(*options)
    (line,) = [line for line in said.splitlines() if line.startswith("Suspicious in the data: ")]
    assert "1 of" in line and "rows repeat another one" in line
    shown = line.partition("See: ")[2]
    assert shown == f"python train.py task=inspect {' '.join(options)}"
    assert "Suspicious" not in command(*QUICK, "algo=dpo", write(tmp_path), "algo.num_epochs=1")


def test_numbers_of_rows_and_episodes_are_checked(command):
    for name in ("rows", "episodes"):
        said = command(*QUICK, "task=inspect", "algo=dpo", f"task.{name}=-1", status=1)
        assert f"task.{name}=-1 must be" in said


class Stubborn(TextGenerationEnv):
    """Its third prompt cannot begin."""

    def reset(self, index=None):
        if index == 2:
            raise ConnectionError("the library is closed")
        return super().reset(index)


class Server(Environment):
    """Whoever looks at it changes it."""

    def __len__(self):
        return 4

    def reset(self, index=None):
        raise AssertionError("nobody may look at it before it is played")

    respond = reset


def set_up(env):
    data = RolloutDataModule(env, eval_size=0)
    module = PPO(PPOConfig(model_name="random:tiny", max_new_tokens=4))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(lightning_module=module, strategy=strategy, is_global_zero=True)
    data.setup()
    return data


def test_an_episode_that_cannot_begin_is_told_of_and_stops_nothing():
    (finding,) = set_up(Stubborn(tiny_tokenizer(), list("abcde"), on_error="skip")).findings()
    assert finding.startswith("1 of 5 starting states cannot begin: ConnectionError: the library")


def test_a_training_looks_at_no_environment_that_does_more_than_ask():
    assert set_up(Server()).findings() == []


def test_a_page_is_written_where_there_is_a_folder(tmp_path, command):
    said = command(
        *QUICK, "task=inspect", "algo=dpo", write(tmp_path), "out=no/seen.html", status=1
    )
    assert "out='no/seen.html': there is no folder" in said and "prompt" not in said
