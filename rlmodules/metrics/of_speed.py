"""Metrics of every algorithm: the optimizer's, the time that things take, and the axes."""

from rlmodules.metrics.metric import DOWN, EVERY, OFFLINE, ONLINE, UP, Metric

OF_SPEED = (
    Metric(
        "train/loss",
        "What the optimizer step minimises, as a mean over the step.",
        "",
        EVERY,
        healthy="falls on pairs; says nothing of progress on episodes, whose data change",
        otherwise="On pairs: rising means that algo.learning_rate is too high.",
        trl="loss",
    ),
    Metric(
        "train/grad_norm",
        "Norm of the gradient before clipping to algo.max_grad_norm, a mean over optimizer steps.",
        "",
        EVERY,
        when="unless nothing is trained in the step",
        healthy="within a few times its median of the last iterations",
        otherwise="A spike is a batch that the model was not prepared for: lower"
        " algo.learning_rate, raise algo.batch_size, or look at the rewards.",
        trl="grad_norm",
    ),
    Metric(
        "train/learning_rate",
        "Learning rate of the step, or of an iteration's last (of the policy, where the critic has"
        " its own).",
        "",
        EVERY,
        healthy="as algo.learning_rate and its schedule say",
        trl="learning_rate (PPO: lr)",
    ),
    Metric(
        "time/rollout_s",
        "Seconds in which the iteration's episodes were played and rewarded.",
        "s",
        ONLINE,
        otherwise="More than time/update_s by far: the reward or sampling is the bottleneck.",
        better=DOWN,
    ),
    Metric(
        "time/evaluate_s",
        "Seconds in which policy, reference and critic evaluated the iteration's episodes.",
        "s",
        ONLINE,
        better=DOWN,
    ),
    Metric(
        "time/update_s",
        "Seconds of the iteration's optimizer steps.",
        "s",
        ONLINE,
        trl="step_time, of one step",
        better=DOWN,
    ),
    Metric(
        "time/rollout_tokens_per_s",
        "Tokens that the policy sampled a second, over all processes.",
        "tokens/s",
        ONLINE,
        better=UP,
    ),
    Metric(
        "time/update_tokens_per_s",
        "Response tokens that were trained on a second, each as often as it was.",
        "tokens/s",
        ONLINE,
        better=UP,
    ),
    Metric(
        "time/examples_per_s",
        "Examples (pairs, scored responses, demonstrations) that were trained on a second, over all"
        " processes.",
        "1/s",
        OFFLINE,
        trl="train_samples_per_second, of the whole run",
        better=UP,
    ),
    Metric(
        "time/tokens_per_s",
        "Tokens, of prompts too, that were trained on a second, over all processes.",
        "tokens/s",
        OFFLINE,
        trl="train_tokens_per_second, of the whole run",
        better=UP,
    ),
    Metric(
        "iteration",
        "Axis: iterations so far (rollout, then updates), the one in progress included.",
        "iterations",
        ONLINE,
        trl="global_step counts optimizer steps",
    ),
    Metric(
        "episodes",
        "Axis: episodes played so far, over all processes, the failed ones too.",
        "episodes",
        ONLINE,
        trl="episode",
    ),
    Metric(
        "examples",
        "Axis: examples (pairs, scored responses, demonstrations) trained on so far, over all"
        " processes.",
        "examples",
        OFFLINE,
    ),
    Metric(
        "tokens",
        "Axis: tokens so far, over all processes: sampled ones of algorithms that learn from"
        " episodes, of all texts trained on for the others.",
        "tokens",
        EVERY,
        trl="num_tokens, with those of prompts too",
    ),
    Metric("step", "Axis: optimizer steps so far.", "steps", EVERY, trl="step"),
    Metric(
        "epoch",
        "Axis: passes over the data so far, parts of one too.",
        "epochs",
        OFFLINE,
        trl="epoch",
    ),
)
