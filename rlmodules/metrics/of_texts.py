"""Metrics of algorithms that learn from a fixed set of texts; each in training and held out.

Below ``val/`` stands the mean over all that is held out, below ``train/`` that of one optimizer
step.
"""

from dataclasses import replace

from rlmodules.metrics.metric import DOWN, OFFLINE, ON_DEMONSTRATIONS, UP, Metric

HELD_OUT = "at each evaluation, where rows are held out (data.eval_size)"


def held_out(metric: Metric) -> Metric:
    """The same of what is held out."""
    swap = lambda text: text.replace("train/", "val/")  # noqa: E731
    return replace(
        metric,
        name=swap(metric.name),
        what=f"Held out: {metric.what[0].lower()}{swap(metric.what[1:])}",
        when=HELD_OUT,
        healthy=swap(metric.healthy),
        otherwise=swap(metric.otherwise),
        trl=f"eval_{metric.trl}" if metric.trl else "",
        examples=tuple(map(swap, metric.examples)),
    )


_IN_TRAINING = (
    Metric(
        "train/nll",
        "Negative log-likelihood of what is learned, a mean over tokens (ORPO: of chosen responses,"
        " over tokens and then responses).",
        "nats a token",
        (*ON_DEMONSTRATIONS, "ORPO"),
        healthy="falling",
        otherwise="Rising: algo.learning_rate is too high (ORPO: or algo.beta weighs the preference"
        " too much).",
        trl="SFT: loss; ORPO: nll_loss, over prompts too",
        better=DOWN,
    ),
    Metric(
        "train/perplexity",
        "Exponential of train/nll: among how many tokens the policy is undecided.",
        "tokens",
        ON_DEMONSTRATIONS,
        low=1.0,
        healthy="falling; 2 to 10 on answers of an instruction-tuned model",
        otherwise="Near 1 in training and far higher held out: the texts are learned by heart;"
        " fewer epochs, or more rows.",
        better=DOWN,
    ),
    Metric(
        "train/token_accuracy",
        "Share of learned tokens that the policy holds likeliest.",
        "share",
        ON_DEMONSTRATIONS,
        healthy="rising; 0.5 to 0.8 on answers in natural language",
        otherwise="Near 1 in training and far less held out: as of train/perplexity.",
        trl="mean_token_accuracy",
        better=UP,
    ),
)

OF_TEXTS = (
    *_IN_TRAINING,
    Metric(
        "val/loss",
        "The loss on all held-out examples.",
        "",
        OFFLINE,
        when=HELD_OUT,
        healthy="falling, or lowest near the end",
        otherwise="Rising while train/loss falls: overfitting; fewer epochs, a lower"
        " algo.learning_rate, or more rows. checkpoints/best.ckpt is that of the lowest.",
        trl="eval_loss",
        better=DOWN,
    ),
    *map(held_out, _IN_TRAINING),
)
