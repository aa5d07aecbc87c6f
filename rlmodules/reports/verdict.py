"""What came of a run, in two or three sentences with intervals: reward, KL, repetition."""

from collections.abc import Mapping
from typing import Any

from rlmodules.reports import held_out
from rlmodules.reports.charts import number
from rlmodules.reports.runs import Run
from rlmodules.reports.statistics import Estimate


def verdict(run: Run) -> list[str]:
    """Three sentences; of a run that learned from preferences: accuracy, margin, what is lost; from
    demonstrations: perplexity and token accuracy; and one for each time it was rolled back."""
    rollbacks = [_rollback(rollback) for rollback in run.report.get("rollbacks", ())]
    if run.unit == "step" and run.value("train/perplexity") is not None:
        return [_perplexity(run), _tokens(run), *rollbacks]
    if run.unit == "step":
        return [_accuracy(run), _margin(run), _drift(run), *rollbacks]
    return [_reward(run), _kl(run), _repetition(run), *rollbacks]


def _rollback(rollback: Mapping[str, Any]) -> str:
    unit, symptom = rollback["unit"], rollback["symptom"]
    return (
        f"At {unit} {rollback['at']} it was rolled back to {unit} {rollback['to']}"
        f" for {symptom}; from there on the learning rate is {rollback['lr_scale']:g} of what the"
        " options say."
    )


def _reward(run: Run) -> str:
    pair, both = ends_of(run, "val/reward"), held_out.ends(run)
    if pair is None and both:  # of a run that says nothing else before its end
        means = [held_out.mean(rows, held_out.reward) for rows in both]
        pair = (means[0].mean, means[1].mean) if means[0] and means[1] else None
    if pair is None:
        known = run.value("val/reward")
        if known is not None:
            return f"Held-out reward is {known:.3f}, and nothing was evaluated after it."
        last = run.value("rollout/reward")
        said = "" if last is None else f"; the last training reward is {last:.3f}"
        return f"Nothing held out has a reward, so no change of it is known{said}."
    old, new = pair
    said = f"Held-out reward {_went(old, new)} from {old:.3f} to {new:.3f}: {new - old:+.3f}"
    found = held_out.change(*both, held_out.reward) if both else None
    return f"{said}{_interval(found, 'prompts', '+.3f')}."


def _kl(run: Run) -> str:
    both, target = held_out.ends(run), run.settings.get("algo.kl_target")
    found = held_out.mean(both[1], held_out.kl) if both else None
    if found is None:
        last = run.value("val/kl") if run.value("val/kl") is not None else run.value("rollout/kl")
        if last is None:
            return "How far the policy is from the reference is not known: it had none."
        return f"The policy is {last:.3f} nats a token from {_other(run)}."
    aim = "" if target is None else f"; the target in training is {target:g} (algo.kl_target)"
    said = f"A held-out response is {found.mean:.3f} nats a token from {_other(run)}"
    return f"{said}{_interval(found, 'prompts', '.3f')}{aim}."


def _other(run: Run) -> str:
    """What the policy's KL is measured to."""
    return "the reference" if run.value("rollout/on_policy") is None else "its teacher"


def _repetition(run: Run) -> str:
    both = held_out.ends(run)
    if both is None:
        last = run.value("val/distinct_bigrams")
        known = "is not known" if last is None else f"{last:.1%} of all word pairs are distinct"
        return f"Repetition: {known}."
    old, new = (held_out.mean(rows, held_out.distinct) for rows in both)
    found = held_out.change(*both, held_out.distinct)
    if old is None or new is None or found is None:
        return "Repetition: no response has two words."
    points = Estimate(
        100 * found.mean,
        found.count,
        *(x if x is None else 100 * x for x in (found.low, found.high)),
    )
    more = found.high is not None and found.high < 0
    said = f"Of the word pairs within a response {new.mean:.1%} are distinct, before"
    end = ": it repeats itself more" if more else ""
    return (
        f"{said} training {old.mean:.1%}: {points.mean:+.1f} points"
        f"{_interval(points, 'prompts', '+.1f')}{end}."
    )


def _perplexity(run: Run) -> str:
    pair, loss = ends_of(run, "val/perplexity"), ends_of(run, "val/loss")
    known = run.value("val/perplexity")
    if known is not None and (pair is None or loss is None):
        return f"Held-out perplexity is {number(known)}, and nothing was evaluated beside it."
    if pair is None or loss is None:
        last = run.value("train/perplexity")
        assert last is not None  # what such a run is known by
        return f"Nothing was held out; of the last training step perplexity is {number(last)}."
    said = f"Held-out perplexity {_went(*pair)} from {number(pair[0])} to {number(pair[1])}"
    return f"{said}, the loss from {number(loss[0])} to {number(loss[1])}."


def _tokens(run: Run) -> str:
    pair, known = ends_of(run, "val/token_accuracy"), run.value("val/token_accuracy")
    if known is None:
        return "How many held-out tokens it holds likeliest is not known."
    before = "" if pair is None else f", before training {pair[0]:.1%}"
    return f"Of the held-out tokens {known:.1%} are those that it holds likeliest{before}."


def _accuracy(run: Run) -> str:
    pair = ends_of(run, "val/accuracy")
    known = run.value("val/accuracy")
    if known is None:
        loss = ends_of(run, "val/loss")
        if loss is None:
            return "Nothing was held out, so how often it is right is not known."
        return f"Held-out loss {_went(*loss)} from {number(loss[0])} to {number(loss[1])}."
    examined = run.report.get("examination", {})
    count = examined.get("pairs") or run.report.get("held_out")
    said = f"{known:.1%} of the held-out pairs are ordered rightly"
    if count:
        low, high = wilson(known * count, count)
        said += f" (95% interval {low:.1%} to {high:.1%}, {count} pairs)"
    return f"{said}{'' if pair is None else f', before training {pair[0]:.1%}'}."


def _margin(run: Run) -> str:
    pair, loss = ends_of(run, "val/margin"), ends_of(run, "val/loss")
    if pair is None:
        return "The margin between chosen and rejected responses was not measured held out."
    said = f"The mean margin {_went(*pair)} from {number(pair[0])} to {number(pair[1])}"
    return said + (f", the loss from {number(loss[0])} to {number(loss[1])}." if loss else ".")


def _drift(run: Run) -> str:
    examined = run.report.get("examination", {})
    if "length_correlation" in examined:
        return (
            f"Scores correlate with length by {examined['length_correlation']:+.2f}, margins by"
            f" {examined['margin_length_correlation']:+.2f}; the calibration error is"
            f" {examined['calibration_error']:.3f}."
        )
    drift, apart = run.value("val/chosen_drift"), run.value("val/reference_kl")
    if apart is not None:
        return f"On responses to other prompts the policy gained {number(apart)} nats each."
    if drift is None:
        return "Whether chosen responses have become less likely is not measured here."
    way = "less" if drift < 0 else "more"
    return f"Chosen responses are {number(abs(drift))} nats each {way} likely than at the start."


def ends_of(run: Run, metric: str) -> tuple[float, float] | None:
    """The first and the last value of a held-out metric; None where there are no two."""
    points = run.curve(metric)
    return (points[0][1], points[-1][1]) if len(points) > 1 else None


def wilson(successes: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest  # a second's import

    found = binomtest(round(successes), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _went(old: float, new: float) -> str:
    return "rose" if new > old else "fell" if new < old else "went"


def _interval(found: Estimate | None, of: str, form: str) -> str:
    """`` (95% interval +0.010 to +0.132, over 96 prompts)``, and what it says of a change."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        alike = (
            f"the same for each of {found.count} {of}" if found.count > 1 else f"of one {of[:-1]}"
        )
        return f" ({alike})"
    said = f" (95% interval {found.low:{form}} to {found.high:{form}}, over {found.count} {of})"
    open_ = "+" in form and found.low <= 0 <= found.high
    return said + (", which cannot be told from no change" if open_ else "")
