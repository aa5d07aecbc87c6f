"""vLLM's server as one run uses it: started or found, and kept at the weights of now."""

import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmodules.engines.client import Client
from rlmodules.engines.errors import SamplerError
from rlmodules.engines.handover import remove_weights, write_tokenizer, write_weights
from rlmodules.engines.server import Server

if TYPE_CHECKING:
    from rlmodules.engines.vllm import VLLM

INSIDE = Path(__file__).parents[1] / "inside_vllm"
"""What vLLM's worker imports."""
WORKER = "rlmodules_weights.TakesWeights"
NAME = "policy"
"""What the model of a server of the run's own is called."""
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc and /reset_prefix_cache
    "VLLM_MAX_STOP_STRINGS": "100000",  # it takes a few otherwise
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # all that it reads is in the run's folder
    "PYTHONPATH": str(INSIDE),  # and nothing of ours
}
RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
"""vLLM leaves a core alone, of however few, where this is not 0."""


class Engine:
    """A server, and which weights it has.

    Args:
        options: how to reach it, or to start it.
        folder: for the server's log and the weights.

    Attributes:
        model: the name to ask for.
        longest: tokens of the longest text.
        holds: which weights were handed over; whoever samples says which these are.
    """

    def __init__(self, options: "VLLM", folder: Path) -> None:
        self.options, self.folder = options, folder
        own = f"rlmodules-{os.getpid()}"
        self.weights = folder if options.weights_dir is None else Path(options.weights_dir) / own
        self.model, self.longest = "", 0
        self.holds: Any = None
        self._server: Server | None = None
        self._client: Client | None = None
        self._ready = False
        self._count = 0

    def start(self, module: Any) -> None:
        """Start the server; it loads the weights of now, while the run goes on.

        Args:
            module: whose policy and tokenizer it gets.
        """
        o = self.options
        if o.url is not None:
            self._client = Client(o.url, o.timeout_s)
            return
        assert o.program is not None
        home, port = self.weights / "model", free_port()
        write_weights(module.policy.base_model, home, o.dtype)
        write_tokenizer(module.tokenizer, home)
        told = [
            f"--model={home}",
            f"--served-model-name={NAME}",
            "--host=127.0.0.1",
            f"--port={port}",
            f"--dtype={o.dtype_name}",
            "--logprobs-mode=processed_logprobs",  # of the distribution that is drawn from
            "--generation-config=vllm",  # no sampling values of the model's own
            f"--worker-extension-cls={WORKER}",
        ]
        environment = {RESERVED: "0"} | dict(os.environ) | ENVIRONMENT
        environment.pop("VIRTUAL_ENV", None)
        command = [*o.program, *told, *o.arguments]
        self._server = Server(command, environment, self.folder / "vllm.log")
        url = f"http://127.0.0.1:{port}"
        self._client = Client(url, o.timeout_s, self._server.require_running)

    def stop(self) -> None:
        """End a server of the run's own, and remove what was handed over."""
        if self._server is not None:
            self._server.stop()
            shutil.rmtree(self.weights / "model", ignore_errors=True)
        for path in self.weights.glob("weights-*"):
            shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            self.weights.rmdir()  # if nothing else is in it

    def client(self, module: Any) -> Client:
        """Talks to the server, which is ready and known to do what is needed.

        Raises:
            SamplerError: it is not.
        """
        if self._client is None:
            self.start(module)
        client, o = self._client, self.options
        assert client is not None
        if self._ready:
            return client
        deadline = time.monotonic() + o.start_timeout_s
        while not client.is_up():
            if self._server is None:
                raise SamplerError(f"there is no server at sampler.url={client.url}: start it")
            self._server.require_running()
            if time.monotonic() > deadline:
                raise SamplerError(
                    f"the sampler's server is not ready after {o.start_timeout_s:g} s"
                    f" (sampler.start_timeout_s){self._server.last_words()}"
                )
            time.sleep(0.5)
        named = o.model if self._server is None else NAME
        self.model, self.longest = named_model(client, named)
        self._ready = True
        return client

    def hand_over(self, client: Client, model: Any) -> None:
        """Have vLLM take the weights of ``model``, and forget what it computed with others.

        Raises:
            SamplerError: it does not.
        """
        folder = self.weights / f"weights-{self._count}"
        self._count += 1
        self.holds = None
        written = write_weights(model, folder, self.options.dtype)
        try:
            read = client.call("take_weights", str(folder)).get("tensors")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if read != written:
            raise SamplerError(f"vLLM read {read} of the {written} tensors that were handed over")
        if self._server is not None:
            remove_weights(self.weights / "model")  # it has read them long ago
        client.forget_prefixes()


def named_model(client: Client, name: str | None) -> tuple[str, int]:
    """The model to ask for, and the most tokens of a text.

    Raises:
        SamplerError: there is no such model, or several and none is named.
    """
    models = client.models()
    if name is None and len(models) == 1:
        (name,) = models
    if name is None or name not in models:
        what = "names none" if name is None else f"names {name!r}"
        raise SamplerError(
            f"the sampler's server at {client.url} has {', '.join(map(repr, models)) or 'no model'}"
            f", and sampler.model {what}: name one that it has"
        )
    return name, models[name] or 2**31


def free_port() -> int:
    """A port of this machine's own address that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
