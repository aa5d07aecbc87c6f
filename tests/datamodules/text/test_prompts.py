"""Prompt files of every kind, the mistakes in them, and how prompts become tokens."""

import json
import re

import datasets
import pytest
from tokenizers.processors import TemplateProcessing

from datamodules.text.prompt_files import load_prompts
from datamodules.text.prompts import Prompt, as_prompt, encode_prompt, prompt_text
from datamodules.text.tables import ASSETS
from rlmodules.models.embedded import tiny_tokenizer

CHAT = [{"role": "user", "content": "Hi!"}]
LONG_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye."},
]


@pytest.fixture(autouse=True)
def cache_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


# -------------------------------------------------------------------------- reading


def test_a_text_file_holds_a_prompt_a_line(write):
    path = write("a.txt", "First prompt\n\n  Second, with é and 日本 \nThird\n")
    assert load_prompts(path) == [
        Prompt("First prompt"),
        Prompt("  Second, with é and 日本 "),
        Prompt("Third"),
    ]


@pytest.mark.parametrize("name", ["a.yaml", "a.yml"])
def test_a_yaml_list_may_mix_texts_rows_and_conversations(write, name):
    path = write(
        name,
        "- plain text\n"
        "- {prompt: with columns, answer: 4}\n"
        "- prompt: [{role: user, content: Hi!}]\n"
        "  level: hard\n"
        "- [{role: user, content: Hi!}]\n",
    )
    assert load_prompts(path) == [
        Prompt("plain text"),
        Prompt("with columns", {"answer": 4}),
        Prompt(CHAT, {"level": "hard"}),
        Prompt(CHAT),
    ]


ROWS = [{"prompt": 'One, "two"', "answer": 4}, {"prompt": "Zwölf\nZeilen", "answer": 5}]
EXPECTED = [Prompt(row["prompt"], {"answer": row["answer"]}) for row in ROWS]


def test_csv_json_jsonl_and_parquet_give_the_same_prompts(write, tmp_path):
    csv = 'prompt,answer\n"One, ""two""",4\n"Zwölf\nZeilen",5\n'
    assert load_prompts(write("a.csv", csv)) == EXPECTED
    assert load_prompts(write("a.json", json.dumps(ROWS))) == EXPECTED
    assert load_prompts(write("a.jsonl", "\n".join(map(json.dumps, ROWS)))) == EXPECTED
    assert load_prompts(write("A.JSONL", "\n".join(map(json.dumps, ROWS)))) == EXPECTED
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert load_prompts(str(tmp_path / "a.parquet")) == EXPECTED


def test_conversational_rows_keep_role_and_content_of_every_message(write, tmp_path):
    rows = [{"prompt": CHAT, "id": 1}, {"prompt": LONG_CHAT, "id": 2}]
    expected = [Prompt(CHAT, {"id": 1}), Prompt(LONG_CHAT, {"id": 2})]
    assert load_prompts(write("a.jsonl", "\n".join(map(json.dumps, rows)))) == expected
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert load_prompts(str(tmp_path / "a.parquet")) == expected


def test_a_saved_dataset_with_splits_is_read_by_split(tmp_path):
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS)}
    splits["test"] = splits["test"].select([1])
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert load_prompts(str(tmp_path / "saved")) == EXPECTED
    assert load_prompts(str(tmp_path / "saved"), split="test") == EXPECTED[1:]


def test_a_file_of_the_package_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    prompts = load_prompts("package:openings_train.txt")
    lines = (ASSETS / "openings_train.txt").read_text(encoding="utf-8").splitlines()
    assert [prompt.content for prompt in prompts] == lines
    with pytest.raises(FileNotFoundError, match=r"package:nothing\.txt"):
        load_prompts("package:nothing.txt")


def test_the_column_is_prompt_then_question_then_text_then_query(write):
    row = {"query": "q", "text": "t", "question": "Q", "prompt": "p"}
    for name in ("prompt", "question", "text", "query"):
        (prompt,) = load_prompts(write(f"{name}.json", json.dumps([row])))
        assert prompt == Prompt(row.pop(name), row)


def test_a_named_column_is_taken_and_the_others_are_metadata(write):
    path = write("a.csv", "prompt,task\nignored,wanted\n")
    assert load_prompts(path, column="task") == [Prompt("wanted", {"prompt": "ignored"})]


def test_chat_makes_plain_texts_conversations_and_leaves_conversations_alone(write):
    path = write("a.yaml", "- {prompt: Hi!, id: 1}\n- [{role: system, content: Be brief.}]\n")
    assert load_prompts(path, chat=True) == [
        Prompt(CHAT, {"id": 1}),
        Prompt([{"role": "system", "content": "Be brief."}]),
    ]


# -------------------------------------------------------------------------- mistakes


def test_a_missing_file_is_named_with_the_option_that_named_it(tmp_path):
    for name in ("no.txt", "no.csv", "no.yaml"):
        path = str(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=re.escape(f"data.path={path!r}")):
            load_prompts(path)


def test_a_missing_column_is_answered_with_file_columns_and_remedy(write):
    path = write("a.csv", "frage,answer\nx,4\n")
    with pytest.raises(
        ValueError, match=re.escape(path) + r".*'prompt'.*answer.*frage.*prompt_column"
    ):
        load_prompts(path)
    with pytest.raises(
        ValueError, match=re.escape(path) + r".*'task'.*answer.*frage.*prompt_column"
    ):
        load_prompts(path, column="task")


def test_a_row_that_lacks_the_column_is_named_by_number(write):
    path = write("a.yaml", "- {prompt: x}\n- {promt: typo}\n")
    with pytest.raises(ValueError, match=re.escape(path) + r".*row 2"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "prompt,answer\nfine,1\n,2\n"),
        ("a.csv", 'prompt,answer\nfine,1\n"  ",2\n'),
        ("a.jsonl", '{"prompt": "fine"}\n{"prompt": ""}\n'),
        ("a.jsonl", '{"prompt": "fine"}\n{"prompt": null}\n'),
        ("a.json", '[{"prompt": [{"role": "user", "content": "x"}]}, {"prompt": []}]'),
        ("a.yaml", "- fine\n- ''\n"),
        ("a.yaml", "- fine\n-\n"),
        ("a.yaml", "- fine\n- []\n"),
    ],
)
def test_an_empty_prompt_is_named_by_file_row_and_column(write, name, text):
    path = write(name, text)
    with pytest.raises(ValueError, match=re.escape(path) + r", (row|line) 2.*'prompt'.*empty"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "- 12\n- fine\n"),
        ("a.jsonl", '{"prompt": 1.5}\n'),
        ("a.yaml", "- prompt: [{role: user}]\n"),
        ("a.yaml", "- prompt: {role: user, content: not in a list}\n"),
    ],
)
def test_a_prompt_that_is_neither_text_nor_messages_is_named_by_file_and_row(write, name, text):
    path = write(name, text)
    with pytest.raises(ValueError, match=re.escape(path) + r", (row|line) 1"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", ""),
        ("a.txt", "\n \n"),
        ("a.yaml", ""),
        ("a.yaml", "[]"),
        ("a.yaml", "prompt: not a list"),
        ("a.csv", ""),
        ("a.csv", "prompt\n"),
        ("a.json", ""),
        ("a.json", "[]"),
        ("a.jsonl", ""),
        ("a.jsonl", '{"prompt": "cut off'),
    ],
)
def test_a_file_without_prompts_is_named(write, name, text):
    path = write(name, text)
    with pytest.raises(ValueError, match=re.escape(path)):
        load_prompts(path)


def test_something_else_than_text_or_messages_is_no_prompt():
    assert as_prompt("x") == Prompt("x")
    assert as_prompt(Prompt("x", {"a": 1})) == Prompt("x", {"a": 1})
    for wrong in (5, None, [5], [{"role": "user"}], ["text"]):
        with pytest.raises(ValueError, match="'role' and 'content'"):
            as_prompt(wrong)


# -------------------------------------------------------------------------- tokens

BOS, EOS = 1, 2


def tokenizer_that_adds(single: str):
    tokenizer = tiny_tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS, EOS)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def test_plain_text_gets_one_bos_where_the_tokenizer_adds_it_and_never_an_eos():
    letters = tiny_tokenizer()("Hi!")["input_ids"]
    for single, expected in [
        ("$A", letters),
        ("<bos> $A", [BOS, *letters]),
        ("<bos> $A <eos>", [BOS, *letters]),
        ("$A <eos>", letters),
    ]:
        ids = encode_prompt(tokenizer_that_adds(single), Prompt("Hi!"))
        assert ids.tolist() == expected and ids.dtype.is_floating_point is False


def test_an_eos_that_the_user_wrote_stays():
    ids = encode_prompt(tokenizer_that_adds("<bos> $A"), Prompt("Hi!<eos>"))
    assert ids.tolist() == [BOS, *tiny_tokenizer()("Hi!")["input_ids"], EOS]


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<bos> $A <eos>"])
def test_a_template_writes_its_own_special_tokens_and_gets_no_more(single):
    tokenizer = tokenizer_that_adds(single)
    ids = encode_prompt(tokenizer, Prompt(LONG_CHAT)).tolist()
    text = "<bos>[system]Be brief.<eos>[user]Hi!<eos>[assistant]Yes?<eos>[user]Bye.<eos>[assistant]"
    assert prompt_text(tokenizer, Prompt(LONG_CHAT)) == text
    assert tokenizer.decode(ids) == text
    assert (ids.count(BOS), ids.count(EOS)) == (1, 4)
    assert ids[0] == BOS and ids[-1] != EOS


def test_a_conversation_needs_a_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(tokenizer, Prompt(CHAT))
    assert prompt_text(tokenizer, Prompt("plain")) == "plain"
