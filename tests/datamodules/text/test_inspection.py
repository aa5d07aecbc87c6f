"""What is seen of texts before they are trained on."""

import pytest

from datamodules.text.inspection import Part, cut_at, quantiles, spread


def test_quantiles_are_lengths_that_there_are():
    assert quantiles(list(range(1, 102))) == [1, 51, 91, 100, 101]
    assert quantiles([7]) == [7] * 5


@pytest.mark.parametrize(
    ("whole", "kept", "left", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], True, [("prompt", [1, 2, 3])]),
        ([9, 1, 2, 3], [9, 3], True, [("prompt", [9]), ("cut", [1, 2]), ("prompt", [3])]),
        ([1, 2, 3], [3], True, [("cut", [1, 2]), ("prompt", [3])]),
        ([1, 2, 3, 8], [1, 8], False, [("prompt", [1]), ("cut", [2, 3]), ("prompt", [8])]),
        ([1, 2, 3], [1, 2], False, [("prompt", [1, 2]), ("cut", [3])]),
        ([], [], False, []),
    ],
)
def test_what_was_cut_off_is_where_it_stood(whole, kept, left, expected):
    found = cut_at(whole, kept, left=left, kind="prompt")
    assert found == [Part(kind, ids) for kind, ids in expected]
    assert [i for part in found if part.kind != "cut" for i in part.ids] == kept


def test_rows_are_taken_from_all_over_the_set():
    assert spread(10, 3) == [0, 3, 6] and spread(2, 5) == [0, 1] and spread(5, 0) == []
