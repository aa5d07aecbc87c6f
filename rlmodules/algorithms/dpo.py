"""Direct Preference Optimization and its relatives (Rafailov et al. 2023, arXiv:2305.18290).

CPO (Xu et al. 2024, arXiv:2401.08417) is ``reference_free`` with ``loss_type=[sigmoid,sft]``, SimPO
(Meng et al. 2024, arXiv:2405.14734) with ``simpo``.

A policy learns from pairs directly: its log-ratios to a frozen reference are rewards, and the loss
asks the chosen response's to be the higher. We deviate in the computation only: what both sides of
a pair begin with is computed once, no token is padding, and the loss of an optimizer step is the
mean over its pairs however they are split into batches.

One step, from top to bottom: ``losses`` lays a batch out, takes the log-probabilities of all
responses under policy and reference, and hands them to ``dpo_loss``.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from datamodules.examples.dataset import ExampleBatch
from rlmodules.algorithms.reference_table import ReferenceTable
from rlmodules.algorithms.text_policy import (
    PairConfig,
    TextPolicy,
    pair_lengths,
    pair_sums,
    response_logprobs,
    starts_of,
)
from rlmodules.checks import meant, require
from rlmodules.functional import DPO_LOSSES, DPOShape, PairLogps, dpo_loss
from rlmodules.models import Reference

READ_SMOOTHING = {
    "sigmoid", "sigmoid_norm", "robust", "exo_pair", "aot", "aot_unpaired", "simpo",
}  # fmt: skip


@dataclass
class DPOConfig(PairConfig):
    """Settings of DPO; the Python API and the schema of ``conf/algo/dpo.yaml`` alike."""

    label_smoothing: float = 0.0
    """Probability that a pair's label is wrong, in [0, 0.5)."""
    reference_free: bool = False
    """Take the reference to be indifferent: log-ratios are plain log-probabilities."""
    loss_type: Any = "sigmoid"
    """One of ``DPO_LOSSES``, or a list of them."""
    loss_weights: list[float] | None = None
    """Weights of several losses; None weights each 1."""
    discopop_tau: float = 0.05
    """Temperature of ``discopop``'s gate."""
    simpo_gamma: float = 0.5
    """By how much ``simpo`` asks the chosen reward a token to be the higher."""
    precompute_ref_log_probs: bool = False
    """Evaluate the reference once, before training, and keep the result on disk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        unknown = [name for name in names if name not in DPO_LOSSES]
        if unknown or not names:
            raise ValueError(
                f"algo.loss_type={unknown}: use one or more of {list(DPO_LOSSES)}"
                f"{meant(unknown[0], DPO_LOSSES) if unknown else ''}"
            )
        self.loss_type = names if len(names) > 1 else names[0]
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(
                f"algo.loss_weights has {len(self.loss_weights)} numbers for {len(names)} losses"
            )
        require(self, ("label_smoothing",), lambda x: 0 <= x < 0.5, "in [0, 0.5)")
        if self.label_smoothing > 0 and not READ_SMOOTHING & set(names):
            raise ValueError(
                f"algo.label_smoothing={self.label_smoothing} has no effect on {names}:"
                f" only {sorted(READ_SMOOTHING)} read it"
            )
        if "exo_pair" in names and self.label_smoothing == 0:
            raise ValueError(
                "algo.loss_type=exo_pair is infinite at algo.label_smoothing=0: try 0.001"
            )
        if "simpo" in names and not self.reference_free:
            raise ValueError(
                "algo.loss_type=simpo is a loss without a reference: set algo.reference_free=true"
            )
        if "simpo" not in names and self.simpo_gamma != DPOConfig.simpo_gamma:
            raise ValueError(
                f"algo.simpo_gamma={self.simpo_gamma:g} has no effect on {names}: only simpo reads"
                " it"
            )
        if self.reference_free and self.precompute_ref_log_probs:
            raise ValueError(
                "algo.precompute_ref_log_probs has nothing to compute with algo.reference_free"
            )
        require(self, ("beta", "discopop_tau"), lambda x: x > 0, "positive")

    @property
    def weight_of_loss(self) -> dict[str, float]:
        """Weight of each loss by name."""
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        return dict(zip(names, self.loss_weights or [1.0] * len(names), strict=True))


class DPO(TextPolicy):
    """DPO over any causal language model; arguments as of ``TextPolicy``."""

    config_class = DPOConfig
    config: DPOConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        c = self.config
        self.shape = DPOShape(c.beta, c.label_smoothing, c.discopop_tau, c.simpo_gamma)
        self.reference = None if c.reference_free else Reference(self.policy)
        self.table = ReferenceTable() if c.precompute_ref_log_probs else None
        self._warned = False

    def losses(self, batch: ExampleBatch[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        responses = response_logprobs(self.policy, batch.sequences, starts_of(batch))
        sums, lengths = pair_sums(responses), pair_lengths(responses)
        return dpo_loss(
            logps=PairLogps(*sums.T, *self.reference_sums(batch).T, *lengths.T),
            loss_types=self.config.weight_of_loss,
            shape=self.shape,
            num_pairs=batch.totals["num_examples"],
            num_tokens=batch.totals["num_response_tokens"],
        )

    @torch.no_grad()
    def reference_sums(self, batch: ExampleBatch[Any]) -> Tensor:
        """[B, 2], the reference's log-probabilities of chosen and rejected responses."""
        if self.reference is None:
            return torch.zeros(len(batch), 2, device=self.device)
        if self.table is not None:
            return self.table.rows(batch).to(self.device)
        return self._computed_sums(batch)

    def _computed_sums(self, batch: ExampleBatch[Any]) -> Tensor:
        assert self.reference is not None  # or nobody asks
        with self.reference.of(self.policy) as reference:
            return pair_sums(response_logprobs(reference, batch.sequences, starts_of(batch)))

    # ------------------------------------------------- the reference, beforehand

    def shard(self, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
        if self.table is not None and self.reference is not None:
            with self.reference.of(self.policy) as reference:
                self.table.note(reference.base_model)
        super().shard(mesh, dtype)

    def on_fit_start(self) -> None:
        self._fill_table()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._fill_table()

    @torch.no_grad()
    def _fill_table(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        if self.table is None or self.reference is None or not self.table.missing(data):
            return

        def compute(batch: ExampleBatch[Any]) -> Tensor:
            with self.inference():
                return self._computed_sums(batch)

        with self.whole(), self.reference.of(self.policy) as reference:
            self.table.fill(self.trainer, reference.base_model, compute, self.config.batch_size)

    # ------------------------------------------------------------ after a while

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        drift = float(self.trainer.callback_metrics.get("val/chosen_drift", 0.0))
        if drift < -1.0 and not self._warned and not self.config.reference_free:
            self._warned = True
            weights = self.config.weight_of_loss
            remedy = (
                f"weigh the sft loss more (algo.loss_weights={list(weights.values())} now)"
                if "sft" in weights
                else "add an sft loss (algo.loss_type=[sigmoid,sft] algo.loss_weights=[1.0,1.0])"
            )
            warnings.warn(
                f"chosen responses have become less likely than under the reference: by"
                f" {-drift:.1f} nats each on held-out pairs. DPO may push both sides down; to hold"
                f" the chosen ones up, {remedy}, or lower algo.learning_rate",
                stacklevel=2,
            )
