"""A pass over a deep model, from passes over a few of its layers.

Layers that are alike take alike: what a phase of a pass takes is a line in their number, drawn
through two depths. Models whose layers differ are computed whole.
"""

from collections.abc import Callable

from rlmodules.memory.paper import layers_of, period_of
from rlmodules.memory.parts import OPTIMIZER, REFERENCE, WEIGHTS, Parts
from rlmodules.memory.passes import Peaks

EXACT = (WEIGHTS, REFERENCE, OPTIMIZER)
"""Parts that are counted and not drawn out."""


class Deep:
    """Passes of ``parts``."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.layers = parts, len(layers_of(parts.paper))
        period = period_of(parts.paper)
        deep = period is not None and self.layers > 4 * period
        self.depths = (2 * period, 4 * period) if period is not None and deep else ()
        self.short = [parts.shortened(depth) for depth in self.depths]

    def peak(self, passed: Callable[[Parts], Peaks]) -> dict[str, int]:
        """The bytes of each part at the peak of a pass."""
        if not self.short:
            return _largest(passed(self.parts))
        low, high = (passed(parts) for parts in self.short)
        near, far = self.depths
        drawn: Peaks = {}
        for phase in low.keys() & high.keys():
            labels = low[phase].keys() | high[phase].keys()
            drawn[phase] = {
                label: _line(low[phase].get(label, 0), high[phase].get(label, 0), near, far,
                             self.layers)
                for label in labels
            }  # fmt: skip
            sizes = (
                self.parts.weight_bytes,
                self.parts.reference_bytes,
                self.parts.optimizer_bytes,
            )
            drawn[phase] |= dict(zip(EXACT, sizes, strict=True))
        return _largest(drawn)


def _line(low: int, high: int, near: int, far: int, depth: int) -> int:
    """What is at ``depth`` on the line through ``low`` at ``near`` and ``high`` at ``far``."""
    return max(low + (high - low) * (depth - near) // (far - near), 0)


def _largest(peaks: Peaks) -> dict[str, int]:
    found = max(peaks.values(), key=lambda parts: sum(parts.values()))
    return {label: size for label, size in found.items() if size}
