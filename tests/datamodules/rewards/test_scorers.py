"""Models that score texts: sequence classifiers on disk, and what of a text they are shown."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from datamodules import rewards
from datamodules.rewards import scorers
from datamodules.rewards.scorers import Classifier
from rlmodules.models.embedded import tiny_model, tiny_tokenizer

TEXTS = [("a prompt: ", "short"), ("", "x"), ("question? ", "an answer that is longer"), ("p", "r")]
SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_scorer(folder, tokenizer, num_labels=1, pad_token_id=0):
    """A random Llama with a scoring head, saved with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_labels=num_labels, pad_token_id=pad_token_id)
    scorer = LlamaForSequenceClassification(config).eval()
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return scorer


def set_padding_side(folder, side: str) -> None:
    """As a checkpoint's tokenizer_config.json does; ``save_pretrained`` leaves it out."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    assert AutoTokenizer.from_pretrained(folder).padding_side == side


@torch.no_grad()
def plain(scorer, ids) -> torch.Tensor:
    """Scores of one text alone, without any padding."""
    return scorer(input_ids=torch.tensor([ids])).logits[0]


def split(texts):
    return [list(column) for column in zip(*texts, strict=True)]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_reward_models_score_is_that_of_each_text_alone(tmp_path, padding_side):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer)
    set_padding_side(tmp_path, padding_side)
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in TEXTS]
    assert max(expected) - min(expected) > 0.5
    for size in (1, 3, 16):
        scored = rewards.model(str(tmp_path), batch_size=size, device="cpu")(*split(TEXTS))
        assert scored == pytest.approx(expected, abs=1e-5)
    backwards = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS[::-1]))
    assert backwards[::-1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_padding_does_not_move_absolute_positions(tmp_path, padding_side):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    config.num_labels, config.pad_token_id = 1, 0
    scorer = GPT2ForSequenceClassification(config).eval()
    torch.nn.init.normal_(scorer.score.weight)
    torch.nn.init.normal_(scorer.transformer.wpe.weight)
    scorer.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    set_padding_side(tmp_path, padding_side)
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in TEXTS]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


def conversations(tokenizer, texts):
    """Metadata as a conversation's, and the token ids of the whole conversation."""
    metadata = [{"messages": [{"role": "user", "content": p}]} for p, _ in texts]
    ids = []
    for meta, (_, response) in zip(metadata, texts, strict=True):
        messages = [*meta["messages"], {"role": "assistant", "content": response}]
        ids.append(tokenizer.apply_chat_template(messages)["input_ids"])
    return metadata, ids


def test_a_conversation_is_scored_through_the_reward_models_own_template(tmp_path):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer)
    metadata, ids = conversations(tokenizer, TEXTS)
    expected = [plain(scorer, row).item() for row in ids]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS), metadata)
    assert scored == pytest.approx(expected, abs=1e-5)


def test_plain_texts_and_conversations_may_share_a_batch(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    scorer = save_scorer(tmp_path, tokenizer)
    metadata, ids = conversations(tokenizer, TEXTS)
    for row in (0, 2):
        metadata[row] = {"id": row}
        ids[row] = tokenizer("".join(TEXTS[row]))["input_ids"]
    assert all(row.count(1) == 1 for row in ids)  # one BOS each
    expected = [plain(scorer, row).item() for row in ids]
    score = rewards.model(str(tmp_path), device="cpu")
    assert score(*split(TEXTS), metadata) == pytest.approx(expected, abs=1e-5)
    assert score(*split(TEXTS[::-1]), metadata[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


@pytest.mark.parametrize("pad_token", [None, "<eos>"])
def test_an_end_token_at_the_end_counts_where_it_is_also_the_padding(tmp_path, pad_token):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad_token
    scorer = save_scorer(tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id)
    metadata, ids = conversations(tokenizer, TEXTS)
    assert all(row[-1] == tokenizer.eos_token_id for row in ids)
    scorer.config.pad_token_id = None  # alone and unpadded, the last token is the last token
    expected = [plain(scorer, row).item() for row in ids]
    for size in (1, 3):
        score = rewards.model(str(tmp_path), batch_size=size, device="cpu")
        assert score(*split(TEXTS), metadata) == pytest.approx(expected, abs=1e-5)


def test_an_encoders_score_does_not_see_the_padding(tmp_path):
    torch.manual_seed(0)
    shape = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
    scorer = BertForSequenceClassification(BertConfig(**shape, num_labels=1)).eval()
    for parameter in scorer.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    scorer.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in TEXTS]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


SHOWN = ["mpt: short", "x", "? an ans", "pr"]
"""Of ``TEXTS`` in 8 tokens: the response first, up to 6; of the prompt what then has room."""


def test_a_prompt_is_cut_on_the_left_and_the_response_keeps_its_room(tmp_path):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer)
    expected = [plain(scorer, tokenizer(text[-8:])["input_ids"]).item() for text in SHOWN]
    scored = rewards.model(str(tmp_path), max_length=8, device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


def test_the_default_max_length_is_what_the_tokenizer_allows(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 8
    scorer = save_scorer(tmp_path, tokenizer)
    expected = [plain(scorer, tiny_tokenizer()(t[-8:])["input_ids"]).item() for t in SHOWN]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(TEXTS))
    assert scored == pytest.approx(expected, abs=1e-5)


def test_texts_of_a_model_without_any_limit_are_kept_whole(tmp_path):
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4, num_labels=1)
    scorer = BloomForSequenceClassification(config).eval()
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    texts = [("a prompt: ", "x" * 700), ("short", "")]
    expected = [plain(scorer, tokenizer(p + r)["input_ids"]).item() for p, r in texts]
    scored = rewards.model(str(tmp_path), device="cpu")(*split(texts))
    assert scored == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "response", "shown"),
    [
        ("y" * 100, "x" * 200, "y" * 32 + "x" * 96),  # at least a quarter for the prompt
        ("z" * 50 + "y" * 88, "x" * 40, "y" * 88 + "x" * 40),  # what the response leaves
        ("y" * 28, "x" * 100, "y" * 28 + "x" * 100),  # all of both
        ("y" * 28, "x" * 101, "y" * 28 + "x" * 100),
        ("short", "", "short"),
    ],
)
def test_the_models_positions_are_the_limit(tmp_path, prompt, response, shown):
    tokenizer = tiny_tokenizer()  # allows any length; the model has 128 positions
    scorer = save_scorer(tmp_path, tokenizer)
    expected = plain(scorer, tokenizer(shown)["input_ids"]).item()
    score = rewards.model(str(tmp_path), device="cpu")
    assert score([prompt], [response]) == pytest.approx([expected], abs=1e-5)


def test_a_classifier_is_left_as_it_was_found():
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1, pad_token_id=5))
    scorer = Classifier(model.train(), tiny_tokenizer())
    together = scorer.predict_ids([[5, 6], [5, 6, 7]])
    assert together == pytest.approx([plain(model, row).item() for row in ([5, 6], [5, 6, 7])])
    assert model.training and model.config.pad_token_id == 5
    with pytest.raises(IndexError):
        scorer.predict_ids([[10**6]])
    assert model.training and model.config.pad_token_id == 5


def test_texts_are_scored_so_many_at_a_time_on_the_device_that_is_named(tmp_path, monkeypatch):
    save_scorer(tmp_path, tiny_tokenizer())
    sizes, devices, forward = [], [], LlamaForSequenceClassification.forward

    def noting(model, input_ids, **inputs):
        sizes.append(len(input_ids))
        return forward(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", noting)
    monkeypatch.setattr(scorers, "place", lambda model, name: devices.append(name) or model)
    rewards.model(str(tmp_path), batch_size=3, device="cpu")(*split(TEXTS))
    assert sizes == [3, 1] and devices == ["cpu"]


def test_of_several_outputs_the_labels_log_probability_is_the_reward(tmp_path):
    tokenizer = tiny_tokenizer()
    scorer = save_scorer(tmp_path, tokenizer, num_labels=3)
    rows = [plain(scorer, tokenizer(p + r)["input_ids"]).log_softmax(-1) for p, r in TEXTS]
    for label in range(3):
        scored = rewards.model(str(tmp_path), label=label, device="cpu")(*split(TEXTS))
        assert scored == pytest.approx([row[label].item() for row in rows], abs=1e-5)


def test_a_label_for_a_single_output_is_refused_not_ignored(tmp_path):
    save_scorer(tmp_path, tiny_tokenizer())
    with pytest.raises(ValueError, match=r"reward\.label=1"):
        rewards.model(str(tmp_path), label=1)


@pytest.mark.parametrize("label", [None, 3, -1])
def test_several_outputs_need_a_label_that_exists(tmp_path, label):
    save_scorer(tmp_path, tiny_tokenizer(), num_labels=3)
    with pytest.raises(ValueError, match=r"3 outputs.*reward\.label"):
        rewards.model(str(tmp_path), label=label)


def test_a_folder_without_a_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"reward\.path="):
        rewards.model(str(tmp_path / "nothing"))


def test_a_language_model_without_a_trained_scoring_head_is_refused(tmp_path):
    language_model, tokenizer = tiny_model()
    language_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reward\.path=.*no sequence-classification checkpoint"):
        rewards.model(str(tmp_path), label=0)
