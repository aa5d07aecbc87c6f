"""Change every option in a tiny run, and list those that do nothing.

PYTHONPATH=. python benchmarks/walk_options.py                 # all, in about ten minutes
PYTHONPATH=. python benchmarks/walk_options.py --only algo --seed 1 --part 10
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import train
from rlmodules.schemas.fields import Field, every_field
from rlmodules.tasks.option_changes import CHANGES, base_of
from rlmodules.tasks.option_walk import Finding, Outcome, outcome_of, walk

EPISODES, PROMPTS = "datamodules/rollouts/test_episodes.py", "datamodules/text/test_prompts.py"
ENVS = "datamodules/environments"
COLLECTION = "tasks/test_collect_preferences.py"
ELSEWHERE = {
    # what no tiny run of train.py shows: a pattern of OPTION:PATH -> the tests that do
    r"\w+:(callbacks|logger)\..*": "tasks/test_option_walk.py::test_callbacks_and_loggers_take",
    r"custom:env\..*": "datamodules/environments/test_adapters.py::",
    r"rollouts:data\.env": "test_config.py::test_the_environment_gets_the_chosen_reward",
    r"rollouts:data\.chat": f"{PROMPTS}::test_chat_makes_plain_texts_conversations",
    r"dpo:algo\.precompute_ref_log_probs": "algorithms/test_dpo.py::",
    r"\w+:env\.(timeout_s|on_error)": f"{EPISODES}::",
    r"code:env\.(time_limit_s|memory_mb|sandbox)": "datamodules/sandbox/test_sandbox_attacks.py::",
    r"text:env\.reward_fn": "test_config.py::test_the_environment_gets_the_chosen_reward",
    r"preferences:data\.objectives": "datamodules/preferences/test_datamodule.py::",
    r"preference:env\.(human_feedback_fn|preference_model)": f"{ENVS}/test_preference_env.py::",
    r"code:env\.reward_weights": f"{ENVS}/test_code_env.py::",  # the tiny model writes none
    r"(calculator|booking):env\..*": f"{ENVS}/test_tool_tasks.py::",  # too long for the tiny model
    r"\w+:reward\.timeout_s": "test_config.py::test_the_environment_gets_the_chosen_reward",
    r"(function|model):reward\..*": "datamodules/rewards/test_scorers.py::",
    r"math:env\.(chat|reward_weights)": "datamodules/environments/test_math_env.py::",
    r"default:paths\.sweep_root": "test_run_folders.py::",
    r"collect_preferences:task\.batch_size": f"{COLLECTION}::test_the_same_settings_write_the_same",
    r"ddp:trainer\..*": "algorithms/test_ddp.py::",
    r"default:trainer\.devices": "test_trainer_options.py::test_what_lightning",
}


def probed(only: str = "") -> list[Field]:
    """The options that a tiny run can show."""
    fields = [f for f in every_field() if not any(re.fullmatch(p, key(f)) for p in ELSEWHERE)]
    return [field for field in fields if re.search(only, key(field))]


def key(field: Field) -> str:
    return f"{field.option}:{field.path}" if field.option else field.path


class Runs:
    """Runs of ``train.py`` in this process, each in a folder of its own, with its data beside."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.configs: dict[tuple[str, ...], Mapping[str, Any]] = {}
        write_data(folder)

    def __call__(self, overrides: Sequence[str]) -> Outcome:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        said, before = io.StringIO(), (os.getcwd(), sys.argv, [*sys.path])
        os.environ |= {"WALKED": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}
        try:
            os.chdir(folder)
            sys.argv = ["train.py", *overrides]
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                train.main()
        except SystemExit as end:
            if end.code:
                return str(end.code)
        finally:
            os.chdir(before[0])
            sys.argv, sys.path = before[1], before[2]
        for file in folder.rglob("config.yaml"):
            if file.parent.name != ".hydra":  # which has interpolations
                self.configs[tuple(overrides)] = dict(leaves(yaml.safe_load(file.read_text())))
        return outcome_of(folder)

    def values(self, overrides: tuple[str, ...]) -> Mapping[str, Any]:
        return self.configs.get(overrides, {})


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        yield f"{prefix}{name}", value


def write_data(folder: Path) -> None:
    """Files of pairs and of scored responses."""
    pairs = [
        {"prompt": f"Question {i}?", "chosen": f" Yes {i * i}", "rejected": f" No, {i * 7}"}
        for i in range(24)
    ]
    scored = [
        {"prompt": f"Q {i}?", "response": f" A{i * i}", "helpfulness": i % 3 / 2,
         "safety": i % 2, "honesty": i % 5 / 4}
        for i in range(24)
    ]  # fmt: skip
    files = {"pairs": pairs, "others": pairs[:6], "scored": scored, "bad": [*pairs, {"prompt": 3}]}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def found(fields: Sequence[Field], folder: Path) -> Iterator[Finding]:
    runs = Runs(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from walk(fields, runs, base_of, CHANGES, runs.values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="a pattern of OPTION:PATH")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, help="so many options, drawn with the seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fields = probed(args.only)
    if args.part:
        fields = random.Random(args.seed).sample(fields, min(args.part, len(fields)))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for finding in found(fields, Path(folder)):
            counts[finding.verdict] += 1
            print(
                f"{finding.verdict:8} {key(finding.field)}  {finding.detail.strip()[:150]}",
                flush=True,
            )
    print(dict(counts))
    sys.exit(bool(counts["dead"] or counts["broken"]))


if __name__ == "__main__":
    main()
