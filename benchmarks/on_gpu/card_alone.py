"""What no CPU runs, held against what it runs instead: flash attention, and recorded steps."""

from unittest import mock

import torch
from torch import Tensor

from datamodules.types import SamplingParams
from on_gpu.parts import Result
from on_gpu.shapes import prompts
from rlmodules import PPO, ModelConfig, PPOConfig
from rlmodules.models import attention
from rlmodules.models.flash import flash_segments
from rlmodules.models.segments import Segments, encoded
from rlmodules.sampling import decoding
from rlmodules.sampling.decoding import sample

ROWS: dict[str, Segments] = {
    "pairs": tuple((128, 64 + 7 * i, 250 - 9 * i) for i in range(16)),
    "groups": tuple((64, *(128 - i for i in range(8))) for _ in range(8)),
    "texts": tuple((0, 300 + i) for i in range(5)),
    "odd": ((3, 0, 5), (2, 5, 0, 1), (700, 3, 1)),
}
SHAPES = {
    "all": {},
    "greedy": {"temperature": 0.0},
    "top_p": {"top_p": 0.8, "temperature": 0.9},
    "top_k": {"top_k": 20},
}


def heads(row: Segments, device: str, size: int = 64) -> list[Tensor]:
    """Queries of 14 heads, keys and values of 2, as bfloat16 numbers."""
    count = sum(map(sum, row))
    made = torch.Generator().manual_seed(count)
    drawn = (torch.randn(n, count, size, generator=made) for n in (14, 2, 2))
    return [x.bfloat16().to(device).transpose(0, 1).requires_grad_() for x in drawn]


def off(found: Tensor, right: Tensor) -> float:
    """Norm of the difference, relative to the norm of the right one."""
    found, right = found.double().cpu(), right.double().cpu()
    return ((found - right).norm() / right.norm()).item()


def flash(device: str, window: int | None) -> Result:
    """The card's kernel in bfloat16 and the CPU's pieces in bfloat16, against float32: the largest
    error of results and gradients, and their largest difference."""
    worst: dict[str, float] = {"card": 0.0, "cpu": 0.0}
    apart = 0.0
    for row in ROWS.values():
        grad = torch.randn(sum(map(sum, row)), 14, 64, generator=torch.Generator().manual_seed(1))
        said: dict[str, list[Tensor]] = {}
        for where, kind, dtype in (
            ("right", "cpu", torch.float32),
            ("cpu", "cpu", torch.bfloat16),
            ("card", device, torch.bfloat16),
        ):
            given = [x.detach().to(dtype).requires_grad_() for x in heads(row, kind)]
            shape = (encoded(row), 0.125)
            if where == "card" and device == "cuda":
                out, _ = flash_segments(*given, *shape, window)
            else:
                out = attention._attend(*given, *shape, None, window)
            out.backward(grad.bfloat16().to(kind, dtype))
            said[where] = [out, *(x.grad for x in given)]
        for where in worst:
            errors = map(off, said[where], said["right"])
            worst[where] = max(worst[where], *errors)
        apart = max(apart, *map(off, said["card"], said["cpu"]))
    return {"relative_error": worst, "card_against_cpu": apart,
            "same": worst["card"] < max(1.1 * worst["cpu"], 1e-3)}  # fmt: skip


def long_text(device: str) -> Result:
    """A text of 8,192 tokens, forward and backward: what is held beside inputs and results."""
    row: Segments = ((0, 8192),)
    given = heads(row, device)
    scores = 14 * 8192**2 * 2
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out, _ = flash_segments(*given, encoded(row), 0.125, None)
        out.backward(torch.ones_like(out))
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = 0
    return {"peak_mib": peak / 2**20, "scores_mib": scores / 2**20, "no_scores": peak < scores / 4}


def recorded(device: str, shape: str, *, half: bool = False, asks: bool = False) -> Result:
    """Texts by recorded steps against texts by single ones: rows end one after the other.

    Args:
        half: under bf16 autocast.
        asks: a layer asks the card for a number, which cannot be recorded.
    """
    c = PPOConfig(model_name="random:tiny", device=device)
    module = PPO(c, ModelConfig(name="random:tiny")).to(device)
    if asks:
        layer = module.base_model.model.layers[0]
        layer.register_forward_hook(lambda layer, args, out: float(out[0].sum()) and None)
    ids = [torch.tensor(module.tokenizer(p)["input_ids"])[: 3 + 2 * i]
           for i, p in enumerate(prompts(12, 40))]  # fmt: skip
    params = SamplingParams(max_new_tokens=70, **SHAPES[shape])
    said, recordings = {}, 0
    for name, wanted in (("single", False), ("recorded", True)):
        graph = torch.cuda.CUDAGraph
        with (
            mock.patch.object(decoding, "can_record", return_value=wanted),
            mock.patch.object(torch.cuda, "CUDAGraph", side_effect=graph) as made,
            torch.no_grad(),
            torch.autocast(device, torch.bfloat16, enabled=half),
        ):
            said[name] = sample(module.policy, module.tokenizer, ids, params, range(12))
            recordings = made.call_count
    pairs = list(zip(said["single"], said["recorded"], strict=True))
    alike = [one.tokens == other.tokens for one, other in pairs]
    same = [pair for pair, equal in zip(pairs, alike, strict=True) if equal]
    errors = [abs(a - b) for one, other in same
              for a, b in zip(one.logprobs, other.logprobs, strict=True)]  # fmt: skip
    tokens = sum(len(one.tokens) for one, _ in pairs)
    return {"recordings": recordings, "texts_alike": f"{sum(alike)} of {len(alike)}",
            "tokens": tokens, "max_nats": max(errors, default=float("nan")),
            "was_recorded": asks or recordings > 0 or device != "cuda",
            "same": half or all(alike)}  # fmt: skip
