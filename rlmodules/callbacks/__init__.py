"""Lightning callbacks: progress, stopping and saving, samples, the final report, the export."""

from rlmodules.callbacks.export import ExportModel
from rlmodules.callbacks.progress import IterationBar
from rlmodules.callbacks.report import RunReport
from rlmodules.callbacks.samples import SampleTable
from rlmodules.callbacks.stopping import AtomicCheckpointIO, SaveOnStop, newest_checkpoint

__all__ = [
    "AtomicCheckpointIO",
    "ExportModel",
    "IterationBar",
    "RunReport",
    "SampleTable",
    "SaveOnStop",
    "newest_checkpoint",
]
