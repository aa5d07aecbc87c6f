"""Count down from a number to zero: a task that is judged number by number."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.environments.text import TextGenerationEnv
from datamodules.text.prompts import Prompt


class CountdownEnv(TextGenerationEnv):
    """``env=countdown``: the reward is the share of the numbers that stand where they belong.

    Args:
        tokenizer: of the policy.
        highest: the largest number to count down from, 2 at least.
        options: as of ``TextGenerationEnv``.

    Raises:
        ValueError: there is nothing to count.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, highest: int = 9, **options: Any
    ) -> None:
        if highest < 2:
            raise ValueError(f"env.highest={highest} must be at least 2")
        starts = range(2, highest + 1)
        prompts = [Prompt(f"Count down to 0: {n}", {"first": n - 1}) for n in starts]
        super().__init__(tokenizer, prompts, **options)

    def score(self, episodes: Sequence["CountdownEnv"]) -> list[tuple[float, dict[str, float]]]:
        """Rewards of finished episodes, with ``correct`` among their metrics."""
        shares = [share_right(episode.response, episode.metadata["first"]) for episode in episodes]
        return [(share, {"correct": float(share == 1.0)}) for share in shares]


def share_right(response: str, first: int) -> float:
    """How many of the numbers from ``first`` to 0 the response gives in their order, in [0, 1]."""
    wanted = [str(n) for n in range(first, -1, -1)]
    said = response.split()
    return sum(a == b for a, b in zip(said, wanted, strict=False)) / len(wanted)
