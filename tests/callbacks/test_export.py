"""The export is refused before training, and written after it by one process."""

from types import SimpleNamespace

import pytest

from rlmodules import DPO, DPOConfig, LoraConfig, ModelConfig
from rlmodules.callbacks import ExportModel, RunReport
from rlmodules.callbacks.export import rounding


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
    monkeypatch.setattr("rlmodules.callbacks.export.rounding", lambda *_: "rounded")
    module, report = Module(), RunReport(str(tmp_path))
    trainer = SimpleNamespace(is_global_zero=zero, callbacks=[report], datamodule="data")
    ExportModel(str(tmp_path), dtype="float16").on_train_end(trainer, module)
    assert module.exports == ([(tmp_path, None, "float16")] if zero else [])
    assert report.measured == ("rounded" if zero else "")
    assert cards == ([(module, tmp_path, report, "data")] if zero else [])


@pytest.mark.parametrize(
    ("base", "rank", "options", "coarser"),
    [
        ("float32", 0, {}, None),
        ("float32", 0, {"dtype": "bfloat16"}, "bfloat16"),
        ("bfloat16", 0, {}, None),
        ("bfloat16", 4, {}, None),
        ("bfloat16", 4, {"merge": True}, "bfloat16"),
        ("bfloat16", 4, {"merge": True, "dtype": "float32"}, None),
        ("float32", 4, {"dtype": "float16"}, "float16"),
    ],
)
def test_the_report_says_where_the_folder_is_coarser_than_what_was_measured(
    tmp_path, base, rank, options, coarser
):
    model = ModelConfig(name="random:tiny", dtype=base, lora=LoraConfig(r=rank))
    module = DPO(DPOConfig(model_name="random:tiny"), model)
    module.export(tmp_path, **options)
    said = rounding(module, tmp_path)
    assert (f"rounded to {coarser}. Its own figures: task=evaluate" in said) == (
        coarser is not None
    )
    assert bool(said) == (coarser is not None)
