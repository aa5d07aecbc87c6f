"""What a run came to, in sentences with numbers worked out by hand."""

import csv

import pytest

from rlmodules.reports.held_out import by_prompt, change, distinct, kl, mean, reward
from rlmodules.reports.runs import Run
from rlmodules.reports.verdict import verdict, wilson


def sample(prompt, reward, response="a b c", kl=""):
    return {"prompt": prompt, "response": response, "reward": str(reward), "kl": str(kl)}


def online(folder, before, after, report=None, **settings):
    """A run with two evaluations, the second after three iterations."""
    for number, rows in ((0, before), (3, after)):
        path = folder / "samples" / f"iteration-{number:04d}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ("prompt", "response", "reward", "kl"))
            writer.writeheader()
            writer.writerows(rows)
    told = {"before": {}, "after": {}, "history": [{"iteration": 3.0, "rollout/reward": 0.5}]}
    return Run(folder, settings, report=told | (report or {}), status="done")


def test_the_interval_is_of_the_changes_prompt_by_prompt(tmp_path):
    """Changes 1, 2, 3: mean 2, s = 1, t(2) = 4.3027, so 2 ± 4.3027 / sqrt(3) = 2 ± 2.4841.

    Without pairing, rewards of 0, 10, 20 would drown them."""
    before = [sample(p, r, kl=0) for p, r in (("a", 0), ("b", 10), ("c", 20))]
    after = [sample(p, r, kl=k) for p, r, k in (("c", 23, 0.3), ("a", 1, 0.1), ("b", 12, 0.2))]
    report = {"before": {"val/reward": 10.0}, "after": {"val/reward": 12.0}}
    first, second, third = verdict(online(tmp_path, before, after, report, **{"algo.kl_target": 1}))
    assert first == (
        "Held-out reward rose from 10.000 to 12.000: +2.000 (95% interval -0.484 to +4.484, over 3"
        " prompts), which cannot be told from no change."
    )
    # 0.1, 0.2, 0.3: 0.2 ± 4.3027 * 0.1 / sqrt(3)
    assert second == (
        "A held-out response is 0.200 nats a token from the reference (95% interval -0.048 to"
        " 0.448, over 3 prompts); the target in training is 1 (algo.kl_target)."
    )
    assert third.startswith("Of the word pairs within a response 100.0% are distinct")


def test_attempts_at_one_prompt_count_as_one(tmp_path):
    rows = [sample("a", 0), sample("a", 1), sample("b", 4), sample("c", "")]
    assert by_prompt(rows, reward) == {"a": 0.5, "b": 4.0}
    assert mean(rows, reward).count == 2 and mean(rows, kl) is None
    later = [sample("a", 1), sample("b", 4.5), sample("new", 9)]
    assert (change(rows, later, reward).mean, change(rows, later, reward).count) == (0.5, 2)


def test_repetition_is_within_responses(tmp_path):
    """``a a a`` has the pair (a, a) twice: half are distinct."""
    assert distinct(sample("p", 0, "a A a")) == 0.5
    assert distinct(sample("p", 0, "one")) is None
    before = [sample(p, 0, "a b c d e") for p in "pqrs"]
    after = [
        sample(p, 0, text) for p, text in zip("pqrs", ["a a a"] * 3 + ["b b b b"], strict=True)
    ]
    third = verdict(online(tmp_path, before, after))[2]
    # 1/2, 1/2, 1/2, 1/3: mean 0.4583; -54.2 points, s = 8.33, t(3) = 3.1824: ± 13.26
    assert third == (
        "Of the word pairs within a response 45.8% are distinct, before training 100.0%: -54.2"
        " points (95% interval -67.4 to -40.9, over 4 prompts): it repeats itself more."
    )


def test_what_is_not_known_is_said(tmp_path):
    bare = Run(tmp_path, report={"history": [{"iteration": 1.0}]}, status="done")
    first, second, third = verdict(bare)
    assert first.startswith("Nothing held out has a reward")
    assert second.endswith("it had none.") and third == "Repetition: is not known."
    same = [sample(p, 1, "one") for p in "ab"]
    report = {"before": {"val/reward": 1.0}, "after": {"val/reward": 1.0}}
    first, _, third = verdict(online(tmp_path, same, same, report))
    assert first.endswith("+0.000 (the same for each of 2 prompts).")
    assert third == "Repetition: no response has two words."


def test_pairs_have_accuracy_margin_and_drift(tmp_path):
    before = {"val/accuracy": 0.5, "val/margin": 0.0, "val/loss": 0.693}
    after = {"val/accuracy": 0.75, "val/margin": 0.5, "val/loss": 0.5, "val/chosen_drift": -1.25}
    report = {"before": before, "after": after, "held_out": 100, "history": [{"step": 4.0}]}
    first, second, third = verdict(Run(tmp_path, report=report, status="done"))
    # Wilson: (0.75 + 0.0192 ± 0.0847) / 1.0384
    assert first == (
        "75.0% of the held-out pairs are ordered rightly (95% interval 65.7% to 82.5%, 100 pairs),"
        " before training 50.0%."
    )
    assert second == "The mean margin rose from 0 to 0.5, the loss from 0.693 to 0.5."
    assert third == "Chosen responses are 1.25 nats each less likely than at the start."
    assert wilson(75, 100) == (pytest.approx(0.6569, abs=1e-4), pytest.approx(0.8246, abs=1e-4))


def test_demonstrations_have_perplexity_and_token_accuracy(tmp_path):
    before = {"val/loss": 2.0, "val/perplexity": 7.389, "val/token_accuracy": 0.53}
    after = {"val/loss": 1.5, "val/perplexity": 4.482, "val/token_accuracy": 0.58}
    history = [{"step": 4.0, "train/perplexity": 3.5}]
    report = {"before": before, "after": after, "history": history}
    assert verdict(Run(tmp_path, report=report, status="done")) == [
        "Held-out perplexity fell from 7.389 to 4.482, the loss from 2 to 1.5.",
        "Of the held-out tokens 58.0% are those that it holds likeliest, before training 53.0%.",
    ]


def test_of_demonstrations_alone_what_training_ended_with_is_said(tmp_path):
    report = {"before": {}, "after": {}, "history": [{"step": 4.0, "train/perplexity": 3.5}]}
    assert verdict(Run(tmp_path, report=report, status="done")) == [
        "Nothing was held out; of the last training step perplexity is 3.5.",
        "How many held-out tokens it holds likeliest is not known.",
    ]


def test_of_one_evaluation_of_demonstrations_its_figures_are_said(tmp_path):
    history = [{"step": 4.0, "train/perplexity": 3.5}]
    after = {"val/loss": 1.5, "val/perplexity": 4.482, "val/token_accuracy": 0.58}
    assert verdict(Run(tmp_path, report={"after": after, "history": history}, status="done")) == [
        "Held-out perplexity is 4.482, and nothing was evaluated beside it.",
        "Of the held-out tokens 58.0% are those that it holds likeliest.",
    ]


def test_labelled_responses_have_a_margin_and_how_far_the_policy_went(tmp_path):
    before = {"val/loss": 0.5, "val/margin": 0.0, "val/reference_kl": 0.0}
    after = {"val/loss": 0.4, "val/margin": 0.5, "val/reference_kl": 1.25}
    report = {"before": before, "after": after, "history": [{"step": 4.0}]}
    assert verdict(Run(tmp_path, report=report, status="done")) == [
        "Held-out loss fell from 0.5 to 0.4.",
        "The mean margin rose from 0 to 0.5, the loss from 0.5 to 0.4.",
        "On responses to other prompts the policy gained 1.25 nats each.",
    ]
