"""Sums of what is alive, and the largest batch that fits, against numbers worked out by hand."""

import pytest

from rlmodules.memory.moments import Moment, largest_that_fits, peak_of


def test_the_peak_is_the_largest_moment_and_not_the_sum_of_all():
    moments = [
        Moment("loading", {"process": 5, "weights": 10, "file": 8}),
        Moment("update", {"process": 5, "weights": 10, "activations": 9}),
        Moment("optimizer step", {"process": 5, "weights": 10}),
    ]
    assert [m.total for m in moments] == [23, 24, 15]
    assert peak_of(moments).name == "update"


@pytest.mark.parametrize(
    ("room", "unit", "expected"),
    [(100, 1, 9), (19, 1, 0), (20, 1, 1), (29, 1, 1), (109, 1, 9), (100, 4, 8), (49, 4, 0)],
)
@pytest.mark.parametrize("now", [1, 4, 64])
def test_the_largest_batch_is_found_in_proportion(room, unit, expected, now):
    """10 bytes a row, 10 besides: 100 hold 9 rows."""
    found = largest_that_fits(lambda n: 10 + 10 * n, room, now=now, unit=unit, most=1000)
    assert found == expected


def test_the_largest_batch_is_found_where_memory_jumps():
    """Beyond 6 rows probabilities are no longer kept, so that 9 rows take less than 6."""

    def bytes_of(rows):
        return 10 * rows + (30 if rows <= 6 else 0)

    found = largest_that_fits(bytes_of, 95, now=2, unit=1, most=1000)
    assert bytes_of(found) <= 95 and found in (6, 9)


def test_a_batch_is_no_larger_than_there_are_examples():
    assert largest_that_fits(lambda n: 1, 10, now=4, unit=2, most=39) == 38


def test_few_batches_are_tried():
    tried = []

    def bytes_of(rows):
        tried.append(rows)
        return 1000 + 37 * rows

    assert largest_that_fits(bytes_of, 100_000, now=16, unit=1, most=65536) == 2675
    assert len(tried) < 8
