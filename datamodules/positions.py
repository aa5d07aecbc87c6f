"""How long a text may be for a model, and why not longer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions")
"""What configs call the longest text."""
TABLES = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe",
          "pos_emb", "position_embeds_layer")  # fmt: skip
"""What models call their table of learned positions."""


@dataclass(frozen=True)
class Positions:
    """The positions of a model."""

    count: int | None
    """Most tokens that a text may have; None where there is no limit."""
    reason: str = ""
    """Why there are no more, where it is not how many the model has."""

    def hold(self, length: int) -> bool:
        """Whether a text of ``length`` tokens has room."""
        return self.count is None or length <= self.count

    def require(self, texts: Iterable[Tensor]) -> None:
        """
        Raises:
            ValueError: a text [T] has no room.
        """
        longest = max((len(text) for text in texts), default=0)
        if not self.hold(longest):
            raise ValueError(f"a text of {longest} tokens exceeds {self}: cut it")

    def __str__(self) -> str:
        """``the 512 positions of the model``, with the reason if there is one."""
        reason = self.reason and f" ({self.reason})"
        return f"the {self.count} positions of the model{reason}"


def positions_of(model: Any) -> Positions:
    """How many tokens a text may have so that ``model`` can read it, whatever stands beside it."""
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in LIMITS)
    limit = next((count for count in named if isinstance(count, int) and count > 0), None)
    if limit is None:
        return Positions(None)
    # A smaller table is that of a picture's patches.
    tables = [x for name, x in model.named_modules() if name.rsplit(".", 1)[-1] in TABLES]
    rows = [_rows(x) for x in tables if getattr(x, "num_embeddings", 0) >= limit]
    found = [*_constant_range(config, limit), Positions(min([limit, *rows]))]
    return min(found, key=lambda positions: positions.count or 0)


def _rows(table: Any) -> int:
    """Positions of a table: RoBERTa's begin after the padding's, OPT's and BART's after two."""
    before = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - max(before, getattr(table, "offset", 0))


def _constant_range(config: Any, limit: int) -> Iterator[Positions]:
    """Texts for which rotary frequencies do not follow the longest row of the batch.

    transformers' ``modeling_rope_utils.dynamic_rope_update``: LongRoPE takes other factors for the
    whole batch when one row is longer than the original positions, dynamic NTK when one is longer
    than ``max_position_embeddings``.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for kind in [rope, *rope.values()]:  # one for all layers, or one a kind of layer
        name = str(kind.get("rope_type", kind.get("type"))) if isinstance(kind, dict) else ""
        original = None
        if name in ("longrope", "su"):
            original = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
        elif "dynamic" in name:
            original = limit
        if original:
            reason = f"with a longer text in a batch, its {name} scaling changes all of them"
            yield Positions(original, reason)
