"""``env=verifiers`` and ``env=openenv`` without their packages; ``tests/extras`` has the rest."""

import asyncio
import sys

import pytest
from tool_helpers import TOKENIZER, Counter, ids

from datamodules.environments import background
from datamodules.environments.openenv import OpenEnvEnv
from datamodules.environments.toolbox import Toolbox, as_call
from datamodules.environments.tools import ToolEnv
from datamodules.environments.verifiers import VerifiersEnv
from datamodules.environments.verifiers_loading import merged


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [
        ("verifiers.v1", lambda: VerifiersEnv(TOKENIZER, "spelling"), "verifiers"),
        ("openenv.core", lambda: OpenEnvEnv(TOKENIZER, "http://127.0.0.1:9"), "openenv"),
    ],
)
def test_without_the_package_the_error_says_how_to_get_it(package, make, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'env={extra} .*pip install "rlmodules\[{extra}\]"'):
        make()


def test_settings_within_settings_are_merged():
    old = {"taskset": {"split": "train", "size": 3}, "rounds": 2}
    new = {"taskset": {"split": "test"}, "hint": {"a": 1}}
    assert merged(old, new) == {
        "taskset": {"split": "test", "size": 3}, "rounds": 2, "hint": {"a": 1}
    }  # fmt: skip
    assert old["taskset"]["split"] == "train"


def test_what_is_awaited_runs_in_one_loop():
    async def which():
        return asyncio.get_running_loop()

    first, second = (background.start(which()).result(10) for _ in range(2))
    assert first is second is background.event_loop()


class Talking(Counter):
    """Answers each response until it hears the end."""

    def begin(self):
        self.messages = ({"role": "user", "content": "Begun."},)

    def hear(self, response, calls, answers):
        if response == "end":
            return []
        return [*answers, {"role": "user", "content": f"{len(calls)} calls in {response!r}"}]


def test_a_scene_may_begin_late_and_answer_what_is_no_call():
    env = ToolEnv(TOKENIZER, [Talking()], max_length=8000)
    assert "Begun." in env.reset().prompt
    result = env.respond(ids("Hello"))
    assert not result.done and "0 calls in 'Hello'" in env.render()
    result = env.respond(ids(as_call("add", number=2)))
    assert not result.done and "1 calls in" in env.render() and result.reward == 0.2
    assert env.respond(ids("end")).done


def test_a_tool_may_bring_its_schema_and_without_tools_nothing_is_a_call():
    def add(number):
        return number + 1

    parameters = {"type": "object", "properties": {"number": {"type": "integer"}}}
    add.schema = {
        "type": "function",
        "function": {"name": "add", "description": "", "parameters": parameters},
    }
    call = '{"name": "add", "arguments": {"number": 1}}'
    assert Toolbox([add]).answer(call) == ("2", True)
    assert Toolbox([add]).calls_in(as_call("add", number=1)) and not Toolbox([]).calls_in(call)
    assert not Toolbox([]).calls_in(as_call("add", number=1))
