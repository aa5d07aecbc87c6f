"""lm-evaluation-harness, asked about a model that is loaded already."""

import difflib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from datamodules.checks import is_finite

INSTALL = 'task=benchmark needs lm-evaluation-harness: pip install "rlmodules[benchmark]"'
Figures = dict[tuple[str, str, str], dict[str, Any]]
"""By task, metric and filter."""


class Harness:
    """lm-eval's side of a benchmark.

    Args:
        asked: what ``lm_eval.simple_evaluate`` is told, the tasks' names among it.
        device: where models compute.

    Attributes:
        dtype: that of the first model that was measured.

    Raises:
        ValueError: it is not installed, or has no such task, or not its data.
    """

    def __init__(
        self, asked: Mapping[str, Any], include_path: str | None, batch_size: int, device: Any
    ) -> None:
        self.asked, self.batch_size, self.device = asked, batch_size, device
        self.manager, self.dtype = manager_of(asked["tasks"], include_path), ""

    def measure(self, model: Any, tokenizer: Any) -> Figures:
        """Of each figure value, standard error, and the values of single examples.

        Raises:
            ValueError: the model has no head that predicts tokens.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        if getattr(model, "get_output_embeddings", lambda: None)() is None:
            raise ValueError(
                "task=benchmark needs a model that predicts tokens, and this one has no such head:"
                " choose a policy, not a reward model"
            )
        model = model.to(self.device).eval()
        self.dtype = self.dtype or str(model.dtype).removeprefix("torch.")
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size)
        with torch.inference_mode():
            told = simple_evaluate(lm, task_manager=self.manager, log_samples=True, **self.asked)
        return dict(_figures(told))


def manager_of(tasks: Sequence[str], include_path: str | None) -> Any:
    """lm-eval's registry, which has all ``tasks`` and could load their data."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(INSTALL)
    from lm_eval.tasks import TaskManager  # an extra

    if not tasks:
        raise ValueError("tasks=[]: name some, tasks=[arc_easy,hellaswag]")
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"task.include_path={include_path!r}: there is no such folder")
    manager = TaskManager(include_path=include_path)
    for name in tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            hint = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists them all"
            raise ValueError(f"tasks: lm-eval has no task {name!r}: {hint}")
    try:
        manager.load(list(tasks))
    except Exception as error:  # what code of a task raises: of data sets, files, a hub
        raise ValueError(
            f"tasks={list(tasks)}: their data could not be loaded, {type(error).__name__}: {error}"
        ) from error
    return manager


def _figures(told: Any) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    for task, values in (told["results"] | told.get("groups", {})).items():
        samples = told["samples"].get(task, [])
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not is_finite(value):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            yield (
                (task, metric, kind),
                {
                    "value": float(value),
                    "stderr": float(error) if is_finite(error) else None,
                    "shots": told["n-shot"].get(task),
                    "n": told["n-samples"].get(task, {}).get("effective"),
                    "higher_is_better": told["higher_is_better"].get(task, {}).get(metric),
                    "by_example": {
                        s["doc_id"]: s[metric]
                        for s in samples
                        if s["filter"] == kind and metric in s
                    },
                },
            )


def rows_of(before: Figures, after: Figures) -> Iterator[dict[str, Any]]:
    """A row a figure; its difference where there are two."""
    for key, new in sorted(after.items()):
        row = dict(zip(("task", "metric", "filter"), key, strict=True))
        row |= {name: new[name] for name in ("shots", "n", "higher_is_better")}
        row |= {"after": new["value"], "after_stderr": new["stderr"]}
        if (old := before.get(key)) is not None:
            row |= {"before": old["value"], "before_stderr": old["stderr"]}
            row |= {"difference": new["value"] - old["value"]}
            row |= {"difference_stderr": paired_stderr(old, new)}
        yield row


def paired_stderr(old: Mapping[str, Any], new: Mapping[str, Any]) -> float | None:
    """Of the mean difference of the same examples; None where a figure is no mean over them."""
    both = [figure["by_example"] for figure in (old, new)]
    if both[0].keys() != both[1].keys() or len(both[0]) < 2:
        return None
    for figure, values in zip((old, new), both, strict=True):
        if not all(map(is_finite, values.values())):
            return None
        if not math.isclose(fmean(values.values()), figure["value"], abs_tol=1e-9):
            return None
    return stdev(both[1][i] - both[0][i] for i in both[0]) / math.sqrt(len(both[0]))
