"""Texts that are learned from, one kind of rows a data module: files -> examples -> batches."""
