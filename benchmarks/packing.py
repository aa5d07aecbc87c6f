"""Which architectures take packed rows, and how far the sampler is from the packed pass.

    PYTHONPATH=. python benchmarks/packing.py [llama qwen3 ...]

Every causal model is built tiny (``tests/architectures.py``) and asked in float32 and in bfloat16.
Where rows are packed, log-probabilities of sampled tokens are compared.
"""

import sys
import warnings

import torch

from datamodules.experience import TokenBatch
from datamodules.types import SamplingParams
from rlmodules.models import PolicyModel, backbone
from rlmodules.models.packing import takes_packed
from rlmodules.sampling.decoding import sample
from tests.architectures import CAUSAL, VARIANTS, build


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
    model = build(name).to(dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not takes_packed(backbone(model)):
            return next(str(w.message) for w in said if "packed rows" in str(w.message))[:110]
    policy = PolicyModel(model)
    policy.enable_packing()
    return f"packs, the sampler is off by {distance(policy):.1e}"


def main() -> None:
    for name in sys.argv[1:] or (*CAUSAL, *VARIANTS):
        for dtype in (torch.float32, torch.bfloat16):
            print(f"{name:26} {str(dtype)[6:]:9} {verdict(name, dtype)}", flush=True)


if __name__ == "__main__":
    main()
