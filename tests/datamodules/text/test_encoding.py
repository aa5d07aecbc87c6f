"""Prompt and response as tokens: borders, end tokens, chat templates, truncation."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from datamodules.text import encoding
from datamodules.text.encoding import Limits, Window, encode_responses, encode_texts, render
from datamodules.text.prompts import Prompt
from rlmodules.models.embedded import tiny_tokenizer


def encode(tokenizer, texts, limits, **options):
    rendered = [render(tokenizer, prompt, response) for prompt, response in texts]
    return encoding.encode(tokenizer, rendered, limits, **options)


LONG = Limits(max_length=200, max_prompt_length=100)


def letters(single: str = "$A", template: "str | None" = None):
    """One token a byte; ``single`` says what every text gets."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def merging(single: str = "$A", bos: str = "<bos>", eos: str = "<eos>"):
    """The letters a to e and a space; "ab" and "cd" are one token each."""
    words = ["<pad>", "<bos>", "<eos>", "a", "b", "c", "d", "e", " ", "ab", "cd"]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("c", "d")]))
    backend.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token=bos, eos_token=eos
    )


def bert():
    """WordPiece between [CLS] and [SEP], without an end token."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "un", "happy", "##happy", "."]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


NEWLINES = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokens(tokenizer, prompt, response, limits=LONG, **options) -> tuple[str, str]:
    """The tokens of prompt and of response, with a space between each two."""
    ((start, answer),) = encode(tokenizer, [(Prompt(prompt), response)], limits, **options)
    return tuple(" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (start, answer))


def texts(tokenizer, prompt, response, **options) -> tuple[str, str]:
    ((start, answer),) = encode(tokenizer, [(Prompt(prompt), response)], LONG, **options)
    return tokenizer.decode(start), tokenizer.decode(answer)


# ------------------------------------------------------------------------ plain text


@pytest.mark.parametrize(
    ("single", "closed", "left"),
    [
        ("$A", ("H i", "! ? <eos>"), ("H i", "! ?")),
        ("<bos> $A", ("<bos> H i", "! ? <eos>"), ("<bos> H i", "! ?")),
        ("$A <eos>", ("H i", "! ? <eos>"), ("H i", "! ? <eos>")),
        ("<bos> $A <eos>", ("<bos> H i", "! ? <eos>"), ("<bos> H i", "! ? <eos>")),
    ],
)
def test_a_text_opens_once_and_closes_once(single, closed, left):
    tokenizer = letters(single)
    assert tokens(tokenizer, "Hi", "!?") == closed
    assert tokens(tokenizer, "Hi", "!?", close=False) == left


@pytest.mark.parametrize("single", ["$A", "$A <eos>"])
@pytest.mark.parametrize("ending", ["<eos>", "<eos><eos>", "<eos>\n"])
def test_an_end_token_in_the_text_is_not_doubled(single, ending):
    assert tokens(letters(single), "Hi", "!" + ending) == ("H i", "! <eos>")


def test_an_end_token_amid_the_response_stays():
    assert tokens(letters(), "Hi", "!<eos>?") == ("H i", "! <eos> ? <eos>")


def test_without_closing_an_end_token_in_the_text_stays_as_it_is():
    assert tokens(letters(), "Hi", "!<eos><eos>", close=False) == ("H i", "! <eos> <eos>")


def test_bert_keeps_its_own_ends():
    for close in (True, False):
        assert tokens(bert(), "Hello", " world.", close=close) == (
            "[CLS] hello",
            "world . [SEP]",
        )


def test_one_token_may_open_and_close():
    tokenizer = merging("<eos> $A", bos="<eos>")
    assert tokens(tokenizer, "a", "cd") == ("<eos> a", "cd <eos>")
    assert tokens(tokenizer, "a", "cd", close=False) == ("<eos> a", "cd")
    limits = Limits(max_length=4, max_prompt_length=2)
    assert tokens(tokenizer, "eae", "cde", limits) == ("<eos> e", "cd <eos>")


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<bos> $A <eos>"])
def test_an_empty_prompt_leaves_the_whole_text_to_the_response(single):
    tokenizer = letters(single)
    ((start, answer),) = encode(tokenizer, [(Prompt(""), "Hi")], LONG, close=False)
    assert start + answer == tokenizer("Hi")["input_ids"]


# ------------------------------------------------------------------------ the border


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("a", "cd", ("a", "cd <eos>")),  # nothing to merge
        ("a", "b", ("a", "b <eos>")),  # "ab" would reach across
        ("eca", "bcd", ("e c a", "b cd <eos>")),
        ("ab", "ab", ("ab", "ab <eos>")),
    ],
)
def test_a_token_across_the_border_is_split_there(prompt, response, expected):
    assert tokens(merging(), prompt, response) == expected
    opened = tokens(merging("<bos> $A"), prompt, response)
    assert opened == (f"<bos> {expected[0]}", expected[1])  # and not opened twice
    assert tokens(merging("$A <eos>"), prompt, response) == expected


def test_a_text_that_is_split_at_the_border_keeps_the_end_that_the_tokenizer_gives_it():
    assert tokens(bert(), "Hello", "world", close=False) == ("[CLS] hello", "world [SEP]")
    assert tokens(merging("$A <eos>"), "a", "b", close=False) == ("a", "b <eos>")


def test_a_text_that_is_split_at_the_border_gets_no_end_that_the_tokenizer_does_not_give_it():
    assert tokens(merging(), "a", "b", close=False) == ("a", "b")
    assert tokens(merging("<bos> $A"), "a", "b", close=False) == ("<bos> a", "b")


TOKENIZERS = {
    "letters": letters,
    "letters, bos": lambda: letters("<bos> $A"),
    "letters, eos": lambda: letters("$A <eos>"),
    "merging, both": lambda: merging("<bos> $A <eos>"),
    "merging, one token": lambda: merging("<eos> $A <eos>", bos="<eos>"),
    "bert": bert,
}
PROMPTS = ["a", "ab", "eca", "cd ", "a <eos>", "hello", "hello un", "un. "]
RESPONSES = ["b", "b cde", " ab", "cd<eos>", "happy", " world.", "b" * 30, " hello" * 8]


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("longest", [(2, 1), (4, 2), (9, 8), (12, 3), (200, 100)])
def test_limits_hold_and_nothing_but_ends_is_added_or_lost(name, longest, close):
    tokenizer = TOKENIZERS[name]()
    pairs = [(Prompt(p), r) for p in PROMPTS for r in RESPONSES]
    made = encode(tokenizer, pairs, Limits(*longest), close=close)
    free = encode(tokenizer, pairs, LONG, close=close)
    eos, opens = tokenizer.eos_token_id, {tokenizer.bos_token_id, tokenizer.cls_token_id}
    for (prompt, response), (start, answer), (start0, answer0) in zip(
        pairs, made, free, strict=True
    ):
        assert len(start) <= longest[1] and len(start) + len(answer) <= longest[0]
        if len(start0) <= longest[1]:
            assert start == start0
        else:
            kept = start0[:1] if start0[0] in opens else []
            assert start == kept + start0[len(start0) - longest[1] + len(kept) :]
        if len(answer0) <= longest[0] - len(start):
            assert answer == answer0
        if close and eos is not None:
            assert answer[-1] == eos and answer[-2:] != [eos, eos]
        encoded = tokenizer(prompt.content + response, return_offsets_mapping=True)
        border = len(prompt.content)
        if not close and not any(a < border < b for a, b in encoded["offset_mapping"]):
            whole = encoded["input_ids"]
            if response.endswith("<eos>") and whole[-2:] == [eos, eos]:
                whole = whole[:-1]  # the tokenizer closes what is closed already
            assert start0 + answer0 == whole


# ------------------------------------------------------------------------ truncation


def test_the_prompt_loses_its_beginning_and_keeps_its_opening():
    limits = Limits(max_length=8, max_prompt_length=3)
    assert tokens(letters(), "abcdef", "!", limits) == ("d e f", "! <eos>")
    assert tokens(letters("<bos> $A"), "abcdef", "!", limits) == ("<bos> e f", "! <eos>")
    assert tokens(letters("<bos> $A <eos>"), "ab", "!", limits) == ("<bos> a b", "! <eos>")
    assert tokens(bert(), "un world hello", " .", limits) == ("[CLS] world hello", ". [SEP]")
    limits = Limits(max_length=3, max_prompt_length=1)
    assert tokens(letters("<bos> $A"), "abc", "!", limits) == ("<bos>", "! <eos>")
    assert tokens(letters(), "abc", "!", limits) == ("c", "! <eos>")


def test_the_response_loses_its_end_and_keeps_its_end_token():
    limits = Limits(max_length=5, max_prompt_length=3)
    assert tokens(letters(), "ab", "wxyz", limits) == ("a b", "w x <eos>")
    assert tokens(letters(), "abcd", "wxyz", limits) == ("b c d", "w <eos>")
    assert tokens(letters(), "ab", "wx", limits) == ("a b", "w x <eos>")
    assert tokens(letters(), "ab", "wxyz", limits, close=False) == ("a b", "w x y")
    assert tokens(letters("$A <eos>"), "ab", "wxyz", limits, close=False) == ("a b", "w x <eos>")
    assert tokens(bert(), "hello", " world world . .", limits) == (
        "[CLS] hello",
        "world world [SEP]",
    )


@pytest.mark.parametrize("limits", [(8, 8), (8, 9), (8, 0), (8, -1), (0, 0)])
def test_limits_that_leave_no_room_are_refused(limits):
    with pytest.raises(ValueError, match=r"max_(prompt_)?length=.* must be"):
        Limits(*limits)


@pytest.mark.parametrize(
    ("limits", "length", "expected"),
    [
        (Limits(512, 256), 512, Limits(512, 256)),
        (Limits(512, 128), 100, Limits(100, 25)),
        (Limits(512, 511), 100, Limits(100, 99)),
        (Limits(512, 1), 2, Limits(2, 1)),
        (Window.of(100), 8, Window(8, 2)),
    ],
)
def test_scaled_limits_share_a_text_out_alike(limits, length, expected):
    assert limits.scaled(length) == expected
    with pytest.raises(ValueError, match="max_length=1 must be 2 or more"):
        limits.scaled(1)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("wx", ("c d e f g h", "w x")),  # the prompt takes what the response leaves
        ("wxyzwx", ("g h", "w x y z w x")),
        ("wxyzwxyz", ("g h", "w x y z w x")),  # but keeps a quarter
    ],
)
def test_in_a_window_the_response_comes_first(response, expected):
    window = Window.of(8)
    assert tokens(letters(), "abcdefgh", response, window, close=False) == expected


# ------------------------------------------------------------------------ texts to score


def test_responses_become_the_tokens_that_a_reward_model_is_trained_on():
    tokenizer = letters("<bos> $A")
    limits = Limits(max_length=24, max_prompt_length=16)
    metadata = [{"messages": CHAT}, {"id": 1}]
    found = encode_responses(tokenizer, ["not read", "ab"], ["Yo", "cd"], metadata, limits)
    pairs = encode(tokenizer, [(Prompt(CHAT), ANSWER), (Prompt("ab"), "cd")], limits, close=False)
    assert found == [start + answer for start, answer in pairs]
    assert tokenizer.decode(found[0]) == "<bos>]Hi<eos>[assistant]Yo<eos>"
    assert tokenizer.decode(found[1]) == "<bos>abcd"


def test_a_whole_text_is_what_the_tokenizer_makes_of_it():
    tokenizer = letters("<bos> $A <eos>")
    texts = ["ab", [*CHAT, *ANSWER]]
    found = [tokenizer.decode(ids) for ids in encode_texts(tokenizer, texts, 100)]
    assert found == ["<bos>ab<eos>", "<bos>[user]Hi<eos>[assistant]Yo<eos>"]
    assert tokenizer.decode(encode_texts(tokenizer, ["abcdef"], 4)[0]) == "<bos>ef<eos>"
    assert encode_texts(bert(), [""], 4) == [[2, 3]]  # [CLS] and [SEP] can be scored
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        encode_responses(letters(), ["a", ""], ["b", ""], None, LONG)


# ------------------------------------------------------------------------ conversations


CHAT = [{"role": "user", "content": "Hi"}]
ANSWER = [{"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<bos> $A <eos>"])
@pytest.mark.parametrize("close", [True, False])
def test_a_chat_template_gets_no_more_special_tokens(single, close):
    assert texts(letters(single), CHAT, ANSWER, close=close) == (
        "<bos>[user]Hi<eos>[assistant]",
        "Yo<eos>",
    )


@pytest.mark.parametrize("single", ["$A", "<bos> $A <eos>"])
def test_what_a_template_writes_after_the_end_token_is_dropped_only_where_it_is_closed(single):
    tokenizer = letters(single, NEWLINES)
    assert texts(tokenizer, CHAT, ANSWER) == ("user:Hi<eos>\nassistant:", "Yo<eos>")
    assert texts(tokenizer, CHAT, ANSWER, close=False) == ("user:Hi<eos>\nassistant:", "Yo<eos>\n")


def test_a_response_may_have_several_messages():
    turns = [*ANSWER, {"role": "user", "content": "What?"}, {"role": "assistant", "content": "Oh"}]
    assert texts(letters("$A", NEWLINES), CHAT, turns) == (
        "user:Hi<eos>\nassistant:",
        "Yo<eos>\nuser:What?<eos>\nassistant:Oh<eos>",
    )


def test_a_conversation_without_a_prompt_is_all_response():
    start, answer = texts(letters("<bos> $A"), [], [*CHAT, *ANSWER])
    assert (start, answer) == ("", "<bos>[user]Hi<eos>[assistant]Yo<eos>")


def test_a_conversation_is_cut_as_text_is():
    limits = Limits(max_length=8, max_prompt_length=5)
    assert tokens(letters(), CHAT, [{"role": "assistant", "content": "wxyz"}], limits) == (
        "<bos> a n t ]",
        "w x <eos>",
    )


def test_a_template_that_writes_an_answer_differently_is_refused():
    tokenizer = letters("$A", "{{ messages | length }}{{ messages[-1]['content'] }}")
    with pytest.raises(ValueError, match="chat template"):
        tokens(tokenizer, CHAT, ANSWER)


def test_a_conversation_needs_a_template():
    with pytest.raises(ValueError, match="no chat template"):
        tokens(merging(), CHAT, ANSWER)


def test_texts_and_conversations_mix_and_keep_their_order():
    tokenizer = letters("<bos> $A")
    mixed = [(Prompt("z"), "y"), (Prompt(CHAT), ANSWER), (Prompt("a"), "b"), (Prompt("z"), "y")]
    alone = [encode(tokenizer, [one], LONG)[0] for one in mixed]
    assert encode(tokenizer, mixed, LONG) == alone
    assert encode(tokenizer, [], LONG) == []
    assert alone[0] == alone[3] != alone[2]
