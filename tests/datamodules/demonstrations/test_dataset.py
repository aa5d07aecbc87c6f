"""DemonstrationDataset: which tokens are learned, what is cut, what is refused."""

import pytest
import torch
from template_helpers import says, tokenizer_of, user
from tokenizer_helpers import trained

from datamodules.demonstrations.dataset import DemonstrationDataset, DemonstrationRows, Learned
from datamodules.demonstrations.rows import as_demonstration
from datamodules.preferences.dataset import PreferenceRows
from datamodules.preferences.rows import as_pair
from datamodules.text.encoding import Limits
from datamodules.unpaired.dataset import UnpairedRows
from datamodules.unpaired.rows import as_labelled
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER, PLAIN = tiny_tokenizer(), tiny_tokenizer()
PLAIN.chat_template = None
TALK = [user("Wet?"), says("No."), user("Now?"), says("Yes.")]
PROMPT = "<|im_start|>user\nWet?<|im_end|>\n<|im_start|>assistant\n"


def dataset(completions, max_length=400, tokenizer=TOKENIZER, **options):
    return DemonstrationDataset(completions, tokenizer, max_length, **options)


def split(example, tokenizer=TOKENIZER):
    """The text, and what is learned of it."""
    (ids,) = example.sequences
    return tokenizer.decode(ids), tokenizer.decode(ids[example.learned])


@pytest.mark.parametrize("asked", [None, True])
def test_a_completion_is_learned_with_its_end(asked):
    made = dataset([" No."], prompts=["Wet?"], completion_only_loss=asked)
    assert split(made[0]) == ("Wet? No.<eos>", " No.<eos>")
    assert made[0].prompt_length == 4 and made.totals([0]) == {"num_examples": 1, "num_tokens": 5}


def test_prompts_are_learned_too_where_that_is_asked_for():
    """All but a text's first token, which nothing predicts."""
    made = dataset([" No."], prompts=["Wet?"], completion_only_loss=False)
    assert split(made[0]) == ("Wet? No.<eos>", "et? No.<eos>")


def test_texts_are_learned_whole():
    made = dataset(["It rains.", "It rains.<eos>"])
    assert [split(example) for example in made] == [("It rains.<eos>", "t rains.<eos>")] * 2


def test_conversations_are_learned_whole_or_by_turns():
    tokenizer = tokenizer_of("chatml")
    (text, said), = [split(e, tokenizer) for e in dataset([TALK], tokenizer=tokenizer)]  # fmt: skip
    assert (
        text[len(text) - len(said) :] == said and len(tokenizer(text[: -len(said)]).input_ids) == 1
    )
    made = dataset([TALK], tokenizer=tokenizer, assistant_only_loss=True)
    assert split(made[0], tokenizer) == (text, "No.<|im_end|>Yes.<|im_end|>")


@pytest.mark.parametrize(
    ("completion_only", "said"),
    [(None, "Yes.<|im_end|>"), (True, "Yes.<|im_end|>"), (False, "No.<|im_end|>Yes.<|im_end|>")],
)
def test_of_a_completion_its_assistants_turns(completion_only, said):
    """TRL: a token counts that both masks let through."""
    tokenizer = tokenizer_of("chatml")
    made = dataset(
        [TALK[3:]], tokenizer=tokenizer, prompts=[TALK[:3]],
        completion_only_loss=completion_only, assistant_only_loss=True,
    )  # fmt: skip
    assert split(made[0], tokenizer)[1] == said


def test_a_text_is_cut_on_the_right_and_does_not_end_there():
    made = dataset([" No, it is dry."], prompts=["Wet?"], max_length=8)
    assert split(made[0]) == ("Wet? No,", " No,")
    assert made[0].cut_responses == (len(" it is dry.") + 1,)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"completions": [" No."], "prompts": ["Wet?"], "max_length": 4},
         "row 1: nothing is left to learn once the text of 9 tokens is cut to max_length=4"),
        ({"completions": ["<eos>"], "prompts": ["Wet?"]}, "row 1: nothing is left to learn"),
        ({"completions": ["It rains."], "completion_only_loss": True},
         "row 1: algo.completion_only_loss=true, and the row has no prompt"),
        ({"completions": ["It rains."], "assistant_only_loss": True},
         "row 1: algo.assistant_only_loss=true, and the row is no conversation"),
        ({"completions": [TALK], "tokenizer": PLAIN}, "has no chat template"),
        ({"completions": ["a", "b"], "prompts": ["c"]}, "prompts has 1 rows, completions has 2"),
        ({"completions": []}, "there are no rows to learn from"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        dataset(**options)


def test_rows_are_skipped_where_that_is_asked_for():
    with pytest.warns(UserWarning, match="1 of 2 rows cannot be learned from"):
        made = dataset([" No.", " "], prompts=["Wet?", "Dry?"], on_error="skip")
    assert len(made) == 1 and len(made.problems) == 1


def test_a_digest_changes_with_what_is_learned():
    first, second = (
        dataset([" No."], prompts=["Wet?"], completion_only_loss=only) for only in (True, False)
    )
    assert first.digest() != second.digest()


@pytest.mark.parametrize("kind", ["sft", "kto"])
def test_of_a_pair_without_a_prompt_no_word_is_torn(kind):
    """Both sides begin alike up to within a word; as for preferences, its tokens stay whole."""
    tokenizer = trained("byte level", "$A")
    row = {"chosen": "the cat unhappy", "rejected": "the cat unknown"}
    limits = Limits(64, 32)
    if kind == "sft":
        items = [("row", as_demonstration(row))]
        made = DemonstrationRows(items, tokenizer, limits, learned=Learned(), on_error="raise")
    else:
        items = [("row", item) for item in as_labelled(row)]
        made = UnpairedRows(items, tokenizer, limits, on_error="raise")
    pairs = PreferenceRows([("row", as_pair(row))], tokenizer, limits, close=True, on_error="raise")
    for example, sequence in zip(made, pairs[0].sequences, strict=False):
        assert torch.equal(example.sequences[0], sequence)
        assert example.prompt_length == pairs[0].prompt_length
    assert tokenizer.decode(made[0].sequences[0][: made[0].prompt_length]) == "the cat"
