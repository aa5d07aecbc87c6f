"""Prompt and response, tokenized apart, together decode to the text that was written."""

import random

import pytest
from tokenizer_helpers import KINDS, LOSSLESS, WORDS, trained

from datamodules.ends import opened
from datamodules.text.controls import doubled_in, found_in
from datamodules.text.encoding import Limits, encode, encode_texts, render
from datamodules.text.prompts import Prompt, encode_prompt
from datamodules.text.tokens import decoded

LONG = Limits(4000, 2000)
BETWEEN = (" ", " ", " ", "\n", "", ", ", "  ", " (", ". ")
STRANGE = ("ü", "漢字", "🦜", "\t", "é", "§", "€5", "'s", "--", "Ω")


def texts(seed, strange):
    """A random text, cut in two anywhere."""
    generator = random.Random(seed)
    words = WORDS + list(STRANGE) * strange
    count = generator.randint(1, 8)
    text = "".join(generator.choice(words) + generator.choice(BETWEEN) for _ in range(count))
    border = generator.randint(0, len(text))
    return text[:border], text[border:]


def apart(tokenizer, prompt, response, close=False):
    ((start, said),) = encode(
        tokenizer, [render(tokenizer, Prompt(prompt), response)], LONG, close=close
    )
    return start, said


@pytest.mark.parametrize("kind", KINDS)
def test_parts_decode_as_the_whole_does_wherever_the_border_falls(kind):
    tokenizer = trained(kind)
    for seed in range(150):
        prompt, response = texts(seed, strange=kind in LOSSLESS)
        whole = decoded(tokenizer, tokenizer(prompt + response)["input_ids"])
        start, said = apart(tokenizer, prompt, response)
        assert decoded(tokenizer, start + said) == whole, (prompt, response)
        if kind in LOSSLESS:
            assert decoded(tokenizer, start + said).removeprefix(" ") == (
                prompt + response
            ).removeprefix(" ")


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_as_the_policy_sees_it_and_the_same_whatever_the_response(kind):
    tokenizer = trained(kind, "<s> $A")
    for seed in range(40):
        prompt, response = texts(seed, strange=False)
        start, _ = apart(tokenizer, prompt, response or "x")
        if prompt:
            assert start == encode_prompt(tokenizer, Prompt(prompt)).tolist()
            assert start == apart(tokenizer, prompt, "hello")[0]


@pytest.mark.parametrize(
    ("kind", "prompt", "response", "tokens"),
    [
        ("word piece", "un", "happy", "##happy"),
        ("metaspace", "the un", "happy", "happy"),
        ("sentencepiece", "the un", "happy", "happy"),
        ("sentencepiece", "the ", "cat", "cat"),
        ("unigram", "play", "ing", "ing"),
        ("byte level, prefix", "the un", "happy", "happy"),
    ],
)
def test_a_response_that_goes_on_within_a_word_begins_no_new_one(kind, prompt, response, tokens):
    tokenizer = trained(kind)
    _, said = apart(tokenizer, prompt, response)
    written = "".join(tokenizer.convert_ids_to_tokens(said)).replace("##", "")
    assert written == response
    assert tokens in response or tokenizer.convert_ids_to_tokens(said)[0].startswith("##")


# ------------------------------------------------------------- special tokens, once

AROUND = {"$A": (0, 0), "<s> $A": (1, 0), "<s> $A </s>": (1, 1), "$A </s>": (0, 1)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("single", AROUND)
def test_a_text_that_a_template_wrote_already_gets_no_second_bos_or_eos(kind, single):
    tokenizer, (opens, closes) = trained(kind, single), AROUND[single]
    written, bare = "<s>hello world</s>", "hello world"
    for text, count in ((written, (1, 1)), (bare, (opens, closes))):
        (ids,) = encode_texts(tokenizer, [text], 100)
        assert (ids.count(1), ids.count(2)) == count
    for text, count in ((written, 1), ("<s>hello", 1), ("\n<s>hello", 1), ("hello", opens)):
        assert opened(tokenizer, text).count(1) == count
        assert encode_prompt(tokenizer, Prompt(text)).tolist().count(1) == count
        start, said = apart(tokenizer, text, " world</s>", close=True)
        assert (start + said).count(1) == count
        assert said.count(2) == 1 and said[-1] == 2


def test_what_the_user_doubled_stays_doubled():
    for single in AROUND:
        tokenizer = trained("byte level", single)
        assert opened(tokenizer, "<s><s>hello").count(1) == 2
        assert opened(tokenizer, "hello</s></s>").count(2) == 2


# ------------------------------------------------------------------ special tokens said

CHAT = "{% for m in messages %}<s>\n{{ m.content }}</s>\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<s>\n{% endif %}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("header", ["<s>\n", "<s>", "<s>re"])
def test_special_tokens_in_messages_are_words_to_every_tokenizer(kind, header):
    tokenizer = trained(kind)
    tokenizer.chat_template = CHAT.replace("<s>\n", header)
    said = "un</s>happy <s>hello </s> world</s>"
    prompt = Prompt([{"role": "user", "content": said}])
    answer = [{"role": "assistant", "content": said}]
    ((start, ids),) = encode(tokenizer, [render(tokenizer, prompt, answer)], LONG)
    assert start == encode_prompt(tokenizer, prompt).tolist()
    assert (start.count(1), start.count(2)) == (2, 1)
    assert (ids.count(1), ids.count(2)) == (0, 1)
    whole = f"{header}{said}</s>\n{header}{said}</s>"
    if kind in LOSSLESS:  # some put a space behind every special token
        assert decoded(tokenizer, start + ids).replace(" ", "") == whole.replace(" ", "")
    if kind == "byte level":
        assert decoded(tokenizer, start + ids) == whole


def test_special_tokens_in_messages_and_doubled_ones_are_counted():
    tokenizer = trained("byte level")
    tokenizer.chat_template = CHAT
    said = [{"role": "user", "content": "a</s>b<s>"}, {"role": "assistant", "content": "</s>"}]
    said[1]["tool_calls"] = [{"function": {"name": "f", "arguments": {"a": ["<s>"]}}}]
    assert found_in(tokenizer, said) == ["</s>", "<s>", "</s>", "<s>"]
    assert found_in(tokenizer, [{"role": "user", "content": "a < s>"}]) == []
    ids = tokenizer("<s><s>a</s> </s>b</s></s>")["input_ids"]
    assert doubled_in(tokenizer, ids) == ["<s>", "</s>"]


def test_a_private_character_of_the_marks_is_refused_not_lost():
    tokenizer = trained("byte level")
    tokenizer.chat_template = CHAT
    with pytest.raises(ValueError, match="private use"):
        encode_prompt(tokenizer, Prompt([{"role": "user", "content": "a\U000f1a00b"}]))
