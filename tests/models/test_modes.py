"""The mode of a module comes back."""

import pytest
import torch
from torch import nn

from rlmodules.models.modes import evaluating


@pytest.mark.parametrize("error", [None, KeyError])
def test_every_part_is_in_its_own_mode_again(error):
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    module[1].eval()
    modes = [part.training for part in module.modules()]
    try:
        with evaluating(module):
            assert not any(part.training for part in module.modules())
            assert not torch.is_grad_enabled()
            if error is not None:
                raise error
    except KeyError:
        assert error is KeyError
    assert [part.training for part in module.modules()] == modes == [True, True, False, False]
    assert torch.is_grad_enabled()
