"""Files and folders of every kind: compressed, of other names, of several parts."""

import gzip
import json
import re

import datasets
import pytest

from datamodules.text.tables import held_out_split, read_rows, require_dataset

ROWS = [{"prompt": "One", "n": 1}, {"prompt": "Zwölf", "n": 2}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def cache_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def write(tmp_path):
    def write(name: str, data: "str | bytes") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    return write


def rows_of(path, **options):
    return [row for _, row in read_rows(str(path), **options)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ndjson", LINES),
        ("A.NDJSON", LINES),
        ("a.jsonl", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.csv", "prompt,n\nOne,1\nZwölf,2\n"),
        ("a.tsv", "prompt\tn\nOne\t1\nZwölf\t2\n"),
        ("a.yaml", "- {prompt: One, n: 1}\n- {prompt: Zwölf, n: 2}\n"),
    ],
)
def test_files_are_read_by_their_suffix_compressed_or_not(write, name, text):
    assert rows_of(write(name, text)) == ROWS
    path = write(f"{name}.gz", gzip.compress(text.encode()))
    assert rows_of(path) == ROWS
    assert next(read_rows(path))[0].startswith(f"{path}, ")


def test_compressed_parquet_is_read(write, tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    path = write("b.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert rows_of(path) == ROWS


def test_a_broken_archive_is_named(write):
    whole = gzip.compress(LINES.encode())
    for data in (LINES.encode(), whole[: len(whole) // 2], whole[:12] + b"x" + whole[13:]):
        path = write("a.jsonl.gz", data)
        with pytest.raises(ValueError, match=re.escape(path) + ".*could not be unpacked"):
            rows_of(path)


@pytest.mark.parametrize("name", ["pairs", "pairs.foo", "pairs.jsonl.zst", "pairs.xlsx"])
def test_a_file_of_another_kind_is_told_what_is_read(write, name):
    path = write(name, LINES)
    with pytest.raises(ValueError, match=re.escape(path) + r".*\.jsonl, \.ndjson.*\.gz"):
        rows_of(path)


@pytest.mark.parametrize("path", ["/no/such/pairs", "./pairs", "~/no_such_folder", "a/b/pairs"])
def test_a_folder_that_is_missing_is_no_dataset_to_ask_the_hub_for(path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        rows_of(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.yaml"])
def test_text_that_is_no_utf8_is_named_by_line(write, name):
    start = {
        "a.jsonl": '{"a": 1}\n{"a": "',
        "a.json": '["b",\n"',
        "a.csv": "a\n",
        "a.yaml": "- b\n- ",
    }
    path = write(name, start[name].encode() + "é".encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(path) + r".*, line 2, is not UTF-8"):
        rows_of(path)


# ------------------------------------------------------------------------------ folders


def saved(splits, folder):
    sets = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    (sets.pop("all") if "all" in sets else datasets.DatasetDict(sets)).save_to_disk(folder)
    return str(folder)


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    whole = saved({"all": ROWS}, tmp_path / "whole")
    assert rows_of(whole) == ROWS
    assert next(read_rows(whole))[0] == f"{whole}, row 1"
    with pytest.raises(ValueError, match=r"data\.split='train'.*has the splits all"):
        rows_of(whole, split="train")
    with pytest.raises(ValueError, match=r"data\.name='main' has no use"):
        rows_of(whole, name="main")
    parts = saved({"train": ROWS, "test": ROWS[:1]}, tmp_path / "parts")
    assert rows_of(parts) == ROWS
    assert rows_of(parts, split="test") == ROWS[:1]
    with pytest.raises(ValueError, match=r"env\.split='dev'.*has the splits train, test"):
        rows_of(parts, split="dev", option="env.path")


def test_a_split_without_a_choice_is_read_and_said_and_several_are_to_choose_from(tmp_path):
    only = saved({"test": ROWS}, tmp_path / "only")
    with pytest.warns(UserWarning, match=r"env\.path=.*its only split, test, is read"):
        assert rows_of(only, option="env.path") == ROWS
    several = saved({"easy": ROWS, "hard": ROWS[:1]}, tmp_path / "several")
    with pytest.raises(ValueError, match=r"has the splits easy, hard: name one in data\.split"):
        rows_of(several)
    assert rows_of(several, split="hard") == ROWS[:1]


def parquet(folder, **files):
    for name, rows in files.items():
        path = (
            folder / f"{name.replace('__', '/').replace('_of', '-of').replace('_0', '-0')}.parquet"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(path)
    return str(folder)


def test_a_folder_of_files_is_read_by_the_splits_that_their_names_say(tmp_path, write):
    path = parquet(
        tmp_path / "hub",
        data__train_00000_of_00002=ROWS[:1],
        data__train_00001_of_00002=ROWS[1:],
        data__test_00000_of_00001=ROWS[:1],
    )
    assert rows_of(path) == ROWS
    assert rows_of(path, split="test") == ROWS[:1]
    assert next(read_rows(path))[0].endswith("train-00000-of-00002.parquet, row 1")
    write("lines/train.jsonl", LINES)
    write("lines/validation.jsonl", LINES[: LINES.index("\n") + 1])
    write("lines/README.md", "What this is.")
    assert rows_of(tmp_path / "lines") == ROWS
    assert rows_of(tmp_path / "lines", split="validation") == ROWS[:1]
    write("parts/part-1.csv", "prompt,n\nOne,1\n")
    write("parts/part-2.csv", "prompt,n\nZwölf,2\n")
    assert rows_of(tmp_path / "parts") == ROWS


def test_a_folder_with_one_split_of_its_own_name_is_read(tmp_path):
    path = parquet(
        tmp_path / "prefs", train_prefs_00000_of_00001=ROWS, test_prefs_00000_of_00001=ROWS
    )
    with pytest.raises(ValueError, match="has the splits test_prefs, train_prefs: name one"):
        rows_of(path)
    assert rows_of(path, split="train_prefs") == ROWS
    assert held_out_split(path, "train_prefs", None) == "test_prefs"


def test_a_folder_whose_files_leave_open_what_to_read_is_refused(tmp_path, write):
    write("mixed/a.jsonl", LINES)
    write("mixed/b.csv", "prompt\nx\n")
    with pytest.raises(ValueError, match=r"several kinds \(csv, jsonl\)"):
        rows_of(tmp_path / "mixed")
    write("half/test.jsonl", LINES)
    write("half/extra.jsonl", LINES)
    with pytest.raises(ValueError, match=r"extra\.jsonl says no split"):
        rows_of(tmp_path / "half")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="without data files"):
        rows_of(tmp_path / "empty")


CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.parquet}
  - {split: test, path: main/test.parquet}
- config_name: other
  data_files: [{split: train, path: other/train.parquet}]
---
"""


def test_a_dataset_of_several_configurations_needs_a_name(tmp_path, write):
    path = parquet(tmp_path / "gsm", main__train=ROWS, main__test=ROWS[:1], other__train=ROWS[1:])
    write("gsm/README.md", CARD)
    with pytest.raises(ValueError, match=r"'main', 'other'(.|\n)*env\.name names one"):
        rows_of(path, option="env.path")
    assert rows_of(path, name="main") == ROWS
    assert rows_of(path, name="other") == ROWS[1:]
    assert rows_of(path, name="main", split="test") == ROWS[:1]
    assert rows_of(path, name="main", split="train[:1]") == ROWS[:1]
    assert held_out_split(path, None, "main") == "test"
    assert held_out_split(path, None, "other") is None
    with pytest.raises(ValueError, match=r"data\.name='third'|third"):
        rows_of(path, name="third")


def test_what_a_dataset_holds_out_goes_with_what_is_read(tmp_path):
    path = saved({"train": ROWS, "validation": ROWS, "test": ROWS}, tmp_path / "three")
    assert held_out_split(path, None, None) == "test"
    assert held_out_split(path, "train[:1]", None) == "test"
    assert held_out_split(path, "test", None) is None
    assert held_out_split("a.jsonl", None, None) is None


def test_parts_of_a_file_are_refused(write):
    path = write("a.jsonl", LINES)
    for options in ({"split": "train"}, {"name": "main"}):
        (name,) = options
        with pytest.raises(ValueError, match=rf"env\.{name}=.*is a file without parts"):
            rows_of(path, option="env.path", **options)
    with pytest.raises(ValueError, match="has no use"):
        require_dataset("data.split", "train", None)


# ------------------------------------------------------------------------------ cells


def test_numbers_under_a_heading_of_text_stay_as_they_were_written(write):
    path = write("a.csv", "chosen,rejected,n\n007,1.50,1\n1e3,2,2\n")
    assert rows_of(path, text=("chosen", "rejected")) == [
        {"chosen": "007", "rejected": "1.50", "n": 1},
        {"chosen": "1e3", "rejected": "2", "n": 2},
    ]


def test_a_column_without_a_heading_is_pandas_index_or_refused(write):
    assert rows_of(write("a.csv", ",prompt\n0,a\n1,b\n")) == [{"prompt": "a"}, {"prompt": "b"}]
    with pytest.raises(ValueError, match="column 2 has no heading"):
        rows_of(write("b.csv", "prompt,\na,more\n"))
    with pytest.raises(ValueError, match="two columns are called 'prompt'"):
        rows_of(write("c.csv", "prompt,prompt\na,b\n"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"a": "fine 😀"}\n{"a": "\\ud83d"}\n'),
        ("a.jsonl", '{"a": 1}\n{"a": [{"role": "user", "content": "x\\udc00y"}]}\n'),
        ("a.jsonl", '{"a": 1}\n{"a\\ud800": 1}\n'),
        ("a.json", '["a", "\\udfff"]'),
        ("a.yaml", '- a\n- "x\\ud83d"\n'),
    ],
)
def test_half_a_character_is_refused_by_place_in_every_format(write, name, text):
    path = write(name, text)
    with pytest.raises(ValueError, match=re.escape(path) + r", (line|row) 2: half a character"):
        rows_of(path)
    told = []
    assert len(rows_of(path, on_bad=told.append)) == 1 and len(told) == 1


def test_a_key_that_stands_twice_is_refused(write):
    path = write("a.jsonl", '{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n')
    with pytest.raises(ValueError, match=r"line 2: .*'prompt' stands twice"):
        rows_of(path)
