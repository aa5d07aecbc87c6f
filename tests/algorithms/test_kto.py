"""KTO as a module: what it computes, that it learns, what it says and refuses."""

import copy
import json

import pytest
import torch
from kto_helpers import batch_of, data, dataset, fit, kto
from pair_helpers import CHOSEN, PROMPTS
from torch.testing import assert_close

from datamodules import UnpairedPreferenceDataset
from rlmodules import KTOConfig, LoraConfig, ModelConfig
from rlmodules.models.embedded import tiny_tokenizer

EXACT = {"rtol": 1e-5, "atol": 1e-5}


def unsettle(model, scale=0.05):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * scale)


def plain(model, sequence, start):
    logits = model(input_ids=sequence[None]).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, sequence[1:, None])[start - 1 :].sum()


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("lora", [0, 4])
def test_the_loss_is_that_of_plain_forward_passes(loss_type, lora):
    loaded = ModelConfig(name="random:tiny", lora=LoraConfig(r=lora))
    module, rows = kto(loaded, loss_type=loss_type, desirable_weight=1.2), dataset()
    reference = copy.deepcopy(module.base_model)
    unsettle(module.base_model)
    loss, metrics = module.losses(batch_of(rows))
    examples = rows.examples
    gain = lambda ids, at: (  # noqa: E731
        plain(module.base_model, ids, at) - plain(reference, ids, at).detach()
    )
    ratios = [gain(e.sequences[0], e.prompt_length) for e in examples]
    others = [torch.cat([e.prompt, examples[i - 1].response]) for i, e in enumerate(examples)]
    gains = [gain(ids, e.prompt_length).item() for ids, e in zip(others, examples, strict=True)]
    kl = max(sum(gains) / len(gains), 0.0) if loss_type == "kto" else 0.0
    total = 0.0
    for ratio, example in zip(ratios, examples, strict=True):
        away = ratio - kl if example.is_desirable else kl - ratio
        weight = 1.2 if example.is_desirable else 1.0
        total = total + weight * (1 - torch.sigmoid(0.1 * away)) / len(examples)
    assert_close(loss, total, **EXACT)
    if loss_type == "kto":
        assert metrics["reference_kl"].item() == pytest.approx(kl, abs=1e-4)
    trained = [p for p in module.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(total, trained), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


TRL = {
    # policy moved away from the reference or the reverse, options:
    # loss, KL, rewards of desirable and of other responses of TRL 1.16.0's KTOTrainer.evaluate()
    ("policy", ()): (0.517831, 0.0, -4.555491, -2.998718),
    ("policy", (("loss_type", "apo_zero_unpaired"),)): (0.517831, None, -4.555491, -2.998718),
    ("reference", ()): (0.323778, 35.671211, 4.555491, 2.998718),
    ("reference", (("loss_type", "apo_zero_unpaired"),)): (0.482169, None, 4.555491, 2.998718),
    ("reference", (("beta", 0.01), ("desirable_weight", 1.5), ("undesirable_weight", 0.5))): (
        0.477947, 35.671211, 0.455549, 0.299872),
}  # fmt: skip


@pytest.mark.parametrize(("moved", "options"), TRL)
def test_losses_and_rewards_are_trls(moved, options):
    module = kto(**dict(options))
    if moved == "policy":
        unsettle(module.base_model, 0.2)
    else:
        with module.reference.of(module.policy) as reference:
            for p in reference.base_model.parameters():
                p.requires_grad_(True)
            unsettle(reference.base_model, 0.2)
    labels = [True, False, False, True]
    rows = UnpairedPreferenceDataset(PROMPTS[:4], CHOSEN[:4], labels, tiny_tokenizer(), 64, 32)
    loss, metrics = module.losses(batch_of(rows))
    expected, kl, desirable, others = TRL[moved, options]
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert metrics["reward_chosen"].item() == pytest.approx(desirable, rel=1e-5)
    assert metrics["reward_rejected"].item() == pytest.approx(others, rel=1e-5)
    if kl is None:
        assert "reference_kl" not in metrics
    else:
        assert metrics["reference_kl"].item() == pytest.approx(kl, rel=1e-5)


def test_an_untrained_policy_is_its_reference():
    loss, metrics = kto().losses(batch_of(dataset()))
    assert_close(loss, torch.tensor(0.5), **EXACT)
    assert float(metrics["reference_kl"]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("lora", [0, 4])
def test_it_learns_which_responses_are_desirable(lora):
    loaded = ModelConfig(name="random:tiny", lora=LoraConfig(r=lora))
    module = kto(loaded, num_epochs=15, learning_rate=1e-2 if lora else 1e-3, eval_every=10)
    history, evaluations = fit(module, data(module.config, held_out=dataset(4)))
    assert history[0]["train/margin"] == pytest.approx(0.0, abs=1e-4)
    for row, stage in ((history[-1], "train"), (evaluations[-1], "val")):
        assert row[f"{stage}/margin"] > 0.5
        apart = row[f"{stage}/reward_chosen"] - row[f"{stage}/reward_rejected"]
        assert row[f"{stage}/margin"] == pytest.approx(apart)
        assert row[f"{stage}/loss"] < 0.45


@pytest.mark.parametrize(
    ("labels", "changes", "said"),
    [
        ([True], {}, "all 8 responses are desirable"),
        ([False], {}, "all 8 responses are not desirable"),
        ([True, False, False, False], {},
         r"weighted, that is 0.33 to 1, .* algo.desirable_weight=3 balances"),
        ([True, False, False, False], {"desirable_weight": 3.0}, None),
        ([True, False], {"undesirable_weight": 2.0}, "that is 0.50 to 1"),
    ],
)  # fmt: skip
def test_it_says_so_where_one_kind_outweighs_the_other(labels, changes, said, recwarn):
    module = kto(num_epochs=1, **changes)
    fit(module, data(module.config, dataset(labels=labels)))
    told = [str(w.message) for w in recwarn if "desirable" in str(w.message)]
    if said is None:
        assert not told
    else:
        with pytest.warns(match=said):
            fit(module, data(module.config, dataset(labels=labels)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"loss_type": "kt"}, r"algo\.loss_type='kt'"),
        ({"beta": 0.0}, r"algo\.beta=0.0 must be positive"),
        ({"desirable_weight": 0.0}, r"algo\.desirable_weight=0.0 must be positive"),
        ({"warmup_ratio": 2.0}, r"algo\.warmup_ratio=2.0 must be between 0 and 1"),
    ],
)
def test_settings_without_sense_are_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        KTOConfig(**changes)


def test_a_batch_without_another_response_is_refused():
    module = kto(batch_size=1)
    with pytest.raises(ValueError, match=r"algo\.batch_size=1 must be 2 or more"):
        fit(module)
    module = kto()
    with pytest.raises(ValueError, match=r"data\.eval_size=1 must be 2 or more"):
        fit(module, data(module.config, held_out=dataset(1)))


def test_a_whole_run(tmp_path, command):
    """As a newcomer starts it: each of the carried pairs is two responses."""
    quick = ["model=tiny", "trainer.precision=32-true", "logger=none", "data.eval_size=8"]
    output = command(*quick, "algo=kto", "algo.num_epochs=1")
    (folder,) = tmp_path.glob("outputs/*/*")
    assert "476 labelled responses to train on" in output and "238 desirable, 238 not" in output
    assert "238 rows are pairs" in output and "margin" in output
    report = json.loads((folder / "report.json").read_text())
    assert report["before"]["val/margin"] == pytest.approx(0.0, abs=1e-4)
    assert "val/reference_kl" in report["after"]
    assert (folder / "model" / "config.json").is_file()
