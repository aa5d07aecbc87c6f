"""Every symptom, produced on purpose: a run of its own is stopped for it while it goes on."""

import dataclasses

import grpo_helpers
import pair_helpers
import pytest
import torch
from helpers import PROMPTS, config, data, run

from datamodules import PreferenceDataset
from rlmodules import DPO, PPO, DPOConfig
from rlmodules.callbacks import HealthGuard
from rlmodules.callbacks.stopping import UnhealthyRunError
from rlmodules.metrics.health import SYMPTOMS
from rlmodules.models.embedded import tiny_tokenizer

FREE = {"temperature": 1.0, "top_p": 1.0, "entropy_coef": 0.0, "kl_penalty_coef": 0.0}


def varied(prompts, responses, metadata=None):
    """A reward that tells the texts of an untrained model apart."""
    return [sum(map(ord, response)) % 97 / 97 for response in responses]


def in_turn(*rewards):
    """A reward that is another one at each call, and the last from there on."""
    calls = []

    def reward(prompts, responses, metadata=None):
        calls.append(rewards[min(len(calls), len(rewards) - 1)])
        return calls[-1](prompts, responses)

    return reward


def ppo(guard, reward=varied, prepare=lambda module: None, held_out=(), **changes):
    c = config(**FREE | {"num_iterations": 16} | changes)
    module = PPO(c)
    prepare(module)
    sizes = {"eval_prompts": list(held_out), "eval_size": len(held_out)} if held_out else {}
    options = {"check_val_every_n_epoch": 5, "limit_val_batches": 1.0 if held_out else 0}
    run(c, module, data=data(c, reward, **sizes), callbacks=[guard], **options)


def written_by(change):
    """Has another than the policy write responses: what ``change`` makes of the policy's."""

    def prepare(module):
        own = module.sampler
        module.sampler = lambda *asked: [change(response) for response in own(*asked)]

    return prepare


def high_kl(guard):
    ppo(guard, learning_rate=3e-2)


def negative_kl(guard):
    """Training makes unlikely what something else goes on to write."""
    fixed = lambda r: dataclasses.replace(r, tokens=[70 + i for i in range(len(r.tokens))])  # noqa: E731
    bad = lambda prompts, responses, metadata=None: [-1.0] * len(responses)  # noqa: E731
    ppo(guard, bad, written_by(fixed), whiten_advantages=False, learning_rate=1e-3)


def often_ending(module):
    """A fifth of all bytes ends a response at once."""
    settings = module.base_model.generation_config
    settings.eos_token_id, settings._from_model_config = list(range(3, 60)), False


def by_length(prompts, responses, metadata=None):
    return [len(response) / 10 for response in responses]


def longer(guard):
    ppo(guard, by_length, often_ending, batch_size=16, max_new_tokens=8, learning_rate=1e-2)


def rewarded_length(guard):
    longer(guard)


def cut_off(guard):
    longer(guard)


def rewarded_repetition(guard):
    def words(prompts, responses, metadata=None):
        return [r.count("e ") + 0.3 * r.count("e") + 0.3 * r.count(" ") for r in responses]

    ppo(guard, words, held_out=PROMPTS, batch_size=16, max_new_tokens=16, learning_rate=2e-2)


def collapsed_entropy(guard):
    def high(prompts, responses, metadata=None):
        return [sum(map(ord, response[:6])) / 600 for response in responses]

    ppo(guard, high, batch_size=16, max_new_tokens=3, ppo_epochs=4, learning_rate=3e-2)


def blind_critic(guard):
    """A critic of random numbers, which does not learn."""

    def spoil(module):
        torch.nn.init.normal_(module.policy.value_head.output.weight)

    ppo(guard, prepare=spoil, lam=1.0, learning_rate=1e-5, value_learning_rate=1e-12)


def same(prompts, responses, metadata=None):
    return [1.0] * len(responses)


def equal_groups(guard):
    c = grpo_helpers.config(num_iterations=4)
    grpo_helpers.run(c, data=grpo_helpers.data(c, same), callbacks=[guard])


def equal_rewards(guard):
    ppo(guard, same)


def large_steps(guard):
    ppo(guard, learning_rate=1e-2)


def gradient_spikes(guard):
    dear = lambda *told, metadata=None: [1000 * x for x in varied(*told)]  # noqa: E731
    reward = in_turn(*[varied] * 6, dear, varied)
    ppo(guard, reward, whiten_advantages=False, learning_rate=1e-5)


def lost_loss(guard):
    """An iteration to none of whose episodes a reward applies."""
    none = lambda prompts, responses, metadata=None: [None] * len(responses)  # noqa: E731
    ppo(guard, in_turn(varied, varied, none, varied))


def lost_chosen(guard):
    """Rejected responses that say the chosen one four times take it down with them."""
    words = [" red", " green", " blue", " pink", " grey", " black", " white", " brown"]
    pairs = PreferenceDataset(["Q"] * 8, words, [w * 4 for w in words], tiny_tokenizer(), 300)
    c = DPOConfig("random:tiny", batch_size=4, gradient_accumulation_steps=1, num_epochs=6,
                  learning_rate=3e-2, eval_every=100, device="cpu")  # fmt: skip
    pair_helpers.fit(DPO(c), pair_helpers.data(c, pairs), callbacks=[guard])


def engines_apart(guard):
    off = lambda r: dataclasses.replace(r, logprobs=[x - 0.3 for x in r.logprobs])  # noqa: E731
    ppo(guard, prepare=written_by(off), learning_rate=1e-5)


FAILING = (
    lost_loss, high_kl, negative_kl, rewarded_length, rewarded_repetition, collapsed_entropy,
    blind_critic, equal_groups, equal_rewards, large_steps, gradient_spikes, lost_chosen, cut_off,
    engines_apart,
)  # fmt: skip


@pytest.mark.parametrize("fails", FAILING)
def test_a_run_that_fails_is_stopped_while_it_does(fails):
    guard = HealthGuard("stop", symptoms=[fails.__name__])
    with pytest.raises(UnhealthyRunError) as stopped:
        fails(guard)
    assert stopped.value.symptom == fails.__name__
    assert 0 < stopped.value.began <= guard._number
    (symptom,) = (s for s in SYMPTOMS if s.name == fails.__name__)
    assert symptom.remedy in str(stopped.value)


def test_every_symptom_has_a_run_of_its_own():
    assert [fails.__name__ for fails in FAILING] == [symptom.name for symptom in SYMPTOMS]
