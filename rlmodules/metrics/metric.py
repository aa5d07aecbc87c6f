"""One row of the table of metrics."""

import re
from dataclasses import dataclass, field

TAUGHT = ("Distillation",)
REWARDED = ("PPO", "GRPO")
ONLINE = (*REWARDED, *TAUGHT)
PAIR_POLICIES = ("DPO", "ORPO")
PAIR_JUDGES = ("RewardModel", "PairwiseRewardModel")
PAIRS = (*PAIR_POLICIES, *PAIR_JUDGES)
ON_PREFERENCES = (*PAIRS, "MultiObjectiveRewardModel")
ON_DEMONSTRATIONS = ("SFT",)
UNPAIRED = ("KTO",)
OFFLINE = (*ON_DEMONSTRATIONS, *UNPAIRED, *ON_PREFERENCES)
EVERY = (*ONLINE, *OFFLINE)
"""Algorithms, by the names of their modules: gspo, rloo and reinforce_plus_plus are GRPO's."""

UP, DOWN, NEITHER = "up", "down", ""
"""Where better values lie."""


@dataclass(frozen=True)
class Metric:
    """What a logged number is.

    Attributes:
        name: its own, or a pattern whose capitals stand for a part that differs: ``val/pass@K``.
        what: what it is, in a sentence.
        unit: of the number; empty for one without.
        by: the algorithms that log it.
        when: where they do not always: when.
        low, high: bounds of the healthy range, as far as they are the same for every run.
        healthy: what is healthy, in words.
        otherwise: what it means when it is not, and what to do.
        trl: what TRL calls it, and where that differs; empty where TRL has nothing like it.
        better: ``up``, ``down``, or empty where neither is.
        examples: names that a pattern stands for.
    """

    name: str
    what: str
    unit: str
    by: tuple[str, ...]
    when: str = ""
    low: float | None = None
    high: float | None = None
    healthy: str = ""
    otherwise: str = ""
    trl: str = ""
    better: str = NEITHER
    examples: tuple[str, ...] = field(default=())

    @property
    def is_pattern(self) -> bool:
        return re.search(r"[A-Z]", self.name) is not None

    def matches(self, name: str) -> bool:
        """Whether ``name`` is this metric's, or one that its pattern stands for."""
        parts = re.split(r"[A-Z]+", self.name)
        return re.fullmatch(".+".join(map(re.escape, parts)), name) is not None
