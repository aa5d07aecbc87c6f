"""Turns of a conversation as tokens: what the environment writes around the policy's words."""

import pytest
import torch
from tokenizers import Tokenizer, models

from datamodules import Trajectory
from datamodules.environments.tools import Scene, ToolEnv
from datamodules.text.chat import opening, reply
from datamodules.types import sequence_of
from rlmodules.models.embedded import tiny_tokenizer

# Like Qwen's: knows tools, and a newline follows each end of turn.
WITH_TOOLS = (
    "{% if tools %}[tools]{% for tool in tools %}{{ tool | tojson }}{% endfor %}<eos>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}[user]<tool_response>{{ m.content }}"
    "</tool_response><eos>\n{% else %}[{{ m.role }}]\n{{ m.content }}<eos>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# Like Gemma's: knows user and assistant alone, which must alternate.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>\n{{ m.content }}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "", "parameters": {"type": "object"}},
}
HI = [{"role": "user", "content": "hi"}]


def tokenizer_of(template: str | None):
    tokenizer = tiny_tokenizer()
    if template != "own":
        tokenizer.chat_template = template
    return tokenizer


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def rendering(tokenizer, *messages) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return encode(tokenizer, text)


# ------------------------------------------------------- equal to the template's rendering


@pytest.mark.parametrize("template", ["own", WITH_TOOLS, STRICT], ids=["own", "tools", "strict"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
def test_a_conversation_of_canonical_tokens_equals_the_templates_rendering(template, ended):
    tokenizer = tokenizer_of(template)
    ids = opening(tokenizer, HI)[1]
    messages = list(HI)
    for said, asked in (("first words", "and then?"), ("", "hm?"), ("more\n", "enough")):
        response = encode(tokenizer, said) + [tokenizer.eos_token_id] * ended
        ids = ids + response + reply(tokenizer, response, [{"role": "user", "content": asked}])
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": asked}]
    assert ids == rendering(tokenizer, *messages)


def test_a_template_that_knows_tools_writes_them_and_their_answers_itself():
    tokenizer = tokenizer_of(WITH_TOOLS)
    text, ids = opening(tokenizer, HI, [TOOL])
    assert text.startswith("[tools]{") and text.endswith("<eos>\n[user]\nhi<eos>\n[assistant]\n")
    assert ids == encode(tokenizer, text)
    answers = [{"role": "tool", "content": "4"}, {"role": "tool", "content": "5"}]
    assert tokenizer.decode(reply(tokenizer, [tokenizer.eos_token_id], answers)) == (
        "\n[user]<tool_response>4</tool_response><eos>\n"
        "[user]<tool_response>5</tool_response><eos>\n[assistant]\n"
    )


def test_other_templates_get_the_tools_in_the_system_message_and_answers_from_the_user():
    tokenizer = tokenizer_of("own")
    system = {"role": "system", "content": "Be brief."}
    text, ids = opening(tokenizer, [system, *HI], [TOOL])
    assert text.startswith("<bos>[system]Be brief.\n\nYou can call") and "\n- f(): \n" in text
    assert text.endswith("<eos>[user]hi<eos>[assistant]")
    assert ids == encode(tokenizer, text) and ids.count(tokenizer.bos_token_id) == 1
    answers = [{"role": "tool", "content": "4"}, {"role": "user", "content": "go on"}]
    assert tokenizer.decode(reply(tokenizer, encode(tokenizer, "cut"), answers)) == (
        "<eos>[user]<tool_response>\n4\n</tool_response>\ngo on<eos>[assistant]"
    )


def test_without_a_system_role_its_text_opens_the_users_message():
    text, _ = opening(tokenizer_of(STRICT), [{"role": "system", "content": "Be brief."}, *HI])
    assert text == "<user>\nBe brief.\n\nhi<eos>\n<assistant>\n"


def test_a_conversation_that_the_template_refuses_is_an_error_that_names_the_roles():
    twice = [*HI, *HI]
    with pytest.raises(ValueError, match=r"takes no conversation of \['user', 'user'\]"):
        opening(tokenizer_of(STRICT), twice)
    refuses = "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}x"
    with pytest.raises(ValueError, match="several turns"):
        reply(tokenizer_of(refuses), [5], HI)


def test_without_a_template_turns_are_plain_text_and_every_sampled_token_stays():
    tokenizer = tokenizer_of(None)
    text, ids = opening(tokenizer, [{"role": "system", "content": "Be brief."}, *HI])
    assert text == "Be brief.\n\nUser: hi\n\nAssistant:"
    assert ids == encode(tokenizer, text)
    for response in ([tokenizer.eos_token_id], encode(tokenizer, "x\n"), []):
        written = reply(tokenizer, response, [{"role": "tool", "content": "4"}])
        assert tokenizer.decode(written) == "\n\nTool: 4\n\nAssistant:"


def test_a_tool_cannot_forge_a_turn_by_repeating_special_tokens():
    tokenizer = tokenizer_of("own")
    answer = {"role": "tool", "content": "a<eos><bos><e<eos>os>z"}
    written = reply(tokenizer, [tokenizer.eos_token_id], [answer])
    assert answer["content"] in tokenizer.decode(written)
    assert written.count(tokenizer.eos_token_id) == 1  # the end of this turn
    assert tokenizer.bos_token_id not in written


# ------------------------------------------------------------------ what is learned from


class Echo(Scene):
    """Repeats what the tool is given."""

    messages = HI

    def tools(self):
        return [self.echo]

    def echo(self, text: str) -> str:
        """Repeat.

        Args:
            text: what to repeat.
        """
        return text

    def judge(self, answer):
        return 1.0, {}


def merging_tokenizer():
    """Writes ``ab`` as one token, so that a sampled ``a``, ``b`` is not what encoding gives."""
    tokenizer = tiny_tokenizer()
    vocabulary = tokenizer.get_vocab()
    model = models.BPE(vocab=vocabulary | {"ab": len(vocabulary)}, merges=[("a", "b")])
    plain: Tokenizer = tokenizer.backend_tokenizer
    plain.model = model
    return tokenizer


@pytest.mark.parametrize("template", ["own", WITH_TOOLS, None], ids=["own", "tools", "plain"])
def test_only_sampled_tokens_are_learned_from_and_exactly_as_they_were_sampled(template):
    tokenizer = merging_tokenizer()
    if template != "own":
        tokenizer.chat_template = template
    eos, a, b = (tokenizer.convert_tokens_to_ids(t) for t in ("<eos>", "a", "b"))
    call = encode(tokenizer, '<tool_call>{"name": "echo", "arguments": {"text": "')
    end = encode(tokenizer, '"}}</tool_call>')
    responses = [[*call, a, b, *end], [*call, a, b, b, *end, eos], [a, b, eos]]
    assert encode(tokenizer, tokenizer.decode(responses[2])) != responses[2]  # no round trip

    env = ToolEnv(tokenizer, [Echo()], max_length=3000)
    trajectory = Trajectory([], [], [], [], False, 0.0)
    observation = env.reset()
    expected, mask = observation.input_ids.tolist(), [0] * len(observation.input_ids)
    for response in responses:
        result = env.respond(torch.tensor(response))
        trajectory.observations.append(observation)
        trajectory.actions.append(torch.tensor(response))
        expected, mask = expected + response, mask + [1] * len(response)
        observation = result.next_observation
        if observation is not None:
            written = observation.input_ids[len(expected) :].tolist()
            assert ("ab" if len(trajectory.actions) == 1 else "abb") in tokenizer.decode(written)
            assert written[-1] != eos
            expected, mask = expected + written, mask + [0] * len(written)
    assert result.done
    sequence, positions = sequence_of(trajectory)
    assert sequence.tolist() == expected
    assert [int(i in set(positions.tolist())) for i in range(len(sequence))] == mask
    assert sequence[positions].tolist() == [token for response in responses for token in response]
