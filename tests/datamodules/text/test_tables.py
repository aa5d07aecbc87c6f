"""Rows of every kind of file, the places they name, and files that are broken."""

import json
import math
import re

import pyarrow
import pyarrow.parquet
import pytest

from datamodules.text.tables import ASSETS, read_rows


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: "str | bytes") -> str:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def rows_of(path: str, **options) -> list:
    return [row for _, row in read_rows(path, **options)]


# ------------------------------------------------------------------------ places


def test_lines_are_numbered_as_an_editor_numbers_them(write):
    path = write("a.jsonl", '\n{"a": 1}\n  \n{"a": "x\u2028y\x85z"}\r\n{"a": 3}')
    assert list(read_rows(path)) == [
        (f"{path}, line 2", {"a": 1}),
        (f"{path}, line 4", {"a": "x\u2028y\x85z"}),
        (f"{path}, line 5", {"a": 3}),
    ]
    path = write("a.txt", "one\n\n  two \r\nthree")
    assert list(read_rows(path)) == [
        (f"{path}, line 1", "one"),
        (f"{path}, line 3", "  two "),
        (f"{path}, line 4", "three"),
    ]


def test_only_a_newline_ends_a_line_of_a_text_file(write):
    path = write("a.txt", "one\u2028still one\x0cand still\ntwo\n")
    assert list(read_rows(path)) == [
        (f"{path}, line 1", "one\u2028still one\x0cand still"),
        (f"{path}, line 2", "two"),
    ]


def test_rows_of_lists_and_tables_are_numbered(write, tmp_path):
    rows = [{"a": "x"}, {"a": "y"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (
        write("a.json", json.dumps(rows, indent=2)),
        write("a.yaml", "- a: x\n- a: y\n"),
        write("a.yml", "- {a: x}\n- {a: y}\n"),
        write("a.csv", "a\nx\ny\n"),
        str(tmp_path / "a.parquet"),
    ):
        assert list(read_rows(path)) == [(f"{path}, row 1", rows[0]), (f"{path}, row 2", rows[1])]


def test_a_file_of_the_package_is_named_as_it_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    where, first = next(iter(read_rows("package:preferences_train.jsonl")))
    assert where == "package:preferences_train.jsonl, line 1"
    lines = (ASSETS / "preferences_train.jsonl").read_text(encoding="utf-8").splitlines()
    assert first == json.loads(lines[0])
    with pytest.raises(FileNotFoundError, match=r"package:nothing\.jsonl"):
        list(read_rows("package:nothing.jsonl"))


# ------------------------------------------------------------------------ JSON


MALFORMED = '{"a": 1}\n{"a": 2,}\n\n{"a": \n{"a": 5}\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_malformed_json_lines_are_told_with_their_place_and_the_rest_is_read(write, name):
    path = write(name, MALFORMED)
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2")):
        list(read_rows(path))
    told = []
    assert list(read_rows(path, on_bad=told.append)) == [
        (f"{path}, line 1", {"a": 1}),
        (f"{path}, line 5", {"a": 5}),
    ]
    assert [text.split(":")[0] for text in told] == [f"{path}, line 2", f"{path}, line 4"]


@pytest.mark.parametrize("bad", ["1" * 5000, "[" * 100_000], ids=["huge number", "deeply nested"])
def test_a_line_that_json_cannot_hold_is_told_with_its_place(write, bad):
    path = write("a.jsonl", f'{{"a": 1}}\n{bad}\n{{"a": 3}}\n')
    told = []
    assert rows_of(path, on_bad=told.append) == [{"a": 1}, {"a": 3}]
    assert len(told) == 1 and told[0].startswith(f"{path}, line 2")


def test_json_lines_may_stand_in_a_json_file(write):
    assert rows_of(write("a.json", '{"a": 1}\n{"a": "é"}\n')) == [{"a": 1}, {"a": "é"}]


def test_one_json_line_may_stand_in_a_json_file(write):
    assert rows_of(write("a.json", '{"a": 1}\n')) == [{"a": 1}]


def test_json_lines_in_a_json_file_may_begin_with_a_malformed_one(write):
    path = write("a.json", 'oops\n{"a": 2}\n{"a": 3}\n')
    told = []
    assert rows_of(path, on_bad=told.append) == [{"a": 2}, {"a": 3}]
    assert len(told) == 1 and told[0].startswith(f"{path}, line 1")


def test_a_broken_json_list_is_named_with_its_line(write):
    path = write("a.json", '[\n {"a": 1},\n {"a": }\n]\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3")):
        list(read_rows(path))


# ------------------------------------------------------------------------ CSV


def test_only_an_empty_cell_is_missing(write):
    path = write("a.csv", 'a,b\nNone,NA\n,null\nnan," "\nN/A,NaN\n"","x, ""y""\nz"\n')
    assert rows_of(path) == [
        {"a": "None", "b": "NA"},
        {"a": None, "b": "null"},
        {"a": "nan", "b": " "},
        {"a": "N/A", "b": "NaN"},
        {"a": None, "b": 'x, "y"\nz'},
    ]


def test_numbers_are_numbers_and_spaces_are_kept(write):
    path = write("a.csv", "score,text,count\n0.5, x ,1\n,y,2\n-2e1,z,3\n")
    rows = rows_of(path)
    assert rows == [
        {"score": 0.5, "text": " x ", "count": 1},
        {"score": None, "text": "y", "count": 2},
        {"score": -20.0, "text": "z", "count": 3},
    ]
    assert type(rows[0]["score"]) is float and type(rows[0]["count"]) is int


def test_the_words_true_and_false_are_text(write):
    path = write("a.csv", "chosen,rejected\nTrue,False\nFalse,True\n")
    assert rows_of(path) == [
        {"chosen": "True", "rejected": "False"},
        {"chosen": "False", "rejected": "True"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "prompt,chosen,rejected\nHi,Yes, I do,No\nHo,Yes,No\n",
        "prompt,chosen,rejected\nHi,Yes, I do,No\n",
        "prompt,chosen,rejected\nHo,Yes,No\nHi,Yes, I do,No\n",
    ],
)
def test_a_row_with_too_many_cells_is_refused_and_never_shifted(write, text):
    path = write("a.csv", text)  # an unquoted comma: what belongs where cannot be known
    with pytest.raises(ValueError, match=re.escape(path)):
        list(read_rows(path))


def test_a_comma_at_the_end_of_every_line_shifts_no_column(write):
    path = write("a.csv", "prompt,chosen,rejected\nHi,Yes,No,\nHo,Ja,Nein,\n")
    try:
        prompts = [row["prompt"] for row in rows_of(path)]
    except ValueError as error:
        assert path in str(error)
    else:
        assert prompts == ["Hi", "Ho"]


def test_an_unclosed_quote_is_refused_with_the_file(write):
    path = write("a.csv", 'a,b\n"x,1\ny,2\n')
    with pytest.raises(ValueError, match=re.escape(path)):
        list(read_rows(path))


def test_empty_files_have_no_rows(write):
    assert rows_of(write("a.csv", "")) == []
    assert rows_of(write("a.csv", "a,b\n")) == []
    assert rows_of(write("a.jsonl", "\n \n")) == []
    assert rows_of(write("a.txt", "")) == []
    assert rows_of(write("a.json", "[]")) == []


# ------------------------------------------------------------------------ parquet, YAML


def test_parquet_keeps_messages_numbers_and_missing_values(tmp_path):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Zwölf"}]
    rows = [{"m": chat, "x": 1.5, "t": "None"}, {"m": chat[:1], "x": None, "t": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert rows_of(str(tmp_path / "a.parquet")) == rows


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.parquet", "no parquet"),
        ("a.yaml", "- {a: b\n- c"),
        ("a.yaml", "a: not a list"),
        ("a.json", '"text"'),
        ("a.json", ""),
        ("a.csv", "a\né\n".encode("latin-1")),
        ("a.jsonl", '{"a": "é"}\n'.encode("latin-1")),
        ("a.json", '[{"a": "é"}]'.encode("latin-1")),
        ("a.txt", "é\n".encode("latin-1")),
        ("a.yaml", "- é\n".encode("latin-1")),
    ],
)
def test_a_file_that_cannot_be_read_is_a_value_error_that_names_it(write, name, text):
    path = write(name, text)
    with pytest.raises(ValueError, match=re.escape(path)):
        list(read_rows(path))


# ------------------------------------------------------------------------ UTF-8


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "é日\nb\n", ["é日", "b"]),
        ("a.yaml", "- é日\n- b\n", ["é日", "b"]),
        ("a.json", '["é日", "b"]', ["é日", "b"]),
        ("a.jsonl", '"é日"\n"b"\n', ["é日", "b"]),
        ("a.csv", "é\n日\nb\n", [{"é": "日"}, {"é": "b"}]),
    ],
)
def test_text_is_utf8_with_or_without_a_byte_order_mark(write, name, text, expected):
    assert rows_of(write(name, text)) == expected
    assert rows_of(write(name, "\ufeff" + text)) == expected


def test_nan_in_json_lines_is_read(write):
    (row,) = rows_of(write("a.jsonl", '{"a": NaN}\n'))
    assert math.isnan(row["a"])


def test_a_missing_file_is_named(tmp_path):
    for name in ("no.csv", "no.jsonl", "no.parquet"):
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / name))):
            list(read_rows(str(tmp_path / name)))
