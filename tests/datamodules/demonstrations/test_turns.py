"""Which tokens of a conversation its assistant wrote, through templates of every shape."""

import itertools

import pytest
from template_helpers import CHATML, TOOL, calling, says, tokenizer_of, user
from tokenizer_helpers import LOSSLESS, trained

from datamodules.demonstrations.dataset import DemonstrationDataset, DemonstrationRows, Learned
from datamodules.demonstrations.rows import as_demonstration
from datamodules.demonstrations.turns import split_at
from datamodules.templates import RESPONSE
from datamodules.text.encoding import Limits
from datamodules.text.tokens import decoded, tokenize_chat

TALK = [user("Wet?"), says("No."), user("Now?"), says("Yes.")]
THINKING = [
    user("Wet?"),
    says("No.", reasoning_content="hm"),
    user("Now?"),
    says("Yes.", reasoning_content="sure"),
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def tokenizer_with(kind, template):
    tokenizer = trained(kind)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def runs_of(example):
    """Neighbouring tokens that are learned, as they are."""
    (ids,), places = example.sequences, example.learned.tolist()
    runs = [[places[0]]]
    for before, at in itertools.pairwise(places):
        if at == before + 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return [ids[run].tolist() for run in runs]


def learned(tokenizer, conversation, **options):
    made = DemonstrationDataset(
        [conversation], tokenizer, 4000, assistant_only_loss=True, **options
    )
    return [decoded(tokenizer, run) for run in runs_of(made[0])], made[0]


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("chatml", ["No.<|im_end|>", "Yes.<|im_end|>"]),
        ("qwen3", ["No.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"]),
        ("r1", ["No.<eos>", "Yes.<eos>"]),
        ("gemma", ["No.<end_of_turn>", "Yes.<end_of_turn>"]),
        ("llama2", [" No. <eos>", " Yes. <eos>"]),
        ("llama3.1", ["No.<|eot|>", "Yes.<|eot|>"]),
        ("mistral", [" No.<eos>", " Yes.<eos>"]),
        ("phi3", ["No.<|end|>", "Yes.<|end|>"]),
        ("zephyr", ["No.<eos>", "Yes.<eos>"]),
        ("deepseek", ["No.", "Yes.<eos>"]),  # which ends no turn but the last
        ("vision", [" No.<eou>\n", " Yes.<eou>\n<eos>"]),  # <eou> is no token of its own
    ],
)
def test_turns_are_what_a_policy_would_write(name, turns):
    found, example = learned(tokenizer_of(name), TALK)
    assert found == turns
    assert example.sequences[0][-1] == example.sequences[0][example.learned[-1]]


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("qwen3", ["No.<|im_end|>", "<think>\nsure\n</think>\n\nYes.<|im_end|>"]),
        ("r1", ["No.<eos>", "sure\n</think>\n\nYes.<eos>"]),  # its prompt opens the thoughts
    ],
)
def test_thoughts_are_learned_where_the_template_writes_them(name, turns):
    assert learned(tokenizer_of(name), THINKING)[0] == turns


@pytest.mark.parametrize("name", ["hermes", "qwen3", "llama3.1", "deepseek"])
def test_calls_are_learned_and_answers_of_tools_are_not(name):
    conversation = [user("Wet?"), calling({"city": "Rome"}), {"role": "tool", "content": "rain"},
                    says("Yes.")]  # fmt: skip
    row = {"messages": conversation, "tools": [TOOL]}
    tokenizer = tokenizer_of(name)
    made = DemonstrationRows(
        [("row", as_demonstration(row))],
        tokenizer,
        Limits(4000, 2000),
        learned=Learned(assistant_only=True),
        on_error="raise",
    )
    first, last = (decoded(tokenizer, run) for run in runs_of(made[0]))
    assert "Rome" in first and "weather" in first and "rain" not in first + last
    assert "Yes." in last and "Rome" not in last
    if name == "hermes":
        assert first == f"{CALL}<|im_end|>"


GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_they_are_those_that_a_template_marks_itself(kind):
    """As TRL takes them: ``{% generation %}``, by transformers' own mask."""
    tokenizer = tokenizer_with(kind, GENERATION)
    talk = [user("the cat, hello"), says("unhappy play (see above)"), user("12 345"), says("it's")]
    told = tokenizer.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    places = [i for i, marked in enumerate(told["assistant_masks"]) if marked]
    _, example = learned(tokenizer, talk)
    assert example.learned.tolist() == places
    assert example.sequences[0].tolist() == told["input_ids"][: len(example.sequences[0])]


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("border", range(1, 19))
def test_a_border_within_a_token_splits_it(kind, border):
    tokenizer = tokenizer_with(kind, CHATML)
    text = "the cat happily sat"
    ids = tokenize_chat(tokenizer, text)
    split, (cut,) = split_at(tokenizer, text, ids, [border])
    assert decoded(tokenizer, split) == decoded(tokenizer, ids)
    assert decoded(tokenizer, split[:cut]).strip() == text[:border].strip()
    if decoded(tokenizer, ids[:cut]) == decoded(tokenizer, split[:cut]):
        assert split[:cut] == ids[:cut]


def test_a_template_that_hides_a_turn_is_refused():
    odd = (
        "{% for m in messages %}{{ m.role }} ({{ messages[-1].content | length }}):"
        " {{ m.content }}\n{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"message 4 in a way .* algo.assistant_only_loss=false"):
        learned(tokenizer_of(odd), [*TALK[:3], says("Yes, it is.")])


@pytest.mark.parametrize(
    ("conversation", "turns"),
    [
        ([user("Hi"), says("a<|im_end|>b"), user("x"), says("c")],
         ["a<|im_end|>b<|im_end|>", "c<|im_end|>"]),
        ([user("Hi"), says("\n\nHo\n"), user("x"), says("c")],
         ["\n\nHo\n<|im_end|>", "c<|im_end|>"]),
        ([user("Hi"), says(""), user("x"), says("c")], ["<|im_end|>", "c<|im_end|>"]),
        ([user("Hi"), says("a"), says("b")], ["a<|im_end|>", "b<|im_end|>"]),
        ([user("Hi"), says("a"), user("x")], ["a<|im_end|>"]),
        ([says("a"), user("Hi"), says("b")], ["a<|im_end|>", "b<|im_end|>"]),
        ([user("a"), says("a"), user("a"), says("a")], ["a<|im_end|>", "a<|im_end|>"]),
        ([user(RESPONSE), says(RESPONSE)], [f"{RESPONSE}<|im_end|>"]),
        ([user("Hi"), says("  a  ")], ["  a  <|im_end|>"]),
    ],
)  # fmt: skip
def test_turns_are_told_apart_whatever_they_say(conversation, turns):
    assert learned(tokenizer_of("chatml"), conversation)[0] == turns
