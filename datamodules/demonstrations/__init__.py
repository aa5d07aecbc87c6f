"""Demonstrations: rows of a file -> what the model is to write -> token sequences -> batches."""
