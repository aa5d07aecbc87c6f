"""Reward models: what they compute on every architecture, that they learn, and their files."""

import math

import pytest
import torch
from hydra.utils import get_method
from pair_helpers import CHOSEN, PROMPTS, data, dataset, fit
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
)

from datamodules import rewards
from rlmodules import (
    LoraConfig,
    ModelConfig,
    MultiObjectiveConfig,
    MultiObjectiveRewardModel,
    PairwiseRewardModel,
    RewardModel,
    RewardModelConfig,
)
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models import serving

EXACT = {"rtol": 1e-4, "atol": 1e-5}
SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
BODIES = {
    "llama": LlamaConfig(**SMALL, intermediate_size=32),
    "gpt2": GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=4, n_positions=128),
    "bert": BertConfig(**SMALL, intermediate_size=32, max_position_embeddings=128),
}
IDS = [[5, 6, 7, 8, 9], [10, 11, 12], [13]]


def body(name):
    torch.manual_seed(0)
    return AutoModel.from_config(BODIES[name])


def config(**changes):
    settings = {
        "model_name": "random:tiny",
        "batch_size": 4,
        "learning_rate": 1e-3,
        "num_epochs": 2,
        "warmup_steps": 0,
        "max_length": 128,
        "max_prompt_length": 64,
        "dropout_prob": 0.0,
        "device": "cpu",
    }
    return RewardModelConfig(**settings | changes)


def stirred(model, scale=0.1):
    """``model`` with its trained weights moved: heads start out as exactly 0."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn_like(p))
    return model


def padded(side, extra):
    width = max(map(len, IDS)) + extra
    ids, mask = torch.zeros(len(IDS), width, dtype=torch.long), torch.zeros(len(IDS), width)
    for row, text in enumerate(IDS):
        start = 0 if side == "right" else width - len(text)
        ids[row, start : start + len(text)] = torch.tensor(text)
        mask[row, start : start + len(text)] = 1
    return ids, mask.long()


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("name", BODIES)
def test_scores_do_not_depend_on_padding_or_on_the_batch(name, pooling):
    model = stirred(RewardModel(config(pooling_strategy=pooling), base_model=body(name))).eval()
    hidden = [model.base_model(input_ids=torch.tensor([text]))[0][0] for text in IDS]
    pooled = {"last": lambda h: h[-1], "cls": lambda h: h[0], "mean": lambda h: h.mean(0)}
    wanted = torch.stack([pooled[pooling](h) for h in hidden])
    for side in ("left", "right"):
        for extra in (0, 3):
            found = model(*padded(side, extra))
            assert_close(found["pooled_output"], wanted, **EXACT)
            assert_close(found["rewards"], wanted @ model.head.linear.weight.T, **EXACT)
            assert found["rewards"].shape == (3, 1)


@pytest.mark.parametrize("name", BODIES)
def test_lora_fits_every_architecture_and_trains_little(name):
    c = config(use_lora=True, lora_rank=2)
    model = RewardModel(c, base_model=body(name), tokenizer=tiny_tokenizer())
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in n or n.startswith("head.") for n in trained)
    assert any("lora_" in n for n in trained)
    history, _ = fit(model)
    assert len(history) == 4
    assert c == config(use_lora=True, lora_rank=2)  # nothing wrote to it


@pytest.mark.parametrize("difference", [-200.0, -120.0, 0.0, 200.0])
def test_extreme_differences_stay_finite_forward_and_backward(difference):
    model = RewardModel(config())
    pairs = dataset(2)
    batch = pairs.batch([0, 1], pairs.totals([0, 1]), "train")
    rewards_ = torch.tensor([difference, 0.0] * 2, requires_grad=True)
    model.reward = lambda pooled: rewards_
    loss, metrics = model.losses(batch)
    loss.backward()
    assert loss.item() == pytest.approx(
        math.log1p(math.exp(-abs(difference))) + max(-difference, 0)
    )
    assert torch.isfinite(rewards_.grad).all()
    assert metrics["accuracy"].item() == (0.5 if difference == 0 else float(difference > 0))


def test_a_batch_of_one_pair_works():
    model = RewardModel(config(batch_size=1, num_epochs=1))
    history, _ = fit(model, data(model.config, dataset(1)))
    assert math.isfinite(history[0]["train/loss"])


def test_margin_centering_and_label_noise_reach_the_loss():
    pairs = dataset(2, margins=[1.5, None])
    batch = pairs.batch([0, 1], pairs.totals([0, 1]), "train")
    c = config(label_smoothing=0.2, center_rewards_coefficient=0.5)
    model = stirred(RewardModel(c)).eval()
    chosen, rejected = model.pair_scores(model.pooled(model.lay_out(batch)))
    x = (chosen - rejected - torch.tensor([1.5, 0.0])).double()
    wanted = -0.8 * x.sigmoid().log() - 0.2 * (-x).sigmoid().log()
    wanted = (wanted + 0.5 * (chosen + rejected) ** 2).mean()
    assert_close(model.losses(batch)[0].double(), wanted.double(), **EXACT)


@pytest.mark.parametrize("kind", [RewardModel, PairwiseRewardModel], ids=["reward", "pairwise"])
@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_which_response_is_better(kind, lora):
    c = config(num_epochs=15, learning_rate=3e-3, use_lora=lora)
    model = kind(c)
    _, evaluations = fit(model, data(c, held_out=dataset()))
    assert evaluations[-1]["val/accuracy"] == 1.0
    assert evaluations[-1]["val/margin"] > 1.0


def test_warmup_is_at_most_a_tenth_of_the_run():
    c = config(warmup_steps=100, num_epochs=10, lr_scheduler_type="constant_with_warmup")
    history, _ = fit(RewardModel(c))
    rates = [row["train/learning_rate"] for row in history]
    assert len(rates) == 20
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert set(rates[2:]) == {1e-3}


def test_a_pair_and_its_swap_are_certain_together():
    model = stirred(PairwiseRewardModel(config()))
    a, b = padded("right", 0), padded("left", 2)
    b = (b[0].flip(0), b[1].flip(0))
    model.eval()
    forward, backward = model.forward_pair(*a, *b), model.forward_pair(*b, *a)
    assert forward.shape == (3, 1)
    assert (forward.abs() > 1e-3).any()
    assert_close(forward.sigmoid() + backward.sigmoid(), torch.ones(3, 1), **EXACT)
    joint = forward - (model(*a)["rewards"] - model(*b)["rewards"])
    assert joint.abs().max() > 1e-3  # it looks at both texts, not at two scores only


def test_bradley_terry_loss_of_labels():
    model = stirred(PairwiseRewardModel(config())).eval()
    a, b = padded("right", 0), padded("left", 2)
    b = (b[0].flip(0), b[1].flip(0))
    logits = model.forward_pair(*a, *b)[:, 0]
    labels = torch.tensor([1, 0, 1])
    sign = torch.tensor([1.0, -1.0, 1.0])
    wanted = -torch.nn.functional.logsigmoid(sign * logits).mean()
    assert_close(model.compute_bradley_terry_loss(*a, *b, labels), wanted, **EXACT)
    one = [x[:1] for x in (*a, *b)]
    assert model.compute_bradley_terry_loss(*one, labels[:1]).shape == ()


def test_multi_objective_outputs_and_losses():
    c = config()
    model = MultiObjectiveRewardModel(config=c, num_objectives=3, objective_weights=[0.5, 0.3, 0.2])
    stirred(model).eval()
    assert c.num_labels == 1  # the caller's config is left alone
    ids, mask = padded("right", 0)
    outputs = model(ids, mask, return_all_objectives=True)
    assert outputs["rewards"].shape == (3, 3)
    combined = outputs["rewards"] @ torch.tensor([0.5, 0.3, 0.2])
    assert_close(outputs["combined_reward"], combined[:, None], **EXACT)
    assert_close(model(ids, mask)["rewards"], combined[:, None], **EXACT)

    targets = torch.tensor([[1.0, 0.0, 0.5], [float("nan"), 1.0, 0.5], [0.0, 0.0, float("nan")]])
    loss, each = model.compute_multi_objective_loss(ids, mask, targets)
    errors = (outputs["rewards"] - targets) ** 2
    wanted = [errors[[0, 2], 0].mean(), errors[:, 1].mean(), errors[[0, 1], 2].mean()]
    assert_close(torch.stack([each[f"objective_{i}_loss"] for i in range(3)]), torch.stack(wanted))
    rows = [errors[0].mean(), errors[1, 1:].mean(), errors[2, :2].mean()]
    assert_close(loss, sum(rows) / 3, **EXACT)

    loss, each = model.compute_multi_objective_loss(ids, mask, targets, [True, False, True])
    assert list(each) == ["objective_0_loss", "objective_2_loss"]
    assert_close(loss, (errors[0, [0, 2]].mean() + errors[1, 2] + errors[2, 0]) / 3, **EXACT)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_objective_may_be_missing_from_a_whole_batch():
    model = MultiObjectiveRewardModel(config(), num_objectives=2)
    targets = torch.tensor([[1.0, float("nan")]] * 3)
    loss, each = model.compute_multi_objective_loss(*padded("right", 0), targets)
    assert torch.isfinite(loss) and list(each) == ["objective_0_loss"]


def test_predicted_rewards_are_those_of_forward():
    model = stirred(RewardModel(config()))
    texts = ["one", "another text", "x"]
    found = model.predict_rewards(texts, batch_size=2)
    assert model.training  # as before
    model.eval()
    for text, reward in zip(texts, found, strict=True):
        ids = torch.tensor(model.tokenizer([text])["input_ids"])
        assert reward == pytest.approx(model(ids)["rewards"].item(), abs=1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", [RewardModel, PairwiseRewardModel, MultiObjectiveRewardModel])
def test_a_saved_model_loads_and_scores_the_same(kind, lora, tmp_path):
    c = config(use_lora=lora)
    if kind is MultiObjectiveRewardModel:
        c = MultiObjectiveConfig(**vars(c))
    model, other = stirred(kind(c)), kind(c)
    texts = ["one", "another text"]
    assert model.predict_rewards(texts) != pytest.approx(other.predict_rewards(texts))
    path = tmp_path / "reward_model.pt"
    model.save_model(path)
    other.load_model(path)
    assert model.predict_rewards(texts) == other.predict_rewards(texts)


def test_a_pickle_is_refused_and_so_is_another_model(tmp_path):
    model = RewardModel(config())
    torch.save(model.state_dict(), tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"no safetensors file.*Pickles"):
        model.load_model(tmp_path / "evil.pt")
    PairwiseRewardModel(config()).save_model(tmp_path / "pair.pt")
    with pytest.raises(ValueError, match="PairwiseRewardModel that does not fit"):
        model.load_model(tmp_path / "pair.pt")
    with pytest.raises(FileNotFoundError):
        model.load_model(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("kind", "saved", "built", "message"),
    [
        (
            RewardModel,
            {"pooling_strategy": "mean"},
            {},
            "pooling_strategy='mean', this one has pooling_strategy='last'",
        ),
        (RewardModel, {"temperature": 2.0}, {}, "temperature=2.0, this one has temperature=1.0"),
        (
            MultiObjectiveRewardModel,
            {"objectives": ["a", "b"], "objective_weights": [0.25, 0.75]},
            {"objectives": ["a", "b"]},
            r"objective_weights=\[0.25, 0.75\], this one has objective_weights=\[0.5, 0.5\]",
        ),
    ],
)
def test_weights_that_would_score_otherwise_are_refused(kind, saved, built, message, tmp_path):
    saved, built = (kind(kind.config_class(**vars(config()) | c)) for c in (saved, built))
    stirred(saved).save_model(tmp_path / "model.pt")
    before = built.predict_rewards(["a text"])
    with pytest.raises(ValueError, match=message):
        built.load_model(tmp_path / "model.pt")
    assert built.predict_rewards(["a text"]) == before


@pytest.mark.parametrize("lora", [False, True])
def test_the_exported_model_is_an_ordinary_sequence_classifier(lora, tmp_path):
    model = stirred(RewardModel(config(use_lora=lora, temperature=2.0)), scale=0.05)
    model.export(tmp_path)
    texts = [p + c for p, c in zip(PROMPTS, CHOSEN, strict=True)]
    wanted = model.predict_rewards(texts)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    found = [
        plain(input_ids=torch.tensor(model.tokenizer([t])["input_ids"])).logits.item()
        for t in texts
    ]
    assert found == pytest.approx(wanted, abs=1e-4)
    assert RewardModel.from_pretrained(tmp_path).predict_rewards(texts) == pytest.approx(
        wanted, abs=1e-4
    )
    assert rewards.model(str(tmp_path))(PROMPTS, CHOSEN) == pytest.approx(wanted, abs=1e-4)
    assert serving.model(str(tmp_path))(PROMPTS, CHOSEN) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PairwiseRewardModel(config()),
        lambda: MultiObjectiveRewardModel(config(), num_objectives=2),
        lambda: RewardModel(config(pooling_strategy="mean")),
    ],
    ids=["pairwise", "multi-objective", "mean"],
)
def test_every_exported_model_rewards_a_policy(make, tmp_path):
    model = stirred(make())
    model.export(tmp_path)
    wanted = model.predict_rewards([p + c for p, c in zip(PROMPTS, CHOSEN, strict=True)])
    assert len(set(wanted)) == len(wanted)
    found = serving.model(str(tmp_path))(PROMPTS, CHOSEN)
    assert found == pytest.approx(wanted, abs=1e-4)
    again = type(model).from_pretrained(tmp_path)
    assert again.config == model.config


def test_an_encoder_is_exported_and_rewards_a_policy(tmp_path):
    c = config(pooling_strategy="mean")
    model = RewardModel(c, base_model=body("bert"), tokenizer=tiny_tokenizer())
    stirred(model).export(tmp_path)
    wanted = model.predict_rewards([p + c for p, c in zip(PROMPTS, CHOSEN, strict=True)])
    assert serving.model(str(tmp_path))(PROMPTS, CHOSEN) == pytest.approx(wanted, abs=1e-4)


def test_conversations_are_scored_as_they_were_trained_on():
    """A pair of messages and a policy's answer to the same messages get the same tokens."""
    from datamodules.text.encoding import Limits, encode, render
    from datamodules.text.prompts import Prompt

    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "Hi"}]
    answer = [{"role": "assistant", "content": "Hello."}]
    ((prompt, response),) = encode(
        tokenizer,
        [render(tokenizer, Prompt(messages), answer)],
        Limits(),
        close=RewardModel.closes_texts,
    )
    text = tokenizer.apply_chat_template([*messages, *answer], tokenize=False)
    assert prompt + response == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_strategy": "max"}, "algo.pooling_strategy='max'"),
        ({"temperature": 0}, "algo.temperature=0"),
        ({"dropout_prob": 1.0}, "algo.dropout_prob=1.0"),
        ({"label_smoothing": 0.7}, "algo.label_smoothing=0.7"),
        ({"num_labels": 0}, "algo.num_labels=0"),
        ({"warmup_steps": -1}, "algo.warmup_steps=-1"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_window_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"algo.max_length=129 exceeds the 128 positions"):
        RewardModel(config(max_length=129), base_model=body("bert"))


def test_settings_that_contradict_each_other_are_refused():
    lora = ModelConfig(name="random:tiny", lora=LoraConfig(r=4))
    with pytest.raises(ValueError, match="both ask for adapters"):
        RewardModel(config(use_lora=True), lora)
    with pytest.raises(ValueError, match="objective_weights has 1 numbers for 3"):
        MultiObjectiveConfig(objective_weights=[1.0])
    with pytest.raises(ValueError, match="num_labels=2: there is no single reward"):
        fit(RewardModel(config(num_labels=2)))
    with pytest.raises(ValueError, match="adapters merged"):
        RewardModel(config(use_lora=True)).export("unused", merge=False)


@pytest.mark.parametrize("kind", [RewardModel, PairwiseRewardModel, MultiObjectiveRewardModel])
def test_half_precision_of_the_whole_module_works(kind):
    model = stirred(kind(config())).to(torch.bfloat16).eval()
    outputs = model(*padded("right", 0))
    assert outputs["rewards"].dtype == torch.float32
    assert torch.isfinite(outputs["rewards"]).all()
    if kind is PairwiseRewardModel:
        assert model.forward_pair(*padded("right", 0), *padded("left", 0)).dtype == torch.float32


@pytest.mark.parametrize("path", ["preference_model.preference_env", "reward_function.model"])
def test_paths_of_earlier_configs_still_lead_there(path):
    with pytest.warns(FutureWarning, match=r"is now rlmodules\.reward_models\.serving"):
        found = get_method(f"rlmodules.{path}")
    assert found is getattr(serving, path.split(".")[1])
