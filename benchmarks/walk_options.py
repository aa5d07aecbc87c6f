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

D, ENVS, REWARDS = "datamodules", "datamodules/environments", "datamodules/rewards"
TOOLS, TASKS = f"{ENVS}/test_tool_envs.py", f"{ENVS}/test_tool_tasks.py"
SANDBOX, CHOSEN = (
    f"{D}/sandbox/test_sandbox_attacks.py",
    "test_the_environment_gets_the_chosen_reward",
)
VERIFIERS, OPENENV = "extras/test_verifiers.py", "extras/test_openenv.py"
TOOL = "(calculator|booking):env"  # the tiny model's responses are too short to call one
ELSEWHERE = {
    # what no tiny run of train.py shows: a pattern of OPTION:PATH -> the test that does
    r"\w+:(callbacks|logger)\..*": "tasks/test_option_walk.py"
    "::test_callbacks_and_loggers_take_what_is_said_of_them",
    r"estimate:task\..*": "tasks/test_estimate.py::test_each_option_says_something_else",
    r"run\..*": "trackers/test_tracked_runs.py::test_what_a_run_is_called_can_be_told",
    r"custom:env\..*": f"{ENVS}/test_adapters.py"
    "::test_a_class_of_this_project_gets_the_tokenizer_and_has_its_options_set",
    r"rollouts:data\.env": f"test_config.py::{CHOSEN}",
    r"rollouts:data\.chat": f"{D}/text/test_prompts.py"
    "::test_chat_makes_plain_texts_conversations_and_leaves_conversations_alone",
    r"dpo:algo\.precompute_ref_log_probs": "algorithms/test_dpo.py"
    "::test_precomputed_reference_log_probabilities_change_nothing",
    r"\w+:env\.(timeout_s|on_error)": f"{D}/rollouts/test_episodes.py"
    "::test_under_skip_it_costs_one_episode_and_a_warning_that_shows_it",
    r"code:env\.time_limit_s": f"{SANDBOX}::test_an_endless_answer_is_ended_at_its_limit",
    r"code:env\.memory_mb": f"{SANDBOX}::test_memory_is_limited",
    r"code:env\.sandbox": f"{SANDBOX}::test_the_attacks_are_real_they_succeed_without_a_sandbox",
    r"text:env\.reward_fn": f"test_config.py::{CHOSEN}",
    r"preferences:data\.objectives": f"{D}/preferences/test_datamodule.py"
    "::test_scored_rows_are_read_by_objectives",
    r"preference:env\.human_feedback_fn": f"{ENVS}/test_preference_env.py"
    "::test_the_reward_is_the_preference_and_the_metrics_say_what_each_has_earned",
    r"preference:env\.preference_model": f"{ENVS}/test_preference_env.py"
    "::test_a_pairwise_model_on_disk_compares_and_does_not_just_reward",
    r"code:env\.reward_weights": f"{ENVS}/test_code_env.py::test_the_weights_are_the_users",
    rf"{TOOL}\.difficulty": f"{TASKS}::test_what_is_shown_as_the_solution_is_right",
    rf"{TOOL}\.demonstrations": f"{TASKS}"
    "::test_examples_are_shown_solved_and_are_no_task_themselves",
    rf"{TOOL}\.(num_problems|num_held_out|seed)": f"{TASKS}"
    "::test_problems_follow_from_the_seed_and_the_held_out_ones_are_not_trained_on",
    rf"{TOOL}\.max_turns": f"{TOOLS}::test_the_last_turns_call_is_executed_and_ends_the_episode",
    rf"{TOOL}\.tool_bonus": f"{TOOLS}::test_the_bonus_is_given_once_for_the_first_call_that_worked",
    rf"{TOOL}\.error_penalty": f"{TOOLS}::test_a_mistake_is_told_to_the_model_and_changes_nothing",
    rf"{TOOL}\.(max_length|stop_sequences|temperature)": f"{ENVS}/test_adapters.py"
    "::test_options_replace_what_a_class_has_chosen_by_itself",
    r"\w+:reward\.timeout_s": f"test_config.py::{CHOSEN}",
    r"function:reward\.path": f"{REWARDS}/test_functions.py"
    "::test_a_function_is_imported_from_its_path",
    r"function:reward\.run_in": f"{REWARDS}/test_running.py"
    "::test_what_wants_the_main_thread_is_told_to_run_there_and_does",
    r"function:reward\.concurrency": f"{REWARDS}/test_at_once.py"
    "::test_as_many_are_judged_at_once_as_was_asked_for",
    r"function:reward\.retries": f"{REWARDS}/test_at_once.py"
    "::test_what_may_pass_is_tried_again_as_often_as_was_said",
    r"function:reward\.cache": f"{REWARDS}/test_at_once.py"
    "::test_what_was_judged_is_not_judged_again_in_a_later_run_either",
    r"compare:task\..*": "tasks/test_compare.py"
    "::test_it_is_by_the_metric_that_is_named_and_written_where_one_says",
    r"judge:reward\.(url|model|rubric|max_tokens|response_format)": f"{REWARDS}/test_endpoint.py"
    "::test_the_score_becomes_a_reward_from_0_to_1_and_the_request_is_openais",
    r"judge:reward\.(scale|temperature|cache)": f"{REWARDS}/test_endpoint.py"
    "::test_what_was_judged_is_not_asked_for_after_a_restart",
    r"judge:reward\.api_key_env": f"{REWARDS}/test_endpoint.py"
    "::test_the_key_is_sent_and_shown_nowhere",
    r"judge:reward\.on_unreadable": f"{REWARDS}/test_endpoint.py"
    "::test_an_answer_without_a_score_is_an_error_or_no_reward",
    r"judge:reward\.concurrency": f"{REWARDS}/test_endpoint.py"
    "::test_as_many_are_asked_for_at_once_as_may_be",
    r"judge:reward\.retries": f"{REWARDS}/test_endpoint.py"
    "::test_too_many_requests_and_a_server_that_fails_are_tried_again",
    r"weighted:reward\.(components|weights)": f"{REWARDS}/test_weighting.py"
    "::test_components_are_typed_on_the_command_line",
    r"model:reward\.path": "test_stages.py"
    "::test_dpo_then_a_reward_model_then_ppo_each_on_the_adapters_before",
    r"model:reward\.max_length": "reward_models/test_one_score.py"
    "::test_another_max_length_keeps_the_prompts_share",
    r"model:reward\.label": f"{REWARDS}/test_scorers.py"
    "::test_of_several_outputs_the_labels_log_probability_is_the_reward",
    r"model:reward\.(batch_size|device)": f"{REWARDS}/test_scorers.py"
    "::test_texts_are_scored_so_many_at_a_time_on_the_device_that_is_named",
    r"math:env\.chat": f"{ENVS}/test_math_env.py"
    "::test_prompts_are_short_and_plain_unless_a_conversation_is_asked_for",
    r"math:env\.reward_weights": f"{ENVS}/test_math_env.py::test_weights_are_the_users",
    r"vllm:sampler\.(url|model|timeout_s|max_mismatch)": "engines/test_vllm_sampling.py"
    "::test_what_a_server_does_wrong_is_said",
    r"vllm:sampler\.(command|arguments|dtype|weights_dir|start_timeout_s)": "engines/"
    "test_vllm_server.py::test_a_server_of_the_runs_own_is_told_all_that_it_has_to_know",
    r"verifiers:env\.(id|args)": f"{VERIFIERS}"
    "::test_a_task_is_rewarded_by_the_weighted_sum_of_its_functions",
    r"verifiers:env\.(eval_args|num_problems|num_held_out)": f"{VERIFIERS}"
    "::test_tasks_of_other_settings_are_held_out_and_never_trained_on",
    r"verifiers:env\.max_turns": f"{VERIFIERS}"
    "::test_a_stop_and_a_limit_end_the_episode_and_it_is_scored",
    r"verifiers:env\.tool_bonus": f"{TOOLS}"
    "::test_the_bonus_is_given_once_for_the_first_call_that_worked",
    r"verifiers:env\.error_penalty": f"{VERIFIERS}::test_a_wrong_call_is_told_and_stops_nothing",
    r"openenv:env\.(url|max_turns)": f"{OPENENV}"
    "::test_an_episode_is_a_session_whose_steps_are_rewarded",
    r"openenv:env\.(num_problems|num_held_out|seed|reset)": f"{OPENENV}"
    "::test_problems_are_seeds_and_those_held_out_are_others",
    r"openenv:env\.(action|observation)": f"{OPENENV}"
    "::test_what_cannot_be_played_is_refused_before_it_begins",
    r"(verifiers|openenv):env\.(max_length|stop_sequences|temperature)": f"{ENVS}/test_adapters.py"
    "::test_options_replace_what_a_class_has_chosen_by_itself",
    r"benchmark:task\.run": "extras/test_benchmark.py::test_a_run_is_measured_before_and_after",
    r"benchmark:task\..*": "extras/test_benchmark.py::test_options_reach_the_harness",
    r"doctor:task\..*": "tasks/test_doctor.py::test_what_cannot_be_is_refused",
    r"push:task\.exist_ok": "tasks/test_push.py"
    "::test_a_repository_with_a_model_is_left_alone_unless_told",
    r"push:task\.(revision|commit_message)": "tasks/test_push.py"
    "::test_a_branch_and_a_message_are_those_that_were_told",
    r"push:task\..*": "tasks/test_push.py::test_what_arrives_is_byte_for_byte_what_was_exported",
    r"default:paths\.sweep_root": "test_run_folders.py"
    "::test_two_sweeps_in_one_second_have_two_folders_and_follow_the_root",
    r"collect_preferences:task\.batch_size": "tasks/test_collect_preferences.py"
    "::test_the_same_settings_write_the_same_file_in_batches_of_any_size",
    r"ddp:trainer\..*": "algorithms/test_ddp.py::test_two_processes_take_the_steps_of_one",
    r"fsdp:trainer\..*": "algorithms/test_fsdp.py"
    "::test_sharing_a_model_out_changes_neither_weights_nor_metrics",
    r"default:trainer\.devices": "test_trainer_options.py::test_what_lightning_reads_is_handed_on",
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
