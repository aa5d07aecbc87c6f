"""An estimate for people: the table of its moments, what fits, and the same as plain figures."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from rlmodules.memory.estimate import Estimate
from rlmodules.memory.longest import Examples
from rlmodules.memory.moments import Moment

GIB = 2**30
TITLE = "Memory of a device at each moment of the run"


@dataclass(frozen=True)
class Said:
    """What there is to say below the table.

    Attributes:
        text: sentences.
        figures: all of it, for programs.
    """

    text: str
    figures: dict[str, Any]


def gib(size: float) -> str:
    """``12.3``, ``0.12``, ``0.0012``: three digits, or two."""
    size /= GIB
    return f"{size:.1f}" if size >= 10 else f"{size:.2f}" if size >= 0.01 else f"{size:.2g}"


def said_of_parts(moment: Moment) -> str:
    """``weights 1.2, activations 3.4``, the largest first."""
    parts = sorted(moment.parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in parts)


def as_table(found: Estimate) -> Table:
    """A row a moment, with what is alive then; the peak's row is marked."""
    peak = found.peak
    table = Table(title=TITLE, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("texts")
    table.add_column("GiB", justify="right")
    table.add_column("of which")
    for moment in found.moments:
        is_peak = moment is peak
        name = f"{'>' if is_peak else ' '} {moment.name}"
        row = [name, moment.size, gib(moment.total), said_of_parts(moment)]
        table.add_row(*(Text(cell, "bold red" if is_peak else "") for cell in row))
    return table


def said_of(found: Estimate, room: int | None) -> Said:
    """Of what texts the figures are, and what fits into ``room``."""
    run, peak, texts = found.run, found.peak, found.texts
    option = f"algo.{run.batch_option}"
    lines = [f"Peak: {gib(peak.total)} GiB, at the {peak.name}.", _texts(found)]
    figures: dict[str, Any] = {
        "peak_bytes": peak.total,
        "peak": peak.name,
        "moments": [{"name": m.name, "size": m.size, "parts": dict(m.parts), "bytes": m.total}
                    for m in found.moments],
        "device": run.device,
        "devices": run.world,
        "precision": run.precision,
        "packed": found.parts.packs,
        option: found.rows,
    }  # fmt: skip
    if room is None:
        lines.append("This machine has no such device: say its memory by task.memory_gb=24.")
        return Said("\n".join(lines), figures)
    largest = found.largest(room)
    fits = peak.total <= room
    figures |= {"room_bytes": room, "fits": fits, f"largest_{run.batch_option}": largest}
    lines.append(f"The device has {gib(room)} GiB: the run {'fits' if fits else 'does not fit'}.")
    bound = isinstance(texts, Examples) and largest == texts.most(run.world)
    if not largest:
        lines.append(f"No {option} fits: {_lower(found)}")
    else:
        more = ", as many as an optimizer step leaves" if bound else ""
        lines.append(f"Largest {option} that fits an update: {largest} (now {found.rows}){more}.")
        if not fits and found.update(found.rows).total <= room:
            lines.append(f"What does not fit is the {peak.name}: {_lower(found)}")
    return Said("\n".join(lines), figures)


def _texts(found: Estimate) -> str:
    rows = "packed" if found.parts.packs else "padded"
    if getattr(found.texts, "exact", True):
        return f"Texts: the longest of the data, rows {rows}."
    return f"Texts: as long as the limits allow (task.prompt_length), rows {rows}."


def _lower(found: Estimate) -> str:
    """What there is to be lowered, by the options' names."""
    return advice(found.run, found.peak)


def advice(run: Any, peak: Moment) -> str:
    """Options that make the peak lower, those that cost least first."""
    said = {
        "update": [f"algo.{run.batch_option} with algo.gradient_accumulation_steps raised"],
        "rollout": ["algo.batch_size"],
        "rollout by the teacher": ["algo.batch_size"],
        "held-out rollout": ["data.eval_batch_size"],
        "held-out batch": ["data.eval_batch_size"],
    }.get(peak.name, [])
    lengths = ["algo.max_new_tokens"] if run.is_online else ["algo.max_length"]
    lower = [*said, *lengths]
    if peak.name.startswith("loading") or peak.name == "optimizer step":
        lower = []
    raised = []
    if not run.model.gradient_checkpointing and peak.name == "update":
        raised.append("model.gradient_checkpointing=true")
    if not run.model.lora.r:
        raised.append("model.lora.r=16")
    if run.has_teacher and run.config.teacher_quantization == "none":
        raised.append("algo.teacher_quantization=4bit")
    parts = [f"lower {', '.join(lower)}"] if lower else []
    return "; ".join([*parts, *([f"set {' or '.join(raised)}"] if raised else [])]) + "."
