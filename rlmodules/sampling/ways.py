"""Which way a model reads rows of different lengths: found out by trying.

Rows that join, leave and repeat must get the hidden states that each text gets alone. The first way
that gives them is taken: padded and cached where padding changes nothing, in the end without a
cache.

Shapes: R rows, H hidden size.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Parameter

from rlmodules.models.heads import backbone
from rlmodules.models.modes import evaluating
from rlmodules.models.probing import EXCUSED, comparable, nudged, relative_errors
from rlmodules.models.scoring import PolicyModel
from rlmodules.models.sharding import units_of
from rlmodules.sampling.in_place import InPlace
from rlmodules.sampling.reading import AFRESH, APART, MERGED, PADDED, Cached, Reading, Way

T = TypeVar("T")
SHARPNESS = {1.0: 1e-4, 32.0: 1e-3}
"""What attention scores are multiplied by -> relative error that rounding explains."""
SLOW = {
    APART: "texts of different lengths are written one after the other",
    AFRESH: "each text is computed from its first token on again for each token",
}
Read = tuple[Tensor, list[Tensor]]
"""Hidden states [R, H] that a way came to, and the texts whose last tokens they are of."""
_found: WeakKeyDictionary[Any, tuple[str | None, Way]] = WeakKeyDictionary()
_in_place: WeakKeyDictionary[Any, tuple[str | None, bool]] = WeakKeyDictionary()


def way_of(model: PolicyModel) -> Way:
    """The fastest way that is right; the model is asked once, and left as it is.

    Warns, with the reason, of a slow one.
    """
    return _once(_found, model, lambda body: _first_right(model, body))


def goes_in_place(model: PolicyModel) -> bool:
    """Whether steps that write into places made before (``in_place.py``) read what others do; the
    model is asked once, and left as it is."""

    def right(body: Any) -> bool:
        return _is_plain(model) and way_of(model) == PADDED and _right_in_place(model, body)

    return _once(_in_place, model, right)


def _once(
    found: WeakKeyDictionary[Any, tuple[str | None, T]], model: PolicyModel, ask: Callable[[Any], T]
) -> T:
    """What ``ask`` says of a model's body; asked anew where its attention is another."""
    body = backbone(model.base_model)
    attention = getattr(body.config, "_attn_implementation", None)
    known = found.get(model.base_model)
    if known is None or known[0] != attention:
        known = found[model.base_model] = attention, ask(body)
    return known[1]


def _is_plain(model: PolicyModel) -> bool:
    """Whether its weights are all there as they are: not as shares, nor held in a few bits."""
    plain = all(type(w) is Parameter and w.is_floating_point() for w in model.parameters())
    return plain and not units_of(model)


def _right_in_place(model: PolicyModel, body: Any) -> bool:
    states = _States(model)
    if _wrong(model, body, lambda: _trial_in_place(states)) is not None:
        return False
    try:
        with evaluating(body):  # in the precision of now
            _trial_in_place(states)
    except Exception:
        return False
    return True


def _trial_in_place(model: "_States") -> Read:
    """Three rows, of which one is done sooner."""
    texts = [[3, 5, 7, 9, 4, 8, 2], [6, 2, 3, 8, 8, 5, 7, 4, 9], [6, 2, 9, 9, 7, 3, 4, 5, 8, 3]]
    steps, left = 4, [2, 5, 4]
    starts = [len(text) - count for text, count in zip(texts, (4, 4, 4), strict=True)]
    prompts = [torch.tensor(t[:n]) for t, n in zip(texts, starts, strict=True)]
    rows = InPlace(Cached.read(model, prompts)[0], steps + 1, left)
    said, read = [], []
    for n in range(steps):
        last = torch.tensor([t[k + n] for t, k in zip(texts, starts, strict=True)])
        states = rows.step(last.to(model.device))
        rows.note(1)
        going = [i for i, count in enumerate(left) if n < count]
        said.append(states[going])
        read += [torch.tensor(texts[i][: starts[i] + n + 1]) for i in going]
    grown = rows.released().step(torch.tensor([5, 5, 5], device=model.device))
    said.append(grown[1:])
    read += [torch.tensor([*text, 5]) for text in texts[1:]]
    return torch.cat(said), read


class _States:
    """A model whose logits are the states that they are computed from, in full precision."""

    def __init__(self, model: PolicyModel) -> None:
        self.device = model.device
        self.next_logits, self.last_logits = model.next_states, model.last_states


def _first_right(model: PolicyModel, body: Any) -> Way:
    for way in (PADDED, MERGED, APART):
        reason = _fault(model, body, way)
        if reason is None:
            break
    else:
        way = AFRESH
    if way in SLOW:
        name = type(body).__name__
        warnings.warn(f"{name} writes slowly: {SLOW[way]} ({reason})", stacklevel=4)
    return way


def _fault(model: PolicyModel, body: Any, way: Way) -> str | None:
    """What is wrong with ``way``, if anything."""
    return _wrong(model, body, lambda: _trial(model, way))


def _wrong(model: PolicyModel, body: Any, trial: Callable[[], Read]) -> str | None:
    """Why the states of ``trial`` are other than those of each text alone, if they are."""
    for sharpness, tolerance in SHARPNESS.items():
        with comparable(body, sharpness):
            try:
                states, texts = trial()
            except Exception as failure:  # whatever it is that an architecture does not take
                return f"{type(failure).__name__}: {str(failure)[:200]}"
            right = model.last_states(texts)
            errors = relative_errors(states, right)
            if bool((errors < tolerance).all()):
                continue
            explained = EXCUSED * _moved_by_rounding(model, body, texts, right)
            wrong = ~(errors < explained.clamp(min=tolerance))
            if wrong.any():
                return f"what it remembers is off by {errors[wrong].max():.2g}"
    return None


def _moved_by_rounding(
    model: PolicyModel, body: Any, texts: Sequence[Tensor], right: Tensor
) -> Tensor:
    """How far each text's states move with the last bit of its embeddings [R], relative to their
    norm: with large scores a thousandth in 28 layers of random weights, and after training there
    are texts of which it is as much and others of which it is a millionth."""
    with nudged(body) as known:
        return relative_errors(model.last_states(texts) if known else right, right)


def _trial(model: PolicyModel, way: Way) -> Read:
    """Rows that join, repeat and leave."""
    a, b, c = [3, 5, 7, 9, 4, 8], [6, 2, 3, 8, 8, 5, 7, 4], [6, 2, 9, 9, 7, 3, 4, 5]
    d, e = [9, 5, 2, 8, 3], [4, 7, 6, 3, 9, 9, 2, 5, 8, 6, 4, 2]
    said: list[Tensor] = []
    read: list[list[int]] = []

    def note(states: Tensor, texts: Sequence[list[int]]) -> None:
        said.append(states)
        read.extend(texts)

    def step(reading: Reading, texts: Sequence[list[int]]) -> None:
        last = torch.tensor([text[-1] for text in texts], device=model.device)
        note(reading.step(last), texts)

    def add(reading: Reading, texts: Sequence[list[int]], counts: Sequence[int]) -> None:
        states = reading.add([torch.tensor(text) for text in texts], counts)
        each = zip(texts, counts, strict=True)
        note(states, [text for text, count in each for _ in range(count)])

    reading = Reading(_States(model), way)
    add(reading, [a[:2], b[:5], c[:5]], [1, 2, 1])
    step(reading, [a[:3], b[:6], [*b[:5], 9], c[:6]])
    reading.keep([1, 3])
    step(reading, [b[:7], c[:7]])
    add(reading, [d[:3], e[:9]], [1, 1])
    step(reading, [b[:8], c[:8], d[:4], e[:10]])
    reading.keep([0, 2, 3])
    step(reading, [[*b[:8], 3], d[:5], e[:11]])
    return torch.cat(said), [torch.tensor(text) for text in read]
