"""Seeds: every random stream is a function of numbers that a resumed run knows too."""

import lightning as L


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
