"""What an optimizer may be told, and when it is refused: before a model is loaded."""

import pytest

from rlmodules import DPOConfig, DPOTrainer, GRPOConfig, OptimizerConfig, PPOConfig, PPOTrainer
from rlmodules.optimizers import config as optimizers
from rlmodules.optimizers.config import OPTIMIZERS, require_optimizer


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"name": "adam"}, r"algo\.optimizer\.name='adam' must be one of .*: did you mean adamw\?"),
        ({"betas": [0.9]}, r"algo\.optimizer\.betas=\[0\.9\] must be two numbers in \[0, 1\)"),
        ({"betas": [0.9, 1.0]}, r"algo\.optimizer\.betas=\[0\.9, 1\.0\] must be two numbers"),
        ({"betas": [0.9, float("nan")]}, r"algo\.optimizer\.betas=.* list of finite numbers"),
        ({"eps": 0.0}, r"algo\.optimizer\.eps=0\.0 must be positive"),
        ({"momentum": 0.5}, r"algo\.optimizer\.momentum=0\.5 must be left out: adamw does not"),
        ({"nesterov": False}, r"algo\.optimizer\.nesterov=False must be left out"),
        ({"name": "adamw8bit", "ns_steps": 3}, r"ns_steps=3 must be left out: adamw8bit does not"),
        ({"adjust_lr_fn": "original"}, r"adjust_lr_fn='original' must be left out"),
        ({"name": "muon", "momentum": 1.0}, r"algo\.optimizer\.momentum=1\.0 must be in \[0, 1\)"),
        ({"name": "muon", "momentum": -0.1}, r"algo\.optimizer\.momentum=-0\.1"),
        ({"name": "muon", "ns_steps": 0}, r"algo\.optimizer\.ns_steps=0 must be between 1 and 99"),
        ({"name": "muon", "ns_steps": 100}, r"algo\.optimizer\.ns_steps=100"),
        ({"name": "muon", "adjust_lr_fn": "rms"}, r"algo\.optimizer\.adjust_lr_fn='rms'"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(told, said):
    with pytest.raises(ValueError, match=said):
        OptimizerConfig(**told)
    with pytest.raises(ValueError, match=said):
        PPOConfig(optimizer=told)  # as YAML and checkpoints hold it


def test_every_option_of_an_optimizer_that_reads_it_is_taken():
    for name in OPTIMIZERS:
        assert DPOConfig(optimizer=OptimizerConfig(name, [0.8, 0.95], 1e-6)).optimizer.name == name
    OptimizerConfig("muon", momentum=0.0, nesterov=False, ns_steps=99, adjust_lr_fn="original")
    assert DPOConfig().optimizer == OptimizerConfig("adamw", [0.9, 0.999], 1e-8)  # torch's own
    with pytest.raises(ValueError, match=r"algo\.optimizer='muon' must be an OptimizerConfig"):
        PPOConfig(optimizer="muon")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"lr_scheduler_type": "cosin"}, "did you mean cosine"),
        ({"warmup_steps": 2}, r"algo\.warmup_steps=2 must be 0, as .*constant_with_warmup has"),
        ({"warmup_ratio": 0.1}, r"algo\.warmup_ratio=0\.1 must be 0, as algo\.lr_scheduler_type"),
        ({"lr_scheduler_type": "linear", "warmup_steps": -1}, r"algo\.warmup_steps=-1"),
        ({"lr_scheduler_type": "linear", "warmup_ratio": 1.1}, r"algo\.warmup_ratio=1\.1"),
        (
            {"lr_scheduler_type": "linear", "warmup_steps": 2, "warmup_ratio": 0.1},
            r"algo\.warmup_steps=2 and algo\.warmup_ratio=0\.1 say the same twice",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_its_name(told, said):
    for config in (PPOConfig, GRPOConfig):
        with pytest.raises(ValueError, match=said):
            config(**told)


def test_what_is_not_installed_is_named_with_the_remedy(monkeypatch, command):
    def missing(name):
        raise optimizers.PackageNotFoundError(name)

    monkeypatch.setattr(optimizers, "version", missing)
    said = r'adamw8bit needs bitsandbytes, .*: pip install "rlmodules\[adamw8bit\]", or optim'
    with pytest.raises(ValueError, match=said):
        require_optimizer("adamw8bit")
    require_optimizer("adamw")
    require_optimizer("adamw_offload")
    told = "model.name=./no-such-model", "optimizer=adamw8bit"
    assert "algo.optimizer.name=adamw8bit needs bitsandbytes" in command(*told, status=1)
    chosen = {"optimizer": OptimizerConfig("adamw8bit"), "model_name": "./no-such-model"}
    for trainer, config in ((PPOTrainer, PPOConfig), (DPOTrainer, DPOConfig)):
        with pytest.raises(ValueError, match="needs bitsandbytes"):
            trainer(config(**chosen))
    monkeypatch.setattr(optimizers, "version", lambda name: "0.46.1")
    with pytest.raises(ValueError, match=r"needs bitsandbytes 0\.50 or later, not 0\.46\.1"):
        require_optimizer("adamw8bit", "cpu")
    monkeypatch.setattr(optimizers, "version", lambda name: "2.8.0+cu128")
    with pytest.raises(ValueError, match=r"name=muon needs torch 2\.9 or later, not 2\.8\.0"):
        require_optimizer("muon")


def test_what_a_device_cannot_run_is_refused(monkeypatch):
    monkeypatch.setattr(optimizers, "version", lambda name: "9.9")
    with pytest.raises(ValueError, match=r"name=adamw8bit does not run on mps: use optimizer=ada"):
        require_optimizer("adamw8bit", "mps")
    for device in (None, "cpu", "cuda:1", "gpu"):
        require_optimizer("adamw8bit", device)
    require_optimizer("muon", "mps")
