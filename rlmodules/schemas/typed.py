"""What is typed: names of files that Hydra would take for something else."""

import os
from collections.abc import Sequence


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """The command line, with the names of files and folders that are there quoted.

    The folder of a sweep's job is called ``lr=3e-5,seed=1``, which Hydra cannot read behind
    ``ckpt_path=``, or would take for two values.
    """
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    option, _, value = argument.partition("=")
    if not set(value) & set(",= ()") or '"' in value or option.startswith("-"):
        return argument
    return f'{option}="{value}"' if os.path.exists(value) else argument
