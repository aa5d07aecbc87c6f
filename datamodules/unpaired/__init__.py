"""Unpaired preferences: rows of a file -> responses that are desirable or not -> batches."""
