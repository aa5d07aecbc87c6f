"""SFT as a module: what it computes, that it learns, what it writes, and what it refuses."""

import json
import math
import random

import pytest
import torch
from pair_helpers import CHOSEN, PROMPTS
from sft_helpers import batch_of, data, dataset, fit, sft
from template_helpers import says, user
from torch.testing import assert_close

from datamodules import DemonstrationDataset
from rlmodules import LoraConfig, ModelConfig, SFTConfig
from rlmodules.models.embedded import tiny_tokenizer

EXACT = {"rtol": 1e-5, "atol": 1e-5}


def plain(module, example):
    """Log-probabilities of what is learned, and whether it is likeliest, by the model's logits."""
    (ids,), at = example.sequences, example.learned
    logits = module.base_model(input_ids=ids[None]).logits[0]
    before = logits[at - 1].log_softmax(-1)
    return before.gather(1, ids[at, None])[:, 0], before.argmax(-1) == ids[at]


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
@pytest.mark.parametrize("completion_only", [None, False])
@pytest.mark.parametrize("lora", [0, 4])
def test_the_loss_is_that_of_plain_forward_passes(loss_type, completion_only, lora):
    """Each text by itself: no other text of the row is seen, and no padding."""
    loaded = ModelConfig(name="random:tiny", lora=LoraConfig(r=lora))
    module, rows = sft(loaded, loss_type=loss_type), dataset(completion_only_loss=completion_only)
    loss, metrics = module.losses(batch_of(rows))
    found = [plain(module, example) for example in rows.examples]
    logprobs, tops = (torch.cat(parts) for parts in zip(*found, strict=True))
    each = -logprobs * (logprobs.detach().exp() if loss_type == "dft" else 1)
    assert_close(loss, each.mean(), **EXACT)
    assert_close(metrics["nll"], -logprobs.mean(), **EXACT)
    assert_close(metrics["token_accuracy"], tops.float().mean())
    trained = [p for p in module.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(each.mean(), trained), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_packed_and_padded_layouts_and_orders_give_the_same_loss():
    module, rows = sft(), dataset()
    assert module.policy.packs
    losses = [module.losses(batch_of(rows))[0]]
    shuffled = list(range(8))
    random.Random(0).shuffle(shuffled)
    losses.append(module.losses(batch_of(rows, shuffled))[0])
    module.policy.can_pack = False
    losses.append(module.losses(batch_of(rows))[0])
    assert_close(losses[0], losses[1], **EXACT)
    assert_close(losses[0], losses[2], **EXACT)


def test_a_split_step_is_the_whole_one():
    """The mean is over the tokens of the optimizer step, not over means of its batches."""
    whole = fit(sft(batch_size=8, max_grad_norm=1e9))[0]
    split = fit(sft(batch_size=2, gradient_accumulation_steps=4, max_grad_norm=1e9))[0]
    for one, other in zip(whole, split, strict=True):
        for name in ("train/loss", "train/nll", "train/token_accuracy", "train/grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_it_learns_what_is_demonstrated_and_says_how_well(tmp_path):
    module = sft(num_epochs=80, eval_every=80, learning_rate=5e-3, max_new_tokens=24)
    held_out = dataset(2)  # of what it trains on, so that it can be known
    history, evaluations = fit(module, data(module.config, held_out=held_out), tmp_path)
    assert history[-1]["train/loss"] < 0.1 < 2 < history[0]["train/loss"]
    for row in (*history, *evaluations):
        for stage in {name.partition("/")[0] for name in row if name.endswith("/nll")}:
            nll = row[f"{stage}/nll"]
            assert row[f"{stage}/perplexity"] == pytest.approx(math.exp(nll))
            assert 0 <= row[f"{stage}/token_accuracy"] <= 1
            assert row[f"{stage}/loss"] == pytest.approx(nll, rel=1e-5)
    assert evaluations[-1]["val/token_accuracy"] > 0.9
    assert module.answers(held_out.items) == [
        {"prompt": prompt, "response": said, "demonstrated": said}
        for prompt, said in zip(PROMPTS[:2], CHOSEN[:2], strict=True)
    ]


def test_what_leaves_no_room_for_an_answer_has_none():
    module = sft(eval_samples=2)
    texts = DemonstrationDataset(["It rains."], tiny_tokenizer(), 64)
    assert module.answers(texts.items) == []
    module.config.max_new_tokens = 10**9
    assert module.answers(dataset(2).items) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"loss_type": "nl"}, r"algo\.loss_type='nl'"),
        ({"warmup_ratio": 2.0}, r"algo\.warmup_ratio=2.0 must be between 0 and 1"),
        ({"eval_samples": -1}, r"algo\.eval_samples=-1 must be 0 or more"),
        ({"max_new_tokens": 0}, r"algo\.max_new_tokens=0 must be at least 1"),
        ({"max_length": 1}, r"algo\.max_length=1 must be 2 or more"),
        ({"learning_rate": 0.0}, r"algo\.learning_rate"),
    ],
)
def test_settings_without_sense_are_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        SFTConfig(**changes)


def test_a_report_of_a_whole_run(tmp_path, command):
    """As a newcomer starts it: the carried pairs, whose chosen side is learned from."""
    quick = ["model=tiny", "trainer.precision=32-true", "logger=none", "data.eval_size=8"]
    output = command(*quick, "algo=sft", "algo.num_epochs=1", "algo.max_new_tokens=4")
    (folder,) = tmp_path.glob("outputs/*/*")
    assert "238 demonstrations to train on" in output and "8 held out" in output
    assert "what was chosen is learned from" in output
    for text in ("perplexity", "token accuracy", "What it writes", "before", "after"):
        assert text in output
    report = json.loads((folder / "report.json").read_text())
    assert report["after"]["val/loss"] < report["before"]["val/loss"]
    tables = sorted(path.name for path in (folder / "samples").iterdir())
    assert tables == ["step-000000.csv", "step-000030.csv"]
    rows = (folder / "samples" / tables[-1]).read_text()
    assert rows.startswith("prompt,response,demonstrated\n")
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "report.html").read_text()
    assert "demonstrated" in page and "no reward applies" not in page
    assert (folder / "model" / "config.json").is_file()


# ------------------------------------------------------------------------- as TRL computes it

MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ m.content }}<eos>"
    "{% endgeneration %}{% else %}<u>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
TRL = {
    # what is learned, loss_type: loss and token accuracy of TRL 1.16.0's SFTTrainer.evaluate()
    ("completion", "nll"): (7.365471, 0.0000000),
    ("all", "nll"): (7.278431, 0.0000000),
    ("text", "nll"): (6.920317, 0.0632911),
    ("turns", "nll"): (7.471680, 0.0000000),
    ("completion", "dft"): (0.009398, 0.0000000),
    ("all", "dft"): (0.009621, 0.0000000),
    ("text", "dft"): (0.028524, 0.0632911),
    ("turns", "dft"): (0.009647, 0.0000000),
}


def demonstrated(kind):
    tokenizer, said, asked = tiny_tokenizer(), CHOSEN[:4], PROMPTS[:4]
    if kind == "text":
        return DemonstrationDataset(said, tokenizer, 64)
    if kind == "turns":
        tokenizer.chat_template = MARKED
        both = zip(said, asked, strict=True)
        talks = [[user("Wet?"), says(a), user("Now?"), says(b)] for a, b in both]
        return DemonstrationDataset(talks, tokenizer, 64, assistant_only_loss=True)
    only = None if kind == "completion" else False
    return DemonstrationDataset(said, tokenizer, 64, prompts=asked, completion_only_loss=only)


@pytest.mark.parametrize(("kind", "loss_type"), TRL)
def test_losses_and_accuracies_are_trls(kind, loss_type):
    """Of the tiny model, moved away from where it began."""
    module, rows = sft(loss_type=loss_type), demonstrated(kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.base_model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    loss, metrics = module.losses(batch_of(rows))
    expected, accuracy = TRL[kind, loss_type]
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert metrics["token_accuracy"].item() == pytest.approx(accuracy, abs=1e-6)
