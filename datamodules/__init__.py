"""Data: environments, rollouts and prompts. Never imports ``rlmodules``.

Public names are those of ``__init__.pyi``; each is imported where it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
