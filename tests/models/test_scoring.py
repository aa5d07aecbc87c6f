"""One module scores tokens: against the model's own logits, packed and padded, for every caller."""

import pytest
import torch
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from datamodules.experience import TokenBatch
from rlmodules.forward_backward.tokens import tokens_of
from rlmodules.models import PolicyModel, PPOModel, Reference, backbone
from rlmodules.models.embedded import tiny_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
MODELS = {
    "llama": lambda: tiny_model()[0],
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(vocab_size=259, sliding_window=4, **SIZES)),
}
EXACT = {"rtol": 1e-4, "atol": 1e-5}


def built(name, kind=PolicyModel):
    torch.manual_seed(0)
    policy = kind(MODELS[name]().eval())
    if policy.value_head is not None:
        torch.nn.init.normal_(policy.value_head.output.weight)
    return policy


def some_tokens():
    """Two responses to one prompt, one of two turns, one from which nothing is learned."""
    generator = torch.Generator().manual_seed(1)
    ids = lambda n: torch.randint(3, 250, (n,), generator=generator)  # noqa: E731
    prompt = ids(6)
    sequences = [torch.cat([prompt, ids(4)]), torch.cat([prompt, ids(7)]), ids(12), ids(5)]
    positions = [torch.arange(6, 10), torch.arange(6, 13), torch.tensor([3, 4, 9, 10]), ids(0)]
    return TokenBatch.collate(sequences, positions)


def alone(policy, tokens, temperature):
    """(log-probabilities, entropies, values) by whole forward passes, a sequence at a time."""
    columns = [[], [], []]
    for sequence, at in zip(tokens.sequences, tokens.positions, strict=True):
        logits = policy.base_model(input_ids=sequence[None]).logits[0].float() / temperature
        log_p = logits.log_softmax(-1)[at - 1]
        hidden = backbone(policy.base_model)(input_ids=sequence[None])[0][0, at - 1]
        parts = (log_p.gather(1, sequence[at, None])[:, 0], -(log_p.exp() * log_p).sum(-1))
        for column, part in zip(columns, (*parts, policy.value_head(hidden)), strict=True):
            column.append(part)
    return [torch.cat(column) for column in columns]


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_each_sequence_alone(name, packs):
    policy, tokens = built(name, PPOModel), some_tokens()
    if packs:
        policy.enable_packing()
    assert policy.packs == packs
    scores = policy.score(tokens, temperature=0.7, with_entropy=True, with_values=True)
    wanted = alone(policy, tokens, 0.7)
    for found, right in zip((scores.logprobs, scores.entropy, scores.values), wanted, strict=True):
        assert_close(found, right, **EXACT)
    assert_close(policy.values(tokens), scores.values, **EXACT)


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_logits_stand_at_every_token_of_every_sequence(packs):
    policy, tokens = built("llama"), some_tokens()
    if packs:
        policy.enable_packing()
    logits = policy.score(tokens, with_logits=True).logits
    for sequence, found in zip(tokens.sequences, logits, strict=True):
        assert_close(found, policy.base_model(input_ids=sequence[None]).logits[0], **EXACT)


def test_a_critic_that_warms_up_alone_leaves_the_policy_without_gradients():
    policy = built("llama", PPOModel)
    policy.values(some_tokens()).sum().backward()
    assert all(p.grad is None for p in policy.base_model.parameters())
    assert all(p.grad is not None for p in policy.value_head.parameters())


def rows_seen(policy):
    seen = []
    backbone(policy.base_model).register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    return seen


def test_what_neighbours_share_and_what_follows_the_last_token_is_not_computed_twice():
    policy = built("llama")
    policy.enable_packing()
    seen = rows_seen(policy)
    policy.score(some_tokens())
    assert seen == [6 + 3 + 6 + 10]  # a prompt for two, less what predicts nothing


def test_the_client_shares_a_prompt_between_its_responses():
    policy = built("llama")
    policy.enable_packing()
    seen = rows_seen(policy)
    prompt = list(range(3, 23))
    texts = [[*prompt, 30 + i, 40] for i in range(5)]
    batch = tokens_of(texts, mask=[[0] * 20 + [1, 1]] * 5)
    policy.score(batch.tokens)
    assert seen == [20 + 5]


def test_a_reference_packs_as_its_policy_does_and_stays_as_it_was():
    policy, tokens = built("llama"), some_tokens()
    policy.enable_packing()
    reference = Reference(policy)
    before = policy.score(tokens).logprobs.detach()
    with torch.no_grad():
        for p in policy.base_model.parameters():
            p.add_(0.01)
    with reference.of(policy) as model:
        assert model.packs and not any(p.requires_grad for p in model.parameters())
        assert_close(model.score(tokens).logprobs, before)
