"""The model that most tests of sampling are about."""

import pytest
from sampling_helpers import make_sharp

from rlmodules.models.embedded import tiny_model


@pytest.fixture(scope="module")
def llama():
    model, tokenizer = tiny_model()
    return make_sharp(model), tokenizer
