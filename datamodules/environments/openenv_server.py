"""What is known of a server of OpenEnv before it plays, and how its actions and observations are
texts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from datamodules.environments import background
from datamodules.environments.toolbox import answer_text

CONNECT_S, ANSWER_S = 10.0, 60.0
"""Seconds that the server has to take a connection, and to answer a message."""
COMMON = {"done", "reward", "metadata"}
"""Fields of every action or observation, which say nothing of the task."""
SCHEMES = ("http://", "https://", "ws://", "wss://")


@dataclass(frozen=True)
class Server:
    """What is known of a server, and how its actions and observations are texts."""

    url: str
    client: Callable[..., Any]
    action: str
    validator: Draft202012Validator
    as_text: bool
    """The action's field takes the response as it is."""
    observation: str
    instruction: str | None
    reset: dict[str, Any]
    connect_s: float
    answer_s: float

    @classmethod
    def found(
        cls,
        url: str,
        action: str | None,
        observation: str | None,
        instruction: str | None,
        reset: dict[str, Any],
        timeout_s: float | None,
    ) -> "Server":
        """The server at ``url``, asked for its schemas; see ``OpenEnvEnv``."""
        client = _client()
        connect_s = min(CONNECT_S, timeout_s or CONNECT_S)
        schemas = _schemas(url, connect_s)
        acts, sees = schemas["action"], schemas["observation"]
        field = _field(acts, action, url, "action", any_type=True)
        lacks = set(acts.get("required", ())) - {field, *COMMON}
        if lacks:
            raise ValueError(
                f"env.url={url}: an action needs {sorted(lacks)} besides env.action={field}, which"
                " nothing gives; only actions of one field can be made of a response"
            )
        exact = acts | {"additionalProperties": False}
        answer_s = min(ANSWER_S, timeout_s or ANSWER_S)
        return cls(
            url,
            client,
            field,
            Draft202012Validator(exact),
            _is_text(acts["properties"][field]),
            _field(sees, observation, url, "observation", any_type=False),
            instruction,
            reset,
            connect_s,
            answer_s,
        )

    def await_(self, coroutine: Any) -> Any:
        """Its result; what it takes is bounded, whatever the client does."""
        return background.start(coroutine).result(self.connect_s + self.answer_s + 5)

    def action_of(self, response: str) -> tuple[dict[str, Any] | None, str]:
        """The action that a response is; None and what is wrong where it is none."""
        value: Any = response
        if not self.as_text:
            try:
                value = json.loads(response)
            except (ValueError, RecursionError):
                return None, f"{self.action} must be written as JSON, and nothing else"
        try:
            for problem in self.validator.iter_errors({self.action: value}):
                return None, problem.message[:200]
        except RecursionError:
            return None, f"{self.action} is nested too deeply"
        return {self.action: value}, ""

    def text_of(self, observation: Mapping[str, Any]) -> str:
        """What the model is shown of an observation."""
        if self.observation not in observation:
            raise RuntimeError(
                f"the server's observation has no {self.observation!r}; it has"
                f" {sorted(observation)}: name another by env.observation"
            )
        return answer_text(observation[self.observation], self.observation)


def _client() -> Callable[..., Any]:
    try:
        from openenv.core import GenericEnvClient
    except ImportError as error:
        raise ImportError(
            f"env=openenv needs a package that is missing ({error}):"
            ' pip install "rlmodules[openenv]"'
        ) from error
    return GenericEnvClient


def _schemas(url: str, timeout_s: float) -> dict[str, Any]:
    """Of actions and observations."""
    if not isinstance(url, str) or not url.startswith(SCHEMES):
        raise ValueError(f"env.url={url!r} must begin with one of {', '.join(SCHEMES)}")
    asked = "http" + url.rstrip("/").removeprefix("ws").removeprefix("http") + "/schema"
    try:
        answer = httpx.get(asked, timeout=timeout_s, follow_redirects=True)
        answer.raise_for_status()
        schemas = answer.json()
        return {name: schemas[name] | {} for name in ("action", "observation")}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"env.url={url}: {asked} gives no schemas ({type(error).__name__}: {error}); start"
            " the server of an OpenEnv environment there"
        ) from error


def _field(
    schema: Mapping[str, Any], given: str | None, url: str, option: str, *, any_type: bool
) -> str:
    """The field of actions or observations that holds the text."""
    fields = {k: v for k, v in schema.get("properties", {}).items() if k not in COMMON}
    fitting = [name for name, field in fields.items() if any_type or _is_text(field)]
    if given is None and len(fitting) == 1:
        return fitting[0]
    if given in fields:
        return given
    problem = f"env.{option}={given}" if given else f"env.{option} is not given"
    raise ValueError(f"{problem}: the {option} of {url} has {sorted(fields)}; name one of them")


def _is_text(field: Mapping[str, Any]) -> bool:
    """Whether a field is text, or text or nothing."""
    kinds = field.get("anyOf", [field])
    return {kind.get("type") for kind in kinds} - {"null"} == {"string"}
