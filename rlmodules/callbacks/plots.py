"""Plots of a run, as PNG files. matplotlib is imported where it draws: it is slow to load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_iterations(history: list[dict[str, float]], before: dict[str, float], path: Path) -> None:
    """By iteration: reward, and as far as there are such: solved problems, KL, repetition."""
    from matplotlib.ticker import MaxNLocator

    held_out = [{"iteration": 0.0} | before] if before else []
    held_out += [row for row in history if "val/reward" in row]
    curves = {
        "reward": ("rollout/reward", "val/reward"),
        "pass@1": (None, "val/pass@1"),
        "KL to the reference": ("rollout/kl", "val/kl"),
        "distinct bigrams": (None, "val/distinct_bigrams"),
    }
    rows = [*history, *held_out]
    curves = {t: keys for t, keys in curves.items() if any(k in row for k in keys for row in rows)}
    figure, axes = panels(len(curves))
    for (title, (training, evaluated)), ax in zip(curves.items(), axes, strict=True):
        _line(ax, history, training, label="training", alpha=0.6)
        _line(ax, held_out, evaluated, "C1o-", label="held out")
        ax.set(title=title, xlabel="iteration")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if training is None:
            ax.set_ylim(0, 1.02)
        if training == "rollout/kl":
            ax.set_ylabel("nats a token")
            if "rollout/kl_coef" in history[0]:
                coefficient = ax.twinx()
                _line(coefficient, history, "rollout/kl_coef", "k:")
                coefficient.set_ylabel("KL coefficient (dotted)")
    finish(figure, path)


def _line(ax: Any, rows: list[dict[str, float]], key: str | None, *style: str, **more: Any) -> None:
    """``key`` over the iterations that have it."""
    points = [(row["iteration"], row[key]) for row in rows if key in row]
    if points:
        ax.plot(*zip(*points, strict=True), *style, **more)


def plot_steps(
    history: list[dict[str, float]],
    evaluations: list[dict[str, float]],
    path: Path,
    metrics: Sequence[str] = ("loss", "accuracy", "margin"),
) -> None:
    """Those of ``metrics`` that there are, and the error of each objective, of training and
    held-out data by optimizer step."""
    objectives = sorted({key[6:] for row in history for key in row if key.startswith("train/mse_")})
    names = [
        name for name in (*metrics, *objectives) if any(f"train/{name}" in row for row in history)
    ]
    figure, axes = panels(len(names))
    for name, ax in zip(names, axes, strict=True):
        training = [row for row in history if f"train/{name}" in row]
        ax.plot(
            [row["step"] for row in training],
            [row[f"train/{name}"] for row in training],
            label="training",
            alpha=0.6,
        )
        held_out = [row for row in evaluations if f"val/{name}" in row]
        if held_out:
            values = [row[f"val/{name}"] for row in held_out]
            ax.plot([row["step"] for row in held_out], values, "o-", label="held out")
        ax.set(title=name.replace("_", " "), xlabel="optimizer step")
    finish(figure, path)


def panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with ``count`` plots side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7 * count, 3.4), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def finish(figure: Any, path: Path) -> None:
    """Legends, file."""
    for ax in figure.axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best")
    figure.savefig(path, dpi=120)


def plot_calibration(
    logits: Any, curves: dict[float, list[tuple[float, float, int]]], path: Path
) -> None:
    """Margins of held-out pairs, and accuracy against confidence for each temperature."""
    figure, (margins, curve) = panels(2)
    margins.hist(logits.tolist(), bins=min(40, max(10, len(logits) // 8)))
    margins.axvline(0, color="k", linewidth=1)
    margins.set(title="margins", xlabel="score of chosen less rejected", ylabel="held-out pairs")
    curve.plot([0.5, 1], [0.5, 1], "k:", label="perfectly calibrated")
    for temperature, points in curves.items():
        confidence, accuracy, _ = zip(*points, strict=True)
        curve.plot(confidence, accuracy, "o-", label=f"scores / {temperature:.2f}")
    curve.set(title="calibration", xlabel="confidence", ylabel="accuracy", ylim=(0, 1.02))
    finish(figure, path)
