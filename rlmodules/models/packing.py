"""May a model be given packed rows? A question that changes nothing, and a switch.

The question is answered by comparison: packed and padded, the same sequences must have the same
hidden states. Tokens that look ahead, mixing along the sequence outside of attention, biases, and
windows or caps that a model keeps to itself fail it. The comparison is made where they would show:
in float32, beyond windows (shortened meanwhile), and with scores large enough for a cap. Those make
much of rounding: there both sides compute eagerly, for a kernel rounds otherwise than we do, and
nothing is compared where the last bit of the embeddings already moves hidden states by more than
what is allowed (24 layers of random weights: by a third of their size).
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.models.attention import PACKED
from rlmodules.models.flash import HALF, has_flash
from rlmodules.models.layout import Layout, flat_hidden, pack, pad
from rlmodules.models.probing import EXCUSED, comparable, largest_error, nudged

SHARPNESS = {1.0: 1e-4, 32.0: 1e-3, 1024.0: 1e-3}
"""What attention scores are multiplied by -> relative error that rounding explains."""


def packing_may_pay() -> bool:
    """Whether packed rows are faster on this machine than padded ones, at least in half precision:
    on a card where flash attention takes them. Our own loop over pieces launches more work there
    than it saves (DPO of 1.5B on an H200: 1.40 s a step packed, 0.54 s padded)."""
    return has_flash() or not torch.cuda.is_available()


def packing_pays(body: nn.Module) -> bool:
    """Whether they are for ``body`` where it is now, in the precision of now."""
    weight = next(body.parameters())
    kind = weight.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else weight.dtype
    return kind != "cuda" or (has_flash() and dtype in HALF)


def try_packing(body: Any) -> bool:
    """Let ``body`` take packed rows from now on if it computes them rightly (else a warning), and
    they may pay here; returns whether."""
    if not (packing_may_pay() and takes_packed(body)):
        return False
    enable_packing(body)
    return True


def enable_packing(body: Any) -> None:
    """Let ``body`` take packed rows from now on; rows that are not packed keep their attention."""
    body.set_attn_implementation(_attention(body.config, PACKED))


def _attention(config: Any, renamed: dict[str, str]) -> dict[str, Any]:
    """Names of the attention of a model and its parts (a tower may take another), renamed."""
    own = config._attn_implementation
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": renamed.get(own, own)} | {
        name: _attention(part, renamed) for name, part in parts.items() if part is not None
    }


def takes_packed(body: nn.Module) -> bool:
    """Whether ``body`` computes packed rows as it computes each row alone; leaves it as it is.

    Warns with the reason where it does not.
    """
    reason = _obstacle(body)
    if reason:
        warnings.warn(
            f"{type(body).__name__} does not take packed rows ({reason}): every response is"
            " computed with its prompt, and padded",
            stacklevel=2,
        )
    return reason is None


def _obstacle(body: Any) -> str | None:
    found = getattr(body.config, "_attn_implementation", None)
    if found in PACKED.values():
        return None  # it was compared before it was switched on
    if found not in PACKED or not hasattr(body, "set_attn_implementation"):
        return f"its attention is {found}"
    groups = [[[3, 5, 7, 9, 4, 8, 6, 5], [3, 5, 7, 9, 4, 3]], [[6, 2, 3, 8, 8], [6, 2, 9, 9, 7]]]
    before = _attention(body.config, {})
    ids = [[torch.tensor(sequence) for sequence in group] for group in groups]
    device = next(body.parameters()).device
    padded, packed = pad(ids).to(device), pack(ids).to(device)
    for sharpness, tolerance in SHARPNESS.items():
        with comparable(body, sharpness):
            try:
                if sharpness > 1:
                    body.set_attn_implementation(_attention(body.config, {"sdpa": "eager"}))
                alone = flat_hidden(body, padded)
                moved = _moved_by_rounding(body, padded, alone)
                if sharpness > 1 and moved > tolerance:
                    continue
                enable_packing(body)
                same = torch.equal(flat_hidden(body, padded), alone)
                error = _error(flat_hidden(body, packed), packed, alone, padded)
            except Exception as failure:  # whatever an architecture makes of rows like these
                return f"{type(failure).__name__}: {str(failure)[:200]}"
            finally:
                body.set_attn_implementation(before)
        if not same:
            return "its padded rows change with the name of its attention"
        if not error < max(tolerance, EXCUSED * moved):
            return f"its hidden states are off by {error:.2g}"
    return None


def _moved_by_rounding(body: Any, layout: Layout, states: Tensor) -> float:
    """How far hidden states move with the last bit of every embedding, relative to their norm."""
    with nudged(body) as known:
        return _error(flat_hidden(body, layout), layout, states, layout) if known else 0.0


def _error(packed: Tensor, here: Layout, alone: Tensor, there: Layout) -> float:
    """Largest error of a token's hidden state, relative to its norm."""
    at = [torch.cat(layout.index) for layout in (here, there)]
    return largest_error(packed[at[0]], alone[at[1]])
