"""Settings have short names that tell them apart."""

import pytest

from rlmodules.reports.names import label, short_names, short_value


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["algo.learning_rate", "seed"], ["lr", "seed"]),
        (["model.lora.r", "env.r", "algo.r"], ["lora.r", "env.r", "algo.r"]),
        (["algo.batch_size", "data.batch_size"], ["algo.batch_size", "data.batch_size"]),
        (["algo.learning_rate", "model.lr"], ["algo.lr", "model.lr"]),
        (["algo", "algo.algo"], ["algo", "algo.algo"]),
        ([], []),
    ],
)
def test_names_are_the_last_words_that_tell_options_apart(options, names):
    assert list(short_names(options).items()) == list(zip(options, names, strict=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-5, "3e-5"), (1e-4, "1e-4"), (0.05, "0.05"), (1e-6, "1e-6"), (-1e-6, "-1e-6"),
        (0.001, "1e-3"), (1.0, "1"), (2.5, "2.5"), (0.00012345, "1.2345e-4"), (1e10, "1e10"),
        (1 / 3, "0.3333333333333333"), (0.0, "0"), (float("nan"), "nan"), (float("inf"), "inf"),
        (7, "7"), (True, "true"), (None, "null"), ("tiny", "tiny"), ([1, "a"], "[1,a]"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_one_would_type_it(value, text):
    assert short_value(value) == text
    if isinstance(value, float) and value == value:
        assert float(text) == value


def test_a_long_value_is_cut_and_still_another_than_its_like():
    one, other = ["Say " * 40 + "this", 1], ["Say " * 40 + "that", 1]
    assert short_value(one) != short_value(other)
    assert len(short_value(one)) == 40 and short_value(one).startswith("[Say Say ")
    assert short_value("x" * 40) == "x" * 40


def test_a_setting_is_named_by_its_values():
    assert label({"algo.learning_rate": 3e-5, "model.name": "x"}) == "lr=3e-5,name=x"
    assert label({}) == ""
