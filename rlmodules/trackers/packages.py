"""What trackers need besides rlmodules, as a sentence where it is missing."""

import importlib.util


def require_package(module: str, extra: str) -> None:
    """
    Raises:
        ValueError: ``module`` is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"logger={extra} needs the package {module}, which is not installed:"
            f' pip install "rlmodules[{extra}]"'
        )
