"""Pure functions of tensors: no state, no models, torch only."""

from rlmodules.functional.advantages import (
    explained_variance,
    gae,
    masked_mean,
    masked_var,
    whiten,
)
from rlmodules.functional.divergences import Predictions, divergence, generalized_jsd
from rlmodules.functional.dpo_losses import DPO_LOSSES, DPOShape, PairLogps, dpo_loss
from rlmodules.functional.grpo_losses import (
    BASELINES,
    GRPO_LOSSES,
    LEVELS,
    READ_DELTA,
    SCALES,
    decoupled_advantages,
    group_advantages,
    grpo_loss,
)
from rlmodules.functional.importance import CORRECTIONS, sampler_weights
from rlmodules.functional.kl import KL_ESTIMATORS, adapt_kl_coefficient, exact_kl, kl_estimate
from rlmodules.functional.kto_losses import KTO_LOSSES, kto_loss
from rlmodules.functional.logprobs import Projection, token_logprobs
from rlmodules.functional.policy_losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy_bonus,
    importance_sampling_loss,
    ppo_loss,
)
from rlmodules.functional.preference_losses import (
    bradley_terry_loss,
    multi_objective_loss,
    orpo_loss,
    pair_metrics,
)
from rlmodules.functional.text_losses import SFT_LOSSES, sft_loss
