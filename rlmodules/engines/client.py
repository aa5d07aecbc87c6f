"""Talks to vLLM's server: which models it has, responses to prompts, calls of its worker."""

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import httpx

from datamodules.types import Response
from rlmodules.engines.errors import SamplerError

AT_ONCE = 512
"""Connections; the server keeps what is more than it takes waiting."""
Asked = Mapping[str, Any]
"""The body of a request for one response."""


class Client:
    """A client of the server at ``url``.

    Args:
        url: ``http://HOST:PORT``.
        timeout_s: without any answer for so long, the server counts as hanging.
        gone: raises, with what is known of the cause, if the server is no more.

    Raises:
        ValueError: it is no address.
    """

    def __init__(self, url: str, timeout_s: float, gone: Callable[[], None] = lambda: None) -> None:
        found = httpx.URL(url)
        if found.scheme not in ("http", "https") or not found.host:
            raise ValueError(f"sampler.url={url!r} is no address: give http://HOST:PORT")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout_s, self._gone = timeout_s, gone

    def is_up(self) -> bool:
        """Whether it is there and ready."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def models(self) -> dict[str, int | None]:
        """Names of its models -> the most tokens of a text, where it says that."""
        listed = self._json("GET", "/v1/models")
        try:
            return {model["id"]: model.get("max_model_len") for model in listed["data"]}
        except (LookupError, TypeError, AttributeError):
            raise SamplerError(f"{self.url}/v1/models answered no list of models") from None

    def call(self, method: str, *args: str) -> Any:
        """What ``method`` of its worker returns; of several workers, the first one's.

        Raises:
            SamplerError: it has no such method, or one of them reports an error.
        """
        said = self._json("POST", "/collective_rpc", json={"method": method, "args": args})
        results = said.get("results") if isinstance(said, dict) else None
        if not results:
            raise SamplerError(f"{self.url}/collective_rpc answered {said!r}, which is no result")
        for result in results:
            if not isinstance(result, dict) or "error" in result:
                why = result.get("error") if isinstance(result, dict) else result
                raise SamplerError(f"vLLM's worker could not {method}: {why}")
        return results[0]

    def forget_prefixes(self) -> None:
        """Empty the cache of what prompts begin with: it is of other weights.

        Raises:
            SamplerError: it is not emptied.
        """
        said = self._json("POST", "/reset_prefix_cache")
        if not (isinstance(said, dict) and said.get("success") is True):
            raise SamplerError(
                f"vLLM kept its prefix cache, which is of other weights ({said!r}): is something"
                " else using the server? The run needs one for itself"
            )

    def complete(self, asked: Sequence[Asked]) -> list[Response]:
        """One response to each request, in their order.

        Raises:
            SamplerError: the server is gone, hangs, or answers what is no response.
        """
        return _awaited(self._complete(asked))

    async def _complete(self, asked: Sequence[Asked]) -> list[Response]:
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(timeout=None, limits=limits) as client:

            async def one(body: Asked) -> Response:
                answer = await client.post(f"{self.url}/v1/completions", json=dict(body))
                return response_of(self._checked(answer), body)

            tasks = [asyncio.ensure_future(one(body)) for body in asked]
            pending: set[asyncio.Future[Response]] = set(tasks)
            try:
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=self.timeout_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done:
                        raise self._hangs(f"{len(pending)} responses are awaited")
                    for task in done:
                        task.result()  # raises what it raised
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks]

    def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            with httpx.Client(timeout=self.timeout_s) as client:
                return self._checked(client.request(method, f"{self.url}{path}", **options))
        except httpx.ReadTimeout as error:
            raise self._hangs(f"{path} is awaited") from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _checked(self, answer: httpx.Response) -> Any:
        if answer.is_error or answer.is_redirect:
            self._gone()
            path = answer.url.path
            hint = f" ({MISSING[path]})" if answer.status_code == 404 and path in MISSING else ""
            raise SamplerError(f"{answer.url} said {answer.status_code}{hint}: {answer.text[:500]}")
        try:
            return answer.json()
        except ValueError:
            raise SamplerError(f"{answer.url} answered {answer.text[:200]!r}, no JSON") from None

    def _hangs(self, what: str) -> SamplerError:
        return SamplerError(
            f"the sampler's server at {self.url} has not answered for {self.timeout_s:g} s"
            f" (sampler.timeout_s), while {what}"
        )

    def _unreachable(self, error: Exception) -> SamplerError:
        self._gone()
        said = str(error) or type(error).__name__
        return SamplerError(f"the sampler's server at {self.url} cannot be reached: {said}")


_STARTED = "the server has to be started with it, see docs/vllm.md"
MISSING = {
    "/collective_rpc": f"VLLM_SERVER_DEV_MODE=1: {_STARTED}",
    "/reset_prefix_cache": f"VLLM_SERVER_DEV_MODE=1: {_STARTED}",
}
"""Paths that a server may lack -> what makes them."""


def response_of(answer: Any, asked: Asked) -> Response:
    """The response in the server's answer; its tokens are those that were sampled.

    Raises:
        SamplerError: there is none, or its tokens are not whole.
    """
    try:
        (choice,) = answer["choices"]
        tokens, reason, stopped = (
            choice["token_ids"],
            choice["finish_reason"],
            choice["stop_reason"],
        )
        logprobs, prompt = choice["logprobs"]["token_logprobs"], choice["prompt_token_ids"]
    except (LookupError, TypeError, ValueError):
        raise SamplerError(
            "the sampler's server answered without tokens, log-probabilities or a reason to end,"
            f" as vLLM gives them: {str(answer)[:300]}"
        ) from None
    if prompt != asked["prompt"]:
        raise SamplerError(
            f"the sampler's server read another prompt: {prompt} for {asked['prompt']}"
        )
    whole = isinstance(tokens, list) and isinstance(logprobs, list) and bool(tokens)
    whole = whole and len(tokens) == len(logprobs) <= asked["max_tokens"]
    if not whole or not all(isinstance(x, int | float) and math.isfinite(x) for x in logprobs):
        raise SamplerError(
            f"the sampler's server gave tokens {tokens} and log-probabilities {logprobs}: there"
            f" have to be as many of these as of those, 1 to {asked['max_tokens']}, each finite"
        )
    if reason not in ("stop", "length"):
        raise SamplerError(f"the sampler's server ended a response by {reason!r}")
    by_token = stopped is None or isinstance(stopped, int)
    ended = "length" if reason == "length" else "eos" if by_token else "stop"
    # Probabilities of what was left are told; where nothing was cut, they are the policy's.
    cut = asked["top_p"] < 1 or asked["top_k"] > 0
    kept = [-1.0 if cut else 1.0] * len(tokens)
    return Response(list(tokens), [float(x) for x in logprobs], kept, ended)


def _awaited(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``work``, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((asyncio.run(work), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, name="sampler", daemon=True)
    thread.start()
    thread.join()
    ((result, error),) = found
    if error is not None:
        raise error
    return result
