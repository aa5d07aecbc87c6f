"""Sampling: how a token is chosen, and how batches of rows are decoded with a KV cache."""
