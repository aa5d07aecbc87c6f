"""Foreign environments: how a factory becomes an environment, and the adapter of reasoning-gym."""

import functools
import sys
import types

import pytest
import torch
from datasets import Dataset

from datamodules import (
    CodeGenerationEnv,
    Environment,
    MathEnv,
    Observation,
    Prompt,
    StepResult,
    TextGenerationEnv,
)
from datamodules.environments.adapters import ScoreEpisodeEnv, make_environment
from datamodules.environments.calculator import CalculatorEnv
from datamodules.environments.reasoning import ReasoningGymEnv, extract, harmless
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
CHAT = [{"role": "user", "content": "hi"}]


def respond(env: Environment, index: int, text: str) -> Environment:
    episode = env.fork()
    episode.reset(index)
    episode.respond(torch.tensor([*TOKENIZER(text)["input_ids"], EOS]))
    return episode


class HotelEnv:
    """Written for the peer: knows nothing of this project."""

    def __init__(self, city: str, bonus: float = 0.0):
        self.city, self.bonus, self.calls = city, bonus, []

    def build_dataset(self, tokenizer):
        assert tokenizer is TOKENIZER
        return Dataset.from_list(
            [
                {"prompt": f"A hotel in {self.city}? ", "case_idx": 7, "difficulty": "low"},
                {"prompt": "Nights? ", "case_idx": 3, "difficulty": "high"},
            ]
        )

    def score_episode(self, model, tokenizer, completion, case_idx) -> float:
        self.calls.append((model, tokenizer, completion, case_idx, torch.is_grad_enabled()))
        return len(completion) + self.bonus


class Guess(Environment):
    """Of this project's kind, with starting states of its own; takes a tokenizer, no options."""

    max_length = 77

    def __init__(self, tokenizer, secret: int = 5):
        self.tokenizer, self.secret = tokenizer, secret

    def __len__(self):
        return 1

    def reset(self, index=None):
        return Observation(torch.tensor([3]), torch.tensor([1]), "guess")

    def respond(self, tokens):
        return StepResult(0.0, True, None)


class Subclass(TextGenerationEnv):
    """Takes what its base takes."""

    def __init__(self, *args, flavour: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.flavour = flavour


# ------------------------------------------------------------------------ score_episode


def test_a_peers_environment_runs_unchanged():
    env = make_environment(functools.partial(HotelEnv, city="Oslo", bonus=0.5), TOKENIZER)
    assert isinstance(env, ScoreEpisodeEnv) and len(env) == 2 and env.held_out is None
    env.attach("the model")
    assert env.reset(1).metadata == {"case_idx": 3, "difficulty": "high"}
    assert env.reset(0).prompt == "A hotel in Oslo? "
    episodes = [respond(env, 1, "two"), respond(env, 0, "Astoria"), respond(env, 1, "")]
    assert env.score(episodes) == [(3.5, {}), (7.5, {}), (0.5, {})]
    assert env.scorer.calls == [
        ("the model", TOKENIZER, "two", 3, False),
        ("the model", TOKENIZER, "Astoria", 7, False),
        ("the model", TOKENIZER, "", 3, False),
    ]


def test_the_adapter_takes_the_options_that_the_foreign_class_does_not_know():
    options = {"on_error": "skip", "timeout_s": 3.0, "max_length": 40, "stop_sequences": ["END"]}
    env = make_environment(functools.partial(HotelEnv, city="Oslo", **options), TOKENIZER)
    assert (env.on_error, env.timeout_s, env.max_length) == ("skip", 3.0, 40)
    assert env.score([respond(env, 1, "twoEND and more")]) == [(3.0, {})]
    nothing_set = dict.fromkeys(options)
    env = make_environment(functools.partial(HotelEnv, city="Oslo", **nothing_set), TOKENIZER)
    assert (env.on_error, env.timeout_s, env.max_length) == ("raise", None, 512)
    with pytest.raises(ValueError, match=r"env\.on_error='stop'"):
        make_environment(functools.partial(HotelEnv, city="Oslo", on_error="stop"), TOKENIZER)


def test_a_foreign_class_is_given_what_it_names_and_its_adapter_too():
    class Named(HotelEnv):
        def __init__(self, tokenizer, max_length):
            super().__init__("Rome")
            self.seen = (tokenizer, max_length)

    class Anything(HotelEnv):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seen = kwargs

    class Free:
        build_dataset, score_episode = HotelEnv.build_dataset, HotelEnv.score_episode
        city = "Bonn"

        def __init__(self, **kwargs):
            self.seen = kwargs

    env = make_environment(functools.partial(Named, max_length=99), TOKENIZER)
    assert env.scorer.seen == (TOKENIZER, 99) and env.max_length == 99
    for cls in (Anything, Free):  # `C(**json)`: its own arguments and nothing else
        env = make_environment(functools.partial(cls, city="Rome", timeout_s=2), TOKENIZER)
        assert env.scorer.seen == {"city": "Rome"} and env.timeout_s == 2


def test_rows_may_be_a_list_and_prompts_conversations():
    class Chat(HotelEnv):
        def build_dataset(self, tokenizer):
            return [{"prompt": CHAT, "case_idx": "a"}]

    env = make_environment(functools.partial(Chat, city=""), TOKENIZER)
    assert env.reset().prompt == "<bos>[user]hi<eos>[assistant]"
    env.score([respond(env, 0, "x")])
    assert env.scorer.calls[0][3] == "a" and env.scorer.calls[0][0] is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"Bad.build_dataset gave no rows"),
        (
            [{"prompt": "p", "case_idx": 0}, {"prompt": "p"}],
            r"row 1: there is no 'case_idx'; .*prom",
        ),
        ([{"case_idx": 0}], r"Bad.build_dataset, row 0: there is no 'prompt'; there are \['case_"),
        ([{"prompt": 5, "case_idx": 0}], r"row 0: a prompt must be text or a list of messages"),
    ],
)
def test_rows_that_lack_something_are_named(rows, message):
    class Bad(HotelEnv):
        def build_dataset(self, tokenizer):
            return rows

    with pytest.raises(ValueError, match=message):
        make_environment(functools.partial(Bad, city=""), TOKENIZER)


@pytest.mark.parametrize("score", [None, "1", float("nan"), [1.0, 2.0]])
def test_a_score_that_is_no_number_is_an_error_that_shows_the_episode(score):
    env = make_environment(functools.partial(HotelEnv, city="Oslo"), TOKENIZER)
    env.scorer.score_episode = lambda **_: score
    with pytest.raises(ValueError, match=r"(?s)HotelEnv.score_episode returned .*: 7.*'bad'"):
        env.score([respond(env, 0, "bad")])


def test_what_score_episode_raises_reaches_the_loop():
    env = make_environment(functools.partial(HotelEnv, city="Oslo"), TOKENIZER)
    env.scorer.score_episode = lambda **_: {}["x"]
    with pytest.raises(KeyError):
        env.score([respond(env, 0, "bad")])


# ------------------------------------------------------------------------- make_environment


def test_an_environment_is_returned_as_it_is():
    env = Guess(TOKENIZER)
    assert make_environment(env, TOKENIZER) is env


def test_a_class_of_this_project_gets_the_tokenizer_and_has_its_options_set():
    factory = functools.partial(Guess, secret=9, on_error="skip", timeout_s=1.5, max_length=None)
    env = make_environment(factory, TOKENIZER)
    assert (env.tokenizer, env.secret, env.on_error, env.timeout_s) == (TOKENIZER, 9, "skip", 1.5)
    assert env.max_length == 77  # null leaves the class's own
    env = make_environment(functools.partial(Guess, stop_sequences=["x"], max_length=5), TOKENIZER)
    assert (env.stop_sequences, env.max_length) == (("x",), 5)
    assert (Guess.max_length, Guess.stop_sequences) == (77, ())
    for option in ({"on_error": "stop"}, {"timeout_s": -1}, {"stop_sequences": [""]}):
        with pytest.raises(ValueError, match=f"env.{next(iter(option))}"):
            make_environment(functools.partial(Guess, **option), TOKENIZER)


def test_options_replace_what_a_class_has_chosen_by_itself():
    assert make_environment(MathEnv, TOKENIZER).stop_sequences == ("\n",)
    factory = functools.partial(MathEnv, stop_sequences=["END"], max_length=90, temperature=0.5)
    env = make_environment(factory, TOKENIZER)
    assert (env.stop_sequences, env.max_length, env.temperature) == (("END",), 90, 0.5)
    nothing = dict.fromkeys(("stop_sequences", "max_length", "temperature", "on_error"))
    env = make_environment(functools.partial(MathEnv, **nothing), TOKENIZER)
    assert (env.stop_sequences, env.max_length, env.temperature) == (("\n",), 512, 1.0)
    code = functools.partial(CodeGenerationEnv, sandbox="unsafe")
    assert make_environment(code, TOKENIZER).max_length == 1024


def test_a_check_that_needs_an_option_sees_it_whenever_it_is_set():
    options = {"sandbox": "unsafe", "time_limit_s": 5.0, "timeout_s": 5.0}
    with pytest.raises(ValueError, match=r"env\.timeout_s=5\.0 must be above env\.time_limit_s"):
        make_environment(functools.partial(CodeGenerationEnv, **options), TOKENIZER)


def test_a_subclass_with_kwargs_takes_what_its_bases_name():
    factory = functools.partial(Subclass, flavour="sweet", max_length=30, timeout_s=2.0)
    env = make_environment(factory, TOKENIZER, [Prompt("one"), Prompt("two")])
    assert (env.flavour, env.max_length, env.timeout_s, len(env)) == ("sweet", 30, 2.0, 2)


def test_a_function_and_nested_partials_work_too():
    def closure(tokenizer, prompts):
        return TextGenerationEnv(tokenizer, prompts, max_length=9)

    def anything(**kwargs):
        return TextGenerationEnv(**kwargs)

    prompts = [Prompt("one")]
    assert make_environment(closure, TOKENIZER, prompts).max_length == 9

    class Deferred(functools.partial):
        """As Hydra has one: it is not merged with others."""

    inner = Deferred(anything, max_length=8, temperature=0.5)
    for outer in (functools.partial, Deferred):
        env = make_environment(outer(inner, max_length=7), TOKENIZER, prompts)
        assert (env.max_length, env.temperature) == (7, 0.5)
    made = make_environment(
        functools.partial(lambda secret: Guess(TOKENIZER, secret), 4), TOKENIZER
    )
    assert made.secret == 4


@pytest.mark.parametrize(
    ("factory", "prompts", "message"),
    [
        (functools.partial(HotelEnv, city="x"), [Prompt("p")], r"HotelEnv .*no prompts.*null"),
        (Guess, [Prompt("p")], r"Guess has starting states of its own"),
        (MathEnv, [Prompt("p")], r"MathEnv has starting states of its own"),
        (ReasoningGymEnv, [Prompt("p")], r"ReasoningGymEnv has starting states of its own"),
        (CalculatorEnv, [Prompt("p")], r"CalculatorEnv has starting states of its own"),
        (functools.partial(MathEnv, max_lenght=5), None, r"MathEnv knows no .*max_length"),
        (TextGenerationEnv, None, r"'prompts'.* come from data.prompts or data.path"),
        (HotelEnv, None, r"HotelEnv cannot be made: missing a required argument: 'city'"),
        (functools.partial(HotelEnv, town="x"), None, r"HotelEnv .*'(city|town)'.*\+env.ARGUMENT"),
        (functools.partial(Guess, secrets=1), None, r"Guess .*unexpected keyword.*'secrets'"),
        (lambda: {}, None, r"made a dict, which is no environment: subclass .*score_episode\("),
        (dict, None, r"dict cannot be made: no signature"),
        ("my_envs.HotelEnv", None, r"env is 'my_envs.HotelEnv': give a class"),
    ],
)  # fmt: skip
def test_what_cannot_become_an_environment_is_an_error_with_its_remedy(factory, prompts, message):
    with pytest.raises(ValueError, match=message):
        make_environment(factory, TOKENIZER, prompts)


def test_an_error_of_the_constructor_is_not_disguised():
    class Raises(HotelEnv):
        def __init__(self):
            raise TypeError("from within")

    with pytest.raises(ValueError, match=r"Raises could not be made: TypeError: from within"):
        make_environment(Raises, TOKENIZER)


def test_rows_that_are_none_are_named():
    class Forgetful(HotelEnv):
        def __init__(self):
            super().__init__("Rome")

        def build_dataset(self, tokenizer):
            return None

    with pytest.raises(ValueError, match=r"Forgetful\.build_dataset returned None"):
        make_environment(Forgetful, TOKENIZER)


# ------------------------------------------------------------------------- reasoning-gym


class Doubling:
    """A task in the form of the package's: problem i follows from ``seed + i``."""

    def __init__(self, seed, size, factor=2, modulus=2**40):
        assert factor > 0, "factor must be positive"
        self.numbers = [(seed + i) % modulus for i in range(size)]
        self.factor = factor

    def __getitem__(self, i):
        answer = str(self.factor * self.numbers[i])
        return {"question": f"Twice {self.numbers[i]}?\n", "answer": answer, "metadata": {}}

    def score_answer(self, answer, entry):
        if answer is None:
            return 0.0
        return 1.0 if int(answer) == int(entry["answer"]) else 0.01


class Evaluating(Doubling):
    """One of those that hand the answer to an evaluator."""

    def score_answer(self, answer, entry):
        return float(answer is not None and eval(answer) == int(entry["answer"]))


@pytest.fixture
def gym(monkeypatch):
    """Stands in for the package."""
    tasks = {"doubling": Doubling, "evaluating": Evaluating}
    package = types.ModuleType("reasoning_gym")
    package.factory = types.SimpleNamespace(DATASETS=tasks)
    package.create_dataset = lambda name, **settings: tasks[name](**settings)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)


def reasoning(task="doubling", tokenizer=TOKENIZER, **options) -> ReasoningGymEnv:
    sizes = {"num_problems": 6, "num_held_out": 3, "max_length": 2000}
    return ReasoningGymEnv(tokenizer, task, **sizes | options)


def scored(env, text: str, index: int = 0) -> tuple[float, dict]:
    answer = env.reset(index).metadata["answer"]
    return env.score([respond(env, index, text.replace("ANSWER", answer))])[0]


def test_an_answer_is_scored_by_the_task_itself(gym):
    env = reasoning()
    right = {"answered": 1.0, "scorer_errors": 0.0, "correct": 1.0}
    for index in range(9):
        assert scored(env, "So <answer> ANSWER </answer>", index) == (1.0, right)
    assert scored(env, "<answer>ANSWER1</answer>") == (0.01, right | {"correct": 0.0})
    assert scored(env, "ANSWER") == (0.0, right | {"answered": 0.0, "correct": 0.0})
    assert scored(env, "<answer>1</answer> no, <answer>ANSWER</answer>")[0] == 1.0
    failed = right | {"correct": 0.0, "scorer_errors": 1.0}
    assert scored(env, "<answer>twelve</answer>") == (0.0, failed)


def test_episodes_are_scored_as_one_batch_each_by_its_own_problem(gym):
    env = reasoning()
    episodes = [respond(env, i, f"<answer>{env.reset(j).metadata['answer']}</answer>")
                for i, j in ((4, 4), (0, 1), (8, 8), (2, 2))]  # fmt: skip
    assert [reward for reward, _ in env.score(episodes)] == [1.0, 0.01, 1.0, 1.0]


def test_the_prompt_asks_for_the_form_that_is_scored(gym):
    chat = reasoning().reset(0)
    assert chat.metadata["messages"][0]["content"].endswith("<answer> and </answer>.")
    assert chat.metadata["messages"][1]["content"].startswith("Twice ")
    plain = tiny_tokenizer()
    plain.chat_template = None
    env = reasoning(tokenizer=plain, answer_format="last_line", instruction="Be brief.")
    assert env.reset(0).prompt.startswith("Be brief.\n\nTwice ")
    assert env.reset(0).prompt.endswith("?\n\nAnswer:")
    assert scored(env, " First\n\nANSWER \n")[0] == 1.0
    assert scored(env, "<answer>ANSWER</answer>")[1]["scorer_errors"] == 1.0
    assert scored(env, " \n ")[1]["answered"] == 0.0


def test_held_out_problems_are_others_whatever_the_seed(gym):
    def questions(env, starts):
        return {env.reset(i).prompt for i in starts}

    env = reasoning()
    assert env.held_out == range(6, 9) and len(env) == 9
    assert not questions(env, env.held_out) & questions(env, range(6))
    again = reasoning()
    assert questions(env, range(9)) == questions(again, range(9))
    assert not questions(env, range(9)) & questions(reasoning(seed=1), range(9))
    few = reasoning(config={"doubling": {"modulus": 5}})
    assert not questions(few, few.held_out) & questions(few, range(few.held_out[0]))
    assert len(few) < 9
    assert reasoning(num_held_out=0).held_out == range(6, 6)


def test_a_mixture_takes_its_tasks_in_turn_with_settings_of_their_own(gym):
    env = reasoning(["doubling", "evaluating"], config={"evaluating": {"factor": 3}})
    factors = []
    for index in range(9):
        messages = env.reset(index).metadata["messages"]
        number = int(messages[1]["content"].removeprefix("Twice ").removesuffix("?"))
        factors.append(int(env.reset(index).metadata["answer"]) / number)
    assert factors == [2, 3, 2, 3, 2, 3, 2, 3, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "doublin"}, r"env.task='doublin' is no task of reasoning-gym; .*'doubling'"),
        ({"task": []}, "env.task is empty"),
        ({"config": {"other": {}}}, r"env.config names \['other'\]: env.task=doubling"),
        ({"config": {"doubling": {"factor": 0}}}, r"env.config.doubling=.*factor must be positive"),
        ({"config": {"doubling": {"x": 0}}}, r"env.config.doubling=.*'x'"),
        ({"config": {"doubling": {"modulus": 2}}}, r"too few different problems.*num_held_out=3"),
        ({"answer_format": "json"}, "env.answer_format='json'"),
        ({"num_problems": 0}, "env.num_problems=0"),
        ({"num_held_out": -1}, "env.num_held_out=-1"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(gym, options, message):
    with pytest.raises(ValueError, match=message):
        reasoning(**options)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r'pip install "rlmodules\[reasoning\]"'):
        reasoning()


def test_the_models_words_are_never_executed(gym, tmp_path):
    env = reasoning("evaluating")
    assert scored(env, "<answer>ANSWER</answer>")[0] == 1.0
    assert scored(env, "<answer>ANSWER + 0</answer>")[0] == 1.0
    spoils = tmp_path / "spoils"
    answer = f"[open({str(spoils)!r}, 'w'), ANSWER][1]"
    assert scored(env, f"<answer>{answer}</answer>")[0] == 0.0
    assert not spoils.exists()
    eval(answer.replace("ANSWER", "1"))  # it would have been
    assert spoils.exists()


HARMLESS = [
    "12", "-3.5", "[1, 2, 3]", "[['a', 'b'], ['c', '_']]", "{'a': 1}", "x**3/3 + C", "sin(2*x)**2",
    "10*(8 - 5) - 6", "exp(2*x**2 + 5*x - 5)", "x**(1/2)", "hello world", "Hello! I think", "",
    "0 1 0\n1 1 0", "_ Q _", "((x + 1)**2)**3", "(" * 5000,
]  # fmt: skip
HARMFUL = [
    "__import__('os').system('true')", "exec('1') + 5!", "exec('1') if 1 != 2 else 3!", "open('x')",
    "(exec)('1')", "x.__class__", "9**9**9", "(9**99)**99", "exp(exp(9))", "exp(9**9)", "99999!",
    "[0]*10**9", "'a'*999999999", "lambda: 1", "f'{1}'", "[x for x in y]", "sin(x, evaluate=1)",
    "x[0]", "+".join(["1"] * 300), "-" * 50000 + "1",
]  # fmt: skip


@pytest.mark.parametrize("answer", HARMLESS)
def test_answers_of_the_tasks_are_harmless(answer):
    assert harmless(answer)


@pytest.mark.parametrize("answer", HARMFUL, ids=lambda answer: repr(answer)[:40])
def test_code_and_what_would_grow_without_bound_is_not(answer):
    assert not harmless(answer)


@pytest.mark.parametrize(
    ("response", "tag", "last_line"),
    [
        ("<answer>4</answer>", "4", "<answer>4</answer>"),
        ("<answer>a\nb</answer> ok", "a\nb", "b</answer> ok"),
        ("<answer></answer>", "", "<answer></answer>"),
        ("<answer>4", None, "<answer>4"),
        ("no\n 5 \n\n", None, "5"),
        ("", None, None),
    ],
)
def test_where_the_answer_stands(response, tag, last_line):
    assert (extract(response, "tag"), extract(response, "last_line")) == (tag, last_line)


def test_the_real_package_opens_its_tasks():
    pytest.importorskip("reasoning_gym")
    tasks = ["leg_counting", "chain_sum", "countdown", "polynomial_multiplication"]
    env = reasoning(tasks, config={"leg_counting": {"max_animals": 4}}, max_length=10_000)
    for index in range(len(env)):
        assert scored(env, "<answer>ANSWER</answer>", index)[0] == 1.0
        assert scored(env, "<answer>0</answer>", index)[0] < 0.5
    with pytest.raises(ValueError, match=r"env.config.leg_counting=.*no_such"):
        reasoning("leg_counting", config={"leg_counting": {"no_such": 4}})
