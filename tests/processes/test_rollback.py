"""Two processes that share a model out go back to a checkpoint together."""

from rollback_helpers import assert_rolled_back_together


def test_two_processes_that_share_a_model_out_go_back_together(tmp_path):
    """All of it, and ``trainer=ddp``, in ``scale/test_rollback.py``."""
    assert_rolled_back_together(tmp_path, "fsdp", "high_kl", at=4)
