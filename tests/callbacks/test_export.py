"""The export is refused before training, and written after it by one process."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from rlmodules import DPO, DPOConfig, LoraConfig, ModelConfig
from rlmodules.callbacks import ExportModel, RunReport
from rlmodules.callbacks.export import rounding


class Module:
    """Stands for an algorithm that can be exported as it is, but not merged."""

    def __init__(self, fails=False):
        self.fails = fails

    to_be_written = staticmethod(nullcontext)

    def require_export(self, *, merge, dtype):
        if merge:
            raise ValueError("there is nothing to merge")

    def export(self, dirpath, *, merge, dtype):
        (dirpath / "weights").write_text("half")
        if self.fails:
            raise OSError("no space left on device")
        (dirpath / "weights").write_text(f"{merge} {dtype}")


def test_what_cannot_be_exported_is_said_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="nothing to merge"):
        ExportModel(str(tmp_path), merge=True).on_fit_start(None, Module())
    ExportModel(str(tmp_path)).on_fit_start(None, Module())


@pytest.mark.parametrize("zero", [True, False])
def test_one_process_exports_and_writes_the_card(tmp_path, monkeypatch, zero):
    def write_card(module, folder, report, data):
        (folder / "README.md").write_text(f"{report.title} {data}")

    monkeypatch.setattr("rlmodules.callbacks.export.write_card", write_card)
    rounded = lambda module, folder: "bfloat16"  # noqa: E731
    monkeypatch.setattr("rlmodules.callbacks.export.rounding", rounded)
    export = ExportModel(str(tmp_path / "model"), dtype="float16")
    callbacks = [RunReport(str(tmp_path))]
    for _ in range(2):  # one that is there is replaced
        run = SimpleNamespace(is_global_zero=zero, callbacks=callbacks, datamodule="data")
        export.on_train_end(run, Module())
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")}
    assert files == ({"model", "model/weights", "model/README.md"} if zero else set())
    if zero:
        assert (tmp_path / "model" / "weights").read_text() == "None float16"
        assert (tmp_path / "model" / "README.md").read_text() == "Held-out prompts data"
        assert callbacks[0].rounded == "bfloat16"
        assert "rounded to bfloat16" in callbacks[0].measured


def test_half_an_export_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("rlmodules.callbacks.export.write_card", lambda *_: None)
    export = ExportModel(str(tmp_path / "model"))
    run = SimpleNamespace(is_global_zero=True, callbacks=[], datamodule=None)
    with pytest.raises(OSError, match="no space"):
        export.on_train_end(run, Module(fails=True))
    assert list(tmp_path.iterdir()) == []
    export.on_train_end(run, Module())
    with pytest.raises(OSError, match="no space"):
        export.on_train_end(run, Module(fails=True))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "None None"


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
    assert rounding(module, tmp_path) == (coarser or "")
