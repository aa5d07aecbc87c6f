"""The best weights go along into the folder of a continuation, and better ones replace them."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from rlmodules.callbacks import SaveBest


def best_in(folder, **options):
    return SaveBest(
        str(folder), "best", monitor="val/loss", enable_version_counter=False, **options
    )


def state_of(folder, loss, **options):
    """What a run says of itself that has its best, of this loss, in a folder."""
    first = best_in(folder, **options)
    folder.mkdir(exist_ok=True)
    path = folder / "best.ckpt"
    path.write_text(f"weights of {loss}")
    first.best_k_models = {str(path): torch.tensor(loss)}
    first.best_model_path = first.kth_best_model_path = str(path)
    first.best_model_score = first.current_score = first.kth_value = torch.tensor(loss)
    return first.state_dict()


@pytest.fixture
def run():
    return SimpleNamespace(
        is_global_zero=True, strategy=SimpleNamespace(reduce_boolean_decision=lambda x: x)
    )


@pytest.mark.parametrize(("loss", "better"), [(0.4, True), (0.6, False)])
def test_the_best_of_before_is_taken_along_and_measures_what_follows(tmp_path, run, loss, better):
    state, second = state_of(tmp_path / "first", 0.5), best_in(tmp_path / "second")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Lightning's own forgets the score, and says so
        second.load_state_dict(state)
    second.on_train_start(run, None)
    place = tmp_path / "second" / "best.ckpt"
    assert place.read_text() == "weights of 0.5" and second.best_model_path == str(place)
    assert second.check_monitor_top_k(run, torch.tensor(loss)) is better


def test_a_better_one_of_an_evaluation_before_all_else_is_not_replaced(tmp_path, run):
    state, second = state_of(tmp_path / "first", 0.5), best_in(tmp_path / "second")
    second.load_state_dict(state)
    second.on_validation_start(run, None)
    place = tmp_path / "second" / "best.ckpt"
    place.write_text("weights of 0.4")
    second.on_train_start(run, None)
    assert place.read_text() == "weights of 0.4"


def test_what_is_no_longer_there_does_not_count(tmp_path, run):
    state = state_of(tmp_path / "first", 0.5)
    (tmp_path / "first" / "best.ckpt").unlink()
    second = best_in(tmp_path / "second")
    second.load_state_dict(state)
    second.on_train_start(run, None)
    assert second.best_k_models == {} and second.check_monitor_top_k(run, torch.tensor(9.0))
