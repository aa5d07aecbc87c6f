"""Pure functions of tensors: no state, no models, torch only."""

from rlmodules.functional.advantages import (
    explained_variance,
    gae,
    masked_mean,
    masked_var,
    whiten,
)
from rlmodules.functional.kl import KL_ESTIMATORS, adapt_kl_coefficient, exact_kl, kl_estimate
from rlmodules.functional.logprobs import Projection, token_logprobs
from rlmodules.functional.policy_losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy_bonus,
)

__all__ = [
    "KL_ESTIMATORS",
    "Projection",
    "adapt_kl_coefficient",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "entropy_bonus",
    "exact_kl",
    "explained_variance",
    "gae",
    "kl_estimate",
    "masked_mean",
    "masked_var",
    "token_logprobs",
    "whiten",
]
