"""What is written is its user's alone, and goes where the name says."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from lockguard._private_files import append_private, new_private, replacing, write_private
from lockguard.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(autouse=True)
def _open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_file_that_is_written_is_its_users_alone(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    target.chmod(0o666)
    write_private(target, "new")
    assert (target.read_text(), mode(target)) == ("new", 0o600)
    with append_private(tmp_path / "log") as file:
        file.write("line")
    assert mode(tmp_path / "log") == 0o600


def test_a_link_is_not_followed(tmp_path):
    precious, link = tmp_path / "precious", tmp_path / "report.json"
    precious.write_text("precious")
    link.symlink_to(precious)
    write_private(link, "report")
    assert (link.is_symlink(), link.read_text()) == (False, "report")
    other = tmp_path / "log"
    other.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        append_private(other)
    assert precious.read_text() == "precious"


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "report.json"
    with pytest.raises(RuntimeError), replacing(target) as file:
        file.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_a_new_file_replaces_none_and_is_gone_in_the_end(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    path = tmp_path / "file"
    with new_private(path, "text"):
        assert path.read_text() == "text"
        with pytest.raises(ConfigurationError, match="exists already"), new_private(path, "other"):
            pass
        assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.iterdir())
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="exists already"), new_private(path, "other"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/../dev/stdout"])
def test_a_stream_that_leads_to_a_file_is_written_to_and_its_name_is_not_replaced(
    name, tmp_path, monkeypatch
):
    """As root, ``--html /dev/stdout > page`` would take ``/dev/stdout`` from the machine."""

    def replaced(draft, target):
        raise AssertionError(f"{draft} would replace {target}")

    monkeypatch.setattr(Path, "replace", replaced)
    with (tmp_path / "page").open("w") as page:
        before = os.dup(1)
        try:
            os.dup2(page.fileno(), 1)
            os.write(1, b"first\n")
            write_private(Path(name), "report\n")
            os.write(1, b"last\n")
        finally:
            os.dup2(before, 1)
            os.close(before)
    assert (tmp_path / "page").read_text() == "first\nreport\nlast\n"


def test_a_pipe_is_written_to_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_private(pipe, "text")
    assert os.read(reading, 10) == b"text"
    os.close(reading)


def test_what_cannot_be_written_is_named_in_one_line(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written: No such file or directory"):
        write_private(tmp_path / "no" / "such" / "place", "x")


def test_nothing_else_in_the_library_writes_files():
    """Whoever writes a file uses these, or says in this list why it is no report, log or backup."""
    writes = re.compile(r"\.write_text\(|\.write_bytes\(|\.open\(\"[aw+]|FileHandler\(|open\([^)]*\"[wa]b?\"")
    allowed = {
        "lockguard/_private_files.py",
        "lab/lockguard_lab/servers/warden.py",  # runs without the library, and opens with mode 0600 itself
        "lab/lockguard_lab/servers/clock_jump.py",  # a number and a source file, in a server's own directory
    }
    found = {
        str(path.relative_to(ROOT))
        for folder in ("lockguard", "integrations")
        for path in (ROOT / folder).rglob("*.py")
        if writes.search(path.read_text(encoding="utf-8"))
    }
    assert found <= allowed, found - allowed
