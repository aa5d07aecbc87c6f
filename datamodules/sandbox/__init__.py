"""Programs that a model wrote, run against tests without harm to anything else."""

from datamodules.sandbox.runner import MEMORY_MB, TIME_LIMIT_S, Outcome, Report, Sandbox

__all__ = ["MEMORY_MB", "TIME_LIMIT_S", "Outcome", "Report", "Sandbox"]
