"""Rewards: functions of texts, models that score them, judges that compare them."""

from datamodules.rewards.functions import (
    RewardError,
    RewardFunction,
    function,
    length,
    sentiment,
)
from datamodules.rewards.scorers import model
