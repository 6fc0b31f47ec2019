"""Files and folders appear whole or not at all, and of two processes that make the same one the second is told so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.data.whole import SHARED, alone, file_system, is_held, whole_file, whole_folder
from unmask.errors import CheckpointError, StoreError

BUSY = "another process is at work on '.*(out|page.html)'; wait for it"


def test_a_folder_is_made_by_one_at_a_time_and_is_there_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out, made_of=["a"], error=StoreError) as partial:
        (partial / "a").write_text("1")
        with pytest.raises(StoreError, match=BUSY), whole_folder(out, made_of=["a"], error=StoreError):
            pytest.fail("the folder was given to two")
        assert (partial / "a").read_text() == "1" and not out.exists()
    assert (out / "a").read_text() == "1"
    with whole_folder(out, made_of=["a"]) as partial:
        (partial / "a").write_text("2")
    assert (out / "a").read_text() == "2" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_interrupted_goes_and_what_was_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def folder() -> None:
        with whole_folder(out, made_of=["a"]) as partial:
            (partial / "a").write_text("half")
            raise KeyboardInterrupt

    def file() -> None:
        with whole_file(out / "a") as half:
            half.write("half")
            raise KeyboardInterrupt

    for interrupted in (folder, file):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    assert (out / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and [path.name for path in out.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_cleared_and_what_others_left_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, sys; from pathlib import Path; from unmask.data.whole import whole_folder\n"
        "with whole_folder(Path(sys.argv[1]), made_of=['a']) as partial:\n"
        "    (partial / 'a').mkdir(); (partial / 'b').touch(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)
    assert (tmp_path / "out.partial" / "a").is_dir()
    with whole_folder(out, made_of=["a"]) as partial:
        assert not any(partial.iterdir())
    other = tmp_path / "thesis.partial"
    other.mkdir()
    (other / "chapter.txt").touch()
    with pytest.raises(CheckpointError, match="was not made by unmask"), whole_folder(tmp_path / "thesis", made_of=["a"]):
        pass
    assert (other / "chapter.txt").exists()


def test_a_file_is_written_by_one_at_a_time(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with whole_file(page) as file:
        file.write("first")
        with pytest.raises(CheckpointError, match=BUSY), whole_file(page):
            pytest.fail("the file was given to two")
    assert page.read_text() == "first"
    (tmp_path / "page.html.partial").write_text("a longer text that a killed process has left")
    with whole_file(page) as file:
        file.write("second")
    assert page.read_text() == "second" and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_lock_on_what_has_moved_away_holds_nothing(tmp_path: Path) -> None:
    """The first holds out.partial and moves it to its place; the next makes a folder of its own, and neither touches the other's."""
    with alone(tmp_path / "x"):
        (tmp_path / "x").rename(tmp_path / "y")
        with alone(tmp_path / "x"):
            assert (tmp_path / "x").is_dir() and (tmp_path / "y").is_dir()


def test_whether_somebody_is_at_it_can_be_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with alone(out):
        assert is_held(out) is True
    assert is_held(out) is (None if file_system(out).startswith(SHARED) else False)
    with pytest.raises(FileNotFoundError):
        is_held(tmp_path / "none")


def test_a_file_system_of_several_machines_is_known_by_its_name(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mounts"
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt/runs rw,noatime shared:1 - nfs4 server:/runs rw\n"
    mounts.write_text("22 1 0:99999 / / rw - ext4 /dev/x rw\nnot a line\n" + line)
    assert file_system(tmp_path, mounts) == "nfs4" and "nfs4".startswith(SHARED)
    assert file_system(tmp_path, tmp_path / "none") == ""
    assert not any(name.startswith(SHARED) for name in ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs"))
