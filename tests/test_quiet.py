"""What a notebook or a shell shows of a run: the run itself."""

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rlmodules.quiet import BANNERS, LINES, TELLERS, ignore_remarks, without_banners

ROOT = Path(__file__).parent.parent
NOISE = ("weights_only", "litlogger", "LeafSpec", "sync_dist", "is_gradient_checkpointing",
         "available", "Tip", "Warning", "AMP", "Trainer", "it/s")  # fmt: skip


def snippets():
    """The page's Python that trains, on the model that takes no time, and for few iterations."""
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found = [block for block in blocks if "Trainer(" in block]
    assert len(found) == 3 and sum(block.count(".train") for block in found) == 4
    code = "\n".join(found).replace("wheel:smollm2", "random:tiny")
    return code.replace("num_iterations=10", "num_iterations=1")


def test_the_pages_snippets_show_nothing_but_their_runs(tmp_path):
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    done = subprocess.run([sys.executable, "-c", snippets()], cwd=tmp_path, text=True,
                          env=os.environ | environment, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert [word for word in NOISE if word in done.stdout] == []
    assert "iteration 1/1" in done.stdout and "step 1/1" in done.stdout


REMARKS = [
    "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec)`",
    "`is_gradient_checkpointing` is deprecated and will be removed in v6.",
    "It is recommended to use `self.log('val/kl', ..., sync_dist=True)` when logging on epoch",
    "You called `self.log('val/kl', ..., logger=True)` but have no logger configured. You can",
    "Total length of `list` across ranks is zero. Please make sure this was your intention.",
]


@pytest.mark.parametrize("remark", REMARKS)
def test_remarks_of_others_are_ignored_and_warnings_are_not(remark):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ignore_remarks()
        warnings.warn(remark, FutureWarning, stacklevel=1)
        warnings.warn("the KL is high", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["the KL is high"]


@pytest.fixture
def enabled(monkeypatch):
    """A sweep in this process may have switched Lightning's loggers off."""
    for name in (*TELLERS, *BANNERS):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)


def test_advertisements_in_the_log_are_left_out_and_other_lines_are_not(enabled):
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    for name in TELLERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        try:
            ignore_remarks()
            for line in (*LINES, "a Tip", "GPU available: False"):
                logger.handle(logger.makeRecord(name, logging.INFO, "", 0, f"{line} ...", (), None))
        finally:
            logger.removeHandler(handler)
    assert said == ["a Tip ...", "GPU available: False ..."] * len(TELLERS)


def test_banners_are_silent_for_a_while_and_warnings_never(enabled):
    before = [logging.getLogger(name).level for name in BANNERS]
    with without_banners():
        for name in BANNERS:
            logger = logging.getLogger(name)
            assert not logger.isEnabledFor(logging.INFO) and logger.isEnabledFor(logging.WARNING)
    assert [logging.getLogger(name).level for name in BANNERS] == before
