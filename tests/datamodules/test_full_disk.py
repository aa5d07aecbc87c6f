"""A disk that does not take a file: what is said, what is left, and what is cleaned up."""

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from datamodules.atomic import (
    StorageError,
    appending,
    explained,
    human,
    remove_leftovers,
    replacing,
    write_text,
    writing,
)
from datamodules.rollouts.pairs_file import PairsFile
from datamodules.text.cache import cached
from rlmodules.callbacks import AtomicCheckpointIO
from rlmodules.models.embedded import tiny_model

ROOT = Path(__file__).parents[2]
QUICK = ["experiment=smoke", "trainer.precision=32-true", "algo.device=cpu", "logger=none"]


@pytest.fixture
def small(tmp_path):
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def largest_file(size):
    """What is longer than ``size`` bytes cannot be written."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def save_bytes(path):
    path.write_bytes(b"x" * 3_000_000)


def save_torch(path):
    torch.save({"x": torch.zeros(750_000)}, path)


def save_tensors(path):
    save_file({"x": torch.zeros(750_000)}, path)


def save_model(path):
    tiny_model()[0].float().save_pretrained(path, max_shard_size="100KB")
    save_bytes(path / "more.bin")


@pytest.mark.parametrize("save", [save_bytes, save_torch, save_tensors, save_model])
def test_a_full_disk_is_said_with_path_and_room_and_what_was_there_stays(save, small):
    path = small / "folder" / "file"
    path.parent.mkdir()
    if save is not save_model:
        path.write_text("old")
    with pytest.raises(StorageError) as refused, replacing(path, needs=3_000_000) as partial:
        save(partial)
    said = str(refused.value)
    assert said.startswith(f"{path} could not be written: the disk ")
    assert "It needs 3 MB, " in said and " are free; " in said
    if save is not save_torch:  # which keeps hold of its file as long as the error lives
        assert shutil.disk_usage(small).free > 900_000
    if save is save_model:
        assert not path.exists() and "nothing is left of it" in said
    else:
        assert path.read_text() == "old" and "what was there before is as it was" in said
        assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_read_only_disk_and_a_limit_are_said_as_such(small, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(StorageError, match=r"disk/file could not be written: the file system is r"):
        write_text(small / "file", "new")
    with largest_file(100), pytest.raises(StorageError, match="the file is larger than allowed"):
        write_text(tmp_path / "file", "x" * 200)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_errors_of_the_disk_are_told_from_others(number, tmp_path):
    with pytest.raises(StorageError, match=str(tmp_path / "file")), replacing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    raw = OSError(number, os.strerror(number), "/nowhere/x")
    said = explained(raw, tmp_path)  # a file that may not be read is no matter of the disk
    assert said is None if number == errno.EACCES else "/nowhere/x could not be written" in said
    with pytest.raises(StorageError, match="x could not be written"), writing(Path("/nowhere/x")):
        raise raw
    outside = SafetensorError("I/O error: No space left on device (os error 28)")
    assert f"a file in {tmp_path} could not be written: the disk is full" in explained(
        outside, tmp_path
    )
    for error in (FileNotFoundError(errno.ENOENT, "gone", "data.jsonl"), ValueError("wrong")):
        with pytest.raises(type(error)) as same, replacing(tmp_path / "file"):
            raise error
        assert same.value is error and explained(error, tmp_path) is None


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one_and_says_its_size(small):
    io, path = AtomicCheckpointIO(), small / "last.ckpt"
    io.save_checkpoint({"x": torch.ones(1000), "step": 1}, path)
    with pytest.raises(StorageError, match=r"last\.ckpt could not be written.*It needs 4 MB"):
        io.save_checkpoint({"nested": [{"x": torch.ones(1_000_000)}], "step": 2}, path)
    assert shutil.disk_usage(small).free > 900_000
    assert io.load_checkpoint(path)["step"] == 1


def test_pairs_are_appended_whole_or_not_at_all(small):
    file = PairsFile(small / "pairs.jsonl", {"model": "m"})
    row = {"index": 0, "score_chosen": 1.0, "score_rejected": 0.0, "chosen": "yes"}
    file.append([row])
    before = file.path.read_bytes()
    with pytest.raises(StorageError, match=r"pairs\.jsonl could not be written: the disk is full"):
        file.append([row | {"index": 1, "chosen": "y" * 3_000_000}])
    assert file.path.read_bytes() == before and len(file.rows) == 1
    assert json.loads(before)["index"] == 0
    with largest_file(len(before) + 5), pytest.raises(StorageError, match="larger than allowed"):
        appending(file.path, b"0123456789")
    assert file.path.read_bytes() == before


def test_a_cache_that_does_not_fit_costs_a_warning_and_is_not_half_there(small, monkeypatch):
    monkeypatch.setattr("datamodules.text.cache.user_cache_path", lambda name: small / name)
    made = []

    def make():
        made.append(1)
        return {"x": torch.zeros(750_000)}

    for _ in range(2):
        with pytest.warns(UserWarning, match="could not be written"):
            assert len(cached("kind", "key", make)["x"]) == 750_000
    assert len(made) == 2 and not [p for p in small.rglob("*") if p.is_file()]


def test_a_run_on_a_full_disk_ends_in_one_sentence(small, command):
    (small / "filler").write_bytes(b"x" * 900_000)
    said = command(*QUICK, f"hydra.run.dir={small}/run", status=1)
    assert f"{small}/run/" in said and "could not be written: the disk" in said
    assert "are free" in said and not list(small.rglob("*.partial"))
    assert not list(small.rglob("last.ckpt"))


@pytest.mark.parametrize("given", [[], ["hydra.run.dir={}/run"]])
def test_a_run_in_a_read_only_folder_ends_in_one_sentence(given, small, command, monkeypatch):
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    monkeypatch.chdir(small)
    said = command(*QUICK, *(text.format(small) for text in given), status=1)
    assert f"{small}/" in said and "could not be written: the file system is read-only" in said


# ------------------------------------------------------------------ leftovers

WRITER = """
import pathlib, sys, time
from datamodules.atomic import replacing
with replacing(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    options = {"stdout": subprocess.PIPE, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **options) for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline()
    dead, alive = writers
    foreign = path.parent / ".last.ckpt.elsewhere-1.abc.partial"
    foreign.mkdir()
    dead.kill()
    dead.wait()
    try:
        left = sorted(path.parent.glob(".*.partial"))
        assert len(left) == 3
        with replacing(path) as partial:
            partial.write_text("whole")
        left = {p.name.rsplit(".", 2)[0] for p in path.parent.glob(".*.partial")}
        assert left == {".last.ckpt.elsewhere-1", f".last.ckpt.{socket.gethostname()}-{alive.pid}"}
    finally:
        alive.kill()
        alive.wait()
    assert len(remove_leftovers(tmp_path, below=True)) == 1
    assert path.read_text() == "whole"


def test_a_run_removes_what_killed_ones_left_below_its_root(command, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place = tmp_path / "outputs" / "day" / "time" / "checkpoints"
    left = place / f".last.ckpt.{socket.gethostname()}-{gone.pid}.abc.partial"
    left.mkdir(parents=True)
    (left / "last.ckpt").write_text("half")
    time.sleep(0.1)
    said = command(*QUICK, "algo.mini_batch_size=3", status=1)
    assert f"Removed what was half written: {left}" in said and not left.exists()


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2 * 10**12, "2 TB")]
)
def test_sizes_are_readable(count, shown):
    assert human(count) == shown
