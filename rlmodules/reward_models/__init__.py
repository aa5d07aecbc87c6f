"""Reward models: a score, a comparison or several objectives, learned from preferences."""
