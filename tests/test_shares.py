"""Checkpoints whose tensors lie in shares beside a small file: written, read, damaged, moved.

That several processes write and read them is tested in ``algorithms/test_fsdp.py`` and
``scale/test_shares.py``.
"""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from datamodules.atomic import StorageError
from rlmodules.callbacks import AtomicCheckpointIO
from rlmodules.callbacks.best import SaveBest
from rlmodules.resuming import saving_shares
from rlmodules.resuming.checkpoint import newest, read
from rlmodules.resuming.kept import keep, kept
from rlmodules.resuming.saving_shares import require_one_disk, write_shares
from rlmodules.resuming.shares import Share, Shares, named_by, with_places, with_values
from rlmodules.strategies import Sharded

WHOLE = {"weight": torch.arange(12.0).reshape(4, 3), "bias": torch.tensor([1.0, 2.0, 3.0])}


@pytest.fixture(autouse=True)
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shared_out(tensor):
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu")
    return distribute_tensor(tensor, mesh, [Shard(0)])


def checkpoint(step):
    """As Lightning makes one under ``Sharded``; all tensors are ``step`` times those of WHOLE."""
    tensors = {name: shared_out(tensor * step) for name, tensor in WHOLE.items()}
    moments = {"step": torch.tensor(float(step)), "exp_avg": tensors["weight"]}
    return {
        "state_dict": tensors | {"_extra_state": {"coef": step}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"params": [0]}]}],
        "loops": {},
        "iteration_states": [{"kept": torch.tensor([5.0])}],
        "global_step": step,
    }


def save(path, step=1):
    AtomicCheckpointIO().save_checkpoint(write_shares(checkpoint(step), path), path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_shared_out_is_read_whole(tmp_path):
    found = AtomicCheckpointIO().load_checkpoint(save(tmp_path / "last.ckpt", 3))
    assert found.keys() == checkpoint(3).keys() | {"format"}
    for name, tensor in WHOLE.items():
        torch.testing.assert_close(found["state_dict"][name], tensor * 3, rtol=0, atol=0)
    moments = found["optimizer_states"][0]["state"][0]
    torch.testing.assert_close(moments["exp_avg"], WHOLE["weight"] * 3, rtol=0, atol=0)
    assert moments["step"] == 3 and found["state_dict"]["_extra_state"] == {"coef": 3}
    assert found["iteration_states"] == [{"kept": torch.tensor([5.0])}]


def test_names_and_shapes_are_in_the_file_itself(tmp_path):
    path = save(tmp_path / "last.ckpt")
    (folder,) = tmp_path.glob("last.ckpt.shares-*")
    state = read(path)["state_dict"]
    assert {n: (t.shape, t.dtype, t.is_meta) for n, t in state.items() if n in WHOLE} == {
        n: (t.shape, t.dtype, True) for n, t in WHOLE.items()
    }
    assert names(folder) == ["__0_0.distcp"]
    with pytest.raises(NotImplementedError, match="meta"):  # and nobody takes them for weights
        torch.empty(4, 3).copy_(state["weight"])
    only = with_values(read(path), path, ("state_dict",))
    assert only["state_dict"]["bias"].tolist() == [1, 2, 3]
    assert only["optimizer_states"][0]["state"][0]["exp_avg"].is_meta


def test_a_share_is_read_into_what_is_shared_out(tmp_path):
    path = save(tmp_path / "last.ckpt", 2)
    found = read(path)
    shares, places = Shares.of(found, path), with_places(found)
    place = places["state_dict"]["weight"]
    assert place == Share("state_dict/weight", torch.float32)
    target = shared_out(torch.zeros(4, 3))
    shares.read({place.key: target})
    torch.testing.assert_close(target.full_tensor(), WHOLE["weight"] * 2, rtol=0, atol=0)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    path = save(tmp_path / "last.ckpt")
    shares = Shares.of(read(path), path)
    with pytest.raises(ValueError, match=r"shares-\w+ does not hold what .*Size mismatch"):
        shares.read({"state_dict/weight": torch.zeros(5, 3)})


def test_a_new_checkpoint_takes_the_place_of_the_old_and_of_its_shares(tmp_path):
    other, path = save(tmp_path / "best.ckpt", 7), tmp_path / "last.ckpt"
    for step in (1, 2):
        save(path, step)
        assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["bias"][0] == step
        assert len(list(tmp_path.glob("last.ckpt.shares-*"))) == 1
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)  # in one file
    assert not list(tmp_path.glob("last.ckpt.shares-*"))
    assert AtomicCheckpointIO().load_checkpoint(other)["state_dict"]["bias"][0] == 7
    AtomicCheckpointIO().remove_checkpoint(other)
    assert names(tmp_path) == ["last.ckpt"]


def test_shares_that_another_file_names_stay(tmp_path):
    path = save(tmp_path / "last.ckpt", 1)
    shutil.copy(path, tmp_path / "kept.ckpt")
    save(path, 2)
    kept = AtomicCheckpointIO().load_checkpoint(tmp_path / "kept.ckpt")
    assert kept["state_dict"]["bias"][0] == 1


def test_a_checkpoint_that_is_no_longer_kept_takes_its_shares_with_it(tmp_path):
    for step in (1, 2, 3, 4):
        keep(save(tmp_path / "last.ckpt", step), tmp_path, step, 2)
    assert list(kept(tmp_path)) == [3, 4] and len(list(tmp_path.glob("*.shares-*"))) == 2
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    keep(tmp_path / "last.ckpt", elsewhere, 4, 1)  # as where another run goes on from it
    keep(save(elsewhere / "last.ckpt", 5), elsewhere, 5, 1)
    (left,) = elsewhere.glob("*.shares-*")
    assert left.name == named_by(elsewhere / "last.ckpt")


def test_a_save_that_fails_leaves_the_old_one(tmp_path):
    path = save(tmp_path / "last.ckpt", 1)
    full = OSError(28, "No space left on device")
    with (
        mock.patch.object(saving_shares._Writer, "write_data", side_effect=full),
        pytest.raises(StorageError, match=r"last\.ckpt\.shares-\w+ could not .* the disk is full"),
    ):
        save(path, 2)
    written = write_shares(checkpoint(2), path)
    with (
        mock.patch.object(torch, "save", side_effect=full),
        pytest.raises(StorageError, match=r"last\.ckpt could not be written: the disk is full"),
    ):
        AtomicCheckpointIO().save_checkpoint(written, path)
    assert len(names(tmp_path)) == 2
    assert AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["bias"][0] == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, r"weights are in .*shares-\w+, which is not there. Copy that folder"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), r"__0_0.distcp is not there. Copy it"),
        (lambda folder: os.truncate(folder / "__0_0.distcp", 1000), "__0_0.distcp is cut short"),
    ],
)
def test_a_checkpoint_that_lacks_its_shares_is_refused(tmp_path, damage, said):
    path = save(tmp_path / "run" / "checkpoints" / "last.ckpt")
    damage(next(path.parent.glob("*.shares-*")))
    for reading in (read, AtomicCheckpointIO().load_checkpoint, Sharded().load_checkpoint):
        with pytest.raises(ValueError, match=rf"last\.ckpt'? is only a part.*{said}"):
            reading(path)
    with pytest.raises(FileNotFoundError, match=said):
        newest([tmp_path], lambda *_: [])


def test_shares_that_are_damaged_within_are_refused(tmp_path):
    path = save(tmp_path / "last.ckpt")
    (file,) = tmp_path.glob("*.shares-*/*")
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ValueError, match=r"shares-\w+ does not hold what .* use an older"):
        AtomicCheckpointIO().load_checkpoint(path)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("opened"),)


def test_no_pickle_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "last.ckpt")
    (file,) = tmp_path.glob("*.shares-*/*")
    (file.parent / ".metadata").write_bytes(pickle.dumps(Harmful()))  # where torch looks
    AtomicCheckpointIO().load_checkpoint(path)
    file.write_bytes(pickle.dumps(Harmful()).ljust(file.stat().st_size, b"."))
    with pytest.raises(ValueError, match="does not hold what"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert not Path("opened").exists()


def test_processes_with_other_disks_are_refused(tmp_path):
    def apart(seen, here):
        seen[:] = [here, False]

    for writing in (save, require_one_disk):
        with (
            mock.patch.object(dist, "all_gather_object", apart),
            mock.patch.object(dist, "get_world_size", lambda *_: 2),
            pytest.raises(ValueError, match=r"process 1 .*save_distributed_checkpoint=false"),
        ):
            writing(tmp_path / "last.ckpt")
    require_one_disk(tmp_path)
    assert names(tmp_path / "last.ckpt") == []


def test_the_best_is_brought_with_its_shares(tmp_path):
    old = save(tmp_path / "old" / "best.ckpt", 4)
    saving = SaveBest(tmp_path / "new", monitor="x", filename="best")
    saving._brought = {old: tmp_path / "new" / "best.ckpt"}
    saving._bring(mock.Mock(is_global_zero=True))
    shutil.rmtree(old.parent)
    brought = AtomicCheckpointIO().load_checkpoint(tmp_path / "new" / "best.ckpt")
    assert brought["state_dict"]["bias"][0] == 4


SAVER = """
import sys
from pathlib import Path
import torch.distributed as dist
from test_shares import save
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
step = 0
while True:
    step += 1
    save(Path(sys.argv[1]), step)
"""


def test_a_kill_during_a_save_never_loses_the_previous_checkpoint(tmp_path):
    path, here = tmp_path / "last.ckpt", Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(path)],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
    )
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = AtomicCheckpointIO().load_checkpoint(path)
    assert found["state_dict"]["bias"][0] == found["global_step"] > 1
    save(path, 9)
    assert len(names(tmp_path)) == 2, names(tmp_path)


def test_the_option_is_yes_or_no():
    with pytest.raises(ValueError, match=r"save_distributed_checkpoint='no' must be true"):
        Sharded(save_distributed_checkpoint="no")
