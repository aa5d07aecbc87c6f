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
    frozen copy of them, on the same base; otherwise a frozen copy of the model.
    """

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        self.model: PolicyModel | None = None
        self.adapter: str | None = None
        if not trains_adapters_alone(policy.base_model):
            self.model = PolicyModel(copy.deepcopy(policy.base_model).requires_grad_(False))
            self.model.packs = policy.packs
        elif not adapters_change_nothing(policy.base_model):
            self.adapter = freeze_copy(policy.base_model)

    @contextlib.contextmanager
    def of(self, policy: PolicyModel) -> Iterator[PolicyModel]:
        """The reference of ``policy``, for as long as the context lasts."""
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
        self._of: Callable[[], AbstractContextManager[PolicyModel]] = partial(reference.of, owner)

    def of(self, policy: PolicyModel) -> AbstractContextManager[PolicyModel]:
        """The reference, for as long as the context lasts."""
        return self._of()
