"""Compiled layers of other architectures, packed and padded: minutes of compiling."""

import pytest
from compile_helpers import MODELS, check_compiled

from rlmodules.models.compiling import has_compiler


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_compiled_layers_say_what_eager_ones_do(name, packs):
    check_compiled(name, packs)
