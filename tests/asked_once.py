"""What a model is asked by trying (how it reads rows, packs them, shapes its logits) is asked once.

A quarter of a short run of the tiny model is such questions, and a suite trains the same one a
thousand times. An answer is taken again only for a model that is the same in everything that could
change it: classes and their methods, settings, weights bit by bit, and what torch is told to do.
"""

import functools
import zlib

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlmodules.models import lean, packing, scoring
from rlmodules.sampling import ways

QUESTIONS = (
    (scoring, "logit_shape"),
    (scoring, "require_gradients"),
    (packing, "_obstacle"),
    (ways, "_first_right"),
    (ways, "_right_in_place"),
    (lean, "_shape_of"),
    (lean, "_is_gated"),
)
WHATEVER_WEIGHTS = ("_shape_of", "_is_gated")
"""What is asked of a part with weights of the question's own."""
FINE = {"require_gradients": None, "_obstacle": None, "_first_right": ways.PADDED}
"""Answers that are taken again, where others come with an error or a warning: all of them else."""
MOST_WEIGHTS = 2_000_000
PLAIN = (int, float, str, bool, tuple, type(None), torch.dtype)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_answers = {}


def ask_once(monkeypatch):
    """Have these questions asked once of equal models."""
    for module, name in QUESTIONS:
        monkeypatch.setattr(module, name, _once(name, getattr(module, name)))


def _once(name, ask):
    @functools.wraps(ask)
    def asked(model, *more):
        body = getattr(model, "base_model", model) if more else model
        key = _parts(body) if name in WHATEVER_WEIGHTS else _key(body)
        if key is None:
            return ask(model, *more)
        key = name, ask, key
        if key in _answers:
            return _answers[key]
        answer = ask(model, *more)
        if FINE.get(name, answer) == answer:
            _answers[key] = answer
        return answer

    return asked


def _key(model):
    """All that an answer depends on; None of a model that is not plain."""
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return None
    weights = [*model.named_parameters(), *model.named_buffers()]
    if sum(w.numel() for _, w in weights) > MOST_WEIGHTS:
        return None
    parts, held = _parts(model), [_weight(name, weight) for name, weight in weights]
    return None if parts is None or None in held else (parts, tuple(held), _told())


def _parts(model):
    said = {}  # of a config that many parts share
    parts = [_part(part, said) for part in model.modules()]
    return None if None in parts else (tuple(parts), tuple(said.values()))


def _part(part, said):
    """Class, methods and settings of a module; ``said`` gets what its config holds."""
    own = vars(part)
    if any(own.get(name) for name in HOOKS):
        return None
    config = own.get("config")
    plain = ((k, v) for k, v in own.items() if isinstance(v, PLAIN) and k != "training")
    called = ((k, _function(part, v)) for k, v in own.items()
              if callable(v) and not isinstance(v, nn.Module | type))  # fmt: skip
    if hasattr(config, "to_dict") and id(config) not in said:
        said[id(config)] = _config(config)
    which = [*said].index(id(config)) if id(config) in said else None
    return type(part), type(part).forward, tuple(plain), tuple(called), which


def _function(part, called):
    """Of a method that was set on ``part`` alone, the function."""
    return called.__func__ if getattr(called, "__self__", None) is part else called


def _config(config):
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return (
        config._attn_implementation,
        repr(config.to_dict()),
        tuple(_config(part) for part in parts if part is not None),
    )


def _weight(name, weight):
    if type(weight) not in (Parameter, Tensor) or weight.device.type != "cpu":
        return None
    content = weight.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return name, weight.dtype, weight.shape, weight.requires_grad, zlib.crc32(content)


def _told():
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        tuple(ALL_ATTENTION_FUNCTIONS.items()),
    )
