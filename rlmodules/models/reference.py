"""The frozen policy that KL is measured against, and that DPO compares with."""

import contextlib
import copy
from collections.abc import Iterator

from torch import nn

from rlmodules.models.adapters import adapters_off
from rlmodules.models.scoring import PolicyModel


class Reference(nn.Module):
    """A policy as it was when it started.

    With LoRA it is the policy itself with its adapters switched off; otherwise a frozen copy, of
    which no checkpoint holds anything.
    """

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        self.is_adapter_free = hasattr(policy.base_model, "disable_adapter")
        if not self.is_adapter_free:
            self.model = PolicyModel(copy.deepcopy(policy.base_model).requires_grad_(False))
            self.model.packs = policy.packs

    @contextlib.contextmanager
    def of(self, policy: PolicyModel) -> Iterator[PolicyModel]:
        """The reference of ``policy``, for as long as the context lasts."""
        if self.is_adapter_free:
            with adapters_off(policy.base_model):
                yield policy
        else:
            yield self.model
