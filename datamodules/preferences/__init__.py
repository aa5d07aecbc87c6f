"""Preferences: rows of a file -> pairs -> token sequences -> batches."""
