"""What a row says, through chat templates of every shape: all of it, or a refusal that names it."""

import json
import warnings
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from helpers import config, data, run
from template_helpers import (
    SYSTEM,
    TEMPLATES,
    TOOL,
    calling,
    says,
    tokenizer_of,
    user,
)
from transformers import PreTrainedTokenizerFast

from datamodules import PreferenceDataModule, templates
from datamodules.template_options import set_template_defaults
from datamodules.templates import ChatError, render_chat
from datamodules.text.chat import opening
from datamodules.text.encoding import (
    Limits,
    encode,
    encode_responses,
    encode_texts,
    render,
    render_all,
)
from datamodules.text.prompts import Prompt, asked_text, begun, encode_prompt, prompt_text
from rlmodules import PPO
from rlmodules.models.embedded import tiny_model

ASKED, AGAIN = user("Is it wet?"), user("And now?")
LONG = Limits(4000, 2000)


def split(name, prompt, answer, tools=()):
    """Prompt and response as their tokens decode."""
    tokenizer = tokenizer_of(name)
    asked = Prompt(prompt, {}, tuple(tools))
    ((start, said),) = encode(tokenizer, [render(tokenizer, asked, answer)], LONG, close=False)
    return tokenizer.decode(start), tokenizer.decode(said)


@pytest.mark.parametrize(
    ("name", "start", "said"),
    [
        ("chatml", "<|im_start|>user\nIs it wet?<|im_end|>\n<|im_start|>assistant\n",
         "Yes.<|im_end|>\n"),
        ("qwen3", "<|im_start|>user\nIs it wet?<|im_end|>\n<|im_start|>assistant\n",
         "<think>\n\n</think>\n\nYes.<|im_end|>\n"),
        ("r1", "<bos><|User|>Is it wet?<|Assistant|>", "Yes.<eos>"),
        ("gemma", "<bos><start_of_turn>user\nIs it wet?<end_of_turn>\n<start_of_turn>model\n",
         "Yes.<end_of_turn>\n"),
        ("llama2", "<bos>[INST] Is it wet? [/INST]", " Yes. <eos>"),
        ("llama3.1", "<bos><|system|><|eot|><|user|>Is it wet?<|eot|><|assistant|>",
         "Yes.<|eot|>"),
        ("mistral", "<bos>[INST] Is it wet?[/INST]", " Yes.<eos>"),
        ("phi3", "<|user|>\nIs it wet?<|end|>\n<|assistant|>\n", "Yes.<|end|>\n<eos>"),
        ("zephyr", "<|user|>\nIs it wet?<eos>\n<|assistant|>\n", "Yes.<eos>\n"),
        ("vision", "User: Is it wet?<eou>\nAssistant:", " Yes.<eou>\n"),
    ],
)  # fmt: skip
def test_a_question_and_its_answer(name, start, said):
    assert split(name, [ASKED], [says("Yes.")]) == (start, said)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_message_is_in_the_prompt_of_every_template(name):
    start, said = split(name, [SYSTEM, ASKED, says("No."), AGAIN], [says("Yes.")])
    for words in ("Be terse.", "Is it wet?", "No.", "And now?"):
        assert start.count(words) == 1, words
    assert said.count("Yes.") == 1 and "now" not in said


def test_a_template_without_a_system_role_is_told_of_once():
    templates._warned.clear()
    tokenizer = tokenizer_of("gemma")
    with pytest.warns(UserWarning, match="no system role"):
        text = render_chat(tokenizer, [SYSTEM, ASKED])
    assert text.startswith("<bos><start_of_turn>user\nBe terse.\n\nIs it wet?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render_chat(tokenizer, [SYSTEM, AGAIN])


# ------------------------------------------------------------------------------ calls

CALLED = '{"city": "Oslo", "now": true}'


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("hermes", '{"name": "weather", "arguments": {"city": "Oslo", "now": true}}'),
        ("qwen3", '{"name": "weather", "arguments": {"city": "Oslo", "now": true}}'),
        ("llama3.1", '{"name": "weather", "parameters": {"city": "Oslo", "now": true}}'),
        ("deepseek", '<call>weather\n{"city": "Oslo", "now": true}</call>'),
    ],
)
@pytest.mark.parametrize("arguments", [CALLED, {"city": "Oslo", "now": True}])
def test_a_call_is_written_as_the_template_writes_it(name, written, arguments):
    _, said = split(name, [ASKED], [calling(arguments)], [TOOL])
    assert written in said
    answered = [ASKED, calling(arguments), {"role": "tool", "content": "3 mm"}]
    start, _ = split(name, answered, [says("Yes.")], [TOOL])
    assert written in start and "3 mm" in start


@pytest.mark.parametrize("name", ["chatml", "gemma", "llama2", "mistral", "phi3", "zephyr", "r1"])
def test_a_template_that_drops_a_call_is_refused(name):
    with pytest.raises(ChatError, match="drops the call of 'weather' in message 2"):
        split(name, [ASKED], [calling(CALLED)])


def test_what_else_a_template_drops_is_named():
    asked = [ASKED, says("Hm."), {"role": "tool", "content": "3 mm"}]
    with pytest.raises(ChatError, match="drops what the tool says in message 3"):
        split("phi3", asked, [says("Yes.")])
    with pytest.raises(ChatError, match="drops the tool 'weather'"):
        split("chatml", [ASKED], [says("Yes.")], [TOOL])
    name_only = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    name_only += "{{ c.function.name }}{% endfor %}{% endfor %}"
    with pytest.raises(ChatError, match="the arguments of the call of 'weather'"):
        split(name_only, [ASKED], [calling(CALLED)])
    shown_by_python = name_only.replace(".name", ".arguments")
    said = split("weather" + shown_by_python, [ASKED], [calling({"city": "Oslo", "now": True})])[1]
    assert said == '{"city": "Oslo", "now": true}'


def test_the_same_short_words_twice_must_stand_there_twice():
    last = "{{ messages[0].content }}{{ messages[-1].content }}"
    with pytest.raises(ChatError, match="drops what the user says in message 3"):
        render_chat(tokenizer_of(last), [user("Yes"), says("Yes"), user("Yes")])


def test_a_name_that_a_template_does_not_show_is_named_once():
    templates._warned.clear()
    with pytest.warns(UserWarning, match="does not show 'name' of messages"):
        split("chatml", [ASKED | {"name": "Ann"}], [says("Yes.")])


# --------------------------------------------------------------------------- thoughts

OWN = says("Yes.", reasoning_content="It rains.")
TAGGED = says("<think>\nIt rains.\n</think>\n\nYes.")


@pytest.mark.parametrize("answer", [OWN, says("Yes.", thinking="It rains."), TAGGED])
@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_the_thoughts_of_an_answer_are_learned(name, answer):
    start, said = split(name, [ASKED], [answer])
    assert (start + said).count("<think>\nIt rains.\n</think>\n\nYes.") == 1
    assert start.endswith("<|Assistant|><think>\n" if name == "r1" else "assistant\n")


def test_thoughts_at_the_end_of_a_whole_conversation_are_kept_too():
    tokenizer = tokenizer_of("r1")
    (ids,) = encode_texts(tokenizer, [[ASKED, says("Hm."), AGAIN, OWN]], 900)
    assert tokenizer.decode(ids) == (
        "<bos><|User|>Is it wet?<|Assistant|>Hm.<eos><|User|>And now?<|Assistant|>"
        "<think>\nIt rains.\n</think>\n\nYes.<eos>"
    )
    turns = split("r1", [ASKED], [says("Hm."), AGAIN, TAGGED])
    assert turns[1].endswith("And now?<|Assistant|><think>\nIt rains.\n</think>\n\nYes.<eos>")


def test_thoughts_that_a_template_cannot_show_are_refused():
    with pytest.raises(ChatError, match="drops the thoughts in message 2"):
        split("chatml", [ASKED], [OWN])
    assert split("chatml", [ASKED], [TAGGED])[1].startswith("<think>\nIt rains.")


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_thoughts_of_earlier_turns_are_left_out_as_the_template_does(name):
    start, said = split(name, [ASKED, TAGGED, AGAIN], [says("No.")])
    assert "rains" not in start and "Yes." in start and "No." in said


def test_both_sides_of_a_pair_have_the_same_prompt_whatever_they_thought():
    tokenizer = tokenizer_of("r1")
    sides = render_all(tokenizer, Prompt([ASKED]), [[TAGGED], [says("No.")]])
    assert [side.start for side in sides] == ["<bos><|User|>Is it wet?<|Assistant|>"] * 2
    said = [side.whole.removeprefix(side.start) for side in sides]
    assert said == ["<think>\nIt rains.\n</think>\n\nYes.<eos>", "No.<eos>"]


@pytest.mark.parametrize("tag", ["<think>\n", "<reasoning>", "[THINK]"])
def test_a_generation_prompt_that_opens_thoughts_is_part_of_the_response(tag):
    tokenizer = tokenizer_of(TEMPLATES["r1"].replace("<think>\n", tag))
    prompt = Prompt([ASKED])
    assert prompt_text(tokenizer, prompt).endswith("<|Assistant|>" + tag)
    assert begun(tokenizer, prompt) == tag
    assert asked_text(tokenizer, prompt).endswith("<|Assistant|>")
    assert begun(tokenizer_of("qwen3"), prompt) == ""


# ------------------------------------------------------------- messages that go on


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_that_ends_in_an_assistants_message_is_continued(name):
    start, said = split(name, [ASKED, says("It is")], [says(" raining.")])
    assert start.endswith("It is") and said.startswith(" raining.")
    tokenizer = tokenizer_of(name)
    prompt = Prompt([ASKED, says("It is")])
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)) == start
    assert begun(tokenizer, prompt) == "It is"
    assert asked_text(tokenizer, prompt) + "It is" == start


def test_a_space_that_a_template_trims_belongs_to_the_response():
    assert split("gemma", [ASKED, says("It is ")], [says("raining.")])[1].startswith(" raining.")
    assert begun(tokenizer_of("gemma"), Prompt([ASKED, says("It is ")])) == "It is"


def test_a_call_without_its_answer_cannot_be_continued():
    with pytest.raises(ValueError, match="cannot be continued"):
        split("hermes", [ASKED, calling(CALLED)], [says("x")])


# ---------------------------------------------------------------- special tokens said


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("special", ["<|im_end|>", "<eos>", "<bos>", "<end_of_turn>", "<|eot|>"])
def test_special_tokens_that_somebody_said_are_words(name, special):
    tokenizer = tokenizer_of(name)
    words = f"a{special}b {special}"
    texts = [[user(w), says("Hm."), user("so")] for w in (words, "ab")]
    said = [[says(w)] for w in (words, "ab")]
    rows = [render(tokenizer, Prompt(t), s) for t, s in zip(texts, said, strict=True)]
    armed, plain = encode(tokenizer, rows, LONG, close=False)
    ids = set(tokenizer.added_tokens_decoder)
    for part, clean in zip(armed, plain, strict=True):
        assert [i for i in part if i in ids] == [i for i in clean if i in ids]
        assert words in tokenizer.decode(part)
    assert words in prompt_text(tokenizer, Prompt(texts[0]))
    ids = encode_prompt(tokenizer, Prompt(texts[0]))
    assert tokenizer.decode(ids) == prompt_text(tokenizer, Prompt(texts[0]))


# ------------------------------------------------------------------- template options

OFF = "<|im_start|>user\nIs it wet?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def without_thinking(name="qwen3"):
    tokenizer = tokenizer_of(name)
    set_template_defaults(tokenizer, {"enable_thinking": False}, "data.chat_template_kwargs")
    return tokenizer


def test_template_options_reach_prompts_pairs_and_rewards():
    tokenizer, prompt = without_thinking(), Prompt([ASKED])
    assert prompt_text(tokenizer, prompt) == OFF
    row = render(tokenizer, prompt, [says("Yes.")])
    assert (row.start, row.whole) == (OFF, OFF + "Yes.<|im_end|>\n")
    assert opening(tokenizer, [ASKED])[0] == OFF
    (ids,) = encode_responses(tokenizer, [""], ["Yes."], [{"messages": [ASKED]}], LONG)
    assert tokenizer.decode(ids) == row.whole
    assert prompt_text(tokenizer_of("qwen3"), prompt) != OFF


def test_template_options_go_with_an_exported_tokenizer(tmp_path):
    without_thinking().save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert prompt_text(loaded, Prompt([ASKED])) == OFF
    thinking = loaded.apply_chat_template(
        [ASKED], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert thinking == prompt_text(tokenizer_of("qwen3"), Prompt([ASKED]))


def test_a_row_has_template_options_of_its_own():
    tokenizer, own = tokenizer_of("qwen3"), {"chat_template_kwargs": {"enable_thinking": False}}
    assert prompt_text(tokenizer, Prompt([ASKED], own)) == OFF
    with pytest.raises(ValueError, match=r"chat_template_kwargs names 'enable_thinkin'"):
        prompt_text(tokenizer, Prompt([ASKED], {"chat_template_kwargs": {"enable_thinkin": 1}}))
    # a reward model's template need not know what the policy's does
    reward = tokenizer_of("chatml")
    (ids,) = encode_responses(reward, [""], ["Yes."], [own | {"messages": [ASKED]}], LONG)
    assert "Yes." in reward.decode(ids)


@pytest.mark.parametrize("option", ["enable_thinkin", "messages", "c", "bos_token"])
def test_an_option_that_the_template_does_not_read_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option}.*it reads \['enable_thinking'\]"):
        set_template_defaults(tokenizer_of("qwen3"), {option: 1}, "data.chat_template_kwargs")
    plain = tokenizer_of("qwen3")
    plain.chat_template = None
    with pytest.raises(ValueError, match="it reads none"):
        set_template_defaults(plain, {option: 1}, "data.chat_template_kwargs")


@pytest.mark.parametrize("value", [None, True, 2, 0.5, 'a "b" \\ {{ c }}', [1, "b"], {"a": [None]}])
def test_options_of_every_kind_and_templates_that_begin_with_a_newline(value):
    tokenizer = tokenizer_of("\n{{ extra | tojson }}{{ messages[0].content }}")
    set_template_defaults(tokenizer, {"extra": value}, "data.chat_template_kwargs")
    set_template_defaults(tokenizer, {"extra": value}, "data.chat_template_kwargs")
    assert tokenizer.chat_template.count("is not defined") == 1
    expected = f"\n{json.dumps(value)}Is it wet?"
    assert prompt_text(tokenizer, Prompt([ASKED])) == expected


def test_data_modules_write_template_options_into_the_policys_template(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": [ASKED], "chosen": [says("Yes.")], "rejected": [says("No.")]}
    path.write_text(json.dumps(row) + "\n")
    options = {"enable_thinking": False}
    data = PreferenceDataModule(str(path), eval_size=0, chat_template_kwargs=options)
    learner = SimpleNamespace(
        tokenizer=tokenizer_of("qwen3"), learns_from="preferences", closes_texts=True
    )
    data.trainer = SimpleNamespace(lightning_module=learner, is_global_zero=False)
    with patch("datamodules.examples.datamodule.as_text_learner", lambda m, kind: m):
        data.setup()
    example = data.train_dataset[0]
    assert learner.tokenizer.decode(example.sequences[0][: example.prompt_length]) == OFF


def test_prompts_of_a_run_have_its_template_options():
    c = config(batch_size=2, mini_batch_size=2, max_new_tokens=2, num_iterations=1, ppo_epochs=1)
    template = TEMPLATES["qwen3"].replace("<|im_start|>", "<").replace("<|im_end|>", ">")
    module = PPO(c, model=tiny_model()[0], tokenizer=tokenizer_of(template))
    seen = []

    def reward(prompts, responses, metadata=None):
        seen.extend(prompts)
        return [float(len(response)) for response in responses]

    options = {"enable_thinking": False}
    rollouts = data(c, reward, prompts=[[ASKED]] * 2, chat_template_kwargs=options)
    run(c, module, data=rollouts)
    assert seen and all(text.endswith("<think>\n\n</think>\n\n") for text in seen)


@pytest.mark.parametrize("name", ["hermes", "qwen3", "llama3.1"])
def test_special_tokens_in_calls_and_tools_are_words(name):
    tokenizer = tokenizer_of(name)
    ids = set(tokenizer.added_tokens_decoder)

    def specials(word):
        called = calling({word: f"a{word}b"})
        tool = {"name": "weather", "description": f"{word} look", "parameters": {"type": "object"}}
        prompt = Prompt([ASKED], {}, ({"type": "function", "function": tool},))
        rows = [render(tokenizer, prompt, [called])]
        ((start, said),) = encode(tokenizer, rows, LONG, close=False)
        assert f"{word} look" in tokenizer.decode(start)
        assert f'"{word}": "a{word}b"' in tokenizer.decode(said)
        return [i for i in start + said if i in ids]

    assert specials("<eos>") == specials("<|im_end|>") == specials("now")
    with pytest.raises(ChatError, match="role 'user<eos>' of a message holds a special token"):
        prompt_text(tokenizer, Prompt([{"role": "user<eos>", "content": "Hi"}]))
