"""What other libraries remark on every run, and no user can act on, is kept from the screen.

Warnings and log lines of this project, and all others of these libraries, are not touched.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

REMARKS = (
    ".*LeafSpec.*",  # Lightning on torch
    ".*is_gradient_checkpointing.*",  # PEFT on transformers
    ".*length of `list` across ranks is zero.*",  # where nothing is held out
    ".*sync_dist=True.*",  # metrics are over all processes when they are logged
    ".*does not have many workers.*",  # batches are made in this process, by the policy
    ".*modules? in eval mode at the start of training.*",  # frozen parts
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*have no logger configured.*",  # of each metric, where a model is only judged
)
"""Of warnings."""
LINES = ("💡 Tip", "`Trainer(limit_", "`weights_only` was not set")
"""What lines of a log begin with that advertise, or tell what this project told Lightning."""
TELLERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
"""Loggers that write them."""
BANNERS = ("lightning.pytorch", "lightning.fabric")
"""Loggers that tell of each Trainer what it was told, and advertise."""


def ignore_remarks() -> None:
    """Ignore ``REMARKS`` and ``LINES`` from now on."""
    for message in REMARKS:
        warnings.filterwarnings("ignore", message=message)
    for name in TELLERS:
        logging.getLogger(name).addFilter(_tells_of_the_run)


def _tells_of_the_run(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LINES)


def hide_bars() -> None:
    """Show no bars while files are read and written."""
    transformers_logging.disable_progress_bar()


@contextlib.contextmanager
def without_banners() -> Iterator[None]:
    """Lightning's warnings alone, for as long as the context lasts."""
    loggers = [logging.getLogger(name) for name in BANNERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
