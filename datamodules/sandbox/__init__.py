"""Programs that a model wrote, run against tests without harm to anything else."""

from datamodules.sandbox.runner import Outcome, Report, Sandbox

__all__ = ["Outcome", "Report", "Sandbox"]
