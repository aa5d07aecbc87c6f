"""Metrics of an iteration's updates, of algorithms that learn from their own episodes."""

from rlmodules.metrics.metric import DOWN, REWARDED, TAUGHT, Metric

PPO, GRPO = ("PPO",), ("GRPO",)

OF_UPDATES = (
    Metric(
        "train/policy_loss",
        "The clipped surrogate, negated.",
        "",
        PPO,
        when="after algo.value_warmup_iterations",
        healthy="near 0, as advantages are whitened",
        trl="loss/policy_avg",
    ),
    Metric(
        "train/value_loss",
        "Half of the critic's squared error, clipped.",
        "reward squared",
        PPO,
        healthy="falling at first",
        otherwise="Growing: rewards are on too large a scale (algo.reward_clip), or"
        " algo.value_learning_rate is too high.",
        trl="loss/value_avg",
        better=DOWN,
    ),
    Metric(
        "train/value_clip_fraction",
        "Share of tokens at which the critic's loss is clipped.",
        "share",
        PPO,
        high=0.5,
        healthy="below 0.5",
        otherwise="The critic may not move as far as it would: raise algo.value_clip.",
        trl="val/clipfrac_avg",
    ),
    Metric(
        "train/clip_fraction",
        "Share of tokens whose gain is cut off by the clip range.",
        "share",
        REWARDED,
        when="PPO: after algo.value_warmup_iterations; 0 where an iteration takes one step",
        high=0.3,
        healthy="0 to 0.2 (GSPO: more, its range is narrow)",
        otherwise="Above 0.3: most of the update is cut off; lower algo.learning_rate or the"
        " passes over an iteration (algo.ppo_epochs, algo.num_epochs).",
        trl="PPO: policy/clipfrac_avg; GRPO: clip_ratio/region_mean, cispo_clip_ratio",
    ),
    Metric(
        "train/approx_kl",
        "KL of the policy that sampled from the policy in training (k3 estimate).",
        "nats a token",
        REWARDED,
        when="PPO: after algo.value_warmup_iterations; 0 where an iteration takes one step",
        high=0.1,
        healthy="0 to 0.02",
        otherwise="Above 0.1: steps are too large; lower algo.learning_rate, or set"
        " algo.early_stop_kl.",
        trl="PPO: policy/approxkl_avg, the k2 estimate",
    ),
    Metric(
        "train/ratio",
        "Probability of a sampled token now over that when it was sampled.",
        "",
        REWARDED,
        when="PPO: after algo.value_warmup_iterations",
        low=0.8,
        high=1.2,
        healthy="within 0.05 of 1",
        otherwise="Far from 1: steps are too large, or sampling and training compute other"
        " probabilities.",
        trl="PPO: val/ratio",
    ),
    Metric(
        "train/entropy",
        "Entropy of the policy's next-token distribution, at algo.temperature.",
        "nats a token",
        (*PPO, *TAUGHT),
        when="PPO: after algo.value_warmup_iterations",
        healthy="falling slowly, and above a tenth of what it was",
        otherwise="Collapsed: all responses are alike and nothing new is tried; raise"
        " algo.entropy_coef, algo.temperature or algo.kl_penalty_coef.",
        trl="policy/entropy_avg",
    ),
    Metric(
        "train/kl",
        "KL of the policy from the reference in the loss (k3 estimate).",
        "nats a token",
        GRPO,
        when="with algo.beta above 0 and algo.kl_in_reward=false",
        healthy="as rollout/kl",
        otherwise="As rollout/kl.",
        trl="kl",
        better=DOWN,
    ),
    Metric(
        "train/stopped_early",
        "1 where algo.early_stop_kl skipped the rest of an iteration's updates, else 0.",
        "",
        PPO,
        healthy="0 in most iterations",
        otherwise="1 in most: algo.learning_rate is too high for algo.ppo_epochs.",
        better=DOWN,
    ),
)
