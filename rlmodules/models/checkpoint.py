"""A checkpoint is loaded whole, each weight where it belongs, or refused by the weights' names.

transformers draws what a file lacks at random, leaves out what its class has no place for, and says
so in a table that scrolls away: a model whose config counts more layers than its file then trains.
"""

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

CHECKED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types of weights; others are quantised."""
SHOWN = 4
"""Names that an error lists."""
MASKS = re.compile(r"(attn|attention)\.(masked_)?bias$")
"""Causal masks, which old checkpoints hold as if they were weights."""


class CheckpointError(ValueError):
    """The weights of a checkpoint are not those that its config asks for."""

    @classmethod
    def not_finite(cls, names: Collection[str]) -> "CheckpointError":
        return cls(
            f"{len(names)} of its weights hold NaN or infinity: {_some(names)}. They were damaged"
            " where they were trained or written: take another checkpoint"
        )


def load_whole(auto: Any, location: str | None, **options: Any) -> nn.Module:
    """``auto.from_pretrained(location, **options)``, if every weight is there, fits and is finite.

    Raises:
        CheckpointError: names what is missing, left over, of another shape, or not finite.
        OSError, ValueError: see ``from_pretrained``.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _without_report() as report:
        try:
            model, found = auto.from_pretrained(location, **options)
        except RuntimeError as error:
            if not report:
                raise
            raise CheckpointError(
                "some of its weights, experts for example, are made of several of the file's, of"
                f" which it lacks some or has them in other shapes: {_short(report[-1])}"
            ) from error
    check_loaded(model, found)
    check_finite(model)
    return model


def check_loaded(model: nn.Module, found: dict[str, Any]) -> None:
    """
    Args:
        found: transformers' ``output_loading_info``.

    Raises:
        CheckpointError: a weight of ``model`` is missing or of another shape, or one of the file
            belongs into ``model`` and has no place there.
    """
    if wrong := sorted(found["mismatched_keys"]):
        shapes = [f"{name} is {list(held)}, not {list(asked)}" for name, held, asked in wrong]
        raise CheckpointError(
            f"{len(wrong)} weights have other shapes than its config.json asks for:"
            f" {_some(shapes)}. Give the config.json and the weights of one model"
        )
    missing = [name for name in found["missing_keys"] if not _is_pooler(name)]
    if missing:
        raise CheckpointError(
            f"it lacks {len(missing)} weights that its config.json asks for, which would be"
            f" random: {_some(missing)}. {_remedy(model, missing)}"
        )
    if dropped := [name for name in found["unexpected_keys"] if _belongs(name, model)]:
        raise CheckpointError(
            f"it holds {len(dropped)} weights that its config.json leaves out, so that another"
            f" model would be trained: {_some(dropped)}. Give the config.json and the weights of"
            " one model"
        )


def leave_file(model: nn.Module) -> None:
    """Have a quantized ``model`` hold its wide weights itself: a single one that still lies in the
    file that it was read from keeps all of the file in memory."""
    for weight in (*model.parameters(), *model.buffers()):
        if weight.is_floating_point():
            weight.data = weight.detach().clone()


def check_finite(model: nn.Module) -> None:
    """
    Raises:
        CheckpointError: names the weights that hold NaN or infinity.
    """
    wrong = []
    for name, weight in model.named_parameters():
        if weight.dtype in CHECKED and weight.numel() and not weight.is_meta:
            least, most = torch.aminmax(weight.detach())  # NaN is both; a tenth of isfinite's time
            if not (least.isfinite() and most.isfinite()):
                wrong.append(name)
    if wrong:
        raise CheckpointError.not_finite(wrong)


def _is_pooler(name: str) -> bool:
    """A head of BERT's that nothing here reads."""
    return "pooler" in name.split(".")


def _remedy(model: nn.Module, missing: Collection[str]) -> str:
    body = getattr(model, "base_model_prefix", "")
    if all(not name.startswith(f"{body}.") for name in missing) and body:
        return (
            "It holds a transformer without the head that predicts tokens (an encoder, a reward"
            " model, a backbone): give a causal language model"
        )
    return "Give the config.json and all weight files of one model"


def _belongs(name: str, model: nn.Module) -> bool:
    """Whether a weight that found no place is one of ``model``: a further layer, or a further
    parameter of a layer that is there.

    Layers that predict several tokens ahead (``num_nextn_predict_layers``) are not.
    """
    parameters = {n for n, _ in model.named_parameters()}
    known = parameters | {n for n, _ in model.named_buffers()}
    name = _as_in(name, model, known)
    if name in known or MASKS.search(name):
        return False
    layers = {re.sub(r"\d+", "#", n) for n in parameters}
    if re.sub(r"\d+", "#", name) in layers:
        config = model.config.get_text_config()  # type: ignore[operator,union-attr]
        ahead = getattr(config, "num_nextn_predict_layers", None) or 0
        further = int(re.findall(r"\d+", name)[0]) - config.num_hidden_layers
        return not 0 <= further < ahead
    owner = name.rpartition(".")[0]
    return any(n.rpartition(".")[0] == owner for n in parameters)


def _as_in(name: str, model: nn.Module, known: Collection[str]) -> str:
    """A name of a file as ``model``, with or without a head, would call it."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    with_head = any(n.startswith(prefix) for n in known)
    return name if with_head else name.removeprefix(prefix)


def _some(names: Collection[str]) -> str:
    shown, more = sorted(names)[:SHOWN], len(names) - SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _short(report: str) -> str:
    """Of transformers' table the lines on weights, without colours and columns."""
    plain = re.sub(r"\x1b\[\d*m", "", report)
    lines = [" ".join(line.split()) for line in plain.splitlines() if "CONVERSION" in line]
    return "; ".join(lines)[:300]


@contextmanager
def _without_report() -> Iterator[list[str]]:
    """transformers' table of what did not fit, for reading, instead of in the log."""
    logger, found = logging.getLogger("transformers.modeling_utils"), []

    was_heard = logger.isEnabledFor(logging.WARNING)

    def is_other(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        found.extend([text] if "LOAD REPORT" in text else [])
        return was_heard and "LOAD REPORT" not in text

    # A run's logging, or TRANSFORMERS_VERBOSITY, may have silenced the logger.
    state = logger.disabled, logger.level
    logger.disabled = False
    logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))
    shards = logging.getLogger("transformers.distributed.tensor_parallel")
    shards_were_silent, shards.disabled = shards.disabled, True  # says that nothing is sharded
    logger.addFilter(is_other)
    try:
        yield found
    finally:
        shards.disabled = shards_were_silent
        logger.disabled, level = state
        logger.setLevel(level)
        logger.removeFilter(is_other)
