"""A sandbox of each kind that this machine offers."""

import pytest

from datamodules.sandbox import Sandbox, backends


@pytest.fixture(params=backends.BACKENDS)
def sandbox(request):
    try:
        return Sandbox(request.param, time_limit_s=1.5, memory_mb=128, output_kb=256)
    except ValueError as error:
        pytest.skip(str(error))
