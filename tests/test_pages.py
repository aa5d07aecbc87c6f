"""What the pages say is so: their tables, names and messages are those of the source."""

import ast
import importlib.util
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml

from rlmodules.metrics.metric import EVERY
from rlmodules.metrics.table import find
from rlmodules.schemas import nodes
from rlmodules.schemas.fields import every_field

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ALGORITHMS = {
    "ppo.md": "PPO",
    "grpo.md": "GRPO",
    "sft.md": "SFT",
    "dpo.md": "DPO",
    "orpo.md": "ORPO",
    "kto.md": "KTO",
    "reward.md": "RewardModel",
    "pairwise.md": "PairwiseRewardModel",
    "multi_objective.md": "MultiObjectiveRewardModel",
}
PARENTS = {"TrainingConfig", "OnlineConfig", "OfflineConfig", "PreferenceConfig", "PairConfig",
           "RewardModelConfig"}  # fmt: skip
ELSEWHERE = {"optimizer"}
"""Options that are groups, with pages of their own."""


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linked(links):
    """Pages that a nav, however deep, leads to."""
    if isinstance(links, str):
        return {links}
    parts = links.values() if isinstance(links, dict) else links
    return set().union(*map(linked, parts))


def test_every_page_is_in_the_nav():
    nav = linked(yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())["nav"])
    at_root = {"contributing.md", "changelog.md"}
    assert nav - at_root == {page.name for page in PAGES}


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert len(links) > 25 and [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_current(tables, page):
    assert page.read_text() == tables.written(page.read_text()), "run python docs/tables.py"


def test_a_table_of_what_there_is_not_is_refused(tables):
    for first, said in (("options of PPOConfig: lr", "has no lr"), ("metrics: val/x", "no metric")):
        with pytest.raises(ValueError, match=said):
            tables.written(f"<!-- {first} -->\n<!-- end -->")


def test_every_option_of_every_algorithm_that_has_a_page_is_on_one(tables):
    told: dict[str, set[str]] = {}
    for page in PAGES:
        for table in tables.tables(page.read_text()):
            if table.config:
                told.setdefault(table.config, set()).update(table.names)
    assert {f"{name}Config" for name in ("PPO", "GRPO", "SFT", "DPO", "KTO")} <= set(told)
    of_parents = set().union(*(told[name] for name in PARENTS)) | ELSEWHERE
    for config, names in told.items():
        every = {field.name for field in fields(getattr(nodes, config))}
        every -= {"lora"} if config == "ModelConfig" else set()
        assert every - names - of_parents == set(), f"{config}: on no page"


@pytest.mark.parametrize("page", ALGORITHMS)
def test_a_page_of_an_algorithm_has_its_equation_picture_paper_and_metrics(tables, page):
    text = (DOCS / page).read_text()
    assert "```math" in text and "## Paper" in text and "### When it goes wrong" in text
    picture = DOCS / re.search(r"\]\((pictures/[^)]+)\)", text)[1]
    assert picture.stem == page.removesuffix(".md") and picture.stat().st_size < 150_000
    watched = [t.names for t in tables.tables(text) if not t.config]
    assert ALGORITHMS[page] in EVERY and watched
    for name in watched[0]:
        assert ALGORITHMS[page] in find(name).by, f"{page}: {name} is not logged by it"


@cache
def said():
    """Every text that a source has, with a blank where something is filled in."""
    found = []
    for path in [*ROOT.glob("rlmodules/**/*.py"), *ROOT.glob("datamodules/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                found.append("".join(p if isinstance(p, str) else "\0" for p in parts))
    return "\n".join(found)


MESSAGES = re.findall(r"^> `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_still_said(message):
    """Words in capitals stand for what differs."""
    parts = re.split(r"\b(?:NAME|GROUP|N|DIR)\b", message)
    pattern = r"[^\n]{0,40}".join(map(re.escape, parts))
    assert re.search(pattern, said()), message


def test_there_are_messages():
    assert len(MESSAGES) > 20


def cells(page, column):
    """The names in a column of all tables of a page."""
    rows = [line.split("|") for line in (DOCS / page).read_text().splitlines() if line[:1] == "|"]
    return [name for row in rows for name in re.findall(r"`([\w.]+)(?:=[^`]*)?`", row[column])]


OF_TRLS_PPO = [
    "learning_rate", "dataset_num_proc", "num_mini_batches", "total_episodes",
    "local_rollout_forward_batch_size", "num_sample_generations", "response_length",
    "stop_token", "stop_token_id", "temperature", "missing_eos_penalty", "sft_model_path",
    "world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size",
    "local_mini_batch_size", "mini_batch_size", "push_to_hub", "reward_model_path",
    "model_adapter_name", "ref_adapter_name", "num_ppo_epochs", "whiten_rewards", "kl_coef",
    "kl_estimator", "cliprange", "vf_coef", "cliprange_value", "gamma", "lam",
    "ds3_gather_for_generation",
]  # fmt: skip
"""The fields of PPOConfig in TRL 1.12.0, the last that had one."""


def test_every_field_of_trls_ppo_has_a_name_here_or_none():
    assert set(OF_TRLS_PPO) <= set(cells("from_trl.md", 1))


def test_names_that_pages_give_for_those_of_others_exist():
    known = {field.path for field in every_field()}
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"hydra"}
    known |= {f"algo.{field.name}" for field in fields(nodes.PPOConfig)} | groups
    given = {name for name in cells("from_trl.md", 2) if name.partition(".")[0] in groups}
    assert len(given) > 20 and given - known == set()
