"""Plots: which panels a run has, and what is drawn in them."""

import pytest
import torch
from matplotlib.figure import Figure

from rlmodules.callbacks.plots import plot_calibration, plot_iterations, plot_steps
from rlmodules.functional.calibration import calibration_curve

pytestmark = pytest.mark.draws


@pytest.fixture
def figures(monkeypatch):
    """Every figure that was written to a file."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))
    )
    return figures


def curves(axes):
    """Label -> the points of a curve."""
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}


def test_iterations_have_the_panels_that_there_are_metrics_for(figures, tmp_path):
    history = [
        {"iteration": 1.0, "rollout/reward": 0.1, "rollout/kl": 0.0, "rollout/kl_coef": 0.2},
        {"iteration": 2.0, "rollout/reward": 0.3, "rollout/kl": 0.5, "rollout/kl_coef": 0.4}
        | {"val/reward": 0.6, "val/distinct_bigrams": 0.9},
    ]
    before = {"val/reward": 0.2, "val/distinct_bigrams": 1.0}
    plot_iterations(history, before, tmp_path / "curves.png")
    reward, kl, bigrams, coefficient = figures[0].axes
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["reward", "KL to the reference", "distinct bigrams", ""]
    assert curves(reward) == {"training": [(1, 0.1), (2, 0.3)], "held out": [(0, 0.2), (2, 0.6)]}
    assert curves(kl) == {"training": [(1, 0.0), (2, 0.5)]}
    assert curves(bigrams) == {"held out": [(0, 1.0), (2, 0.9)]} and bigrams.get_ylim()[1] == 1.02
    (line,) = coefficient.lines
    assert list(map(tuple, line.get_xydata())) == [(1, 0.2), (2, 0.4)]
    assert "dotted" in coefficient.get_ylabel()  # a second legend would hide the first
    assert kl.get_legend() is not None and coefficient.get_legend() is None
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_without_held_out_data_the_reward_alone_is_drawn(figures, tmp_path):
    plot_iterations([{"iteration": 1.0, "rollout/reward": 0.1}], {}, tmp_path / "curves.png")
    (axes,) = figures[0].axes
    assert axes.get_title() == "reward" and curves(axes) == {"training": [(1, 0.1)]}


def test_steps_are_drawn_with_the_evaluations_that_there_were(figures, tmp_path):
    history = [{"step": float(s), "train/loss": 1 / s, "train/margin": s / 2} for s in (1, 2)]
    plot_steps(history, [{"step": 0.0, "val/loss": 0.8}], tmp_path / "curves.png")
    loss, margin = figures[0].axes
    assert (loss.get_title(), margin.get_title()) == ("loss", "margin")
    assert curves(loss) == {"training": [(1, 1.0), (2, 0.5)], "held out": [(0, 0.8)]}
    assert curves(margin) == {"training": [(1, 0.5), (2, 1.0)]}


def test_calibration_shows_every_pair_and_a_curve_a_temperature(figures, tmp_path):
    logits = torch.linspace(-1, 3, 50)
    lines = {t: calibration_curve(logits / t) for t in (1.0, 0.5)}
    plot_calibration(logits, lines, tmp_path / "calibration.png")
    margins, curve = figures[0].axes
    assert sum(bar.get_height() for bar in margins.patches) == 50
    points = curves(curve)
    assert set(points) == {"perfectly calibrated", "scores / 1.00", "scores / 0.50"}
    assert points["scores / 1.00"] == [pytest.approx(p[:2]) for p in lines[1.0]]
