"""Parts of a layer that keep little for the backward pass: what is cheap is computed again there.

Written out as transformers has them, an RMSNorm keeps its input in float32 and what it is before
the weight, and a gated MLP its activation beside the gate. Here a norm keeps its input, as it is,
and a gate's product its two factors. What is computed forward is what the architecture computes.

Nothing is said of architectures by name: a part is replaced if, with tiny weights, it computes what
is written here.
"""

import copy
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SCALES = (1e-3, 1.0, 1e3)
"""Of what is tried: small enough for an epsilon, large enough for what is cut off."""
WIDTH = 4096
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def keep_less(body: nn.Module) -> None:
    """Replace the norms and gated MLPs of ``body`` that are known here; once is enough."""
    part: Any
    for part in body.modules():
        if "forward" in vars(part):
            continue
        if _looks_like_norm(part) and (shape := _shape_of(part)) is not None:
            part.lean = shape
            part.forward = MethodType(_norm, part)
        elif _looks_gated(part) and _is_gated(part):
            part.forward = MethodType(_gated, part)


# ---------------------------------------------------------------------- RMSNorm


def _norm(self: Any, *given: Tensor, **named: Tensor) -> Tensor:
    (hidden,) = *given, *named.values()
    own = MethodType(type(self).forward, self)
    if not torch.is_grad_enabled():
        return own(hidden)
    return _Norm.apply(hidden, self.weight, own, *self.lean)


class _Norm(torch.autograd.Function):
    """``(offset + w) x / rms(x)`` (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        own: Callable[[Tensor], Tensor],
        eps: float,
        offset: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = eps, offset
        return own(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (x, weight), (eps, offset) = ctx.saved_tensors, ctx.shape
        need_x, need_weight = ctx.needs_input_grad[:2]
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide, slope, grad = x.to(dtype), weight.to(dtype) + offset, grad.to(dtype)
        rate = _rate(wide, eps)
        normed = wide * rate
        grad_weight = grad_x = None
        if need_weight:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if need_x:
            grad = grad * slope
            along = torch.linalg.vecdot(grad, normed)[..., None] / x.shape[-1]
            grad_x = torch.addcmul(grad, normed, along, value=-1).mul_(rate).to(x.dtype)
        return grad_x, grad_weight, None, None, None


def _rate(wide: Tensor, eps: float) -> Tensor:
    """1 / rms [..., 1]"""
    return wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def _looks_like_norm(part: nn.Module) -> bool:
    weights = dict(part.named_parameters())
    alone = list(weights) == ["weight"] and not list(part.buffers()) and not list(part.children())
    return alone and weights["weight"].dim() == 1 and _takes_one(part)


def _shape_of(norm: nn.Module) -> tuple[float, float] | None:
    """``(eps, offset)`` of a norm; None if it is another function."""
    for eps in {value for value in vars(norm).values() if isinstance(value, float)}:
        for offset in (0.0, 1.0):
            if all(_is_norm(norm, eps, offset, scale) for scale in SCALES):
                return eps, offset
    return None


def _is_norm(norm: nn.Module, eps: float, offset: float, scale: float) -> bool:
    x, weight = _numbers(3, WIDTH) * scale, _numbers(WIDTH)
    x[0, 0], x[1, 1] = 1e4 * scale, -1e4 * scale  # 64 afterwards: a limit would show
    tiny = _unfilled(norm)
    tiny._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    expected = (weight + offset) * x * _rate(x, eps)
    return _same(lambda: type(norm).forward(tiny, x), expected)


# -------------------------------------------------------------------- gated MLP


def _gated(self: Any, *given: Tensor, **named: Tensor) -> Tensor:
    (hidden,) = *given, *named.values()
    if not torch.is_grad_enabled():
        return type(self).forward(self, hidden)
    product = _Gate.apply(self.gate_proj(hidden), self.up_proj(hidden), self.act_fn)
    return self.down_proj(product)


class _Gate(torch.autograd.Function):
    """``act(gate) * up`` (Shazeer 2020, arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            active = ctx.act(gate)
        (grad_gate,) = torch.autograd.grad(active, gate, grad * up)
        return grad_gate, grad * active.detach(), None


def _looks_gated(part: nn.Module) -> bool:
    children = dict(part.named_children())
    alone = children.keys() == {*PROJECTIONS, "act_fn"} and not part._parameters
    return alone and not list(children["act_fn"].parameters()) and _takes_one(part)


def _is_gated(mlp: Any) -> bool:
    """Whether ``mlp`` is ``down(act(gate(x)) * up(x))``."""
    tiny = _unfilled(mlp)
    made = {name: nn.Linear(8, 8, bias=False) for name in PROJECTIONS}
    for seed, layer in enumerate(made.values()):
        layer.weight = nn.Parameter(_numbers(8, 8, seed=seed), requires_grad=False)
    tiny._modules = {**made, "act_fn": mlp.act_fn}
    for scale in SCALES:
        x = _numbers(5, 8) * scale
        product = mlp.act_fn(made["gate_proj"](x)) * made["up_proj"](x)
        if not _same(lambda: type(mlp).forward(tiny, x), made["down_proj"](product)):  # noqa: B023
            return False
    return True


# ------------------------------------------------------------------------ trying


def _takes_one(part: nn.Module) -> bool:
    return len(inspect.signature(type(part).forward).parameters) == 2  # self and what it is given


def _unfilled(part: Any) -> Any:
    """``part``, to be given tiny weights; as it trains, for some drop out what they compute."""
    tiny = copy.copy(part)
    tiny.training = True
    return tiny


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")


def _same(compute: Callable[[], Any], expected: Tensor) -> bool:
    try:
        found = compute()
    except Exception:  # whatever another architecture asks of its input
        return False
    shaped = isinstance(found, Tensor) and found.shape == expected.shape
    return shaped and torch.allclose(found, expected, rtol=1e-5, atol=0)
