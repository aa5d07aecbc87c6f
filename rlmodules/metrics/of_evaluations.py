"""Metrics of held-out episodes."""

from rlmodules.metrics.metric import DOWN, ONLINE, UP, Metric

HELD_OUT = "at each evaluation, where prompts are held out (data.eval_size)"

OF_EVALUATIONS = (
    Metric(
        "val/reward",
        "Mean reward on held-out prompts.",
        "reward",
        ONLINE,
        when=HELD_OUT,
        healthy="rising with rollout/reward",
        otherwise="Behind rollout/reward: the training prompts are learned by heart. Reward is not"
        " success: read the samples, watch val/kl and val/distinct_bigrams.",
        trl="GRPO: eval_reward",
        better=UP,
    ),
    Metric(
        "val/reward_NAME",
        "Mean on held-out prompts of the reward's part NAME, before its weight.",
        "reward",
        ONLINE,
        when="as rollout/reward_NAME, where prompts are held out",
        healthy="all of them rising, or holding",
        otherwise="One rises at another's cost: weigh it less.",
        trl="GRPO: eval_rewards/NAME/mean",
        better=UP,
        examples=("val/reward_correct",),
    ),
    Metric(
        "val/logged_NAME",
        "Mean on held-out prompts of what a reward function said by log_metric(NAME, value).",
        "",
        ONLINE,
        when="as rollout/logged_NAME, where prompts are held out",
        trl="GRPO: eval_NAME",
        examples=("val/logged_words",),
    ),
    Metric(
        "val/pass@K",
        "Share of held-out problems solved by at least one of K attempts (unbiased estimate).",
        "share",
        ONLINE,
        when="at each evaluation, where the environment says what is correct; K is 1 and"
        " data.eval_generations",
        healthy="rising",
        otherwise="pass@1 rises and a higher K falls: the policy grows surer, not abler.",
        better=UP,
        examples=("val/pass@1", "val/pass@4"),
    ),
    Metric(
        "val/kl",
        "KL of the policy from the reference, or from its teacher, on held-out prompts (k1"
        " estimate).",
        "nats a token",
        ONLINE,
        when="at each evaluation; GRPO: with algo.beta above 0",
        healthy="as rollout/kl; distillation: falling",
        otherwise="As rollout/kl; distillation: algo.learning_rate is too low, or so high that it"
        " rises.",
        trl="GRPO: eval_kl",
        better=DOWN,
    ),
    Metric(
        "val/distinct_bigrams",
        "Different word pairs over all word pairs of the held-out responses (distinct-2).",
        "share",
        ONLINE,
        when=HELD_OUT,
        healthy="about where it began, and above 0.5 for prose",
        otherwise="Falling while the reward rises: the policy repeats what pays (reward hacking);"
        " raise the price of KL, stop earlier, or mend the reward.",
        better=UP,
    ),
    Metric(
        "val/response_length",
        "Tokens that the policy wrote in a held-out episode.",
        "tokens",
        ONLINE,
        when=HELD_OUT,
        healthy="as rollout/response_length",
        otherwise="As rollout/response_length.",
        trl="GRPO: eval_completions/mean_length",
    ),
    Metric(
        "val/eos_fraction",
        "Share of held-out episodes that ended by an end token or a stop string.",
        "share",
        ONLINE,
        when=HELD_OUT,
        healthy="as rollout/eos_fraction",
        otherwise="As rollout/eos_fraction.",
        trl="GRPO: 1 less eval_completions/clipped_ratio",
    ),
)
