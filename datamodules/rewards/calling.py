"""How a reward function is called: by the names of its parameters, as TRL and the contract have it.

A function is given what it names, and one with ``**kwargs`` all that TRL's ``GRPOTrainer`` gives:

- ``prompts``, ``completions``, ``completion_ids``: of all responses of a call; on chat rows
  completions are lists of messages, and prompts are where the function does not say ``responses``;
- ``responses``: the same completions, always as text;
- ``prompt``, ``completion``, ``response`` (or ``generated``), ``full_text``: where it names those,
  it is called once a response;
- ``metadata``: the row's other columns, a dict a response; and each column by its name, None where
  a row lacks it;
- ``log_metric``, a function of a name and a number (``rollout/logged_NAME``).

``(prompts, responses, metadata=None)`` may call its first two parameters as it likes, for
``metadata`` tells it. What cannot be told by its names is refused.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Metadata = Sequence[dict[str, Any]] | None
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments by position and by name."""

TEXTS = {"completions", "responses", "completion_ids"}
ONE_TEXT = {"completion", "response", "generated", "full_text"}
LOG = "log_metric"
UNKNOWN = {
    "trainer_state": "the state of TRL's trainer",
    "log_extra": "TRL's table of completions",
    "environments": "TRL's environments",
}
"""What TRL gives besides, and no counterpart of it is here."""
UNDERSTOOD = (
    "it may name prompts, completions or responses, completion_ids, metadata, log_metric and"
    " columns of the rows; or, for one response at a time, prompt, completion, response, generated,"
    " full_text, metadata and columns; or be (prompts, responses, metadata=None)"
)


class Conversation(list):
    """Chat messages that a prompt is made of; a row's own column of that name is none."""


@dataclass(frozen=True)
class Samples:
    """Responses to be judged, and all that is known of them."""

    prompts: Sequence[str]
    responses: Sequence[str]
    metadata: Metadata = None
    completion_ids: Sequence[Sequence[int]] | None = None
    """Token ids as they were sampled; None where they are not known."""

    def __len__(self) -> int:
        return len(self.responses)

    def pick(self, rows: Sequence[int]) -> "Samples":
        """Some of them, in this order."""
        prompts, responses, metadata, ids = (
            None if column is None else [column[row] for row in rows]
            for column in (self.prompts, self.responses, self.metadata, self.completion_ids)
        )
        return Samples(prompts, responses, metadata, ids)  # type: ignore[arg-type]

    def contents(self) -> list[Any]:
        """The prompts, as messages where they are conversations."""
        rows = self.metadata or [{}] * len(self)
        chats = [row.get("messages") for row in rows]
        return [
            list(chat) if isinstance(chat, Conversation) else prompt
            for chat, prompt in zip(chats, self.prompts, strict=True)
        ]

    def completions(self) -> list[Any]:
        """The responses, as messages where the prompts are."""
        return [
            text if isinstance(content, str) else [{"role": "assistant", "content": text}]
            for content, text in zip(self.contents(), self.responses, strict=True)
        ]


@dataclass
class Signature:
    """What a reward function takes; made by ``signature_of``."""

    name: str
    kind: str
    """``contract`` (by position), ``batch`` or ``one`` (by name)."""
    named: set[str]
    required: set[str]
    takes_all: bool
    """It has ``**kwargs``."""
    columns: set[str] = field(default_factory=set)
    """Those that some row has."""

    @property
    def logs(self) -> bool:
        """Whether it is given ``log_metric``."""
        wanted = LOG in self.named or (self.takes_all and self.kind == "batch")
        return wanted and LOG not in self.columns

    def require(self, columns: Collection[str]) -> None:
        """Note the columns that there are, and check that nothing else is asked for.

        Raises:
            ValueError: names what no row has, or what could mean two things.
        """
        self.columns = set(columns)
        if self.kind == "contract":
            if both := sorted(self.required & self.columns):
                raise ValueError(
                    f"the reward {self.name} cannot be told what it takes: {', '.join(both)} is a"
                    f" column of the rows, and nothing is named as the responses; {UNDERSTOOD}"
                )
            return
        texts = {"prompts", "completions", "completion_ids"} | (TEXTS & self.named)
        if self.kind == "one":
            texts = self.named & (ONE_TEXT | {"prompt"})
        if not self._is_contract() and (both := sorted(texts & self.columns - self._rows_own())):
            raise ValueError(
                f"the reward {self.name} is given {', '.join(both)}, which is a column of the rows"
                " too: rename the column"
            )
        provided = self._provided() | {LOG, "metadata"}
        if missing := sorted(self.required - provided - self.columns):
            known = ", ".join(sorted(self.columns)) or "none but the prompt"
            what = "".join(f" ({n}: {UNKNOWN[n]})" for n in missing if n in UNKNOWN)
            raise ValueError(
                f"the reward {self.name} has a parameter {', '.join(missing)}, which no row has"
                f"{what}; columns of the rows: {known}. Give it a default, or rename it:"
                f" {UNDERSTOOD}"
            )

    def whole(self, samples: Samples) -> Call:
        """The call of a function that takes many responses at once.

        Raises:
            ValueError: it asks for what is not known of these.
        """
        if self.kind == "contract":
            return (samples.prompts, samples.responses), {"metadata": samples.metadata}
        text = "responses" in self.named and "completions" not in self.named
        given = {
            "prompts": samples.prompts if text else samples.contents(),
            "completions": samples.completions(),
            "responses": samples.responses,
            "completion_ids": samples.completion_ids,
            "metadata": samples.metadata,
        }
        columns = self._columns_of(samples)
        values = columns | {k: v for k, v in given.items() if k not in self._rows_own()}
        names = self.named & set(values)
        if self.takes_all:
            names |= {*columns, "prompts", "completions", "completion_ids"}
            names |= {"metadata"} if text else set()
        if samples.completion_ids is None and "completion_ids" not in columns:
            names.discard("completion_ids")
            if "completion_ids" in self.required:
                raise ValueError("it asks for completion_ids, and here there are texts alone")
        return (), {name: values[name] for name in names}

    def each(self, samples: Samples) -> list[Call]:
        """The calls of a function that takes one response, or is to be given one at a time."""
        if self.kind != "one":
            return [self.whole(samples.pick([row])) for row in range(len(samples))]
        columns, metadata = self._columns_of(samples), samples.metadata or [{}] * len(samples)
        completions, calls = samples.completions(), []
        for row, (prompt, text) in enumerate(zip(samples.prompts, samples.responses, strict=True)):
            given = {"prompt": prompt, "response": text, "generated": text, "metadata": metadata}
            given |= {"full_text": prompt + text, "completion": completions[row]}
            given |= {"metadata": metadata[row]}
            values = {name: column[row] for name, column in columns.items()} | given
            names = set(values) if self.takes_all else self.named & set(values)
            calls.append(((), {name: values[name] for name in names}))
        return calls

    def _provided(self) -> set[str]:
        return ONE_TEXT | {"prompt"} if self.kind == "one" else TEXTS | {"prompts"}

    def _is_contract(self) -> bool:
        """Whether the names are those of the contract, which mean what it says."""
        return {"responses", "metadata"} <= self.named or {"generated", "full_text"} <= self.named

    def _rows_own(self) -> set[str]:
        """Names that mean a column, where there is one: TRL knows no such names."""
        return {"responses", "metadata"} & self.columns if "completions" in self.named else set()

    def _columns_of(self, samples: Samples) -> dict[str, list[Any]]:
        rows: Sequence[Mapping[str, Any]] = samples.metadata or [{}] * len(samples)
        names = dict.fromkeys([*sorted(self.columns), *(name for row in rows for name in row)])
        return {name: [row.get(name) for row in rows] for name in names}


def signature_of(fn: Callable[..., Any], name: str) -> Signature:
    """What ``fn`` takes.

    Raises:
        ValueError: its names do not say which of its parameters are the responses.
    """
    if inspect.isclass(fn):
        raise ValueError(f"the reward {name} is a class: give an object of it, or a function")
    try:
        found = list(inspect.signature(getattr(fn, "forward", fn)).parameters.values())
    except (TypeError, ValueError):
        raise ValueError(f"the reward {name} does not tell its parameters; {UNDERSTOOD}") from None
    bound = set(fn.keywords) if isinstance(fn, functools.partial) else set()
    plain = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = {p.name for p in plain if p.kind is not p.POSITIONAL_ONLY} - bound
    required = {p.name for p in plain if p.default is p.empty} - bound
    hides = any(p.kind is p.VAR_POSITIONAL for p in found)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in found)
    one = named & (ONE_TEXT | {"prompt"})
    if named & TEXTS or (takes_all and not one and (not hides or "prompts" in named)):
        kind = "batch"
    elif named & ONE_TEXT:
        kind = "one"
    else:
        first = [p for p in plain[:2] if p.kind is not p.KEYWORD_ONLY and p.name != "metadata"]
        others = required - {p.name for p in first} - {"metadata"}
        kind = "contract" if "metadata" in named and len(first) == 2 and not others else ""
    unnamed = [p.name for p in plain if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if not kind or (unnamed and kind != "contract"):
        shown = "(" + ", ".join(str(p) for p in found) + ")"
        wraps = "; a decorator says by functools.wraps what it wraps" if hides else ""
        raise ValueError(
            f"the reward {name}{shown} cannot be told which parameter is the responses:"
            f" {UNDERSTOOD}{wraps}"
        )
    return Signature(name, kind, named, required, takes_all)
