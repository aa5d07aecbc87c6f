"""Metrics of algorithms that learn from preferences; each in training and held out."""

from rlmodules.metrics.metric import DOWN, PAIR_POLICIES, PAIRS, UNPAIRED, UP, Metric
from rlmodules.metrics.of_texts import held_out

REWARDED = (*PAIRS, *UNPAIRED)

_IN_TRAINING = (
    Metric(
        "train/reference_kl",
        "How far policy and reference are apart, on responses to other prompts of the batch: what"
        " the gain of a response is held against; below 0 it counts as 0.",
        "nats a response",
        UNPAIRED,
        when="under algo.loss_type=kto",
        low=0.0,
        healthy="rising slowly from 0, and below the log-ratios of desirable responses"
        " (train/reward_chosen divided by algo.beta)",
        otherwise="Above these: the policy drifts as a whole rather than towards what is desirable;"
        " lower algo.learning_rate, or raise algo.beta.",
        trl="kl",
        better=DOWN,
    ),
    Metric(
        "train/accuracy",
        "Share of pairs whose chosen side has the higher reward; a tie is half of one.",
        "share",
        PAIRS,
        low=0.5,
        healthy="above 0.5 and rising; 0.6 to 0.9 on people's preferences",
        otherwise="At 0.5 nothing is learned: raise algo.learning_rate, or look at the pairs"
        " (task=inspect). Near 1 in training and far less held out: fewer epochs, or more pairs.",
        trl="rewards/accuracies (RewardTrainer: accuracy)",
        better=UP,
    ),
    Metric(
        "train/margin",
        "Reward of the chosen side less that of the rejected one.",
        "reward",
        REWARDED,
        low=0.0,
        healthy="positive and rising slowly",
        otherwise="Negative: the pairs are preferred the wrong way round. Rising without accuracy:"
        " a few easy pairs are driven ever further apart.",
        trl="rewards/margins (RewardTrainer: margin)",
        better=UP,
    ),
    Metric(
        "train/reward_chosen",
        "Reward of chosen responses: a reward model's score; of a policy beta times its log-ratio"
        " to the reference (ORPO: beta times its log-probability a token).",
        "reward",
        REWARDED,
        healthy="DPO: near 0 or above; reward models: centred at 0",
        otherwise="Below 0 and falling under DPO: the policy forgets what was chosen, see"
        " train/chosen_drift.",
        trl="rewards/chosen (RewardTrainer logs mean_reward of both sides)",
        better=UP,
    ),
    Metric(
        "train/reward_rejected",
        "Reward of rejected responses, as train/reward_chosen.",
        "reward",
        REWARDED,
        healthy="below train/reward_chosen",
        trl="rewards/rejected",
    ),
    Metric(
        "train/logps_chosen",
        "Log-probability of chosen responses under the policy, summed over their tokens.",
        "nats a response",
        PAIR_POLICIES,
        healthy="about where it began, or above",
        otherwise="Falling: see train/chosen_drift.",
        trl="logps/chosen (ORPO: a mean over tokens)",
        better=UP,
    ),
    Metric(
        "train/logps_rejected",
        "Log-probability of rejected responses, as train/logps_chosen.",
        "nats a response",
        PAIR_POLICIES,
        healthy="falling",
        trl="logps/rejected (ORPO: a mean over tokens)",
    ),
    Metric(
        "train/chosen_drift",
        "How much likelier chosen responses are under the policy than under the reference.",
        "nats a response",
        ("DPO",),
        low=-1.0,
        healthy="-1 or more",
        otherwise="DPO pushes both sides down, and the policy writes neither: add an sft loss"
        " (algo.loss_type=[sigmoid,sft] algo.loss_weights=[1.0,1.0]; or a larger weight of it), or"
        " lower algo.learning_rate.",
        trl="rewards/chosen divided by beta",
        better=UP,
    ),
    Metric(
        "train/log_odds",
        "Log of the odds of chosen over those of rejected responses, a token.",
        "nats",
        ("ORPO",),
        low=0.0,
        healthy="positive and rising",
        otherwise="Falling: the likelihood outweighs the preference, raise algo.beta.",
        trl="log_odds_chosen",
        better=UP,
    ),
    Metric(
        "train/mse_NAME",
        "Squared error of the objective NAME, over the responses that have a score in it.",
        "score squared",
        ("MultiObjectiveRewardModel",),
        healthy="falling, and below the variance of the scores",
        otherwise="Held out rising while training's falls: fewer epochs, or more rows.",
        better=DOWN,
        examples=("train/mse_helpfulness",),
    ),
)


OF_PAIRS = (*_IN_TRAINING, *map(held_out, _IN_TRAINING))
