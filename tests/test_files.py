"""Writing: whole or not at all, whoever else writes, and every error names the file."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from fastlip import _files
from fastlip._files import printable, read_json, require_writable, write_atomically, write_json, write_text


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    begun, go_on = threading.Event(), threading.Event()

    def slow(file):
        file.write(b"A" * 1000)
        file.flush()
        begun.set()
        assert go_on.wait(10)
        file.write(b"A" * 1000)

    thread = threading.Thread(target=write_atomically, args=(path, slow))
    thread.start()
    assert begun.wait(10)
    write_atomically(path, lambda file: file.write(b"B" * 2000))
    assert path.read_bytes() == b"B" * 2000
    go_on.set()
    thread.join()
    assert path.read_bytes() == b"A" * 2000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("k"), KeyboardInterrupt()]
)
def test_a_failed_write_loses_nothing_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"before")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(path, fail)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file.bin"]
    if isinstance(error, OSError):
        assert (caught.value.filename, caught.value.errno) == (str(path), errno.ENOSPC)


FULL_DISK = """
import pathlib, resource, torch
from fastlip._files import write_atomically

program = torch.export.export(torch.nn.Linear(300, 300), (torch.zeros(2, 300),))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (
    lambda file: torch.save(torch.zeros(100_000), file),
    lambda file: torch.export.save(program, file),
    lambda file: file.write(bytes(100_000)),
):
    try:
        write_atomically(pathlib.Path("kept.pt"), write)
    except OSError as error:
        print(error.filename, error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "kept.pt").write_bytes(b"before")
    run = subprocess.run([sys.executable, "-c", FULL_DISK], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "kept.pt File too large\n" * 3, run.stderr
    assert os.listdir(tmp_path) == ["kept.pt"]
    assert (tmp_path / "kept.pt").read_bytes() == b"before"


@pytest.fixture
def read_only(monkeypatch):
    """A file system that cannot be written to: making and removing files fails, whether or not they are there."""

    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(_files.io, "FileIO", refuse)
    monkeypatch.setattr(_files.Path, "unlink", refuse)


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("write", [lambda path: write_text(path, "a"), require_writable])
def test_a_read_only_folder_names_the_file_and_no_temporary_one(tmp_path, write):
    with pytest.raises(OSError, match="Read-only file system") as caught:
        write(tmp_path / "a.txt")
    assert (caught.value.filename, caught.value.errno) == (str(tmp_path / "a.txt"), errno.EROFS)


def test_asking_whether_a_file_can_be_written_changes_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    require_writable(tmp_path / "a.txt")
    require_writable(tmp_path / "b.txt")
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"
    with pytest.raises(FileNotFoundError) as caught:
        require_writable(tmp_path / "none" / "a.txt")
    assert caught.value.filename == str(tmp_path / "none" / "a.txt")


def test_missing_folders_and_other_things_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "none" / "a.txt", "a")
    assert caught.value.filename == str(tmp_path / "none" / "a.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: is not a regular file"):
        write_text(tmp_path / "folder", "a")
    with pytest.raises(ValueError, match="/dev/null: is not a regular file"):
        write_text(type(tmp_path)("/dev/null"), "a")
    assert os.path.exists("/dev/null")


def test_a_link_is_followed_and_modes_follow_the_umask(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_text(tmp_path / "link.txt", "é")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_bytes() == "é".encode()
    (tmp_path / "plain").touch()
    assert (tmp_path / "real.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_names_that_are_no_utf8_can_be_written_and_shown(tmp_path):
    name = os.fsdecode(b"caf\xe9\n")
    assert printable(name) == r"caf\xe9\n"
    assert printable("café") == "café"
    write_text(tmp_path / "a.md", f"# {name}")
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith(r"# caf\udce9")
    write_json(tmp_path / "a.json", {"path": name})
    assert read_json(tmp_path / "a.json") == {"path": name}
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"path": name}


@pytest.mark.parametrize("content", [b"{", b"\xff", b"", b"[" * 100_000])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: damaged"):
        read_json(tmp_path / "a.json")


def test_long_names_leave_room_for_the_temporary_file(tmp_path):
    path = tmp_path / ("n" * 251 + ".pt")
    write_atomically(path, lambda file: torch.save(1, file))
    assert torch.load(path) == 1
