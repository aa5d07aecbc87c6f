"""Façades for scripts and notebooks: module, data module and ``L.Trainer`` in one object."""
