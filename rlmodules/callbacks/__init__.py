"""Lightning callbacks: progress, evaluation, stopping, saving, health, samples, report, export."""

from rlmodules.callbacks.best import SaveBest
from rlmodules.callbacks.data_check import DataCheck
from rlmodules.callbacks.demonstration_report import DemonstrationReport
from rlmodules.callbacks.evaluation import EvaluateAtEnd
from rlmodules.callbacks.export import ExportModel
from rlmodules.callbacks.health import HealthGuard
from rlmodules.callbacks.optimized import OptimizedMetric
from rlmodules.callbacks.position import RunIsComplete
from rlmodules.callbacks.preference_report import PreferenceReport
from rlmodules.callbacks.progress import IterationBar, StepBar
from rlmodules.callbacks.progress_file import ProgressFile
from rlmodules.callbacks.reward_report import RewardReport
from rlmodules.callbacks.run_record import RunRecord
from rlmodules.callbacks.run_report import RunReport
from rlmodules.callbacks.samples import SampleTable
from rlmodules.callbacks.stopping import AtomicCheckpointIO, SaveLast, newest_checkpoint
from rlmodules.callbacks.token_record import TokenRecord
