"""``task=push``: through the real client, to a hub on loopback."""

import json

import pytest
from hub_helpers import hub as served
from huggingface_hub import HfApi, ModelCard

from rlmodules import PPO, ModelConfig, PPOConfig
from rlmodules.callbacks.card import add_benchmarks, write_card

TO = ["task=push", "repo=someone/mine"]


@pytest.fixture
def hub(monkeypatch):
    with served(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What a run exports."""
    folder = tmp_path_factory.mktemp("run") / "model"
    module = PPO(PPOConfig(model_name="random:tiny"), ModelConfig(name="random:tiny"))
    module.export(folder)
    write_card(module, folder)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A run's folder with the export in it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(made)
    return made


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}  # fmt: skip


@pytest.mark.parametrize(("told", "private"), [([], False), (["task.private=true"], True)])
def test_what_arrives_is_byte_for_byte_what_was_exported(
    hub, run, tmp_path, command, told, private
):
    said = command(*TO, "run=run", *told)
    assert hub.repos == {"someone/mine": {"private": private, "files": files_of(run)}}
    assert f"to {hub.url}/someone/mine, which is {'private' if private else 'public'}" in said
    assert set(hub.cards) == {(run / "README.md").read_text()}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_exported_folder_is_taken_too_and_a_new_empty_repository(hub, run, command):
    hub.repos["someone/mine"] = {"private": True, "files": {".gitattributes": b""}}
    assert "which is private" in command(*TO, "run=run/model")
    assert hub.repos["someone/mine"]["files"] == files_of(run) | {".gitattributes": b""}


def test_a_repository_with_a_model_is_left_alone_unless_told(hub, run, command):
    there = {".gitattributes": b"a", "model-00002-of-00002.safetensors": b"old", "README.md": b"o"}
    hub.repos["someone/mine"] = {"private": False, "files": dict(there)}
    said = command(*TO, "run=run", status=1)
    assert "repo=someone/mine holds a model already (model-00002-of-00002.safetensors)" in said
    assert hub.repos["someone/mine"]["files"] == there
    command(*TO, "run=run", "task.exist_ok=true")
    assert hub.repos["someone/mine"]["files"] == files_of(run) | {".gitattributes": b"a"}


@pytest.mark.parametrize(
    ("where", "what", "said"),
    [
        ("repos/create", 500, "HfHubHTTPError: "),
        ("validate-yaml", 500, "HfHubHTTPError: "),
        ("preupload", 500, "HfHubHTTPError: "),
        ("batch", 500, "HfHubHTTPError: "),
        ("/object/", 500, "HfHubHTTPError: "),
        ("commit", 500, "HfHubHTTPError: "),
        ("repos/create", 403, "it refused the token, which may not write there (status 403)"),
        ("/api/", 401, "it refused the token, which may not write there (status 401)"),
        ("/object/", "drop", "Error: "),
        ("commit", "drop", "Error: "),
    ],
)
def test_a_hub_that_fails_ends_in_a_sentence_and_keeps_what_it_had(
    hub, run, command, where, what, said
):
    before = files_of(run)
    hub.fails[where] = what
    output = command(*TO, "run=run", status=1)
    assert f"{hub.url} did not take" in output and said in output, output
    assert not any(repo["files"] for repo in hub.repos.values())
    assert files_of(run) == before
    hub.fails.clear()
    command(*TO, "run=run")  # the same command tries again
    assert hub.repos["someone/mine"]["files"] == before


def test_without_a_token_nothing_is_asked(hub, run, command, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "needs a token of the hub that may write" in command(*TO, "run=run", status=1)
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["repo=a/b"], "leaves open: run=..."),
        (["repo=mine", "run=run"], "repo='mine': say whose it is, repo=user/name"),
        (["repo=a/b/c", "run=run"], "repo='a/b/c' is no name on a hub"),
        (["repo=a/b", "run=nowhere"], "run=nowhere: nowhere holds no exported model"),
        (["repo=a/b", "run=run", "model=tiny"], "no use for model=tiny: leave it out"),
        (["repo=a/b", "run=adapter"], "adapter on 'random:tiny', which is on no hub"),
        (["repo=a/b", "run=bare"], "bare has no model card, README.md"),
        (["repo=a/b", "run=torn"], "README.md: its metadata are not valid"),
    ],
)
def test_what_is_no_export_for_others_is_refused(run, tmp_path, command, told, said):
    for name, card in (("adapter", "# A"), ("bare", None), ("torn", "---\n- a\n---\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "random:tiny"}')
        (folder / "adapter_model.safetensors").touch()
        if card is not None:
            (folder / "README.md").write_text(card)
    assert said in command("task=push", *told, status=1)


def test_the_card_holds_the_command_and_the_benchmarks_and_valid_metadata(made, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"overrides": ["algo=ppo", "model=tiny"]}))
    module = PPO(PPOConfig(model_name="random:tiny"), ModelConfig(name="random:tiny"))

    class Report:
        dirpath, after = tmp_path, {}

    write_card(module, made, Report())
    row = {"task": "sums", "metric": "acc", "filter": "none", "shots": 0, "n": 4,
           "before": 0.5, "after": 0.75, "difference": 0.25}  # fmt: skip
    for value in (0.5, 0.75):  # the second time it replaces
        add_benchmarks(made, {"lm_eval": "0.4.13", "rows": [row | {"after": value}]})
    text = (made / "README.md").read_text()
    assert "python train.py algo=ppo model=tiny" in text
    assert text.count("## Benchmarks") == 1 and "| sums, acc, 0-shot | 4 | 0.500 | 0.750 |" in text
    card = ModelCard.load(made / "README.md")
    assert card.data.library_name == "transformers" and "ppo" in card.data.tags


def test_a_branch_and_a_message_are_those_that_were_told(hub, run, command, monkeypatch):
    asked = {}
    monkeypatch.setattr(HfApi, "create_branch", lambda self, repo, **told: asked.update(told))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, repo, **told: asked.update(told))
    command(*TO, "run=run", "task.revision=second", "task.commit_message=Better")
    assert asked["branch"] == asked["revision"] == "second"
    assert asked["commit_message"] == "Better"
