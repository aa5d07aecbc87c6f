"""``sampler=vllm``: what a run may say of vLLM, and vLLM at a run's service.

Not built: handing weights over by NCCL, several processes of one run, another machine's server.
"""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datamodules.checks import is_finite
from rlmodules.engines.client import Client
from rlmodules.engines.engine import Engine
from rlmodules.engines.sampler import VLLMSampler

ROOT = Path(__file__).parents[2]
COMMAND = ".venv-vllm/bin/python -m vllm.entrypoints.openai.api_server"
"""As ``make vllm`` builds it; the program is looked for in the project's folder too."""
ARGUMENTS = ("--enforce-eager", "--max-model-len=auto", "--kv-cache-memory-bytes=1G")
"""For the default runs on a CPU: nothing is compiled, texts may be as long as the cache holds."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VLLM:
    """How a run samples through vLLM.

    Args:
        command: starts the server, without arguments: ``PYTHON -m
            vllm.entrypoints.openai.api_server`` with the Python of vLLM's environment; null: what
            ``make vllm`` builds, unless there is a ``url``.
        url: of a server that is there already, on this machine: ``http://127.0.0.1:8000``.
        model: its name at ``url``; null: the only one that there is.
        arguments: more of them for ``command``; null: ``--enforce-eager --max-model-len=auto
            --kv-cache-memory-bytes=1G``.
        dtype: that vLLM computes in, and weights are handed over in: bfloat16, float16 or float32.
        weights_dir: where they are handed over, ``/dev/shm`` for example; null: in the run's
            folder.
        max_mismatch: mean difference of vLLM's log-probabilities and the trainer's, in nats a
            token, above which the run stops.
        timeout_s: seconds without any answer after which the server counts as hanging.
        start_timeout_s: seconds until it has to be ready.

    Raises:
        ValueError: an option is out of range, or two exclude each other.
    """

    def __init__(
        self,
        command: str | None = None,
        url: str | None = None,
        model: str | None = None,
        arguments: Sequence[str] | None = None,
        dtype: str = "bfloat16",
        weights_dir: str | None = None,
        max_mismatch: float = 0.5,
        timeout_s: float = 600.0,
        start_timeout_s: float = 900.0,
    ) -> None:
        if url is not None:
            Client(url, 1.0)  # checks it
        for name, value in {"command": command, "arguments": arguments}.items():
            if url is not None and value is not None:
                raise ValueError(
                    f"sampler.{name}={value!r} is of a server that the run starts, and"
                    f" sampler.url={url} is there already: set one of the two"
                )
        if model is not None and url is None:
            raise ValueError(f"sampler.model={model!r} names a model at sampler.url: set that too")
        if dtype not in DTYPES:
            raise ValueError(f"sampler.dtype={dtype!r}: use one of {', '.join(DTYPES)}")
        numbers = {"max_mismatch": max_mismatch, "timeout_s": timeout_s}
        for name, number in (numbers | {"start_timeout_s": start_timeout_s}).items():
            if not is_finite(number) or number <= 0:
                raise ValueError(f"sampler.{name}={number!r} must be a positive number")
        if weights_dir is not None and not Path(weights_dir).is_dir():
            raise ValueError(f"sampler.weights_dir={weights_dir!r}: there is no such folder")
        self.program = None if url is not None else program_of(command)
        self.url, self.model = url, model
        self.arguments = [str(a) for a in (ARGUMENTS if arguments is None else arguments)]
        self.dtype_name, self.dtype, self.weights_dir = dtype, DTYPES[dtype], weights_dir
        self.max_mismatch, self.timeout_s = float(max_mismatch), float(timeout_s)
        self.start_timeout_s = float(start_timeout_s)

    @contextmanager
    def serving(self, module: Any, folder: str | Path, *, early: bool = True) -> Iterator[None]:
        """Have ``module`` (an ``OnlineModule``) sample through vLLM meanwhile.

        Args:
            folder: the run's; ``sampler/`` in it gets the server's log.
            early: start the server now, and not when it is first asked.
        """
        engine = Engine(self, Path(folder).absolute() / "sampler")
        before = module.sampler, module.elsewhere
        module.sample_elsewhere(partial(VLLMSampler, engine))
        try:
            if early:
                engine.start(module)
            yield
        finally:
            module.sampler, module.elsewhere = before
            engine.stop()


def program_of(command: str | None) -> list[str]:
    """A command as words, its program by its path.

    Raises:
        ValueError: there is no such program.
    """
    words = shlex.split(COMMAND if command is None else command)
    if not words:
        raise ValueError("sampler.command is empty: name vLLM's Python, as in docs/vllm.md")
    places = [Path.cwd(), ROOT] if command is None else [Path.cwd()]
    found = next((p / words[0] for p in places if (p / words[0]).is_file()), None)
    named = found or (None if command is None else shutil.which(words[0]))
    if named is None:
        raise ValueError(
            f"sampler.command: there is no {words[0]}: build vLLM's environment (make vllm), name"
            " the Python of another one, or a server that is there already (sampler.url)"
        )
    return [str(named), *words[1:]]
