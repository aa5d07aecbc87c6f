"""What compiled layers are held against: eager ones, on rows of all sizes."""

import torch
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from datamodules.experience import TokenBatch
from rlmodules.models import PolicyModel
from rlmodules.models.embedded import tiny_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
MODELS = {
    "llama": lambda: tiny_model()[0],
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(vocab_size=259, sliding_window=4, **SIZES)),
}


def batches():
    """Of other sizes each, as minibatches are."""
    made = torch.Generator().manual_seed(1)
    for count, longest in ((2, 9), (3, 20), (5, 14), (4, 31)):
        sequences, positions = [], []
        for row in range(count):
            length = longest - row
            prompt = torch.arange(3, 3 + 2 + row // 2)
            rest = torch.randint(3, 250, (length,), generator=made)
            sequences.append(torch.cat([prompt, rest]))
            positions.append(torch.arange(len(prompt), len(prompt) + length))
        yield TokenBatch.collate(sequences, positions)


def scores_and_gradients(policy, tokens):
    policy.zero_grad()
    scores = policy.score(tokens, with_entropy=True)
    (scores.logprobs.sum() + scores.entropy.sum()).backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    with torch.no_grad():
        again = policy.score(tokens)
    return scores.logprobs.detach(), scores.entropy.detach(), again.logprobs, gradients


def check_compiled(name, packs):
    """Compiled and eager layers agree, and two batches are all that is compiled for."""
    torch._dynamo.reset()
    policies = []
    for _ in range(2):
        torch.manual_seed(0)
        policies.append(PolicyModel(MODELS[name]().eval()))
        if packs:
            policies[-1].enable_packing()
        assert policies[-1].packs == packs
    eager, compiled = policies
    compiled.compile_layers()
    graphs = []
    for tokens in batches():
        assert_close(*(scores_and_gradients(policy, tokens) for policy in (compiled, eager)))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[1] == graphs[-1], graphs
