"""Reinforcement learning and preference training of language models, as Lightning modules.

Public names are those of ``__init__.pyi``; each is imported where it is first used, so that
``rlmodules.functional`` costs no more than torch.
"""

import importlib
import logging
import warnings
from typing import Any

import lazy_loader

from rlmodules.checks import check_datamodules

check_datamodules()
# PEFT imports bitsandbytes where it is, which tells every run of a kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_MOVED = {
    "collect": "rlmodules.tasks.collect_preferences",
    "evaluate": "rlmodules.tasks.evaluate",
    "preference_model": "rlmodules.reward_models.serving",
    "reward_function": "rlmodules.reward_models.serving",
}
"""Modules that a ``_target_`` of an earlier version names."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        return _public(name)
    warnings.warn(f"rlmodules.{name} is now {_MOVED[name]}", FutureWarning, stacklevel=2)
    return importlib.import_module(_MOVED[name])
