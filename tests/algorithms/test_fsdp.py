"""Two processes that share a model out do together what one does alone."""

import pytest
import torch
from equality_helpers import differences, run
from process_helpers import alone_and_together
from transformers import AutoModelForCausalLM

from rlmodules.callbacks import AtomicCheckpointIO
from rlmodules.callbacks.stopping import size_in_memory
from rlmodules.models.sharding import require_all_sharded, require_shareable
from rlmodules.strategies import Replicated, Sharded
from rlmodules.trainer_options import check_shared_out, check_trainer, is_sharded

SCRIPT = """
import sys
import torch
from equality_helpers import run

processes, folder = int(sys.argv[1]), sys.argv[2]
for name in ("ppo", "dpo+lora", "pairwise"):
    strategy = "fsdp" if processes > 1 else "one"
    run(name, strategy, processes, f"{folder}/{name}/{processes}")
if processes > 1:
    middle = f"{folder}/pairwise/2/checkpoints/middle.ckpt"
    run("pairwise", "fsdp", processes, f"{folder}/pairwise/again", middle)
torch.save({}, f"{folder}/{processes}.pt")
"""
SHARES = {"strategy": {"_target_": "rlmodules.strategies.Sharded"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    alone_and_together(folder, SCRIPT)
    return folder


@pytest.mark.parametrize("name", ["ppo", "dpo+lora", "pairwise"])
def test_sharing_a_model_out_changes_neither_weights_nor_metrics(folder, name):
    """With responses of 3 and of 300 tokens, all the short ones in one process."""
    weights, metrics = differences(folder / name / "1", folder / name / "2")
    assert weights < 2e-5, weights
    # Adam's first steps are of the learning rate, whichever sign rounding gives a tiny gradient.
    assert max(metrics.values()) < 1e-3, sorted(metrics.items(), key=lambda row: -row[1])[:5]


def test_what_was_shared_out_is_exported_whole(folder):
    one, two = (
        AutoModelForCausalLM.from_pretrained(folder / "ppo" / number / "model").state_dict()
        for number in "12"
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["ppo", "dpo+lora", "pairwise"])
def test_each_process_writes_its_half_of_a_checkpoint(folder, name):
    """That none is gathered for it is said where ``equality_helpers`` saves."""
    path = folder / name / "2" / "end.ckpt"
    (shares,) = path.parent.glob("end.ckpt.shares-*")
    sizes = [file.stat().st_size for file in shares.iterdir()]
    assert len(sizes) == 2 and max(sizes) < 0.51 * sum(sizes)
    found = AtomicCheckpointIO().load_checkpoint(path)
    assert sum(sizes) > 3 * size_in_memory(found["state_dict"])  # Adam's two moments, too


def test_two_processes_go_on_from_their_shares_bit_by_bit(folder):
    straight, again = (
        AtomicCheckpointIO().load_checkpoint(folder / "pairwise" / which / "end.ckpt")
        for which in ("2", "again")
    )
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(again[part], straight[part], rtol=0, atol=0)


def test_what_is_saved_while_weights_are_gathered_is_what_is_saved_otherwise(folder):
    """The last evaluation is of the end."""
    path = folder / "pairwise" / "2"
    judged = AtomicCheckpointIO().load_checkpoint(path / "checkpoints" / "judged.ckpt")
    end = AtomicCheckpointIO().load_checkpoint(path / "end.ckpt")
    assert judged["global_step"] == end["global_step"] == 2
    torch.testing.assert_close(judged["state_dict"], end["state_dict"], rtol=0, atol=0)


def test_one_process_goes_on_from_the_shares_of_two(folder, tmp_path):
    """From the middle, after one optimizer step; of a head of one row, a process has none."""
    run("pairwise", "one", 1, tmp_path, folder / "pairwise" / "2" / "checkpoints" / "middle.ckpt")
    weights, metrics = differences(folder / "pairwise" / "2", tmp_path)
    assert weights < 2e-5, weights
    assert max(metrics.values()) < 1e-3, metrics


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "bf16-true"}, "trainer.precision='bf16-true'"),
        ({"precision": "16-mixed", "accelerator": "gpu"}, "trainer.precision='16-mixed'"),
        ({"accelerator": "mps"}, "trainer.accelerator='mps'"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(options, said):
    algo = {"num_iterations": 1, "max_grad_norm": 1.0, "gradient_accumulation_steps": 1,
            "eval_every": 1}  # fmt: skip
    with pytest.raises(ValueError, match=said):
        check_trainer(SHARES | options, algo, "/run")
    check_trainer(SHARES | {"precision": "bf16-mixed"}, algo, "/run")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"model": {"quantization": "4bit"}}, "model.quantization=4bit"),
        ({"algo": {"optimizer": {"name": "muon"}}}, "optimizer=muon"),
        ({"sampler": {"url": None}}, "sampler=vllm"),
        ({"model": {"compile": True}}, "model.compile=true"),
    ],
)
def test_what_a_shared_model_cannot_be_is_refused(told, said):
    whole = {"trainer": SHARES, "model": {"quantization": "none"}, "algo": {}, "sampler": None}
    check_shared_out(whole)
    with pytest.raises(ValueError, match=f"{said} does not work with trainer=fsdp"):
        check_shared_out(whole | told)
    check_shared_out(whole | told | {"trainer": {"strategy": "auto"}})


def test_quantized_weights_are_not_shared_out():
    module = torch.nn.Linear(2, 2)
    require_shareable(module)
    module.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight is quantized \(torch.uint8\)"):
        require_shareable(module)


def test_weights_that_no_one_shares_out_are_refused():
    with pytest.raises(ValueError, match=r"Linear has weights outside .* \(weight, bias\)"):
        require_all_sharded(torch.nn.Linear(2, 2))


def test_other_strategies_are_refused():
    algo = {"num_iterations": 1, "max_grad_norm": 1.0, "gradient_accumulation_steps": 1,
            "eval_every": 1}  # fmt: skip
    for strategy in ("fsdp", {"_target_": "lightning.pytorch.strategies.FSDPStrategy"}):
        with pytest.raises(ValueError, match=r"trainer\.strategy.*trainer=fsdp"):
            check_trainer({"strategy": strategy}, algo, "/run")


def test_a_process_waits_for_the_others_as_long_as_it_is_told():
    for kind in (Replicated, Sharded):
        assert kind(timeout_s=90)._timeout.total_seconds() == 90
        with pytest.raises(ValueError, match=r"trainer\.strategy\.timeout_s=0 must be positive"):
            kind(timeout_s=0)
    assert is_sharded(Sharded()) and not is_sharded(Replicated()) and not is_sharded("auto")
