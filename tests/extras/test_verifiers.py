"""``env=verifiers`` with the real package, on environments written for it."""

from pathlib import Path

import pytest

vf = pytest.importorskip("verifiers.v1")

from tool_helpers import TOKENIZER, answer_to, ids  # noqa: E402

from datamodules.environments.toolbox import as_call  # noqa: E402
from datamodules.environments.verifiers import VerifiersEnv  # noqa: E402


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def made(id, **options) -> VerifiersEnv:
    return VerifiersEnv(TOKENIZER, id, **{"max_length": 8000} | options)


def played(env, index, *said):
    """(reward, metrics, what the user said after each response) of one episode."""
    episode, told = env.fork(), []
    began = episode.reset(index)
    context, total = began.input_ids, 0.0
    for text in said:
        result = episode.respond(ids(text))
        total += result.reward
        if result.done:
            break
        new = result.next_observation.input_ids
        assert new[: len(context)].equal(context), "the context was written anew"
        told.append(TOKENIZER.decode(new[len(context) :]))
        context = new
    reward, metrics = env.score([episode])[0]
    return reward + total, result.metrics | metrics, told


@pytest.mark.parametrize(
    ("said", "reward", "parts"),
    [
        ("cat", 2.0, {"reward_spelled": 1.0, "reward_shouted": 0.0, "logged_letters": 3.0}),
        ("DOG!", -0.5, {"reward_spelled": 0.0, "reward_shouted": 1.0, "logged_letters": 4.0}),
        ("no", 0.0, {"reward_spelled": 0.0, "reward_shouted": 0.0, "logged_letters": 2.0}),
    ],
)
def test_a_task_is_rewarded_by_the_weighted_sum_of_its_functions(said, reward, parts):
    env = made("vf_spelling")
    first = env.reset(0)
    assert "You spell." in first.prompt and "Write cat." in first.prompt and len(env) == 4
    got, metrics, _ = played(env, 0, said)
    assert got == reward and {name: metrics[name] for name in parts} == parts
    assert metrics["turns"] == 1 and metrics["tool_calls"] == 0


def test_tasks_of_other_settings_are_held_out_and_never_trained_on():
    env = made("vf-spelling", eval_args={"taskset": {"split": "test"}}, num_held_out=1)
    assert (len(env), list(env.held_out)) == (5, [4])
    assert played(env, 4, "owl")[0] == 2.0
    assert made("vf_spelling").held_out is None
    assert len(made("vf_spelling", args={"taskset": {"split": "test"}})) == 2
    with pytest.raises(ValueError, match=r"env.eval_args=.* holds out every task"):
        made("vf_spelling", eval_args={"taskset": {"split": "train"}})


def test_an_environment_answers_turn_by_turn_and_ends_the_episode():
    env = made("vf_guessing", args={"hint": "Wrong:"})
    reward, metrics, told = played(env, 1, "9", "5", "7")
    assert reward == 1.0 and metrics["logged_guesses"] == 3 and metrics["truncated"] == 0
    assert "Wrong: lower." in told[0] and "Wrong: higher." in told[1] and len(told) == 2


def test_a_stop_and_a_limit_end_the_episode_and_it_is_scored():
    env = made("vf_guessing")
    reward, metrics, told = played(env, 0, "1", "I give up", "3")
    assert (reward, metrics["turns"], len(told)) == (0.0, 2.0, 1)
    reward, metrics, told = played(env, 0, *"987654")  # the agent's own max_turns is 5
    assert (metrics["turns"], metrics["logged_guesses"], len(told)) == (5, 5, 4)
    reward, metrics, _ = played(made("vf_guessing", max_turns=2), 0, "1", "2", "3")
    assert (reward, metrics["turns"], metrics["truncated"]) == (0.0, 2, 1)


def test_an_episode_that_is_cut_for_want_of_room_is_scored_as_far_as_it_came():
    env = made("vf_guessing")
    episode = env.fork()
    episode.reset(0)
    episode.respond(ids("1"))
    assert env.score([episode]) == [(0.0, {"reward_found": 0.0, "logged_guesses": 1.0})]


def test_tools_are_the_packages_own_and_share_the_states_of_one_episode():
    env = made("vf_counting")
    first = env.reset(0)
    assert "counter_add(number, times)" in first.prompt and "Add a number." in first.prompt
    result = env.respond(ids(as_call("counter_add", number=2)))
    assert (result.done, answer_to(env, result)) == (False, "2")
    other = env.fork().reset(1)  # an episode of its own
    assert other.input_ids is not None
    result = env.respond(ids(as_call("counter_add", number=1, times=2)))
    assert answer_to(env, result) == "4"
    assert env.respond(ids("done")).done
    assert env.score([env]) == [(1.0, {"reward_counted": 1.0, "logged_tools_used": 2.0})]
    assert played(env, 0, "done")[0] == 0.0


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (as_call("counter_fail"), "RuntimeError: it broke"),
        (as_call("counter_add"), "'number' is a required property"),
        (as_call("counter_add", number="x"), "'x' is not of type 'integer'"),
        (as_call("add", number=1), "there is no tool 'add'"),
        ("<tool_call>{", "no valid JSON"),
        ("<tool_call>" + "[" * 3000, "no valid JSON"),
    ],
)
def test_a_wrong_call_is_told_and_stops_nothing(call, told):
    env = made("vf_counting")
    env.reset(0)
    result = env.respond(ids(call))
    assert not result.done and told in answer_to(env, result)
    assert result.metrics["tool_errors"] == 1
    assert env.respond(ids("\x00\ud7ff <|im_end|> \u202e" * 20)).done
    assert env.score([env])[0][0] == 0.0


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a module for the package; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(body):
        name = f"vf_written_{abs(hash(body))}"
        (tmp_path / f"{name}.py").write_text(f"import verifiers.v1 as vf\n{body}")
        return name

    return write


TASKSET = """
__all__ = ["Set"]
class Work(vf.Task):
    {task}
class Set(vf.Taskset[Work, vf.TasksetConfig]):
    {taskset}
    def load(self):
        yield Work(vf.TaskData(prompt={prompt}, **{data}), self.config.task)
"""


def of(task="pass", taskset="pass", prompt="'Go.'", data="{}", more=""):
    return TASKSET.format(task=task, taskset=taskset, prompt=prompt, data=data) + more


SHARED = "@classmethod\n    def toolsets(cls, config): return [1]"
TWO = """
__all__ = ["Set", "Both"]
class Config(vf.EnvConfig):
    a: vf.AgentConfig = vf.AgentConfig()
    b: vf.AgentConfig = vf.AgentConfig()
class Both(vf.Env[Config]):
    async def run(self, task, agents): pass
"""
REFUSED = {
    "container": (of("NEEDS_CONTAINER = True"), "it needs a container"),
    "image": (of(data="{'image': 'python:3'}"), "it needs a container"),
    "reward": (of("@vf.reward\n    async def r(self, runtime): return 1.0"), "r takes a runtime"),
    "setup": (of("async def setup(self, trace, runtime): pass"), "setup takes a runtime"),
    "intercept": (
        of("@vf.intercept\n    async def i(self, request: vf.Request): pass"),
        "i rewrites messages",
    ),
    "stop": (of("@vf.stop\n    async def s(self, r: vf.Request): return True"), "s stops at a req"),
    "prompt": (of(prompt="None"), "it has no prompt"),
    "timeout": (of(data="{'timeout': vf.TaskTimeout(agent=1)}"), "its timeout"),
    "shared": (of(taskset=SHARED), "Set.toolsets are servers that all"),
    "infinite": (of(taskset="INFINITE = True"), "has no end of tasks: give env.num_problems"),
    "agents": (of(more=TWO), r"it has the agents \['a', 'b'\]"),
    "classic": ("def load_environment(): pass", "It has load_environment, as environments before"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_here_is_refused_by_its_name(case, written):
    body, said = REFUSED[case]
    id = written(body)
    with pytest.raises(ValueError, match=f"env.id='{id}'.*{said}"):
        made(id)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"taskset": {"spilt": "test"}}, "env.args=.*spilt"),
        ({"agent": {"model": "gpt"}}, r"its agent 'agent' is told \['model'\]"),
        ({"agent": {"harness": {"id": "codex"}}}, "plays through the harness 'codex'"),
        (
            {"timeout": {"episode": 3}},
            r"its settings \['timeout'\] are of the package's own",
        ),
    ],
)
def test_settings_that_nothing_would_heed_are_refused(args, said):
    with pytest.raises(ValueError, match=said):
        made("vf_spelling", args=args)
    with pytest.raises(ValueError, match=r"env.id='no_such_module'.*no_such_module"):
        made("no_such_module")


@pytest.mark.parametrize(
    "wrong", [{"num_problems": 0}, {"num_held_out": 0}, {"max_turns": 0}, {"error_penalty": -1}]
)
def test_a_number_out_of_its_range_is_refused_by_its_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"env.{name}="):
        made("vf_spelling", **{"eval_args": {"taskset": {"split": "test"}}} | wrong)
    with pytest.raises(ValueError, match=r"env.num_held_out=1 counts tasks that env.eval_args"):
        made("vf_spelling", num_held_out=1)


def test_a_reward_that_raises_costs_its_episode_alone(written):
    raises = "@vf.reward\n    async def r(self, trace): return 1 / (trace.last_reply != 'bad')"
    env = made(written(of(raises)))
    episodes = []
    for said in ("good", "bad"):
        episodes.append(env.fork())
        episodes[-1].reset(0)
        episodes[-1].respond(ids(said))
    with pytest.raises(Exception, match="division by zero"):
        env.score(episodes)
    assert env.score(episodes[:1])[0][0] == 1.0
