"""The export is refused before training, and written after it by one process."""

from types import SimpleNamespace

import pytest

from rlmodules.callbacks import ExportModel, RunReport


class Module:
    """Stands for an algorithm that can be exported as it is, but not merged."""

    def __init__(self):
        self.exports = []

    def require_export(self, *, merge, dtype):
        if merge:
            raise ValueError("there is nothing to merge")

    def export(self, dirpath, *, merge, dtype):
        self.exports.append((dirpath, merge, dtype))


def test_what_cannot_be_exported_is_said_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="nothing to merge"):
        ExportModel(str(tmp_path), merge=True).on_fit_start(None, Module())
    ExportModel(str(tmp_path)).on_fit_start(None, Module())


@pytest.mark.parametrize("zero", [True, False])
def test_one_process_exports_and_writes_the_card(tmp_path, monkeypatch, zero):
    cards = []
    monkeypatch.setattr("rlmodules.callbacks.export.write_card", lambda *told: cards.append(told))
    module, report = Module(), RunReport(str(tmp_path))
    trainer = SimpleNamespace(is_global_zero=zero, callbacks=[report], datamodule="data")
    ExportModel(str(tmp_path), dtype="float16").on_train_end(trainer, module)
    assert module.exports == ([(tmp_path, None, "float16")] if zero else [])
    assert cards == ([(module, tmp_path, report, "data")] if zero else [])
