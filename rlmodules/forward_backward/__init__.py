"""Training by queued operations: a pipeline, and a client that a researcher's loop drives."""

from rlmodules.forward_backward.client import AsyncTrainingClient
from rlmodules.forward_backward.gradients import NonFiniteLossError
from rlmodules.forward_backward.pipeline import ForwardBackwardPipeline
from rlmodules.forward_backward.results import ForwardBackwardResult, ForwardResult, OptimResult
from rlmodules.forward_backward.state import CheckpointError
