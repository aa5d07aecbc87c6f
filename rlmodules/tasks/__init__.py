"""What ``python train.py task=...`` does other than training: one file a task."""
