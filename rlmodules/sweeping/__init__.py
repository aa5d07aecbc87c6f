"""Sweeps: every job is a process of its own, searches pause and continue them."""
