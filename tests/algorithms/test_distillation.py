"""Distillation on the tiny model: what it computes, who writes, that it learns."""

import lightning as L
import pytest
import torch
from architectures import build
from distillation_helpers import PROMPTS, SAYS, config, data, fresh, module, no_reward, run, teacher
from grpo_helpers import gradient, whole
from helpers import assert_same_run, weights
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from datamodules import TextGenerationEnv
from datamodules.experience import TokenBatch
from datamodules.rollouts.episodes import play
from rlmodules import Distillation, DistillationTrainer, LoraConfig, ModelConfig
from rlmodules.callbacks import AtomicCheckpointIO, RunReport, SaveLast, newest_checkpoint
from rlmodules.functional import generalized_jsd
from rlmodules.models import PolicyModel
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.models.teacher import require_same_vocabulary

# ----------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "wrong",
    [{"beta": 1.1}, {"beta": -0.1}, {"lmbda": 2.0}, {"num_epochs": 0},
     {"sampler_is": "token"}, {"sampler_is_cap": 2.0}, {"teacher_quantization": "2bit"}],
    ids=str,
)  # fmt: skip
def test_an_impossible_setting_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=rf"algo\.{next(iter(wrong))}="):
        config(**wrong)


def test_without_a_teacher_it_says_how_to_name_one():
    with pytest.raises(ValueError, match=r"algo\.teacher_model_name_or_path=null: name the model"):
        Distillation(config())


def other_tokens(change):
    made = tiny_tokenizer()
    if change == "a token more":
        made.add_tokens(["<think>"])
        return made
    vocabulary = made.get_vocab()
    a, b = sorted(vocabulary)[10:12]
    swapped = {{a: b, b: a}.get(token, token): i for token, i in vocabulary.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(swapped, [])))


@pytest.mark.parametrize("change", ["a token more", "two tokens swapped"])
@pytest.mark.parametrize("side", ["teacher", "policy"])
def test_another_tokenizer_is_refused_in_words(change, side):
    pair = (other_tokens(change), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"the teacher's tokenizer is not the policy's: '"):
        require_same_vocabulary(*(pair if side == "teacher" else reversed(pair)))
    require_same_vocabulary(pair[0], pair[0])


def test_a_teacher_is_loaded_by_name_and_what_is_wrong_names_the_option(tmp_path):
    teacher().save_pretrained(tmp_path / "t")
    name = {"teacher_model_name_or_path": str(tmp_path / "t")}
    with pytest.raises(ValueError, match=r"algo\.teacher_model_name_or_path=.*no tokenizer"):
        Distillation(config(**name))
    tiny_tokenizer().save_pretrained(tmp_path / "t")
    loaded = Distillation(config(**name)).reference.model.base_model
    for mine, its in zip(teacher().parameters(), loaded.parameters(), strict=True):
        assert_close(its.float(), mine, rtol=1e-2, atol=1e-2)  # bfloat16, where it is native
        assert not its.requires_grad


def test_where_an_attention_is_named_the_teacher_packs_no_rows_either():
    for attention, packs in (("sdpa", False), ("auto", True)):
        made = module(model_config=ModelConfig("random:tiny", attn_implementation=attention))
        assert made.policy.packs == made.reference.model.packs == packs


def test_with_a_teacher_that_writes_too_no_other_engine_samples():
    with pytest.raises(ValueError, match=r"algo\.lmbda=0\.5 .*set algo\.lmbda=1\.0"):
        module(config(lmbda=0.5)).sample_elsewhere(lambda made: None)


# ------------------------------------------------------------- what is computed from what


def rollout_of(made, prompts=PROMPTS[:3], seed=1):
    """Episodes as they are played to be learned from, outside of a Trainer's loop."""
    made.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    made.trainer.training = True
    env = TextGenerationEnv(made.tokenizer, prompts, reward_fn=no_reward)
    with torch.no_grad():
        return play(made, env, range(len(env)), [seed * 1000 + i for i in range(len(env))])


def logprobs_of(model, ids, temperature):
    return (model(ids[None]).logits[0].float() / temperature).log_softmax(-1)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_loss_is_the_mean_divergence_of_both_models_distributions(beta):
    made = module(config(beta=beta, temperature=0.8))
    rollout = rollout_of(made)
    experience, _ = made.learn_from(rollout)
    loss, found = gradient(made, whole(experience))
    parts = []
    made.zero_grad()
    for ids, at in zip(experience.sequences, experience.positions, strict=True):
        sides = [logprobs_of(m, ids, 0.8)[at - 1] for m in (made.base_model, teacher())]
        parts.append(generalized_jsd(sides[0], sides[1].detach(), beta))
    expected = torch.cat(parts).mean()
    expected.backward()
    assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    assert_close(found, torch.cat([p.grad.flatten() for p in made.base_model.parameters()]),
                 rtol=1e-3, atol=1e-6)  # fmt: skip
    assert all(p.grad is None for p in made.reference.parameters())


@pytest.mark.parametrize("name", ["gemma2", "cohere", "gpt2", "granite", "mamba", "qwen3_moe"])
def test_teachers_and_policies_are_of_any_architecture(name):
    """With its caps, scales and padding, on either side; one text has two turns."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 250, (n,), generator=generator) for n in (9, 14)]
    tokens = TokenBatch.collate(ids, [torch.arange(4, 9), torch.tensor([2, 3, 9, 10])])
    built = [PolicyModel(model.eval()) for model in (build(name), teacher())]
    for policy, other in (built, built[::-1]):
        aims = other.predictions(tokens)
        found, _ = policy.divergence(tokens, aims, beta=0.3, temperature=0.9)
        expected = []
        for text, at in zip(ids, tokens.positions, strict=True):
            sides = [logprobs_of(m.base_model, text, 0.9)[at - 1] for m in (policy, other)]
            expected.append(generalized_jsd(*sides, 0.3))
        assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-5)


def test_minibatches_and_company_change_nothing():
    made = module()
    experience, _ = made.learn_from(rollout_of(made, PROMPTS))
    loss, together = gradient(made, whole(experience))
    total = float(experience.num_actions(range(6)))
    split = [
        gradient(made, experience.minibatch([a, b], total)) for a, b in ((0, 5), (3, 1), (2, 4))
    ]
    assert_close(sum(part for part, _ in split), loss, rtol=1e-5, atol=1e-6)
    assert_close(sum(part for _, part in split), together, rtol=1e-4, atol=1e-6)


def test_an_equal_teacher_has_nothing_to_teach():
    same = Distillation(config(teacher_model_name_or_path="random:tiny"))
    experience, _ = same.learn_from(rollout_of(same))
    loss, found = gradient(same, whole(experience))
    assert abs(loss) < 1e-6 and found.norm() < 1e-4


# -------------------------------------------------------------------------- who writes


def test_the_teacher_writes_its_share_and_seeds_say_which():
    texts = {share: rollout_of(module(config(lmbda=share), teacher=teacher(True)), PROMPTS * 4)
             for share in (0.0, 0.5, 1.0)}  # fmt: skip
    wrote = {k: [t.actions[0].tolist() for t in r.trajectories] for k, r in texts.items()}
    by_policy = [mixed == own for mixed, own in zip(wrote[0.5], wrote[1.0], strict=True)]
    for mine, mixed, its in zip(by_policy, wrote[0.5], wrote[0.0], strict=True):
        assert mine or mixed == its
    assert 6 <= sum(by_policy) <= 18  # of 24
    said = tiny_tokenizer().decode(wrote[0.0][0])
    assert said == SAYS[:6] and said not in map(tiny_tokenizer().decode, wrote[1.0])


def test_the_share_is_logged_and_held_out_the_policy_writes_all(monkeypatch):
    c = config(lmbda=0.0, num_iterations=1, eval_every=1)
    made = module(c, teacher=teacher(True))
    held_out = []
    add = made.held_out.add
    monkeypatch.setattr(made.held_out, "add", lambda r, t: held_out.append(r) or add(r, t))
    _, history = run(c, made, data=data(c, eval_prompts=PROMPTS, eval_size=6))
    assert history[-1]["rollout/on_policy"] == 0.0
    (rollout,) = held_out
    said = [tiny_tokenizer().decode(t.actions[0]) for t in rollout.trajectories]
    assert SAYS[:6] not in said
    kl = (rollout.evaluation.logprobs - rollout.evaluation.ref_logprobs)[rollout.evaluation.mask]
    assert history[-1]["val/kl"] == pytest.approx(kl.mean().item(), abs=1e-5) and kl.mean() > 0.5


# ------------------------------------------------------------------------------ whole runs


def whole_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("settings", [{}, {"beta": 0.0, "lmbda": 0.5}, {"beta": 0.5}], ids=str)
def test_a_tiny_student_comes_to_say_what_its_teacher_says(settings):
    c = config(num_iterations=24, learning_rate=1e-2, eval_every=24, **settings)
    made = module(c, teacher=teacher(True))
    before = whole_of(made.reference)
    made, history = run(c, made, data=data(c, eval_prompts=PROMPTS, eval_size=6))
    first, last = history[0]["train/loss"], history[-1]["train/loss"]
    assert last < 0.5 * first
    assert history[-1]["val/kl"] < 0.6 * 3.54, "of the reverse KL that it begins with"
    assert torch.equal(before, whole_of(made.reference))


def fit(folder, iterations, *, lora=0, ckpt_path=None, **changes):
    c = config(num_iterations=iterations, learning_rate=1e-2, lmbda=0.5, **changes)
    made = module(c, model_config=ModelConfig(name="random:tiny", lora=LoraConfig(r=lora)))
    trainer = L.Trainer(
        max_epochs=iterations, accelerator="cpu", gradient_clip_val=c.max_grad_norm,
        accumulate_grad_batches=c.gradient_accumulation_steps, check_val_every_n_epoch=2,
        logger=False, callbacks=[RunReport(folder), SaveLast(folder / "checkpoints")],
        plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    d = data(c, eval_prompts=PROMPTS[:2], eval_size=2)
    trainer.fit(made, d, ckpt_path=ckpt_path, weights_only=True)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("lora", [0, 4])
def test_n_plus_m_iterations_equal_n_then_a_resumed_m(tmp_path, lora):
    straight = fit(tmp_path / "straight", 4, lora=lora)
    fit(tmp_path / "first", 2, lora=lora)
    last = newest_checkpoint(tmp_path / "first")
    assert_same_run(straight, fit(tmp_path / "second", 4, lora=lora, ckpt_path=last))
    names = straight["state_dict"]
    assert names and not any("reference" in name for name in names), "the teacher is in none"


def test_the_facade_trains_and_its_export_says_the_same(tmp_path):
    trainer = DistillationTrainer(
        config(num_iterations=1), teacher_model=teacher(), output_dir=tmp_path / "run",
        enable_progress_bar=False,
    )  # fmt: skip
    metrics = trainer.train(PROMPTS, eval_prompts=PROMPTS[:2])
    assert {"train/loss", "val/kl", "rollout/on_policy"} <= metrics.keys()
    assert "rollout/kl" not in metrics and "rollout/sampler_kl" not in metrics
    trainer.save_model(tmp_path / "export")
    again = trainer.module.from_export(tmp_path / "export")
    assert_close(weights(again.policy), weights(trainer.module.policy))
    with again.reference.of(again.policy) as held, trainer.module.reference.of(None) as own:
        assert held is own, "the teacher is loaded once"
    assert isinstance(fresh(), type(own.base_model))
