"""What the façades share: a module, the folder of its run, and the Trainer that fits it."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import lightning as L

from datamodules import Environment
from datamodules.rewards.weighting import Reward, WeightedReward
from rlmodules.algorithms.base import AlgorithmModule
from rlmodules.algorithms.online import OnlineModule
from rlmodules.callbacks.card import write_card
from rlmodules.callbacks.data_check import DataCheck
from rlmodules.callbacks.preference_report import PreferenceReport
from rlmodules.callbacks.progress import IterationBar, StepBar
from rlmodules.callbacks.report import Report
from rlmodules.callbacks.run_record import RunRecord, settings_of
from rlmodules.callbacks.run_report import RunReport
from rlmodules.callbacks.stopping import AtomicCheckpointIO, SaveLast
from rlmodules.checks import device_options, require_device
from rlmodules.models import resolve_precision
from rlmodules.quiet import hide_bars, ignore_remarks, without_banners
from rlmodules.resuming.changes import flatten
from rlmodules.resuming.contents import code_of
from rlmodules.resuming.folder import held, require_own, run_folder
from rlmodules.trackers.csv_log import CSVLog
from rlmodules.trackers.rows import tracked
from rlmodules.trainer_options import check_given, several_processes

Metrics = dict[str, list[float]]
"""Every metric -> its values by iteration or optimizer step; held-out ones by evaluation."""
SIZES = ("batch_size", "mini_batch_size", "num_generations", "max_resamples")
FOLLOWING = {f"data.{name}": [f"algo.{name}"] for name in SIZES}
FOLLOWING["data.epochs"] = ["algo.ppo_epochs", "algo.num_epochs"]
"""Options of data that repeat one of the algorithm."""


class Facade:
    """A module, the folder of its run, and options of ``lightning.Trainer``."""

    folders: ClassVar[set[Path]] = set()
    """Those that this process has trained in."""
    env: Environment | None = None
    report: Report | None = None
    """Of the last run."""
    reward_fn: Reward | None = None
    report_class: ClassVar[type[PreferenceReport]] = PreferenceReport
    """Of a run that learns from a fixed set of texts."""

    def __init__(
        self, module: AlgorithmModule, output_dir: str | Path | None, options: dict[str, Any]
    ) -> None:
        hide_bars()
        ignore_remarks()
        self.module, self.config, self.trainer_options = module, module.config, options
        self._output_dir = None if output_dir is None else Path(output_dir)

    @property
    def output_dir(self) -> Path:
        """The run's folder; where none was given, one that is made when it is first asked for."""
        if self._output_dir is None:
            self._output_dir = run_folder(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
        return self._output_dir

    def export(self, path: str | Path, merge: bool | None) -> None:
        """Write the trained model, its tokenizer and its model card."""
        self.module.export(Path(path), merge=merge)  # type: ignore[attr-defined]  # all but rewards
        write_card(self.module, Path(path), self.report)

    @without_banners()
    def fit(
        self,
        data_class: type,
        num_epochs: int,
        ckpt_path: str | Path | None,
        resume_allow: Sequence[str],
        **data_options: Any,
    ) -> Metrics:
        """Train as ``train.py`` does; where the algorithm is online, an epoch is an iteration."""
        c, extra = self.config, self.trainer_options
        require_device(c.device)
        accumulate, checkpoints = c.gradient_accumulation_steps, self.output_dir / "checkpoints"
        data = data_class(gradient_accumulation_steps=accumulate, seed=c.seed, **data_options)
        if isinstance(self.module, OnlineModule):
            report, bar = RunReport(self.output_dir), IterationBar
            save = {"every_n_epochs": c.save_every}
            evaluate = {"check_val_every_n_epoch": c.eval_every}
        else:
            report, bar = self.report_class(self.output_dir), StepBar
            save = {"every_n_train_steps": c.save_every}
            interval = c.eval_every * accumulate  # Lightning counts batches
            evaluate = {"check_val_every_n_epoch": None, "val_check_interval": interval}
        record = RunRecord(self._settings(data_options), FOLLOWING, resume_allow)
        callbacks = [DataCheck(), record, report, SaveLast(checkpoints, **save)]
        if extra.get("enable_progress_bar", True):
            callbacks.append(bar())
        options = {  # those of conf/trainer
            "max_epochs": num_epochs,
            "gradient_clip_val": c.max_grad_norm,
            "accumulate_grad_batches": accumulate,
            **evaluate,
            "limit_val_batches": 1.0 if data.eval_size else 0,  # 0 spares Lightning's warning
            "precision": resolve_precision("auto"),
            "logger": CSVLog(self.output_dir / "csv"),
            "plugins": [AtomicCheckpointIO()],
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "inference_mode": False,
            "enable_model_summary": False,
            **device_options(c.device),
            **extra,
            "callbacks": [*callbacks, *extra.get("callbacks", [])],
        }
        check_given(extra, c, num_epochs, str(self.output_dir))
        trainer = L.Trainer(**options | several_processes(options))
        algorithm = type(self.module).__name__
        path = record.find(ckpt_path, [self.output_dir.parent], trainer, algorithm)
        if self.output_dir.absolute() not in self.folders:  # a notebook may run a cell again
            require_own(self.output_dir, path)
        self.folders.add(self.output_dir.absolute())
        settings = self._settings(data_options)
        with held(self.output_dir), tracked(trainer, settings, self.output_dir, path):
            trainer.fit(self.module, data, ckpt_path=path, weights_only=True)
        self.report = report
        return report.metrics()

    def _settings(self, data_options: Mapping[str, Any]) -> dict[str, Any]:
        """What the run is held against when it goes on; objects go by their names."""
        plain = {k: v for k, v in data_options.items() if isinstance(v, bool | int | float | str)}
        groups = {
            "data": plain,
            "trainer": self.trainer_options,
        }
        code = {"env._target_": code_of(self.env)} | dict(_told(self.reward_fn))
        here = {"started_by": "trainers"}
        return dict(flatten(groups)) | code | settings_of(self.module) | here


def _told(reward: Reward | None, name: str = "reward._target_") -> Iterator[tuple[str, Any]]:
    """A reward by its code, or several by theirs and their weights."""
    if isinstance(reward, WeightedReward):
        for part, one in reward.components.items():
            yield from _told(one, f"reward.components.{part}")
        yield from ((f"reward.weights.{part}", w) for part, w in reward.weights.items())
    else:
        yield name, code_of(getattr(reward, "fn", None))
