"""Small tokenizers of every kind, trained on a few words."""

from functools import cache

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

_SAID = """the cat sat on the mat and the dog sat on the log . unhappy happiness happily un known
playing played player play re play (see above) it's 12 123 345 hello world, hello! naïve"""
WORDS = _SAID.split()
TEXTS = [" ".join(WORDS), " ".join(reversed(WORDS)), *WORDS, "a\nb\tc  d\n\n e"] * 4
SPECIAL = ["<unk>", "<s>", "</s>"]


def _trained(tokenizer, trainer):
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_level(prefix=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 420, "special_tokens": SPECIAL, "show_progress": False}
    return _trained(tokenizer, trainers.BpeTrainer(initial_alphabet=alphabet, **options))


def sentencepiece():
    """As Llama 2's: a space before each text, spaces as ``▁``, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([prepend, replace])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, show_progress=False, max_token_length=8
    )
    return _trained(tokenizer, trainer)


def metaspace(scheme="always"):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=SPECIAL, show_progress=False)
    return _trained(tokenizer, trainer)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    return _trained(tokenizer, trainer)


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=SPECIAL, show_progress=False)
    return _trained(tokenizer, trainer)


KINDS = {
    "byte level": byte_level,
    "byte level, prefix": lambda: byte_level(prefix=True),
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "metaspace, first": lambda: metaspace("first"),
    "unigram": unigram,
    "word piece": word_piece,
}
LOSSLESS = ("byte level", "byte level, prefix", "sentencepiece")
"""Those that know every character; a space before the whole text aside."""


@cache
def _state(kind, single):
    tokenizer = KINDS[kind]()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer.to_str()


def trained(kind, single="$A"):
    """A tokenizer of that kind.

    Args:
        single: what is written around each text.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_state(kind, single)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
