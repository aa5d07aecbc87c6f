"""Whether every option does something: each is changed, and the run must differ or refuse it.

What a run left is compared: weights, metrics, samples, checkpoints, and what a callback saw of the
Trainer and the batches (``Probe``), because sizes, devices and flags change no number. Options that
no tiny run can tell apart are in ``ELSEWHERE``, each with the test that does.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from rlmodules.schemas.fields import Field

Outcome = dict[str, str] | str
"""What a run left: a digest by name, or the sentence that it ended with."""
NAMED_BY_TIME = r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d\w*|\d{6,}\S*"
TIMES = ("time/", "seconds")
UNLIKE = (
    "config.yaml", "hparams.yaml", "README.md", "probe.json", "run.json", "reward_model.json",
    "error.txt", "report.txt",
)  # fmt: skip
"""Files that repeat the options themselves, or times."""


class Finding(NamedTuple):
    """What changing an option did."""

    field: Field
    overrides: tuple[str, ...]
    verdict: str
    """``differs``, ``refused``, ``dead`` (nothing), or ``broken`` (an error without its name)."""
    detail: str = ""


class Probe(Callback):
    """Notes what numbers cannot tell: flags, sizes of batches, evaluations, checkpoints.

    Args:
        path: where to.
    """

    def __init__(self, path: str) -> None:
        self.path, self.seen = Path(path), {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = getattr(pl_module.base_model, "get_base_model", lambda: pl_module.base_model)()
        self.seen |= {
            "types": sorted({str(p.dtype) for p in pl_module.parameters()}),
            "device": str(pl_module.device),
            "attention": model.config._attn_implementation,
            "recomputes": model.is_gradient_checkpointing,
            "profiler": type(trainer.profiler).__name__,
            "precision": str(trainer.precision),
            "callbacks": sorted(type(c).__name__ for c in trainer.callbacks),
            "flags": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark],
        }

    def on_train_batch_start(self, *args: Any) -> None:
        batch = args[2]
        size = len(batch.tokens.mask) if hasattr(batch, "tokens") else len(batch)
        self._add("trained", [size, torch.is_anomaly_enabled()])

    def on_validation_batch_end(self, *args: Any) -> None:
        batch = args[3]
        size = len(getattr(batch, "trajectories", batch))
        self._add("evaluated", [args[0].sanity_checking, args[0].global_step, size])

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        self._add("saved", trainer.global_step)

    def on_train_end(self, *args: Any) -> None:
        self.path.write_text(json.dumps(self.seen))

    def _add(self, name: str, value: Any) -> None:
        self.seen.setdefault(name, []).append(value)


def walk(
    fields: Iterable[Field],
    run: Callable[[tuple[str, ...]], Outcome],
    base: Callable[[Field], tuple[str, ...]],
    changes: Mapping[str, tuple[str, ...]],
    values: Callable[[tuple[str, ...]], Mapping[str, Any]],
) -> Iterator[Finding]:
    """What changing each option does.

    Args:
        fields: the options.
        run: a run with these overrides.
        base: the overrides of the run that an option is changed in.
        changes: ``PATH`` or ``OPTION:PATH`` -> overrides that change it, the option's own last, the
            ones before it in both runs; other options are changed by their type.
        values: the values that a run with these overrides has, by path.
    """
    outcomes: dict[tuple[str, ...], Outcome] = {}
    for field in fields:
        given = changes.get(f"{field.option}:{field.path}", changes.get(field.path, ()))
        context = (*base(field), *given[:-1])
        if context not in outcomes:
            outcomes[context] = run(context)
        change = given[-1] if given else changed(field, values(context).get(field.path))
        if change is None:
            yield Finding(field, context, "broken", f"no other {field.kind} is known for it")
            continue
        found = run((*context, change))
        yield _judged(field, (*context, change), outcomes[context], found)


def _judged(field: Field, overrides: tuple[str, ...], was: Outcome, found: Outcome) -> Finding:
    if isinstance(was, str):
        return Finding(field, overrides, "broken", f"without it: {was}")
    if isinstance(found, str):
        named = field.path.rpartition(".")[2] in found
        return Finding(field, overrides, "refused" if named else "broken", found)
    differ = sorted(name for name in was.keys() | found.keys() if was.get(name) != found.get(name))
    return Finding(field, overrides, "differs" if differ else "dead", ", ".join(differ))


def changed(field: Field, value: Any) -> str | None:
    """An override that gives an option another value of its type; None for types of many kinds."""
    kind = field.kind.removesuffix(" | None")
    if kind == "bool":
        other: Any = str(not value).lower()
    elif kind == "int":
        other = 1 if value is None else 2 * value if value else 1
    elif kind == "float":
        other = 0.5 if value is None else value / 2 if value else 0.5
    else:
        return None
    return f"{field.path}={other}"


def outcome_of(folder: Path) -> dict[str, str]:
    """A digest of all that a run left in its folder."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = re.sub(NAMED_BY_TIME, "X", str(path.relative_to(folder)))
        if ".hydra/" not in name:
            found[name] = _digest(path)
    return found


def _digest(path: Path) -> str:
    if path.name == "probe.json":
        return path.read_text()
    if path.name in UNLIKE or path.suffix in (".png", ".ckpt") or "tfevents" in path.name:
        return ""
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        plain = [{k: v for k, v in row.items() if not str(k).startswith(TIMES)} for row in rows]
        return hashlib.sha1(json.dumps(plain).encode()).hexdigest()
    if path.suffix in (".json", ".jsonl"):
        values = [json.loads(line) for line in _documents(path)]
        return hashlib.sha1(json.dumps(_timeless(values)).encode()).hexdigest()
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _documents(path: Path) -> list[str]:
    text = path.read_text()
    return [line for line in text.splitlines() if line] if path.suffix == ".jsonl" else [text]


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if not k.startswith(TIMES) and k != "source"}
    return {name: _timeless(inner) for name, inner in kept.items()}
