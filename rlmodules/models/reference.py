"""The frozen policy that KL is measured against, and that DPO compares with."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from torch import nn

from rlmodules.models.adapters import (
    adapter_on,
    adapters_change_nothing,
    adapters_off,
    freeze_copy,
    trains_adapters_alone,
)
from rlmodules.models.scoring import PolicyModel


class Reference(nn.Module):
    """A policy as it was when it started, of which no checkpoint holds anything.

    With fresh adapters it is the policy itself with its adapters switched off; with trained ones a
    frozen copy of them, on the same base; otherwise a copy of the model, of which what is frozen
    anyway is the policy's own.
    """

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        self.model: PolicyModel | None = None
        self.adapter: str | None = None
        self._shared: list[nn.Parameter] = []
        if not trains_adapters_alone(policy.base_model):
            self._shared = [p for p in policy.base_model.parameters() if not p.requires_grad]
            kept = {id(weight): weight for weight in self._shared}
            self.model = PolicyModel(copy.deepcopy(policy.base_model, kept).requires_grad_(False))
            self.model.can_pack = policy.can_pack
            if policy.compiled:
                self.model.compile_layers()
        elif not adapters_change_nothing(policy.base_model):
            self.adapter = freeze_copy(policy.base_model)

    def share_nothing(self) -> None:
        """Let go of what was the policy's own: each has shares of its own now."""
        self._shared = []

    @contextlib.contextmanager
    def of(self, policy: PolicyModel) -> Iterator[PolicyModel]:
        """The reference of ``policy``, for as long as the context lasts.

        Raises:
            ValueError: a weight is trained that was frozen when the reference was made.
        """
        if any(weight.requires_grad for weight in self._shared):
            raise ValueError(
                "a weight of the policy is trained that was frozen when the module was made, and"
                " that its reference shares: call requires_grad_(True) before, and freeze later"
            )
        if self.model is not None:
            yield self.model
            return
        base = policy.base_model
        with adapters_off(base) if self.adapter is None else adapter_on(base, self.adapter):
            yield policy


class SameReference(nn.Module):
    """The reference of ``owner`` for another policy too, without a copy.

    Args:
        reference: of which no parameter is held here.
        owner: whose it is.
    """

    def __init__(self, reference: Reference, owner: PolicyModel) -> None:
        super().__init__()
        self.held = (reference, owner)  # in a tuple: no part of this module
        self._of: Callable[[], AbstractContextManager[PolicyModel]] = partial(reference.of, owner)

    def of(self, policy: PolicyModel) -> AbstractContextManager[PolicyModel]:
        """The reference, for as long as the context lasts."""
        return self._of()
