"""``benchmarks/compare_trl.py --learn``: what is compared, and what the table says of it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from compare_learning import course, first_reached, table
from learning_inputs import in_passes, problems, split_pairs
from learning_task import Course, is_right, reward


def row(side, round, rights, seconds, peak_gib=1.0):
    looks = [
        {"step": 2 * i, "seconds": s, "right": right}
        for i, (right, s) in enumerate(zip(rights, seconds, strict=True))
    ]
    kept = {"version": "1", "judged": 100, "other_cores": 0.0, "notes": [f"{side}'s note"]}
    return kept | {"side": side, "round": round, "looks": looks, "peak_gib": peak_gib}


ROWS = [
    row("trl", 0, [20, 30, 60], [0.0, 50.0, 100.0], peak_gib=4.0),
    row("ours", 0, [20, 70, 62], [0.0, 20.0, 40.0], peak_gib=2.0),
    row("trl", 1, [20, 40, 70], [0.0, 60.0, 120.0], peak_gib=4.0),
    row("ours", 1, [20, 50, 74], [0.0, 30.0, 60.0], peak_gib=2.0),
]


def test_looking_is_no_part_of_the_seconds():
    times = iter([0.0, 100.0, 110.0, 113.0, 120.0, 124.0, 124.0, 130.0])
    spent = Course(lambda: next(times))
    spent.pause()  # before training: no part of it
    spent.resume(0, 20)
    spent.start()  # at 100
    spent.pause()  # 110 to 113
    spent.resume(1, 30)
    spent.pause()  # 120 to 124
    spent.resume(2, 40)
    spent.pause()  # again after the same step: 124 to 130
    spent.resume(2, 41)
    assert [look["seconds"] for look in spent.looks] == [0.0, 10.0, 17.0]
    assert [look["right"] for look in spent.looks] == [20, 30, 40]


def test_the_table_says_when_ours_was_where_trl_ended():
    trl, ours = (course([r for r in ROWS if r["side"] == side]) for side in ("trl", "ours"))
    assert trl[-1] == (4, 110.0, pytest.approx(0.65))
    assert ours[1] == (2, 25.0, pytest.approx(0.60))
    assert first_reached(ours, trl[-1][2]) == (4, 50.0, pytest.approx(0.68))
    assert first_reached(trl[:2], 0.65) is None
    text = table(ROWS, "problems")
    assert "after 50.0 s, 0.45 of TRL's 110.0 s (step 4)**" in text
    # 0.02 and 0.04: mean 0.03, deviation 0.01414, t(1) = 12.706: half of the interval 0.127
    assert "ours less TRL's, by seed: 0.030 (-0.097 to 0.157)" in text
    assert "seconds for all steps, ours / TRL: 0.45 (0.40-0.50); peak memory: 0.50" in text
    assert "0.600 (0.502-0.691)" in text  # Wilson, of 60 in 100
    assert "trl's note" in text and "ours's note" in text


def test_one_side_alone_and_one_seed_have_a_table_too():
    assert "Wilson" in table([ROWS[0]], "pairs") and "ours" not in table([ROWS[0]], "pairs")
    assert "no interval" in table(ROWS[:2], "pairs")


@pytest.mark.parametrize(
    ("response", "right", "paid"),
    [
        (" 12\n", True, 1.1),
        (" 12", True, 1.1),
        (" 3 + 9 = 12", True, 1.0),
        (" 13\n12", False, 0.1),
        (" twelve", False, 0.0),
        ("", False, 0.0),
        (" 12 or 13", False, 0.0),
    ],
)
def test_only_the_last_number_of_the_first_line_is_an_answer(response, right, paid):
    assert is_right(response, "12") is right
    assert reward(response, "12") == pytest.approx(paid)


def test_nothing_is_both_held_out_and_trained_on():
    train, held_out = problems()
    assert len(held_out) == 200
    numbers = lambda row: frozenset(row["prompt"].split())  # noqa: E731  # sums in either order
    assert not set(map(numbers, train)) & set(map(numbers, held_out))
    pairs = [
        {"prompt": row["prompt"], "chosen": " 1", "rejected": " 2"}
        for row in (*train[:3], *held_out[:2])
    ]
    assert split_pairs(pairs) == (pairs[:3], pairs[3:])


def test_questions_are_asked_in_whole_passes_that_the_seed_orders():
    rows = [{"prompt": str(i), "answer": str(i)} for i in range(5)]
    asked = in_passes(rows, 12, seed=0)
    for first in (0, 5):
        assert {row["prompt"] for row in asked[first : first + 5]} == set("01234")
    assert asked == in_passes(rows, 12, seed=0) != in_passes(rows, 12, seed=1)
    assert asked[:5] != asked[5:10]
