"""What is said to bad input: which error, and the words that must be in it."""

import asyncio
import copy
import json
import sys
import threading

import pytest
import torch
from helpers import config, data, run

from datamodules import Environment, RolloutDataModule, TextGenerationEnv
from datamodules.environments.adapters import make_environment
from datamodules.guard import Failure, attempt
from datamodules.rewards.functions import RewardError, RewardFunction
from datamodules.rewards.judges import Judge
from datamodules.rollouts.episodes import EpisodeError
from datamodules.text.prompt_files import load_prompts
from rlmodules import checks
from rlmodules.models.embedded import tiny_tokenizer

# ------------------------------------------------------------------- the command line

COMMANDS = [
    ("env=none", "ValueError: rlmodules.PPO learns from its own episodes and needs an env"),
    ("data.path=''", "ValueError: data.path='' names no file"),
    ("data.path=' '", "ValueError: data.path=' ' names no file"),
    ("data.path=nope.jsonl", "FileNotFoundError: data.path='nope.jsonl': there is no such file"),
    ("data.eval_path=nope.jsonl", "FileNotFoundError: data.eval_path='nope.jsonl': there is no"),
    ("data.eval_path=empty.jsonl", "ValueError: data.eval_path='empty.jsonl' holds no prompts"),
    ("seed=abc", "ValueError: seed='abc' must be a whole number from 0 to 4294967295"),
    ("seed=-1", "ValueError: seed=-1 must be a whole number from 0 to 4294967295"),
    ("seed=4294967296", "ValueError: seed=4294967296 must be a whole number from 0 to 4294967295"),
    ("seed=1.5", "ValueError: seed=1.5 must be a whole number"),
    ("algo.device=cuda", "ValueError: algo.device='cuda': this machine has no GPU"),
    ("algo.device=cuda:1", "ValueError: algo.device='cuda:1': this machine has no GPU"),
    ("algo.device=mps", "ValueError: algo.device='mps': this machine has no GPU of Apple's"),
    ("trainer.precision=7", "ValueError: trainer.precision=7: Precision 7 is invalid"),
    ("trainer.accelerator=gpu", "ValueError: trainer.accelerator='gpu': No supported gpu"),
    ("trainer.devices=0", "ValueError: trainer.devices=0: "),
    ("trainer.strategy=foo", "ValueError: trainer.strategy='foo' is not known to work"),
    ("trainer.num_nodes=0", "ValueError: trainer.num_nodes=0: "),
    ("+trainer.max_time=abc", "ValueError: trainer.max_time='abc': "),
    ("data.eval_batch_size=0", "ValueError: data.eval_batch_size=0 must be a whole number, 1"),
    ("data.eval_generations=0", "ValueError: data.eval_generations=0 must be a whole number, 1"),
    ("algo.learning_rate=nan", "ValueError: algo.learning_rate=nan must be a finite number"),
    ("env.timeout_s=nan", "ValueError: env.timeout_s=nan must be positive"),
    ("env.max_length=0", "ValueError: env.max_length=0 must be a whole number, 1 or more"),
]


@pytest.mark.parametrize(("override", "said"), COMMANDS, ids=[c[0] for c in COMMANDS])
def test_a_bad_option_is_named_before_the_first_step(command, tmp_path, override, said):
    (tmp_path / "empty.jsonl").write_text("\n")
    output = command("experiment=smoke", "logger=none", override, status=1)
    assert said in output, output[-1000:]
    assert "iteration 1/2" not in output


PAIRS = [
    ("algo.beta=inf", "ValueError: algo.beta=inf must be a finite number"),
    ("algo.max_length=-1", "ValueError: algo.max_length=-1 must be 2 or more"),
    ("algo.max_prompt_length=0", "ValueError: algo.max_prompt_length=0 must be positive"),
    ("data.eval_path=nope.jsonl", "FileNotFoundError: data.eval_path='nope.jsonl'"),
    ("data.eval_batch_size=0", "ValueError: data.eval_batch_size=0 must be"),
    ("data.path=''", "ValueError: data.path='' names no file"),
]


@pytest.mark.parametrize(("override", "said"), PAIRS, ids=[c[0] for c in PAIRS])
def test_a_bad_option_of_preferences_is_named(command, override, said):
    output = command("algo=dpo", "model=tiny", "logger=none", override, status=1)
    assert said in output, output[-1000:]


@pytest.mark.parametrize("body", ["sys.exit(0)", "raise KeyboardInterrupt", "raise GeneratorExit"])
def test_a_reward_that_would_end_the_run_without_a_word_is_shown(command, tmp_path, body):
    (tmp_path / "ending.py").write_text(
        f"import sys\ndef fn(prompts, responses, metadata=None):\n    {body}\n"
    )
    path = ("reward=function", "reward.path=ending:fn")
    output = command("experiment=smoke", "logger=none", *path, status=1)
    kind = body.replace("sys.exit(0)", "raise SystemExit").split()[1]
    assert f"RewardError: the reward function ending:fn raised {kind}" in output
    assert "response:" in output


# ------------------------------------------------------------------------- environments


class Custom(TextGenerationEnv):
    """An environment whose methods do what a test says."""

    broken = ""

    def __init__(self, tokenizer, **options):
        super().__init__(tokenizer, ["One", "Two"], **options)


def custom(**methods):
    return type("Custom", (Custom,), methods)


def fails(*_):
    raise KeyError("lost")


def leaves(*_):
    sys.exit(3)


LENGTHS = [
    (lambda self: 0, r"Custom\.__len__ returned 0: it must return the number of starting states"),
    (lambda self: -1, r"Custom\.__len__ raised ValueError: .*it must return"),
    (lambda self: "two", r"Custom\.__len__ raised TypeError: .*it must return"),
    (fails, r"Custom\.__len__ raised KeyError: 'lost'.*it must return"),
]


@pytest.mark.parametrize(("length", "said"), LENGTHS)
def test_an_environment_that_does_not_say_how_long_it_is(length, said):
    with pytest.raises(ValueError, match=said):
        make_environment(custom(__len__=length), tiny_tokenizer())


def plays(env_class, **options):
    c = config(num_iterations=1)
    own = {"prompts": None, "epochs": c.ppo_epochs}
    sizes = {"batch_size": c.batch_size, "mini_batch_size": c.mini_batch_size}
    module = RolloutDataModule(lambda tokenizer: env_class(tokenizer, **options), eval_size=0,
                               **own, **sizes)  # fmt: skip
    return run(c, data=module)


BROKEN = [
    ({"fork": fails}, r"Custom\.fork raised KeyError: 'lost'"),
    ({"fork": leaves}, r"Custom\.fork raised SystemExit: 3"),
    ({"fork": lambda self: None}, r"Custom\.fork returned None: it must return another env"),
    ({"fork": lambda self: self}, r"Custom\.fork returned the environment itself: it must"),
    ({"fork": lambda self: copy.copy("x")}, r"Custom\.fork returned 'x': it must return another"),
    ({"score": fails}, r"episode of Custom failed: KeyError: 'lost'"),
    ({"score": leaves}, r"episode of Custom failed: SystemExit: 3"),
    ({"score": lambda self, e: None}, r"Custom\.score returned None: it must return a list"),
    ({"score": lambda self, e: 1.0}, r"Custom\.score returned 1\.0: it must return a list"),
    ({"score": lambda self, e: []}, r"Custom\.score returned 0 results for 8 episodes"),
    ({"score": lambda self, e: [1.0] * len(e)}, r"score gave 1\.0, expected \(reward, dict"),
    ({"score": lambda self, e: [("a", {})] * len(e)}, r"the reward 'a' is no finite number"),
    ({"score": lambda self, e: [(1.0, {"m": "x"})] * len(e)}, r"the metric 'm'='x' is no finite"),
    ({"score": lambda self, e: [(1.0, {"m": float("nan")})] * len(e)}, r"the metric 'm'=nan"),
    ({"respond": fails}, r"episode of Custom failed: KeyError: 'lost'"),
    ({"respond": leaves}, r"episode of Custom failed: SystemExit: 3"),
    (
        {"respond": lambda self, t: (1.0, True)},
        r"respond returned \(1\.0, True\), which is no",
    ),
    ({"reset": lambda self, i=None: "hello"}, r"reset returned 'hello', which is no Observation"),
    ({"reset": fails}, r"episode of Custom failed: KeyError: 'lost'"),
]


@pytest.mark.parametrize(("methods", "said"), BROKEN)
def test_a_broken_environment_is_named_with_what_it_did(methods, said):
    with pytest.raises(EpisodeError, match=said):
        plays(custom(**methods))


def test_an_episode_that_leaves_can_be_skipped():
    def score(self, episodes):
        if any(len(episode.response) > 2 for episode in episodes):
            sys.exit()
        return [(1.0, {}) for _ in episodes]

    with pytest.warns(UserWarning, match="SystemExit"), pytest.raises(EpisodeError, match="all 8"):
        plays(custom(score=leaves), on_error="skip")
    assert isinstance(custom(score=score)(tiny_tokenizer()), Environment)


# ------------------------------------------------------------------------------ rewards

RETURNS = [
    (lambda p, r, metadata=None: None, r"returned None instead of a list of numbers"),
    (lambda p, r, metadata=None: "0.5", r"returned '0\.5' instead of a list of numbers"),
    (lambda p, r, metadata=None: ["0.5"] * len(r), r"returned '0\.5', which is no finite number"),
    (lambda p, r, metadata=None: [float("nan")] * len(r), r"returned nan, which is no finite"),
    (lambda p, r, metadata=None: [10**400] * len(r), r"returned 1000\d+, which is no finite"),
    (lambda p, r, metadata=None: [0.5], r"returned 1 rewards for 2 responses"),
    (lambda p, r, metadata=None: [0.5] * 3, r"returned 3 rewards for 2 responses"),
    (lambda p, r, metadata=None: (x for x in [0.5]), r"returned 1 rewards for 2 responses"),
    (lambda p, r, metadata=None: leaves(r), r"raised SystemExit: 3"),
    (lambda p, r, metadata=None: sys.exit("bye"), r"raised SystemExit: bye"),
    (lambda p, r, metadata=None: fails(), r"raised KeyError: 'lost'"),
]


@pytest.mark.parametrize("timeout_s", [None, 5.0])
@pytest.mark.parametrize(("fn", "said"), RETURNS)
def test_a_wrong_reward_is_named_with_its_response(fn, said, timeout_s):
    reward = RewardFunction(fn, timeout_s=timeout_s, name="mine")
    with pytest.raises(RewardError, match=rf"the reward function mine {said}") as error:
        reward(["p1", "p2"], ["r1", "r2"])
    assert "response: 'r1'" in str(error.value)


def test_a_reward_that_sets_signals_is_told_to_run_in_the_main_thread():
    def fn(prompts, responses, metadata=None):
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    with pytest.raises(RewardError, match=r"signal only works in main thread.*run_in=main"):
        RewardFunction(fn, timeout_s=5.0)(["p"], ["r"])


def test_a_judge_that_leaves_is_named():
    with pytest.raises(RewardError, match="mine raised SystemExit: 3"):
        Judge(leaves, "mine")(["p"], ["a"], ["b"])


def test_an_interrupt_by_the_user_goes_its_way_and_others_are_failures():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(interrupted)
    found = []
    thread = threading.Thread(target=lambda: found.append(attempt(interrupted)))
    thread.start()
    thread.join()
    assert isinstance(found[0], Failure) and isinstance(found[0].error, KeyboardInterrupt)
    for kind in (SystemExit, GeneratorExit, asyncio.CancelledError, ValueError):
        failure = attempt(lambda kind=kind: (_ for _ in ()).throw(kind()))
        assert isinstance(failure.error, kind)
    assert attempt(lambda: 3) == 3


# --------------------------------------------------------------------------------- files


def test_a_list_in_a_jsonl_file_is_read_and_a_conversation_is_one_row(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\n".join(map(json.dumps, rows))):
        file.write_text(text)
        assert [(p.content, p.metadata["n"]) for p in load_prompts(str(file))] == [
            ("a", 1),
            ("b", 2),
        ]
    said = [{"role": "user", "content": "hello"}]
    file.write_text(json.dumps(said))
    assert [p.content for p in load_prompts(str(file))] == [said]
    file.write_text(json.dumps(["one", "two"]))
    assert [p.content for p in load_prompts(str(file))] == ["one", "two"]


# ------------------------------------------------------------------------- the machinery


def test_the_option_to_blame_is_the_one_without_which_all_is_well():
    def make(a=1, b=1):
        if b == "bad":
            raise TypeError("no such thing")
        return a, b

    assert checks.naming(make, "x", {"a": 3}) == (3, 1)
    with pytest.raises(ValueError, match=r"^x\.b='bad': no such thing$"):
        checks.naming(make, "x", {"a": 3, "b": "bad"})
    with pytest.raises(ZeroDivisionError):  # nobody's fault
        checks.naming(lambda **_: 1 / 0, "x", {"a": 3, "b": 2})


@pytest.mark.parametrize(("device", "count", "fine"), [
    ("cuda", 0, False), ("cuda", 1, True), ("gpu", 1, True), ("cuda:1", 1, False),
    ("cuda:1", 2, True), ("cpu", 0, True), (None, 0, True),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused(monkeypatch, device, count, fine):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if fine:
        checks.require_device(device)
    else:
        with pytest.raises(ValueError, match=f"algo.device='{device}': this machine has"):
            checks.require_device(device)


def test_prompts_of_an_object_run_as_before():
    _, history = run(config(num_iterations=1), data=data(config(num_iterations=1)))
    assert len(history) == 1
