"""Rollouts: episodes that the policy plays in an environment, as training data or as pairs."""
