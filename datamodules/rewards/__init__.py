"""Rewards: functions of texts, models that score them, judges that compare them.

Each is imported where it is first used: a process that calls one function needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "built_in": ["function", "length", "sentiment"],
        "endpoint": ["judge"],
        "functions": ["RewardError", "RewardFunction"],
        "scorers": ["model"],
        "weighting": ["WeightedReward"],
    },
)
