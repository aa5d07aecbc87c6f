"""What ``kv_cache.py`` asks of transformers."""

import importlib.util

from transformers import cache_utils

from rlmodules.sampling import kv_cache


def test_layers_that_only_a_newer_transformers_has_are_not_needed(monkeypatch):
    monkeypatch.delattr(cache_utils, "DummyLayer", raising=False)
    spec = importlib.util.spec_from_file_location("older_kv_cache", kv_cache.__file__)
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)
    assert cache_utils.DynamicLayer in older.MERGEABLE
    assert len(older.MERGEABLE) == 6
