"""Runs read back from their folders: one alone, and several beside each other."""
