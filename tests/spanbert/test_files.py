"""A file or folder is whole or absent, also when the writer fails, dies, or the disk is full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

import spanbert.files
from spanbert.errors import UserError
from spanbert.files import (
    atomic_folder,
    check_writable,
    clear_leftovers,
    is_full_disk,
    read_bounded,
    remove_folder,
    remove_leftovers,
    write_atomic,
)


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_write_replaces_in_one_go(tmp_path):
    write_atomic(tmp_path / "deep" / "a.txt", "old")
    write_atomic(tmp_path / "deep" / "a.txt", b"new")
    assert (tmp_path / "deep" / "a.txt").read_text() == "new" and names(tmp_path / "deep") == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", "old")
    monkeypatch.setattr(spanbert.files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(UserError, match=r"the disk is full while writing .*/a: what was there before still stands"):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_another_error_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), atomic_folder(tmp_path / "f"):
        raise PermissionError(errno.EACCES, "no")
    assert names(tmp_path) == []


def test_full_disks_are_recognised():
    assert is_full_disk(OSError(errno.EDQUOT, "quota"))
    assert is_full_disk(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(SafetensorError("Error while deserializing header")) and not is_full_disk(OSError("?"))


def test_a_folder_is_published_at_the_end_and_replaces_the_old_one(tmp_path):
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "f") as aside:
            assert not names(aside)
            (aside / "sub").mkdir()
            (aside / "sub" / "x").write_text(content)
            before = (tmp_path / "f" / "sub" / "x").read_text() if content == "two" else None
            assert before == ("one" if content == "two" else None)
        assert (tmp_path / "f" / "sub" / "x").read_text() == content
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "f") as aside:
        (aside / "y").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["sub"]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    """Killed while writing aside, and between the two renames of a replacement: then the old folder comes back."""
    (tmp_path / ".step-1.77.partial").mkdir()
    (tmp_path / ".file.77.partial").write_text("half")
    (tmp_path / ".step-2.77.old").mkdir()
    (tmp_path / ".step-2.77.old" / "x").write_text("whole")
    (tmp_path / ".step-3.77.old").mkdir()
    (tmp_path / "step-3").mkdir()
    (tmp_path / ".hidden").write_text("somebody else's")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "step-2", "step-3"] and (tmp_path / "step-2" / "x").read_text() == "whole"
    remove_leftovers(tmp_path / "absent")


def test_a_removed_folder_loses_its_name_first(tmp_path, monkeypatch):
    """A kill in the middle of deleting must not leave something that looks like a checkpoint."""
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "x").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(spanbert.files.shutil, "rmtree", lambda *_, **__: None)
        remove_folder(tmp_path / "step-1")
    assert names(tmp_path) == [f".step-1.{os.getpid()}.partial"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_reading_whole_has_bounds(tmp_path):
    """``ask --context /dev/zero`` took 10 GB within 8 seconds."""
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a", 5, "the text") == b"12345"
    with pytest.raises(UserError, match=r"/a holds more than 4 bytes, the most that is read for the text"):
        read_bounded(tmp_path / "a", 4, "the text")
    for name, reason in {
        "/dev/zero": "is a device: the text is read from a file or a pipe",
        str(tmp_path): "is a folder: the text is read from a file",
        f"{tmp_path}/b": "no such file",
        f"{tmp_path}/a/b": r"the text cannot be read \(Not a directory\)",
        f"{tmp_path}/{'n' * 300}": r"the text cannot be read \(File name too long\)",
        "a\0b": "the text cannot be read",
    }.items():
        with pytest.raises(UserError, match=reason):
            read_bounded(name, 5, "the text")


def test_a_pipe_is_read_in_bounds(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for sent in (b"short", b"longer" * spanbert.files.READ_BYTES):

        def send(sent: bytes = sent) -> None:
            with contextlib.suppress(BrokenPipeError), (tmp_path / "pipe").open("wb") as pipe:
                pipe.write(sent)

        writer = threading.Thread(target=send)
        writer.start()
        if sent == b"short":
            assert read_bounded(tmp_path / "pipe", 5, "the text") == b"short"
        else:
            with pytest.raises(UserError, match=r"pipe holds more than 2 MiB, the most that is read for the text"):
                read_bounded(tmp_path / "pipe", 2 << 20, "the text")
        writer.join()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"typed")))
    assert read_bounded("-", 5, "the text") == b"typed"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        read_bounded("-", 5, "the text")


WRITE_FOR_EVER = """
import sys, time
from pathlib import Path
from spanbert.files import atomic_folder
with atomic_folder(sys.argv[1]) as aside:
    (aside / "x").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    """prepare, export and import left up to a corpus or a model per kill."""
    running = [
        subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path / "out")], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for process in running:
            assert process.stdout.readline() == b"writing\n"
        asides = {process.pid: f".out.{process.pid}.partial" for process in running}
        assert names(tmp_path) == sorted(asides.values())
        running[0].kill()
        running[0].wait()
        clear_leftovers(tmp_path / "other")
        assert len(names(tmp_path)) == 2
        with atomic_folder(tmp_path / "out"):
            pass
        assert names(tmp_path) == sorted([asides[running[1].pid], "out"])
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()


def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path):
    (tmp_path / ".out.77.old").mkdir()
    (tmp_path / ".out.77.old" / "x").write_text("whole")
    (tmp_path / ".out.txt").write_text("somebody else's")
    (tmp_path / ".out.77.partial").write_text("no folder")
    clear_leftovers(tmp_path / "out")
    assert names(tmp_path) == [".out.77.partial", ".out.txt", "out"]
    assert (tmp_path / "out" / "x").read_text() == "whole"


def test_of_two_writers_of_a_new_folder_the_first_wins(tmp_path):
    expected = pytest.raises(UserError, match="another process has written it meanwhile")
    with expected, atomic_folder(tmp_path / "out", replace=False) as aside:
        (aside / "x").write_text("second")
        with atomic_folder(tmp_path / "out", replace=False) as first:
            (first / "x").write_text("first")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "x").read_text() == "first"


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("file/below", "folder", "Not a directory|File exists"),
        ("n" * 300, "file", "File name too long"),
        ("n" * 250, "files inside", "File name too long"),
        ("folder", "file", "is a folder: name a file"),
        ("file", "files inside", "is a file: give the name of a folder"),
        ("/proc/nowhere/x", "folder", "cannot be written"),
        ("/proc", "folder", "is where a file system is mounted"),
    ],
)
def test_an_output_is_proven_writable_beforehand(tmp_path, name, kind, reason):
    """Hours of pretraining ended at a folder that could not be written."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"--output .*({reason})"):
        check_writable(tmp_path / name, kind)
    for good in ("deep/er/new", "folder", "new"):
        check_writable(tmp_path / good, "folder")
    check_writable(tmp_path / "file", "file")
    assert names(tmp_path) == ["file", "folder"] and names(tmp_path / "folder") == []


def test_a_full_disk_is_found_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(spanbert.files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EDQUOT, "quota")))
    with pytest.raises(UserError, match=r"--html .*/a cannot be written \(quota\)"):
        check_writable(tmp_path / "a", "file", "--html")
    assert names(tmp_path) == []


def test_an_error_that_names_no_file_gets_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(spanbert.files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "bad disk")))
    with pytest.raises(OSError, match="bad disk") as caught:
        write_atomic(tmp_path / "a", "x")
    assert caught.value.filename == str(tmp_path / "a")


def test_a_lone_surrogate_is_written_as_json_writes_it(tmp_path):
    """One in the id of a dev question kept the predictions, and the model behind them, from being written."""
    write_atomic(tmp_path / "a", '{"id": "\udc80𝄞"}')
    assert (tmp_path / "a").read_text() == '{"id": "\\udc80𝄞"}'


def test_a_proof_of_writing_that_stays_is_no_proof(tmp_path, monkeypatch):
    """What cannot be removed cannot be renamed into place either; what stayed is cleared by the next start."""
    honest = Path.unlink

    def unlink(path, missing_ok=False):
        if path.name.endswith(".writable"):
            raise OSError(errno.EACCES, "Permission denied", str(path))
        honest(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(UserError, match="cannot be written"):
            check_writable(tmp_path / "out", "file")
    (left,) = tmp_path.iterdir()
    left.rename(left.with_name(".out.1.writable"))
    (tmp_path / ".other.1.writable").touch()
    check_writable(tmp_path / "out", "file")
    assert [path.name for path in tmp_path.iterdir()] == [".other.1.writable"]
