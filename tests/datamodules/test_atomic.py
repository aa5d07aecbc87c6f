"""What is written is there whole or not at all, and on the disk before it is there."""

import os
import threading

import pytest

from datamodules.atomic import replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "not" / "there" / "file.txt"
    for text in ("old", "new"):
        with replacing(path) as partial:
            partial.write_text(text)
            assert partial.parent != path.parent and partial.stat().st_dev == tmp_path.stat().st_dev
        assert path.read_text() == text
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_half_way_changes_nothing(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:
        partial.write_text("ne")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_a_folder_takes_no_others_place_but_by_an_exchange_that_says_so(tmp_path):
    def write(text, *exchange):
        with replacing(tmp_path / "folder", *exchange) as partial:
            (partial / "inside").mkdir(parents=True)
            (partial / "inside" / "file.txt").write_text(text)

    def swap(new, place):
        os.replace(place, tmp_path / "aside")
        os.replace(new, place)

    write("first")
    with pytest.raises(OSError):
        write("second")
    assert (tmp_path / "folder" / "inside" / "file.txt").read_text() == "first"
    assert names(tmp_path) == ["folder"]
    write("third", swap)
    assert (tmp_path / "folder" / "inside" / "file.txt").read_text() == "third"
    assert names(tmp_path) == ["aside", "folder"]


def test_all_of_it_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    flushed, original = [], os.fsync

    def fsync(handle):
        flushed.append(os.fstat(handle).st_ino)
        original(handle)

    def exchange(new, place):
        written = [new, new / "inside", new / "inside" / "a.txt", new / "b.txt"]
        assert sorted(flushed) == sorted(path.stat().st_ino for path in written)
        os.replace(new, place)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "folder", exchange) as partial:
        (partial / "inside").mkdir(parents=True)
        (partial / "inside" / "a.txt").write_text("a")
        (partial / "b.txt").write_text("b")
        assert flushed == []
    assert flushed[4:] == [tmp_path.stat().st_ino]  # and its name once it is there


def test_two_threads_that_write_one_file_at_once_leave_one_of_both_whole(tmp_path):
    path, together = tmp_path / "file.txt", threading.Barrier(2)

    def write(text):
        with replacing(path) as partial:
            partial.write_text(text)
            together.wait(timeout=30)
            assert partial.read_text() == text

    threads = [threading.Thread(target=write, args=(c * 1000,)) for c in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("a" * 1000, "b" * 1000) and names(tmp_path) == ["file.txt"]
