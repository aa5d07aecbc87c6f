"""Each optimizer trains each kind of algorithm: finite, decaying what it should, resumable."""

import pytest
import torch
from helpers import assert_same
from resume_helpers import MODULES, SaveAt, fit, settings

from rlmodules import ModelConfig, OptimizerConfig
from rlmodules.resuming.changes import Change, refusal
from rlmodules.resuming.table import Effect

ALGORITHMS = ("ppo", "grpo", "dpo", "reward")
HALF = "bfloat16"
CASES = [
    *((name, kind, dtype) for name in ALGORITHMS
      for kind, dtype in (("adamw", HALF), ("adamw8bit", "float32"), ("adamw_offload", "float32"),
                          ("muon", "float32"))),
    ("ppo", "muon", HALF),
    ("dpo", "adamw8bit", HALF),
    ("reward", "adamw_offload", "float16"),
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:algo.optimizer.name=adamw_offload saves nothing")


def train(name, folder, optimizer, dtype="float32", *, epochs=2, **options):
    c = settings(name, optimizer=OptimizerConfig(optimizer))
    model = ModelConfig(name="random:tiny", dtype=dtype)
    return fit(name, folder, c, epochs, model=model, **options)


def at_the_start(name, dtype):
    """The weights that are trained, by their names in a checkpoint."""
    module = MODULES[name](settings(name), ModelConfig(name="random:tiny", dtype=dtype))
    state = module.state_dict()
    return {saved: state[here] for here, saved in module._saved_names().items()}


@pytest.mark.parametrize(("name", "optimizer", "dtype"), CASES)
def test_a_run_learns_and_goes_on_bit_by_bit(name, optimizer, dtype, tmp_path):
    middle = tmp_path / "middle.ckpt"
    callbacks = [SaveAt(middle, 1, 1)]
    straight = train(name, tmp_path / "straight", optimizer, dtype, callbacks=callbacks)
    resumed = train(name, tmp_path / "resumed", optimizer, dtype, ckpt_path=middle)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(straight[part], resumed[part], part)
    start = at_the_start(name, dtype)
    for key, value in straight["state_dict"].items():
        if not key.endswith("_extra_state"):
            assert value.isfinite().all() and value.dtype == start[key].dtype, key
            assert not torch.equal(value, start[key]), key


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw_offload", "muon"])
@pytest.mark.parametrize("name", ["ppo", "reward"])
def test_decay_reaches_all_weights_but_a_value_head(name, optimizer):
    c = settings(name, weight_decay=0.5, optimizer=OptimizerConfig(optimizer))
    module = MODULES[name](c)
    decays = {
        id(p): group["weight_decay"] for group in module.parameter_groups() for p in group["params"]
    }
    head = {id(p) for p in module.policy.value_head.parameters()} if name == "ppo" else set()
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert decays == {i: 0.0 if i in head else 0.5 for i in trained}


def test_the_state_of_another_optimizer_is_refused_whatever_is_allowed(tmp_path):
    train("dpo", tmp_path / "first", "muon", epochs=1)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    for allow in ((), ("algo.optimizer",)):
        with pytest.raises(ValueError, match=r"holds the state of algo\.optimizer\.name=muon"):
            train("dpo", tmp_path / "second", "adamw_offload", ckpt_path=last, allow=allow)
    with pytest.raises(ValueError, match=r"holds the state of algo\.optimizer\.name=muon"):
        c = settings("dpo")
        fit("dpo", tmp_path / "third", c, 2, ckpt_path=last, allow=("algo.optimizer",))


def test_what_cannot_be_allowed_is_not_offered():
    optimizer = Change("algo.optimizer.name", "muon", "adamw", Effect.REFUSED)
    dtype = Change("model.dtype", "float32", "auto", Effect.REFUSED)
    assert refusal("x.ckpt", [dtype]).endswith("resume.allow=[model.dtype]")
    both = refusal("x.ckpt", [dtype, optimizer])
    assert "algo.optimizer.name is part of the checkpoint" in both and "allow" not in both


def test_a_checkpoint_from_before_there_was_a_choice_goes_on(tmp_path, capsys):
    c = settings("ppo")
    fit("ppo", tmp_path / "first", c, 1)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    old = torch.load(last, weights_only=True)
    for kept in (old["run"], old["hyper_parameters"]["config"]):
        for option in [o for o in kept if "optimizer" in o or "lr_sch" in o or "warmup_" in o]:
            if not option.endswith("value_warmup_iterations"):
                del kept[option]
    torch.save(old, last)
    capsys.readouterr()
    resumed = fit("ppo", tmp_path / "second", c, 2, ckpt_path=last)
    assert "Changed" not in capsys.readouterr().out
    assert_same(fit("ppo", tmp_path / "straight", c, 2)["state_dict"], resumed["state_dict"])


def test_weights_in_half_precision_are_not_trained_under_a_loss_scale(tmp_path):
    class Scaled:
        precision, precision_plugin = "16-mixed", type("Plugin", (), {"scaler": object()})()

    module = MODULES["dpo"](settings("dpo"), ModelConfig(name="random:tiny", dtype="float16"))
    module._trainer = Scaled()
    with pytest.raises(ValueError, match=r"trainer\.precision='16-mixed' .* model\.dtype at auto"):
        module.configure_optimizers()
