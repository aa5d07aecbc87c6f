"""Models of several objectives: their names and number, their weights, what they tell a policy."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from pair_helpers import trainer
from test_options import composed

from datamodules import PreferenceDataModule, TextGenerationEnv
from rlmodules import MultiObjectiveConfig, MultiObjectiveRewardModel, schemas
from rlmodules.callbacks.reward_report import RewardReport
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models import serving

FIVE = ["clear", "kind", "brief", "true", "responses"]
PROMPTS, RESPONSES = ["a b", "c", "d e f"], ["one", "two three", "four"]


def model_of(names, **changes):
    settings = {"model_name": "random:tiny", "batch_size": 4, "num_epochs": 1, "warmup_steps": 0}
    settings |= {"max_length": 64, "max_prompt_length": 32, "device": "cpu", "dropout_prob": 0.0}
    model = MultiObjectiveRewardModel(MultiObjectiveConfig(**settings | changes, objectives=names))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.linear.weight)
    return model


def rows_file(folder, names, count=12):
    rows = [
        {"prompt": f"p{i}", "response": f"r{i}"}
        | {n: None if (i + k) % 5 == 0 else (i * k) % 7 for k, n in enumerate(names)}
        for i in range(count)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data_of(folder, names, columns=None):
    path = rows_file(folder, columns or names)
    return PreferenceDataModule(path, objectives=names, batch_size=4, eval_size=3, max_length=64,
                                max_prompt_length=32)  # fmt: skip


def fit(model, data, folder):
    run = trainer(model.config, report=RewardReport(str(folder)), default_root_dir=folder)
    run.fit(model, data)
    return run


def test_five_objectives_are_known_by_their_names_everywhere(tmp_path):
    weights = [1.0, 0.5, 0.0, -1.0, 2.0]
    model = model_of(FIVE, objective_weights=weights)
    run = fit(model, data_of(tmp_path, FIVE), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["examination"]["objectives"]) == FIVE
    assert report["examination"]["responses"] == 3
    text = (tmp_path / "report.txt").read_text()
    for name in FIVE:
        assert f"val/mse_{name}" in run.callback_metrics
        assert f"squared error of {name}" in text
    assert report["history"][-1].keys() >= {f"train/mse_{name}" for name in FIVE[:2]}

    model.export(tmp_path / "model")
    again = MultiObjectiveRewardModel.from_pretrained(tmp_path / "model")
    assert again.objectives == FIVE and again.config.objective_weights == weights
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == FIVE

    reward = serving.model(str(tmp_path / "model"))
    env = TextGenerationEnv(tiny_tokenizer(), PROMPTS, reward_fn=reward)
    episodes = [env.fork() for _ in PROMPTS]
    for i, (episode, response) in enumerate(zip(episodes, RESPONSES, strict=True)):
        episode.reset(i)
        episode.respond(torch.tensor(tiny_tokenizer().encode(response, add_special_tokens=False)))
    scored = env.score(episodes)
    assert reward(PROMPTS, RESPONSES) == pytest.approx([value for value, _ in scored])
    for value, metrics in scored:
        parts = [metrics[f"reward_{name}"] for name in FIVE]
        assert value == pytest.approx(sum(w * x for w, x in zip(weights, parts, strict=True)))
        assert len(set(parts)) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_error_is_the_mean_over_all_known_scores_however_rows_lie_in_batches(
    tmp_path, batch_size
):
    model = model_of(FIVE)
    data = PreferenceDataModule(rows_file(tmp_path, FIVE), objectives=FIVE, batch_size=4,
                                eval_batch_size=batch_size, eval_size=7, max_length=64,
                                max_prompt_length=32)  # fmt: skip
    run = trainer(model.config, report=RewardReport(str(tmp_path)), default_root_dir=tmp_path)
    run.validate(model, data, verbose=False)
    judged = model.judge([data.eval_dataset[i] for i in range(7)])
    wanted = (judged["scores"] - judged["targets"]).square().nanmean(0).tolist()
    assert judged["targets"].isnan().sum(0).unique().numel() > 1  # of some more than of others
    found = [run.callback_metrics[f"val/mse_{name}"].item() for name in FIVE]
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("weights", [[-1.0, -1.0], [-1.0, 0.0], [1.0, 1.0]])
def test_no_weight_makes_an_error_worth_making(tmp_path, weights):
    """The loss falls, and every objective is learned, whatever its weight in the reward."""
    model = model_of(["a", "b"], objective_weights=weights, learning_rate=1e-2, num_epochs=1)
    targets = torch.tensor([[1.0, -1.0], [2.0, 0.5], [float("nan"), 0.0]])
    ids, mask = torch.tensor([[5, 6], [7, 8], [9, 10]]), torch.ones(3, 2, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    _, first = model.compute_multi_objective_loss(ids, mask, targets)
    losses = []
    for _ in range(60):
        loss, each = model.compute_multi_objective_loss(ids, mask, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) >= 0 and losses[-1] < 0.2 * losses[0]
    assert set(each) == {"a_loss", "b_loss"}
    assert all(each[name].item() < 0.5 * first[name].item() for name in each)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "c"], r"data\.objectives=\['a', 'c'\] are not algo\.objectives=\['a', 'b'\]"),
        (["b", "a"], r"in the same order"),
        (["a", "b", "c"], r"name the same columns"),
    ],
)
def test_other_columns_than_the_models_objectives_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        fit(model_of(["a", "b"]), data_of(tmp_path, names, ["a", "b", "c"]), tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"algo\.objectives=\[\] must hold a name"),
        (["a", " "], "must hold a name"),
        (["a", "b", "a"], r"names \['a'\] more than once"),
    ],
)
def test_objectives_need_names_of_their_own(names, message):
    with pytest.raises(ValueError, match=message):
        MultiObjectiveConfig("random:tiny", objectives=names)


@pytest.mark.parametrize("option", ["algo", "data"])
def test_either_option_names_the_objectives(option):
    cfg = composed("algo=multi_objective", f"{option}.objectives=[a,b]")
    schemas.name_objectives(cfg)
    schemas.refuse_contradictions(OmegaConf.to_container(cfg, resolve=True))
    assert list(cfg.algo.objectives) == list(cfg.data.objectives) == ["a", "b"]
