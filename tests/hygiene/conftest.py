"""Modules on the card that is none."""

import lightning as L
import pytest
from card_helpers import OnCard


@pytest.fixture
def to_card():
    """Makes a module, moves it, and forgets what moving it has crossed."""

    def move(make, trace):
        module = make()
        module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        module.to("cuda:0")
        assert all(isinstance(p, OnCard) for p in module.parameters())
        trace.crossings.clear()
        return module

    return move
