"""The command ``rlmodules-train``: ``train.py``, wherever an installation keeps it."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRAIN = next(path for path in (HERE / "train.py", HERE.parent / "train.py") if path.is_file())
"""In a wheel it is part of the package; ``pip install -e .`` leaves it beside it."""


def main() -> None:
    """Run ``train.py`` with this process's arguments."""
    spec = importlib.util.spec_from_file_location("rlmodules.train", TRAIN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rlmodules.train"] = module
    spec.loader.exec_module(module)
    module.main()


if __name__ == "__main__":
    main()
