"""Tasksets and environments of verifiers (https://github.com/PrimeIntellect-ai/verifiers, MIT),
version 0.4, with our policy as their agent.

Deviation: the agent is a plain chat with the task's own tools, as the package's ``null`` harness
is, and all of it runs in this process, without programs, boxes or servers. What needs one is
refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.checks import require_whole
from datamodules.environments.tools import ToolEnv
from datamodules.environments.verifiers_loading import environment, merged, tasks
from datamodules.environments.verifiers_playing import TaskScene


class VerifiersEnv(ToolEnv):
    """``env=verifiers``: the reward is the weighted sum of a task's ``@reward`` functions.

    Metrics: each ``@reward`` function as ``reward_NAME``, unweighted, each ``@metric`` function as
    ``logged_NAME``; and ``turns``, ``tool_calls``, ``tool_errors`` and ``truncated``.

    Args:
        tokenizer: of the policy.
        id: the module that exports a ``Taskset``, and an ``Env`` of one agent where there is more
            to an episode than one prompt.
        args: settings of the environment as its own ``[env]`` block takes them, such as
            ``{"taskset": {"split": "train"}}``.
        eval_args: settings that are others for the held-out tasks, which are never trained on;
            default: the data module holds some of the tasks out (``data.eval_size``).
        num_problems: the first so many tasks; default: all.
        num_held_out: the first so many held-out tasks, which take ``eval_args``; default: all.
        max_turns: responses that an episode may have; the agent's own limit holds besides.
        tool_options: as of ``ToolEnv``.

    Raises:
        ImportError: verifiers is not installed.
        ValueError: there is no such environment, or it needs what is not here; names what.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        id: str,
        *,
        args: Mapping[str, Any] | None = None,
        eval_args: Mapping[str, Any] | None = None,
        num_problems: int | None = None,
        num_held_out: int | None = None,
        max_turns: int = 10,
        **tool_options: Any,
    ) -> None:
        if num_problems is not None:
            require_whole("env", 1, num_problems=num_problems)
        if num_held_out is not None:
            require_whole("env", 1, num_held_out=num_held_out)
            if eval_args is None:
                raise ValueError(
                    f"env.num_held_out={num_held_out} counts tasks that env.eval_args loads: give"
                    " env.eval_args, or data.eval_size to hold tasks out of those there are"
                )
        env = environment(id, args or {}, "env.args")
        scenes = [TaskScene(env, task) for task in tasks(env, num_problems, "env.num_problems")]
        held_out = None
        if eval_args is not None:
            other = environment(id, merged(args or {}, eval_args), "env.eval_args")
            kept = tasks(other, num_held_out, "env.num_held_out")
            known = {task.key for task in kept}
            scenes = [scene for scene in scenes if scene.task.key not in known]
            if not scenes:
                raise ValueError(
                    f"env.eval_args={dict(eval_args)} holds out every task that env.args gives:"
                    " name another split, or lower env.num_held_out"
                )
            held_out = range(len(scenes), len(scenes) + len(kept))
            scenes += [TaskScene(other, task) for task in kept]
        super().__init__(tokenizer, scenes, held_out=held_out, max_turns=max_turns, **tool_options)

    def score(self, episodes: Sequence["VerifiersEnv"]) -> list[tuple[float, dict[str, float]]]:
        """By the tasks' own functions, those of all episodes at once."""
        ends = [episode.scene.end() for episode in episodes]
        return [
            episode.scene.judged(end.result()) for episode, end in zip(episodes, ends, strict=True)
        ]
