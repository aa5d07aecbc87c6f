"""PreferenceDataset and PreferenceRows: what is learned from, what is refused, what is cached."""

import math
import re
import warnings

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from datamodules.preferences.dataset import PreferenceBatch, PreferenceDataset, PreferenceRows
from datamodules.preferences.rows import as_pair, as_scored
from datamodules.text.encoding import Limits
from rlmodules.models.embedded import tiny_tokenizer

USER, YES, NO = (
    {"role": role, "content": content}
    for role, content in [("user", "Hi"), ("assistant", "Yes"), ("assistant", "No")]
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts(tokenizer, dataset) -> list:
    """(prompt, chosen, rejected, ...) of each example."""
    return [
        (
            tokenizer.decode(e.sequences[0][: e.prompt_length]),
            *(tokenizer.decode(s[e.prompt_length :]) for s in e.sequences),
        )
        for e in dataset.examples
    ]


def skipping(prompts, chosen, rejected, tokenizer, *args, **options):
    """The dataset and its one problem."""
    with pytest.warns(UserWarning) as caught:
        made = PreferenceDataset(
            prompts, chosen, rejected, tokenizer, *args, on_error="skip", **options
        )
    (problem,) = made.problems
    assert any(problem in str(warning.message) for warning in caught)
    return made, problem


# ------------------------------------------------------------------------ examples


def test_pairs_are_tokenized_and_closed(tokenizer):
    made = PreferenceDataset(["Hi", "a"], [" yes", "b"], [" no", "cd"], tokenizer)
    assert texts(tokenizer, made) == [("Hi", " yes<eos>", " no<eos>"), ("a", "b<eos>", "cd<eos>")]
    assert len(made) == 2 and made.problems == []
    assert made[1].sequences[1].tolist() == [*tokenizer("acd")["input_ids"], 2]
    assert made[0].sequences[0].dtype == torch.int64
    assert [made.num_tokens(i) for i in range(2)] == [7 + 6, 3 + 4]
    left = PreferenceDataset(["Hi"], [" yes"], [" no"], tokenizer, close=False)
    assert texts(tokenizer, left) == [("Hi", " yes", " no")]


def test_prompts_may_be_implicit(tokenizer):
    made = PreferenceDataset(
        None,
        ["It is so.", [USER, YES]],
        ["It is not.", [USER, NO]],
        tokenizer,
    )
    assert texts(tokenizer, made) == [
        ("It is", " so.<eos>", " not.<eos>"),
        ("<bos>[user]Hi<eos>[assistant]", "Yes<eos>", "No<eos>"),
    ]


def test_prompts_and_responses_may_be_messages(tokenizer):
    made = PreferenceDataset([[USER], "Hi"], [[YES], [YES]], [[NO], [NO]], tokenizer)
    assert texts(tokenizer, made) == [("<bos>[user]Hi<eos>[assistant]", "Yes<eos>", "No<eos>")] * 2


def test_margins_default_to_zero(tokenizer):
    columns = ["p"] * 4, ["c"] * 4, ["r"] * 4
    margins = [0.5, None, -2, float("nan")]
    made = PreferenceDataset(*columns, tokenizer, margins=margins)
    assert [example.margin for example in made.examples] == [0.5, 0.0, -2.0, 0.0]
    batch = PreferenceBatch(made.examples, torch.arange(4), {}, "train")
    assert batch.margins.tolist() == [0.5, 0.0, -2.0, 0.0] and len(batch) == 4
    assert batch.prompt_lengths == [1] * 4
    assert PreferenceDataset(*columns, tokenizer)[0].margin == 0.0


def test_totals_count_what_losses_divide_by(tokenizer):
    made = PreferenceDataset(["Hi", ""], [" yes", "b"], [" no", "cd"], tokenizer)
    # " yes<eos>" are 5 tokens after a prompt; of "b<eos>" the first has nothing before it.
    totals = made.totals([0, 1])
    assert (totals["num_examples"], totals["num_response_tokens"]) == (2.0, 5.0 + 1.0)
    assert totals["num_text_tokens"] == 6.0 + 1.0


def test_scored_responses_hold_nan_where_a_score_is_missing(tokenizer):
    rows = [
        {"prompt": "p", "response": "r", "a": 0.25, "b": None},
        {"prompt": "p", "response": "longer", "a": float("nan"), "b": 1},
    ]
    scored = [(f"row {i}", as_scored(row, ["a", "b"])) for i, row in enumerate(rows)]
    made = PreferenceRows(scored, tokenizer, Limits(9, 4), close=False, on_error="raise")
    assert texts(tokenizer, made) == [("p", "r"), ("p", "longer")]
    assert made[0].targets[0] == 0.25 and math.isnan(made[0].targets[1])
    assert math.isnan(made[1].targets[0]) and made[1].targets[1] == 1
    batch = PreferenceBatch(made.examples, torch.arange(2), {}, "train")
    assert batch.targets.isnan().tolist() == [[False, True], [True, False]]


def test_a_subset_and_the_digest_follow_the_examples(tokenizer):
    made = PreferenceDataset(["a", "b"], ["x", "y"], ["z", "z"], tokenizer)
    part = made.subset([1])
    assert texts(tokenizer, part) == [("b", "y<eos>", "z<eos>")]
    assert made.digest() == made.subset([0, 1]).digest() != part.digest()


# ------------------------------------------------------------------------ mistakes


GOOD = ("p", "c", "r")
BAD = {
    "equal": ("p", "same", "same"),
    "empty": ("p", "c", " "),
    "no chosen": ("p", None, "r"),
    "no rejected": ("p", "c", None),
    "no prompt": (None, "c", "r"),
    "prompt of no kind": (5, "c", "r"),
    "no messages": ("p", [{"role": "assistant"}], [YES]),
    "mixed": ("p", "c", [YES]),
    "answer is the user's": ([USER], [{"role": "user", "content": "x"}], [NO]),
    "half a character": ("p", "cut off: \ud83d", "r"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_pair_is_refused_or_skipped_by_its_place(name, tokenizer):
    columns = list(zip(GOOD, BAD[name], GOOD, strict=True))
    with pytest.raises(ValueError, match="pair 2"):
        PreferenceDataset(*columns, tokenizer)
    made, problem = skipping(*columns, tokenizer)
    assert problem.startswith("pair 2")
    assert texts(tokenizer, made) == [("p", "c<eos>", "r<eos>")] * 2


def test_a_conversation_that_the_template_refuses_is_skipped_by_its_place():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        + tokenizer.chat_template
    )
    prompts = [[USER], [{"role": "tool", "content": "Be brief."}, USER]]
    with pytest.raises(ValueError, match=r"pair 2.*no tools"):
        PreferenceDataset(prompts, [[YES]] * 2, [[NO]] * 2, tokenizer)
    made, problem = skipping(prompts, [[YES]] * 2, [[NO]] * 2, tokenizer)
    assert problem.startswith("pair 2") and "no tools" in problem and len(made) == 1


def test_sides_that_truncation_makes_equal_are_told_so(tokenizer):
    columns = ["p", "p"], ["abcd", "x"], ["abce", "y"]
    with pytest.raises(ValueError, match=r"pair 1.*equal.*max_length=4"):
        PreferenceDataset(*columns, tokenizer, 4, 2)
    made, _ = skipping(*columns, tokenizer, 4, 2)
    assert texts(tokenizer, made) == [("p", "x<eos>", "y<eos>")]
    assert len(PreferenceDataset(*columns, tokenizer, 6, 2)) == 2


def test_sides_that_are_equal_as_tokens_are_not_blamed_on_truncation(tokenizer):
    with pytest.raises(ValueError, match=r"pair 1.*equal") as caught:
        PreferenceDataset(["p"], ["same"], ["same<eos>"], tokenizer, 512, 256)
    assert "max_length" not in str(caught.value)


@pytest.mark.parametrize("close", [True, False])
def test_a_response_of_an_end_token_only_is_empty(tokenizer, close):
    with pytest.raises(ValueError, match=r"pair 1.*chosen.*empty"):
        PreferenceDataset(["p"], ["<eos>"], ["abc"], tokenizer, close=close)


def test_a_response_that_truncation_empties_is_told_so(tokenizer):
    columns = ["p", "long"], ["x", "ab"], ["y", "cd"]  # "ong" and one more token
    with pytest.raises(ValueError, match=r"pair 2.*empty.*max_length=4"):
        PreferenceDataset(*columns, tokenizer, 4, 3)
    made, _ = skipping(*columns, tokenizer, 4, 3)
    assert texts(tokenizer, made) == [("p", "x<eos>", "y<eos>")]
    made = PreferenceDataset(*columns, tokenizer, 4, 3, close=False)
    assert texts(tokenizer, made) == [("p", "x", "y"), ("ong", "a", "c")]


def test_an_opening_token_does_not_make_a_response_of_an_empty_one():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    scored = [("row 1", as_scored({"prompt": "", "response": "abc", "h": 1}, ["h"]))]
    with pytest.raises(ValueError, match=r"row 1.*empty"):  # "<bos> <eos>" is left
        PreferenceRows(scored, tokenizer, Limits(2, 1), close=True, on_error="skip")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_nothing_to_learn_from_is_always_an_error(tokenizer, on_error):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"pair 1[^0-9](.|\n)*pair 2"):
        warnings.simplefilter("error")
        PreferenceDataset(["p", "q"], ["c", ""], ["c", "r"], tokenizer, on_error=on_error)
    for prompts in ([], None):
        with pytest.raises(ValueError, match="no rows"):
            PreferenceDataset(prompts, [], [], tokenizer, on_error=on_error)
    with pytest.raises(ValueError, match="no rows"):
        PreferenceRows([], tokenizer, Limits(), close=True, on_error=on_error)


def test_lists_of_different_lengths_are_refused_by_name(tokenizer):
    for name, columns in [
        ("prompts", (["p"], ["c", "c"], ["r", "r"])),
        ("rejected", (["p", "p"], ["c", "c"], ["r"])),
        ("rejected", (None, ["c"], [])),
    ]:
        with pytest.raises(ValueError, match=name):
            PreferenceDataset(*columns, tokenizer, on_error="skip")
    with pytest.raises(ValueError, match="margins"):
        PreferenceDataset(["p"], ["c"], ["r"], tokenizer, margins=[])


def test_limits_and_on_error_are_checked(tokenizer):
    with pytest.raises(ValueError, match="max_prompt_length"):
        PreferenceDataset(["p"], ["c"], ["r"], tokenizer, 8, 8)
    with pytest.raises(ValueError, match="on_error"):
        PreferenceDataset(["p"], ["c"], ["r"], tokenizer, on_error="ignore")


def test_a_bad_margin_is_a_problem_of_its_pair(tokenizer):
    _, problem = skipping(["p"] * 2, ["c"] * 2, ["r"] * 2, tokenizer, margins=[1, "x"])
    assert re.match("pair 2.*margin", problem)


def test_places_and_problems_given_are_kept(tokenizer):
    rows = [("f, line 3", {"prompt": "p", "chosen": "ab", "rejected": "ac"}), ("f, line 5", None)]
    rows[1] = ("f, line 5", {"prompt": "p", "chosen": "x", "rejected": "y"})
    pairs = [(where, as_pair(row)) for where, row in rows]
    options = {"close": True, "problems": ["f, line 1: not JSON"]}
    with pytest.raises(ValueError, match=r"f, line 1: not JSON\n(.|\n)*f, line 3: .*equal"):
        PreferenceRows(pairs, tokenizer, Limits(3, 2), on_error="raise", **options)
    with pytest.warns(UserWarning, match="2 of 3"):
        made = PreferenceRows(pairs, tokenizer, Limits(3, 2), on_error="skip", **options)
    assert len(made) == 1 and len(made.problems) == 2
