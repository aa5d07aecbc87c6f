"""Where an implicit prompt ends, once it is known what the tokens are."""

import pytest
import tokenizer_helpers
from transformers import PreTrainedTokenizerFast

from datamodules.preferences.borders import to_the_token
from datamodules.preferences.dataset import PreferenceDataset
from datamodules.preferences.rows import as_pair

KINDS = [tokenizer_helpers.byte_level, tokenizer_helpers.sentencepiece, tokenizer_helpers.metaspace]
TEXTS = [
    ("the cat sat on the mat", "the cat sat on the map"),
    ("unhappy happiness", "unhappily"),
    ("the dog: played", "the dog: playing"),
    ("hello world", "hello world, hello!"),
    ("12 123 345", "12 123 3 4"),
    ("naïve ü", "naïve ö"),
    ("a\nb\n\ncat", "a\nb\n\ndog"),
    ("Q: the sky? A: un", "Q: the sky? A: the"),
]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("chosen", "rejected"), TEXTS)
def test_both_texts_keep_their_own_tokens(make, chosen, rejected):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="</s>")
    given = as_pair({"chosen": chosen, "rejected": rejected})
    pair = to_the_token(tokenizer, given)
    prompt = pair.prompt.content
    assert (prompt + pair.chosen, prompt + pair.rejected) == (chosen, rejected)
    assert given.prompt.content.startswith(prompt) and pair.chosen and pair.rejected
    if "ü" in chosen or "\n" in chosen:  # unknown to one; and line ends go with what follows them
        return
    (example,) = PreferenceDataset(None, [chosen], [rejected], tokenizer, close=False).examples
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    assert [s.tolist() for s in example.sequences] == [ids(chosen), ids(rejected)]
    assert example.prompt_length == (len(ids(prompt)) if prompt else 0)


def test_a_prompt_that_was_given_and_a_conversation_stay_as_they_are():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_helpers.byte_level())
    for row in (
        {"prompt": "the ca", "chosen": "t", "rejected": "p"},
        {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
         "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]},
    ):  # fmt: skip
        pair = as_pair(row)
        assert to_the_token(tokenizer, pair) is pair


def test_words_are_not_torn_and_the_space_is_the_responses():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_helpers.byte_level())
    for chosen, rejected, prompt in [
        ("the dog: played", "the dog: play", "the dog:"),
        ("the cat sat", "the car", "the"),
        ("cat", "car", ""),
    ]:
        assert "Ġcat" in tokenizer.tokenize(" cat") and "Ġplay" not in tokenizer.tokenize(" played")
        pair = to_the_token(tokenizer, as_pair({"chosen": chosen, "rejected": rejected}))
        assert pair.prompt.content == prompt
