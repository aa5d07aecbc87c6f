"""What runs cost: time on devices, what was learned from in it, and money if a price is given."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from rlmodules.reports.runs import Run

COUNTED = ("tokens", "episodes", "examples")
"""What runs count of their work, beside time; each has some of them."""


@dataclass(frozen=True)
class Cost:
    """What runs used up, as far as they say; None where none says.

    Attributes:
        device_seconds: seconds of a run times the devices that it was given.
        tokens, episodes, examples: that were learned from.
        price: of the device-seconds.
    """

    device_seconds: float | None = None
    tokens: float | None = None
    episodes: float | None = None
    examples: float | None = None
    price: float | None = None

    def __add__(self, other: "Cost") -> "Cost":
        both = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Cost(**{name: a if b is None else (a or 0) + b for name, a, b in both})


def cost_of(runs: Iterable[Run], price_per_hour: float | None = None) -> Cost:
    """The cost of all ``runs``, those without a result too."""
    total = Cost()
    for run in runs:
        seconds = price = None
        if run.seconds is not None:
            seconds = run.seconds * devices_of(run)
            price = None if price_per_hour is None else seconds * price_per_hour / 3600
        total += Cost(device_seconds=seconds, price=price, **_counts(run))
    return total


def devices_of(run: Run) -> int:
    """How many devices it was given, over all nodes.

    Where its settings leave that to the machine (``auto``), all of the machine's accelerators are
    counted, and one if it does not say or has none.
    """
    devices, nodes = (run.settings.get(f"trainer.{name}", 1) for name in ("devices", "num_nodes"))
    if str(devices) in ("auto", "-1") and run.settings.get("trainer.accelerator") != "cpu":
        devices = len(run.start.get("machine", {}).get("accelerators") or [None])
    return _count(devices) * max(_count(nodes), 1)


def _count(devices: Any) -> int:
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([device for device in devices.split(",") if device.strip()])
    return int(devices) if str(devices).isdecimal() and int(devices) > 0 else 1


def _counts(run: Run) -> dict[str, float]:
    latest = dict(run.progress.metrics) if run.progress else {}
    for row in (run.history or run.rows)[-1:]:
        latest |= row
    return {name: float(latest[name]) for name in COUNTED if name in latest}
