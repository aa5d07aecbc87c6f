"""Which architectures take packed rows, and how far the sampler is from the packed pass.

    PYTHONPATH=. python benchmarks/packing.py [llama qwen3 ...]

Every decoder is built tiny and random, with windows of 4 tokens where it has such, and asked in
float32 and in bfloat16. Where rows are packed, log-probabilities of sampled tokens are compared.
"""

import sys
import warnings

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from datamodules.experience import TokenBatch
from datamodules.types import SamplingParams
from rlmodules.models import PolicyModel, backbone
from rlmodules.models.packing import takes_packed
from rlmodules.sampling.decoding import sample

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = {"sliding_window": 4}
QWEN = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
PLAIN = (
    "apertus", "arcee", "bitnet", "bloom", "cohere", "doge", "ernie4_5", "gemma", "glm", "glm4",
    "gpt2", "gpt_neox", "granite", "helium", "hunyuan_v1_dense", "jamba", "lfm2", "llama",
    "minimax", "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen3",
    "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
ARCHITECTURES = {
    **{name: {} for name in PLAIN},
    **dict.fromkeys(("cohere2", "exaone4", "gemma2", "gemma3_text", "mistral"), WINDOW),
    **dict.fromkeys(("olmoe", "qwen3_moe"), EXPERTS),
    "granitemoe": {"num_local_experts": 2},
    "mixtral": WINDOW | {"num_local_experts": 2},
    "phimoe": WINDOW | {"num_local_experts": 2},
    "qwen2": QWEN,
    "qwen2_moe": QWEN | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_next": EXPERTS | {"shared_expert_intermediate_size": 16},
}


def distance(policy: PolicyModel) -> float:
    """Largest difference of a sampled token's log-probability from that of the packed pass."""
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(3, 90, (n,), generator=generator) for n in (9, 5))
    prompts = [first, first, second, second]
    responses = sample(policy, None, prompts, SamplingParams(max_new_tokens=10), [1, 2, 3, 4])
    texts = [torch.cat([p, torch.tensor(r.tokens)]) for p, r in zip(prompts, responses)]  # noqa: B905
    positions = [torch.arange(len(p), len(t)) for p, t in zip(prompts, texts)]  # noqa: B905
    scored = policy.score(TokenBatch.collate(texts, positions)).logprobs
    return (scored - torch.tensor([x for r in responses for x in r.logprobs])).abs().max().item()


def verdict(name: str, dtype: torch.dtype) -> str:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**SIZES | ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not takes_packed(backbone(model.eval())):
            return next(str(w.message) for w in said if "packed rows" in str(w.message))[:110]
    policy = PolicyModel(model)
    policy.enable_packing()
    return f"packs, the sampler is off by {distance(policy):.1e}"


def main() -> None:
    for name in sys.argv[1:] or ARCHITECTURES:
        for dtype in (torch.float32, torch.bfloat16):
            print(f"{name:17} {str(dtype)[6:]:9} {verdict(name, dtype)}", flush=True)


if __name__ == "__main__":
    main()
