"""What a row demonstrates: a completion, a conversation, a text; or a refusal that names it."""

import pytest
from template_helpers import SYSTEM, TOOL, says, user

from datamodules.demonstrations.rows import answer_for, as_demonstration, prompt_for

TALK = [user("Wet?"), says("No."), user("Now?"), says("Yes.")]
SHAREGPT = [{"from": "human", "value": "Wet?"}, {"from": "gpt", "value": "No."}]


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "Wet?", "completion": " No."}, "Wet?", " No."),
        ({"prompt": "", "completion": "No."}, "", "No."),
        ({"question": "Wet?", "answer": "No."}, "Wet?", "No."),
        ({"instruction": "Say.", "input": "Wet?", "output": "No."},
         [user("Say.\nWet?")], [says("No.")]),
        ({"prompt": [user("Wet?")], "completion": [says("No.")]}, [user("Wet?")], [says("No.")]),
        ({"prompt": [user("Wet?")], "completion": says("No.")}, [user("Wet?")], [says("No.")]),
        ({"prompt": "Wet?", "response": "No.", "system": "Be terse."},
         [SYSTEM, user("Wet?")], [says("No.")]),
        ({"prompt": "Wet?", "chosen": " No.", "rejected": " Yes."}, "Wet?", " No."),
        ({"chosen": TALK[:2], "rejected": [TALK[0], says("Yes.")]}, [user("Wet?")], [says("No.")]),
    ],
)  # fmt: skip
def test_a_prompt_and_what_is_answered(row, prompt, response):
    item = as_demonstration(row)
    assert (item.prompt.content, item.response, item.is_whole) == (prompt, response, False)
    assert prompt_for(item) == (item.prompt if prompt else None)


@pytest.mark.parametrize(
    ("row", "response", "asked", "said"),
    [
        ({"text": "It rains."}, "It rains.", None, "It rains."),
        ({"messages": TALK}, TALK, TALK[:3], "Yes."),
        ({"conversations": SHAREGPT}, TALK[:2], TALK[:1], "No."),
        ({"messages": TALK[:2], "system": "Be terse."}, [SYSTEM, *TALK[:2]],
         [SYSTEM, TALK[0]], "No."),
        ({"messages": [says("Hi.")]}, [says("Hi.")], None, "Hi."),
    ],
)  # fmt: skip
def test_what_is_whole(row, response, asked, said):
    item = as_demonstration(row)
    assert (item.prompt.content, item.response, item.is_whole) == ("", response, True)
    prompt = prompt_for(item)
    assert (prompt and prompt.content) == asked
    assert answer_for(item) == said


def test_a_conversation_keeps_its_tools_and_options():
    item = as_demonstration(
        {"messages": TALK, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    )
    for prompt in (item.prompt, prompt_for(item)):
        assert prompt.tools == (TOOL,)
        assert prompt.metadata == {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Wet?"}, r"no column 'completion'; .* data.columns=\{completion: NAME\}"),
        ({"question": "Wet?", "reply": "No."}, "no column 'completion'"),
        ({"completion": "No."}, "no column 'prompt'"),
        ({"prompt": "Wet?", "completion": " "}, "the response response is empty"),
        ({"prompt": "Wet?", "completion": 5}, "'completion' must be text"),
        ({"text": " "}, "the column 'text' is empty"),
        ({"messages": []}, "the column 'messages' is empty"),
        ({"messages": [user("Wet?")]}, "no message of an assistant"),
        ({"prompt": "Wet?", "completion": "No.", "context": "It rains."}, "'context' says"),
        ({"text": "It rains.", "context": "Rome"}, "'context' says"),
        ({"prompt": "Wet?", "chosen": "No."}, "no column 'rejected'"),
        (["Wet?", "No."], "a row must be an object"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(row, why):
    with pytest.raises(ValueError, match=why):
        as_demonstration(row)
