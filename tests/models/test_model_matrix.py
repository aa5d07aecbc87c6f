"""A part of the model matrix, and its table. The whole: ``benchmarks/model_matrix.py``."""

import re
import warnings

import pytest
import transformers
from architectures import NOT_BUILT
from matrix_helpers import COLUMNS, check_row, names

from benchmarks.model_matrix import TABLE, table

RIGHT = ("gemma2", "falcon:alibi", "qwen2_moe:window", "llama:longrope", "qwen3_5:tied", "jamba",
         "rwkv", "opt:post-norm", "inkling_text", "deepseek_v3:wide-values")  # fmt: skip
"""Of different kinds: caps, windows, alibi, experts, linear attention, recurrence, other widths,
values that are larger than keys."""


@pytest.fixture
def row(tmp_path):
    def compute(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check_row(name, tmp_path)

    return compute


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_in_every_column(row, name):
    cells = row(name)
    assert tuple(cells) == COLUMNS
    assert all(cell.startswith("right") for cell in cells.values()), cells


def test_an_encoder_is_right_as_a_reward_model(row):
    assert row("roberta (encoder)") == {"reward": "right"}


def test_a_model_whose_logits_are_computed_otherwise_is_refused(row):
    cells = row("bert")
    assert all(cells[column].startswith("refused: ") for column in ("sample", "ppo", "dpo")), cells


def test_the_table_counts_and_numbers_its_reasons():
    rows = {
        "a": dict.fromkeys(COLUMNS, "right") | {"pack": "right: packed"},
        "b": dict.fromkeys(COLUMNS, "refused: no | head"),
        "c": dict.fromkeys(COLUMNS, "right") | {"ppo": "WRONG: off by 1"},
        "d (encoder)": {"reward": "right"},
    }
    text = table(rows, {"e": "it cannot be built"})
    assert "4 rows: 2 right in every column, 0 refused in\nsome, 1 refused in all, 1 wrong" in text
    assert "Cells: 18 right, 9 refused, 1 wrong" in text
    assert f"| b |{' refused [1] |' * len(COLUMNS)}" in text
    assert "| a | right | right | packed |" in text
    assert "1. no / head\n2. off by 1\n" in text
    assert "- e: it cannot be built" in text


def test_the_written_table_is_of_all_models_and_has_nothing_wrong():
    text = TABLE.read_text()
    rows = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    assert set(names()) <= set(rows), "run benchmarks/model_matrix.py"
    assert all(f"- {kind}: " in text for kind in NOT_BUILT)
    assert f"with transformers {transformers.__version__}, torch" in text
    assert "WRONG" not in text and ", 0 wrong.**" in text
