"""A text has one reward: in training, for a policy, for a judge, after export, alone or in a batch.

The tokens that every route must score are cut here by hand, from one token a byte.
"""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
)

from datamodules import PreferenceDataset, rewards
from datamodules.ends import note_model_ends
from datamodules.rewards.judges import as_judge
from rlmodules import MultiObjectiveRewardModel, PairwiseRewardModel, RewardModel, RewardModelConfig
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models import serving

LONGEST, PROMPT = 64, 32
"""The limits, in tokens."""
SMALL = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
BODIES = {
    "llama": LlamaConfig(**SMALL, intermediate_size=32, max_position_embeddings=128),
    "gpt2": GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=4, n_positions=128),
    "bert": BertConfig(**SMALL, intermediate_size=32, max_position_embeddings=128),
}
TEXTS = {
    "short": ("What is it? ", "A fox."),
    "long prompt": ("Once upon a time there was a fox and " * 3, "he slept."),
    "long response": ("Tell me. ", "It ran and ran and then it ran again, " * 3),
    "both long": ("Long ago, in a land that nobody knows, " * 3, "they lived on and on. " * 5),
    "an end token in the text": ("Say it. ", "Done.<eos>"),
    "longer by its prompt than all": ("no room is left for any response " * 9, "yes"),
}
CASES = [(name, chat) for name in TEXTS for chat in (False, True)]


def tokenizer_of(name, pad_is_end):
    """Decoders' texts begin with a token of their own, an encoder's also end with one."""
    tokenizer = tiny_tokenizer()
    single = "<bos> $A <eos>" if name == "bert" else "<bos> $A"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    if name == "bert":
        tokenizer.cls_token, tokenizer.sep_token = "<bos>", "<eos>"
    if pad_is_end:
        tokenizer.pad_token = "<eos>"
    return tokenizer


def make(kind, name, pad_is_end=False, **changes):
    torch.manual_seed(0)
    settings = {"max_length": LONGEST, "max_prompt_length": PROMPT, "dropout_prob": 0.5}
    config = RewardModelConfig(**settings | {"temperature": 2.0} | changes)
    model = kind(
        config,
        base_model=AutoModel.from_config(BODIES[name]),
        tokenizer=tokenizer_of(name, pad_is_end),
    )
    with torch.no_grad():
        for weight in model.parameters():  # heads start out as exactly 0
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def conversation(prompt):
    return [{"role": "user", "content": prompt}]


def answer(response):
    return [{"role": "assistant", "content": response}]


def ids_by_hand(model, prompt, response, chat):
    """The prompt's end behind its opening token, and the response's beginning with its end."""
    letters = tiny_tokenizer()  # adds nothing
    start, rest = f"[user]{prompt}<eos>[assistant]" if chat else prompt, response
    start, rest = letters(start)["input_ids"], letters(rest)["input_ids"]
    if chat:  # an end token that a message holds is words
        words = [*letters("<")["input_ids"], *letters("eos>")["input_ids"]]
        rest = [i for token in rest for i in (words if token == 2 else [token])] + [2]
    elif model.tokenizer.sep_token is not None and rest[-1] != 2:
        rest = [*rest, 2]
    start = [1, *start[-(PROMPT - 1) :]]
    room = LONGEST - len(start)
    closing = rest[-1:] if rest[-1] == 2 else []
    return start + (rest if len(rest) <= room else rest[: room - len(closing)] + closing)


@torch.no_grad()
def alone(model, ids):
    """The reward of one tokenized text, by the module's own forward."""
    training = model.training
    model.eval()
    outputs = model(torch.tensor([ids]))
    model.train(training)
    return outputs.get("combined_reward", outputs["rewards"]).item()


def columns(cases=CASES):
    """Prompts, responses and metadata as an environment gives them."""
    prompts, responses = ([TEXTS[name][side] for name, _ in cases] for side in (0, 1))
    metadata = [
        {"messages": conversation(prompt)} if chat else {}
        for prompt, (_, chat) in zip(prompts, cases, strict=True)
    ]
    return prompts, responses, metadata


def trained_on(model, other="Another response"):
    """Scores that the loss sees: of pairs of each text's response and another one."""
    pairs = [
        (conversation(p), answer(r), answer(other)) if chat else (p, r, other)
        for p, r, (_, chat) in zip(*columns()[:2], CASES, strict=True)
    ]
    limits = {"max_length": LONGEST, "max_prompt_length": PROMPT}
    dataset = PreferenceDataset(
        *map(list, zip(*pairs, strict=True)), model.tokenizer, close=model.closes_texts, **limits
    )
    rows = list(range(len(pairs)))
    batch = dataset.batch(rows, dataset.totals(rows), "train")
    model.eval()
    with torch.no_grad():
        scores = model.pair_scores(model.pooled(model.lay_out(batch)))
    model.train()
    return [side.tolist() for side in scores]


def log_odds(chances):
    return [math.log(chance / (1 - chance)) for chance in chances]


def same(found, expected):
    assert dict(zip(CASES, found, strict=True)) == pytest.approx(
        dict(zip(CASES, expected, strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("pad_is_end", [False, True], ids=["own padding", "padding is the end"])
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("name", BODIES)
def test_a_text_has_one_reward(name, pooling, pad_is_end, tmp_path):
    model = make(RewardModel, name, pad_is_end, pooling_strategy=pooling)
    prompts, responses, metadata = columns()
    ids = [
        ids_by_hand(model, p, r, chat)
        for p, r, (_, chat) in zip(prompts, responses, CASES, strict=True)
    ]
    expected = [alone(model, row) for row in ids]
    spread = 1e-3 if pooling != "cls" or name == "bert" else -1.0  # a decoder's first sees nothing
    assert max(expected) - min(expected) > spread

    same(trained_on(model)[0], expected)
    same(model.predict_ids(ids), expected)
    within = [
        i for i, (case, _) in enumerate(CASES) if case in ("short", "an end token in the text")
    ]
    whole = [
        [*metadata[i]["messages"], *answer(responses[i])]
        if metadata[i]
        else prompts[i] + responses[i]
        for i in within
    ]
    assert model.predict_rewards(whole) == pytest.approx([expected[i] for i in within], abs=1e-5)

    model.export(tmp_path)
    for size in (1, 5, 16):
        reward = serving.model(str(tmp_path), batch_size=size, device="cpu")
        same(reward(prompts, responses, metadata), expected)
    for row, value in enumerate(expected):
        one = slice(row, row + 1)
        found = reward(prompts[one], responses[one], metadata[one])
        assert found == pytest.approx([value], abs=1e-5)

    other = [
        alone(model, ids_by_hand(model, p, "Another response", chat))
        for p, (_, chat) in zip(prompts, CASES, strict=True)
    ]
    odds = [a - b for a, b in zip(expected, other, strict=True)]
    seconds = ["Another response"] * len(prompts)
    for said in (model, reward, RewardModel.from_pretrained(tmp_path)):
        judge = as_judge(said, model.tokenizer)
        same(log_odds(judge(prompts, responses, seconds, metadata)), odds)
    assert model.training

    if pooling == "last" and name != "bert":  # what transformers' own classifiers compute
        same(by_transformers(tmp_path, ids, batch=1), expected)
        same(by_transformers(tmp_path, ids, batch=len(ids)), expected)
        found = rewards.model(str(tmp_path), device="cpu")(prompts, responses, metadata)
        assert [found[i] for i in within] == pytest.approx([expected[i] for i in within], abs=1e-5)


@torch.no_grad()
def by_transformers(folder, ids, batch):
    """As any user of transformers scores texts, padded as the folder's tokenizer pads."""
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for start in range(0, len(ids), batch):
        rows = {"input_ids": ids[start : start + batch]}
        padded = tokenizer.pad(rows, padding_side="right", return_tensors="pt")
        found += classifier(**padded).logits[:, 0].tolist()
    return found


def test_without_any_padding_that_ends_no_text_transformers_takes_one_at_a_time(tmp_path):
    model = make(RewardModel, "gpt2")
    model.tokenizer.pad_token = model.tokenizer.bos_token = "<eos>"  # one token for all, as GPT-2
    model.export(tmp_path)
    ids = [[5, 6, 7, 2], [8, 2]]
    expected = [alone(model, row) for row in ids]
    assert by_transformers(tmp_path, ids, batch=1) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="no padding token is defined"):
        by_transformers(tmp_path, ids, batch=2)
    assert rewards.model(str(tmp_path))(["a", "bc"], ["x<eos>", "y<eos>"]) == pytest.approx(
        model.predict_rewards(["ax<eos>", "bcy<eos>"]), abs=1e-5
    )
    assert model.tokenizer.pad_token == "<eos>"  # the model's own is left alone


@pytest.mark.parametrize("padding", ["the end of a turn", "an end that the model names", "unk"])
def test_a_token_that_may_end_a_text_pads_none(tmp_path, padding):
    model = make(RewardModel, "llama")
    tokenizer, token = model.tokenizer, "<pad>"
    if padding == "the end of a turn":
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", token)
    elif padding == "unk":
        tokenizer.unk_token = token
    else:
        note_model_ends(tokenizer, [tokenizer.pad_token_id])
    model.export(tmp_path)
    ids = [[5, 6, 7, tokenizer.pad_token_id], [8, tokenizer.pad_token_id]]
    expected = [alone(model, row) for row in ids]
    for batch in (1, 2):
        assert by_transformers(tmp_path, ids, batch) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", BODIES)
def test_a_pair_has_one_log_odds(name, tmp_path):
    model = make(PairwiseRewardModel, name)
    prompts, responses, metadata = columns()
    rows = [
        [
            ids_by_hand(model, p, text, chat)
            for p, text, (_, chat) in zip(prompts, side, CASES, strict=True)
        ]
        for side in (responses, ["Another response"] * len(prompts))
    ]
    model.eval()
    expected = []
    for a, b in zip(*rows, strict=True):
        a, b = torch.tensor([a]), torch.tensor([b])
        with torch.no_grad():
            expected.append(model.forward_pair(a, torch.ones_like(a), b, torch.ones_like(b)).item())
    model.train()
    same(model.compare_ids(*rows, 5), expected)
    same([a - b for a, b in zip(*trained_on(model), strict=True)], expected)
    model.export(tmp_path)
    env = serving.preference_env(model.tokenizer, ["p"], str(tmp_path))
    for judge in (as_judge(model, model.tokenizer), env.judge):
        seconds = ["Another response"] * len(prompts)
        same(log_odds(judge(prompts, responses, seconds, metadata)), expected)


@pytest.mark.parametrize("kind", [PairwiseRewardModel, MultiObjectiveRewardModel])
def test_other_classes_reward_alike_too(kind, tmp_path):
    model = make(kind, "llama")
    prompts, responses, metadata = columns()
    rows = zip(prompts, responses, CASES, strict=True)
    expected = [alone(model, ids_by_hand(model, p, r, chat)) for p, r, (_, chat) in rows]
    model.export(tmp_path)
    same(serving.model(str(tmp_path))(prompts, responses, metadata), expected)


@pytest.mark.parametrize("max_length", [None, 2, 16, 100])
def test_responses_behind_an_overlong_prompt_are_told_apart(max_length, tmp_path):
    make(RewardModel, "llama").export(tmp_path)
    reward = serving.model(str(tmp_path), max_length=max_length)
    prompt = "a prompt that is longer than all room there is " * 20
    good, bad = reward([prompt] * 2, ["yes", "no"])
    assert abs(good - bad) > 1e-3


def test_another_max_length_keeps_the_prompts_share(tmp_path):
    model = make(RewardModel, "llama")
    model.export(tmp_path)
    prompt, response = "p" * 100, "r" * 100
    found = serving.model(str(tmp_path), max_length=20)([prompt], [response])
    shown = "p" * 9 + "r" * 10  # of 20 tokens the prompt has 10, its opening among them
    assert found == pytest.approx(model.predict_rewards([shown]), abs=1e-5)
    with pytest.raises(ValueError, match=r"reward.max_length=129 exceeds the 128 positions"):
        serving.model(str(tmp_path), max_length=129)
    with pytest.raises(ValueError, match="max_length=1 must be a whole number, 2 or more"):
        serving.model(str(tmp_path), max_length=1)


def test_a_whole_text_that_is_too_long_keeps_its_opening_and_its_end():
    model = make(RewardModel, "bert")
    long = "x" * 100 + "y" * 40
    kept = [1, *tiny_tokenizer()(long[-(LONGEST - 2) :])["input_ids"], 2]
    assert model.predict_rewards([long]) == pytest.approx([alone(model, kept)], abs=1e-5)
    kept = [1, *tiny_tokenizer()("y" * 6)["input_ids"], 2]
    found = model.predict_rewards([long], max_length=8)
    assert found == pytest.approx([alone(model, kept)], abs=1e-5)


def test_a_text_without_tokens_is_refused():
    model = make(RewardModel, "llama")
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        model.predict_rewards(["x", ""], tiny_tokenizer())
