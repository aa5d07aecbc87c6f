"""Passes over a model on paper, as algorithms make them, and the most that is alive meanwhile.

What a pass keeps is not counted by formulas: the model's own code, autograd and autocast run on
tensors without content. What they share with the real passes of ``models/scoring.py`` is
``flat_hidden``, ``token_logprobs``, ``divergence`` and ``choose``, where the large tensors come to
be.

Each pass has phases, of which each has a peak of its own: within one, memory grows and falls in
proportion to the layers, so that a few of them say what many take (``depth.py``).

Shapes: R rows, T tokens, N predictions, H hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datamodules.types import SamplingParams
from rlmodules.functional.divergences import Predictions, divergence
from rlmodules.functional.logprobs import token_logprobs
from rlmodules.memory.live import LiveBytes
from rlmodules.memory.paper import body_of, layers_of
from rlmodules.memory.parts import ACTIVATIONS, CACHE, GRADIENTS, LOGITS, TEMPORARY, Parts
from rlmodules.memory.texts import Group, laid_out
from rlmodules.models.layout import Layout, flat_hidden
from rlmodules.sampling.choose import choose

Peaks = dict[str, dict[str, int]]
"""Of each phase of a pass, the bytes of each part at its peak."""


def update(
    parts: Parts,
    groups: Sequence[Group],
    *,
    entropy: bool = False,
    entropy_grad: bool = True,
    values: bool = False,
    compared: Sequence[Group] = (),
) -> Peaks:
    """Forward and backward pass of a batch whose tokens are scored.

    Args:
        entropy, entropy_grad: whether there is an entropy, and whether it is trained on.
        values: a critic reads the hidden states too.
        compared: what the reference scores meanwhile (DPO: the same).
    """
    layout, at, before = _fake(parts, *laid_out(groups, packs=parts.packs, scored=True))
    asked = None
    if compared:
        asked = _fake(parts, *laid_out(compared, packs=parts.packs, scored=True))[:2]
    with parts.counting(gradients=parts.accumulates) as live:
        with parts.autocasting():
            states = _trained_states(parts, live, layout)
            live.begin("logits")
            with live.as_label(LOGITS):
                said, entropies = _logprobs(parts, states[at], entropy, entropy_grad=entropy_grad)
            loss = said.sum() + (entropies.sum() if entropies is not None else 0)
            if values:
                assert parts.heads is not None, "a critic"
                with live.as_label(ACTIVATIONS):
                    loss = loss + parts.heads(states[before]).sum()
            del states, said, entropies
            if asked is not None:
                with torch.no_grad(), parts.as_reference() as reference:
                    _forward(parts, live, reference, *asked, "reference")
        return _backward(parts, live, loss)


def distill(parts: Parts, groups: Sequence[Group], *, beta: float, temperature: float) -> Peaks:
    """Forward and backward pass of a batch whose predictions are drawn to the teacher's."""
    layout, _, before = _fake(parts, *laid_out(groups, packs=parts.packs, scored=True))
    with parts.counting(gradients=parts.accumulates) as live:
        with parts.autocasting():
            with torch.no_grad():
                states = _states(parts, live, parts.reference, layout, TEMPORARY, "teacher")
                aims = Predictions(states[before], parts.projection(parts.reference))
            states = _trained_states(parts, live, layout)
            live.begin("logits")
            with live.as_label(LOGITS):
                said = Predictions(states[before], parts.projection())
                del states
                found, entropy = divergence(said, aims, beta=beta, temperature=temperature)
            loss = found.sum()
            del said, aims, found, entropy
        return _backward(parts, live, loss)


def update_rewards(parts: Parts, groups: Sequence[Group], *, with_mask: bool) -> Peaks:
    """Forward and backward pass of a batch of texts that a reward head scores whole.

    Args:
        with_mask: tokens look ahead, so that padding is masked.
    """
    assert parts.heads is not None, "a reward model has a head"
    layout, _, _ = laid_out(groups, packs=parts.packs, scored=False, with_mask=with_mask)
    last = torch.stack([index[-1] for index in layout.index])
    layout, last = _fake(parts, layout, last)
    with parts.counting(gradients=parts.accumulates) as live:
        with parts.autocasting():
            states = _trained_states(parts, live, layout)
            with live.as_label(ACTIVATIONS):
                loss = parts.score(states[last]).sum()
            del states
        return _backward(parts, live, loss)


def evaluate(parts: Parts, groups: Sequence[Group], *, policy: bool = True) -> Peaks:
    """Scoring without gradients: the policy, where it is scored again, and then the reference."""
    layout, at, _ = _fake(parts, *laid_out(groups, packs=parts.packs, scored=True))
    with parts.counting() as live, parts.autocasting(), torch.no_grad():
        if policy:
            _forward(parts, live, parts.paper.model, layout, at, "policy")
        if parts.has_reference:
            with parts.as_reference() as reference:
                _forward(parts, live, reference, layout, at, "reference")
        return live.peaks


def judge(parts: Parts, groups: Sequence[Group], *, with_mask: bool) -> Peaks:
    """Whole texts read without gradients, as reward models are evaluated."""
    layout, _, _ = laid_out(groups, packs=parts.packs, scored=False, with_mask=with_mask)
    layout = _fake(parts, layout)[0]
    with parts.counting() as live, parts.autocasting(), torch.no_grad():
        _states(parts, live, parts.paper.model, layout, TEMPORARY)
        return live.peaks


def sample(parts: Parts, prompts: Sequence[int], rows: int, new: int) -> Peaks:
    """Writing responses: the prompts are read, and the last of ``new`` tokens is drawn.

    Args:
        prompts: lengths of the different prompts.
        rows: responses that are written together.
        new: tokens of each.
    """
    longest, padded = max(prompts), len(set(prompts)) > 1
    with parts.counting() as live, parts.autocasting(), torch.no_grad():
        live.begin("reading")
        with live.as_label(TEMPORARY):
            output = _cached(parts, len(prompts), longest, padded)
            _draw(parts, live, output.last_hidden_state[:, -1].contiguous())
            del output
        live.begin("")
        with live.as_label(CACHE):
            cache = _cached(parts, rows, longest + new - 1, padded).past_key_values
        live.begin("writing")
        with live.as_label(TEMPORARY):
            output = _cached(parts, rows, 1, padded, cache, longest + new)
            for held in _keys_and_values(cache):
                live.relabel(held, CACHE)
            live.begin("drawing")
            _draw(parts, live, output.last_hidden_state[:, -1].contiguous())
        return live.peaks


def _cached(
    parts: Parts, rows: int, new: int, padded: bool, cache: Any = None, width: int | None = None
) -> Any:
    """The body's output on ``new`` tokens of each row behind ``cache``, which grows."""
    ids = torch.zeros(rows, new, dtype=torch.long)
    options: dict[str, Any] = {"attention_mask": torch.ones(rows, width or new, dtype=torch.long)}
    if not padded:
        options = {}
    body = body_of(parts.paper.model, parts.paper.has_head)
    return body(input_ids=ids, use_cache=True, past_key_values=cache, **options)


def _keys_and_values(cache: Any) -> Iterator[Tensor]:
    for layer in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            if getattr(layer, name, None) is not None:
                yield getattr(layer, name)


def _draw(parts: Parts, live: LiveBytes, states: Tensor) -> None:
    with live.as_label(LOGITS):
        logits = parts.projection().logits(states)
        choose(logits, torch.zeros(len(logits)), SamplingParams())


def _forward(
    parts: Parts, live: LiveBytes, model: Any, layout: Layout, at: Tensor, phase: str
) -> None:
    states = _states(parts, live, model, layout, TEMPORARY, phase)
    live.begin(f"{phase}'s logits")
    with live.as_label(LOGITS):
        _logprobs(parts, states[at], False, model=model)


def _states(
    parts: Parts,
    live: LiveBytes,
    model: Any,
    layout: Layout,
    label: str = ACTIVATIONS,
    phase: str = "forward",
) -> Tensor:
    live.begin(phase)
    with live.as_label(label):
        return flat_hidden(body_of(model, parts.paper.has_head), layout)


def _logprobs(
    parts: Parts, states: Tensor, entropy: bool, *, entropy_grad: bool = True, model: Any = None
) -> tuple[Tensor, Tensor | None]:
    tokens = torch.zeros(len(states), dtype=torch.long)
    wanted = {"with_entropy": entropy, "entropy_grad": entropy_grad}
    return token_logprobs(states, parts.projection(model), tokens, **wanted)[:2]


def _trained_states(parts: Parts, live: LiveBytes, layout: Layout) -> Tensor:
    """Hidden states whose gradients begin phases as they are computed.

    Where a layer's gradients are larger than what it frees, memory grows until the end, else it
    falls from the start on: each half of the layers is a phase.
    """
    layers = layers_of(parts.paper)

    def note(layer: Any, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        states.register_hook(lambda _: live.begin("backward, first layers"))

    hook = layers[len(layers) // 2 - 1].register_forward_hook(note)
    states = _states(parts, live, parts.paper.model, layout)
    states.register_hook(lambda _: live.begin("backward, last layers"))
    hook.remove()
    return states


def _backward(parts: Parts, live: LiveBytes, loss: Tensor) -> Peaks:
    """The peaks of all phases, those of the forward pass that made ``loss`` included."""
    live.gradients_of(parts.trained, GRADIENTS)
    live.begin("backward of the logits")
    with live.as_label(TEMPORARY):
        loss.backward()
    return live.peaks


def _fake(parts: Parts, layout: Layout, *index: Tensor) -> tuple[Any, ...]:
    made = replace(
        layout,
        input_ids=parts.fake(layout.input_ids),
        position_ids=None if layout.position_ids is None else parts.fake(layout.position_ids),
        attention_mask=None if layout.attention_mask is None else parts.fake(layout.attention_mask),
    )
    return (made, *(parts.fake(at) for at in index))
