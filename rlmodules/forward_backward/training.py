"""What changes while a model is trained: weights, gradients, optimizer, steps, random states."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlmodules.forward_backward.gradients import GradientWindow
from rlmodules.forward_backward.results import OptimResult
from rlmodules.forward_backward.state import (
    CheckpointError,
    frozen_digest,
    paths,
    random_state,
    read,
    set_random_state,
    to_cpu,
    trained_weights,
)
from rlmodules.optimizers.masters import Masters, in_half_precision


class Training:
    """A model, the gradients so far, and the optimizer that was used last.

    Args:
        gradient_accumulation_steps: backward passes an optimizer step.
    """

    def __init__(self, model: nn.Module, gradient_accumulation_steps: int) -> None:
        self.model = model
        self.window = GradientWindow(model.parameters(), gradient_accumulation_steps)
        self.steps = 0
        self._used: dict[str, Any] = {"optimizer": None, "scheduler": None}
        self._fresh: dict[str, Any] = {}
        """Their states before they were used for the first time."""
        self._loaded: dict[str, Any] = {}
        """From a checkpoint, until a step is taken with it."""

    def require_own(self, optimizer: torch.optim.Optimizer) -> None:
        """
        Raises:
            ValueError: the optimizer is of other parameters.
        """
        own = {id(p) for p in self.model.parameters()}
        if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "the optimizer holds parameters that are not the model's: make it from"
                " model.parameters() after adapters were added"
            )
        if not isinstance(optimizer, Masters) and in_half_precision(optimizer):
            warnings.warn(
                f"{type(optimizer).__name__} steps weights in half precision, which swallow small"
                " updates: rlmodules.make_optimizer(OptimizerConfig(), groups) steps float32 copies"
                " of them",
                stacklevel=4,
            )

    def step(self, optimizer: Any, scheduler: Any, max_grad_norm: float | None) -> OptimResult:
        """One optimizer step on the mean over the window's tokens, which ends the window.

        Raises:
            RuntimeError: the window is not full.
        """
        self.window.require_full()
        self._adopt(optimizer, scheduler)
        self.window.average()
        norm = self.window.clip(max_grad_norm)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        self.steps += 1
        tokens = int(self.window.tokens)
        self.window.clear()
        return OptimResult(self.steps, norm.item(), float(rate), tokens)

    def capture(self) -> tuple[dict, dict, dict]:
        """Copies of weights, optimizer state and all else, on the CPU."""
        state = {
            "scheduler": self._state_of("scheduler"),
            "window": self.window.state_dict(),
            "steps": self.steps,
            "random": random_state(),
            "frozen": frozen_digest(self.model),
        }
        optimizer = {"optimizer": self._state_of("optimizer")}
        return to_cpu(trained_weights(self.model)), to_cpu(optimizer), to_cpu(state)

    def restore(self, folder: Path) -> dict[str, str]:
        """Take everything from a checkpoint; returns the paths of its parts.

        Raises:
            CheckpointError: it is no complete checkpoint of this model; nothing has changed.
        """
        weights, optimizer, state = read(folder, self.model)
        saved = state["window"]
        if saved["passes"] and saved["steps"] != self.window.steps:
            raise CheckpointError(
                f"{str(folder)!r} holds {saved['passes']} of gradient_accumulation_steps="
                f"{saved['steps']} passes, here there are {self.window.steps}: use the same"
            )
        loaded = {"optimizer": optimizer["optimizer"], "scheduler": state["scheduler"]}
        try:
            self._give(loaded, self._used)
        except Exception as error:
            raise CheckpointError(
                f"{str(folder)!r} is of another optimizer or scheduler: {error}"
            ) from error
        self._loaded = loaded
        with torch.no_grad():
            for name, weight in trained_weights(self.model).items():
                weight.copy_(weights[name])
        self.window.load_state_dict(saved)
        self.steps = state["steps"]
        set_random_state(state["random"])
        return paths(folder)

    def _adopt(self, optimizer: Any, scheduler: Any) -> None:
        """Note what is used; what was loaded goes to whoever has not been given it."""
        used = {"optimizer": optimizer, "scheduler": scheduler}
        new = {name: x for name, x in used.items() if x is not None and x is not self._used[name]}
        fresh = {name: copy.deepcopy(x.state_dict()) for name, x in new.items()}
        self._give(self._loaded, new)
        self._loaded, self._used = {}, used
        self._fresh |= fresh

    def _give(self, states: dict[str, Any], takers: dict[str, Any]) -> None:
        """Hand out states, to all or to none; of what was unused then, as it was when it was."""
        before: list[tuple[Any, Any]] = []
        try:
            for name, x in takers.items():
                if x is not None and name in states:
                    state = states[name] if states[name] is not None else self._fresh.get(name)
                    before.append((x, copy.copy(x.state_dict())))
                    if state is not None:
                        x.load_state_dict(copy.deepcopy(state))
        except Exception:
            for x, state in before:
                x.load_state_dict(state)
            raise

    def _state_of(self, name: str) -> Any:
        """As it is to be saved; None of what was never used."""
        x = self._used[name]
        return self._loaded.get(name) if x is None else x.state_dict()
