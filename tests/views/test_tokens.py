"""Coloured tokens: each piece of a text, what it is, and nothing that a terminal would obey."""

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.views.tokens import KINDS, Token, as_table, pieces, printable, segments, tokens_of

TEXTS = [
    "The cat sat.",
    "a  b\n\tc",
    "naïve café ☕",
    "日本語のテキスト",
    "👩‍👩‍👧 and 🇩🇪",
    "x" * 30,
    " lead",
]


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    tokenizer.train_from_iterator(["The cat sat on the mat and led."] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"])
    tokenizer.train_from_iterator([text.lower() for text in TEXTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


TOKENIZERS = {"bytes": tiny_tokenizer, "metaspace": metaspace, "wordpiece": wordpiece}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_are_the_text(make, text):
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, **options)
    assert len(pieces(tokenizer, ids)) == len(ids)


def test_a_character_of_several_tokens_is_the_last_ones():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("é!", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3 and pieces(tokenizer, ids) == ["", "é", "!"]
    assert pieces(tokenizer, ids[:1]) == ["\ufffd"]


def test_tokens_know_what_they_are():
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.bos_token_id, *tokenizer("ab", add_special_tokens=False)["input_ids"]]
    tokens = tokens_of(tokenizer, ids, ["prompt", "prompt", "response"])
    assert [t.special for t in tokens] == [True, False, False]
    assert [(kind, len(group)) for kind, group in segments(tokens)] == [
        ("prompt", 2),
        ("response", 1),
    ]


def test_a_terminal_without_colours_names_each_part_and_obeys_nothing():
    console = Console(width=60, no_color=True, force_terminal=False)
    tokens = [Token(1, "\x1b[31mred", "prompt"), Token(2, "[bold]x[/]\n", "cut")]
    with console.capture() as captured:
        console.print(as_table(tokens, "title"))
    said = captured.get()
    assert "prompt" in said and "cut" in said and "\x1b" not in said
    assert "\\x1b[31mred" in said and "[bold]x[/]⏎" in said
    assert printable("a\tb\x07") == "a\tb\\x07"
    assert set(KINDS) == {"prompt", "response", "environment", "cut"}
