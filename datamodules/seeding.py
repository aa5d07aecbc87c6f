"""Seeds: every random stream is a function of numbers that a resumed run knows too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers; different numbers give unrelated streams."""
    state = 0x9E3779B97F4A7C15
    for part in parts:  # splitmix64 (Steele et al. 2014)
        state = (state + (part + 1) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1


def seed_all(seed: int) -> None:
    """Seed torch, numpy and random: rewards and dropout draw from those."""
    L.seed_everything(seed % 2**32, verbose=False)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Puts back what foreign code may change within and training depends on: random states, the
    working folder, torch's default type.

    Args:
        device: whose random state is put back besides the CPU's.
    """
    states, folder, dtype = (
        _collect_rng_states(include_cuda=False),
        os.getcwd(),
        torch.get_default_dtype(),
    )
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        _set_rng_states(states)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        os.chdir(folder)
        torch.set_default_dtype(dtype)
