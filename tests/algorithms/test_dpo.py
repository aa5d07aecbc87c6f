"""DPO and ORPO as modules: what they compute, that they learn, and what they refuse."""

import copy
import warnings

import pytest
import torch
from pair_helpers import data, dataset, fit
from torch.testing import assert_close

from rlmodules import DPO, ORPO, DPOConfig, LoraConfig, ModelConfig, ORPOConfig
from rlmodules.algorithms.text_policy import pair_sums, response_logprobs, starts_of
from rlmodules.functional import PairLogps

EXACT = {"rtol": 1e-5, "atol": 1e-5}


def config(**changes):
    settings = {
        "model_name": "random:tiny",
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "num_epochs": 2,
        "device": "cpu",
    }
    return DPOConfig(**settings | changes)


def orpo_config(**changes):
    kept = ("model_name", "batch_size", "gradient_accumulation_steps", "learning_rate")
    return ORPOConfig(**{k: getattr(config(), k) for k in kept} | {"num_epochs": 2} | changes)


def batch_of(pairs, rows=None):
    rows = list(range(len(pairs))) if rows is None else rows
    return pairs.batch(rows, pairs.totals(rows), "train")


def plain_logps(model, sequence, start):
    """The log-probability of a sequence's end, by the model's own logits."""
    logits = model(input_ids=sequence[None]).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, sequence[1:, None])[start - 1 :].sum()


def lora():
    return ModelConfig(name="random:tiny", lora=LoraConfig(r=4))


def unsettle(module, scale=0.05):
    """Move the trained weights away from the reference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.base_model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * scale)


@pytest.mark.parametrize("model_config", [None, lora()], ids=["full", "lora"])
def test_the_loss_is_that_of_two_plain_forward_passes(model_config):
    module, pairs = DPO(config(), model_config), dataset()
    reference = copy.deepcopy(module.base_model)
    unsettle(module)
    loss, metrics = module.losses(batch_of(pairs))
    total = 0.0
    for example in pairs.examples:
        pi = [plain_logps(module.base_model, s, example.prompt_length) for s in example.sequences]
        ref = [plain_logps(reference, s, example.prompt_length) for s in example.sequences]
        margin = (pi[0] - ref[0]) - (pi[1] - ref[1])
        total = total - torch.nn.functional.logsigmoid(0.1 * margin) / len(pairs)
    assert_close(loss, total, **EXACT)
    assert abs(float(metrics["margin"])) > 1e-4
    trained = [p for p in module.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(total, trained), strict=True
    ):
        assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_packed_and_padded_layouts_give_the_same_loss():
    losses = []
    for packs in (True, False):
        module = DPO(config())
        unsettle(module)
        assert module.policy.packs
        module.policy.can_pack = packs
        losses.append(module.losses(batch_of(dataset()))[0])
    assert_close(losses[0], losses[1], **EXACT)


def test_an_untrained_policy_is_its_reference_and_the_loss_is_log_2():
    for model_config in (None, lora()):
        loss, metrics = DPO(config(), model_config).losses(batch_of(dataset()))
        assert_close(loss, torch.tensor(2.0).log(), **EXACT)
        assert (float(metrics["accuracy"]), float(metrics["margin"])) == (0.5, 0.0)


def test_without_a_reference_the_loss_is_of_plain_log_probabilities():
    module, pairs = DPO(config(reference_free=True)), dataset(2)
    _, metrics = module.losses(batch_of(pairs))
    chosen = [
        plain_logps(module.base_model, e.sequences[0], e.prompt_length) for e in pairs.examples
    ]
    assert_close(metrics["reward_chosen"], 0.1 * torch.stack(chosen).mean(), **EXACT)
    assert module.reference is None


def test_one_batch_and_accumulated_small_ones_take_the_same_step():
    after = []
    for size, accumulate in ((8, 1), (2, 4), (4, 2), (1, 8)):
        c = config(
            batch_size=size,
            gradient_accumulation_steps=accumulate,
            num_epochs=1,
            loss_type=["sigmoid", "sft"],
        )
        module = DPO(c)
        fit(module)
        after.append(torch.cat([p.detach().flatten() for p in module.base_model.parameters()]))
    for other in after[1:]:
        assert_close(other, after[0], rtol=1e-4, atol=2e-5)


def test_a_last_step_that_is_not_full_counts_each_pair_alike():
    """7 pairs in steps of 4: the mean over the last 3 is not taken for one over 4."""
    c = config(batch_size=2, gradient_accumulation_steps=2, num_epochs=1)
    history, _ = fit(DPO(c), data(c, dataset(7)))
    assert len(history) == 2
    assert history[0]["train/loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("model_config", [None, lora()], ids=["full", "lora"])
def test_it_learns_to_prefer_the_chosen_responses(model_config):
    c = config(num_epochs=12, learning_rate=3e-3)
    held_out = dataset()
    module = DPO(c, model_config)
    history, evaluations = fit(module, data(c, held_out=held_out))
    assert evaluations[-1]["val/accuracy"] == 1.0
    assert evaluations[-1]["val/margin"] > 0.5
    assert history[-1]["train/loss"] < 0.5 < history[0]["train/loss"]


def test_the_end_is_evaluated_whatever_eval_every_says():
    c = config(num_epochs=3, eval_every=4)  # 6 steps
    _, evaluations = fit(DPO(c), data(c, held_out=dataset(2)))
    assert [row["step"] for row in evaluations] == [4, 6]


def test_a_run_of_so_many_steps_is_evaluated_after_them():
    c = config(num_epochs=3, eval_every=100)
    history, evaluations = fit(DPO(c), data(c, held_out=dataset(2)), max_steps=3)
    assert len(history) == 3
    assert [row["step"] for row in evaluations] == [3]


def test_evaluation_leaves_no_gradient_and_restores_the_mode():
    module = DPO(config(eval_every=1))
    seen = []
    module.validation_step = lambda batch, batch_idx: seen.append(torch.is_grad_enabled())
    fit(module, data(module.config, held_out=dataset(2)))
    assert seen and not any(seen)
    assert module.training and module.policy.training


def test_the_learning_rate_reaches_its_peak_even_in_a_short_run():
    c = config(num_epochs=2, warmup_ratio=0.25, learning_rate=1e-3)  # 4 steps, 1 of warm-up
    history, _ = fit(DPO(c))
    rates = [row["train/learning_rate"] for row in history]
    assert rates == pytest.approx([0.5e-3, 1e-3, 2 / 3 * 1e-3, 1 / 3 * 1e-3])


def test_precomputed_reference_log_probabilities_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = []
    for precompute in (False, True, True):  # the third reads what the second wrote
        module = DPO(config(precompute_ref_log_probs=precompute))
        runs.append(fit(module, data(module.config, held_out=dataset(3)))[0])
        if precompute and len(runs) == 2:
            files = list((tmp_path / "rlmodules" / "reference").iterdir())
            assert len(files) == 2
            stamps = {f: f.stat().st_mtime_ns for f in files}
    assert stamps == {f: f.stat().st_mtime_ns for f in files}
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-6)
            assert a["train/margin"] == pytest.approx(b["train/margin"], abs=1e-6)


def test_another_model_or_another_set_of_pairs_does_not_read_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "rlmodules" / "reference"
    c = config(precompute_ref_log_probs=True, num_epochs=1)
    for count, shift in ((8, 0.0), (8, 0.1), (6, 0.0)):
        module = DPO(c)
        with torch.no_grad():
            for model in (module.base_model, module.reference.model.base_model):
                next(model.parameters()).add_(shift)
        before = len(list(folder.glob("*"))) if folder.exists() else 0
        fit(module, data(c, dataset(count)))
        assert len(list(folder.glob("*"))) == before + 1


def test_a_second_set_of_pairs_gets_a_table_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = DPO(config(precompute_ref_log_probs=True, num_epochs=1, learning_rate=1e-6))
    fit(module, data(module.config, dataset(8)))
    pairs = dataset(6)
    pairs.examples.reverse()
    history, _ = fit(module, data(module.config, pairs))
    assert history[0]["train/loss"] == pytest.approx(0.6931, abs=1e-3)


def test_common_beginnings_of_the_responses_are_predicted_once():
    module, pairs = DPO(config()), dataset(1)
    example = pairs.examples[0]
    other = example.sequences[0].clone()
    other[-3] += 1  # all but the end is alike
    batch = batch_of(pairs)
    batch.examples[0] = type(example)((example.sequences[0], other), example.prompt_length)
    rows = []
    body = module.base_model.model
    body.register_forward_pre_hook(
        lambda _, args, inputs: rows.append(inputs["input_ids"].shape), with_kwargs=True
    )
    logps = pair_sums(response_logprobs(module.policy, batch.sequences, starts_of(batch)))
    wanted = [
        plain_logps(module.base_model, s, example.prompt_length)
        for s in batch.examples[0].sequences
    ]
    assert_close(logps[0], torch.stack(wanted), **EXACT)
    assert rows[0] == (1, len(other) - 1 + 2)  # the last of each side predicts nothing


def test_falling_chosen_log_probabilities_are_warned_of():
    losing = {"num_epochs": 6, "learning_rate": 2e-2}
    for losses, remedy in (
        ({"loss_type": "apo_down"}, r"add an sft loss \(algo.loss_type=\[sigmoid,sft\]"),
        (
            {"loss_type": ["apo_down", "sft"], "loss_weights": [1.0, 1e-3]},
            r"weigh the sft loss more \(algo.loss_weights=\[1.0, 0.001\] now\)",
        ),
    ):
        c = config(**losing, **losses)
        with pytest.warns(UserWarning, match=f"chosen responses have become less .* {remedy}"):
            fit(DPO(c), data(c, held_out=dataset()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        passed = ".*(does not have many workers|checkpoint|in eval mode).*"
        warnings.filterwarnings("ignore", message=passed)
        c = config(loss_type="sft", num_epochs=1)
        fit(DPO(c), data(c, held_out=dataset()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "sigmod"}, "algo.loss_type=.*sigmod.*sigmoid"),
        ({"loss_type": []}, "algo.loss_type"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "algo.loss_weights"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing=0.1 has no effect"),
        ({"loss_type": "exo_pair"}, "exo_pair is infinite"),
        ({"label_smoothing": 0.5}, "algo.label_smoothing=0.5"),
        ({"beta": 0.0}, "algo.beta=0.0"),
        ({"reference_free": True, "precompute_ref_log_probs": True}, "nothing to compute"),
        ({"loss_type": "simpo"}, "simpo is a loss without a reference: set algo.reference_free"),
        ({"simpo_gamma": 1.0}, "simpo_gamma=1 has no effect"),
        ({"batch_size": 0}, "algo.batch_size=0"),
        ({"eval_every": 0}, "algo.eval_every=0"),
        ({"max_prompt_length": 512}, "max_prompt_length=512 must be positive and smaller"),
        ({"lr_scheduler_type": "polynomial"}, "algo.lr_scheduler_type='polynomial'"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_orpo_is_likelihood_and_odds_of_the_plain_model():
    module, pairs = ORPO(orpo_config()), dataset(3)
    loss, metrics = module.losses(batch_of(pairs))
    nll, tokens, odds = 0.0, 0, []
    for example in pairs.examples:
        sides = []
        for sequence in example.sequences:
            length = len(sequence) - example.prompt_length
            sides.append(plain_logps(module.base_model, sequence, example.prompt_length) / length)
        nll = nll - plain_logps(module.base_model, example.sequences[0], 1)
        tokens += len(example.sequences[0]) - 1
        log_odds = [p - torch.log(1 - p.exp()) for p in sides]
        odds.append(torch.nn.functional.logsigmoid(log_odds[0] - log_odds[1]))
    assert_close(loss, nll / tokens - 0.1 * torch.stack(odds).mean(), **EXACT)
    assert float(metrics["nll"]) > 0


def test_orpo_learns_and_needs_no_reference():
    c = orpo_config(num_epochs=12, learning_rate=3e-3, beta=0.5)
    module = ORPO(c)
    history, evaluations = fit(module, data(c, held_out=dataset()))
    assert evaluations[-1]["val/accuracy"] == 1.0
    assert history[-1]["train/loss"] < history[0]["train/loss"] - 0.5
    assert not hasattr(module, "reference")


def test_pair_logps_knows_its_ratios():
    t = torch.tensor
    x = PairLogps(t([1.0]), t([2.0]), t([0.5]), t([3.0]), t([2.0]), t([4.0]))
    assert (x.chosen_ratio.item(), x.rejected_ratio.item(), x.delta.item()) == (0.5, -1.0, 1.5)
    assert x.delta_per_token.item() == 0.25 + 0.25
