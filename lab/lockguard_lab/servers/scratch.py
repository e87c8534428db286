"""Where the servers keep their files, and how leftovers of earlier runs are removed.

Below one base directory per user there are ``run/`` (one directory per server, deleted with it) and
``cache/`` (prepared Postgres data directories, which save a second each time). A directory in ``run/`` is
locked by the warden of its owner. One without that lock was left when the machine lost power or the warden
itself was killed; the next run deletes it and kills any process that it names.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
from pathlib import Path

import psutil

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_lab.servers.warden import OWNER_FILE, PIDS_FILE, kill_tree, remove_directory

__all__ = [
    "DIRECTORY_VARIABLE",
    "base_directory",
    "cache_directory",
    "kill_named_processes",
    "new_run_directory",
    "sweep_leftovers",
]

DIRECTORY_VARIABLE = "LOCKGUARD_TESTING_DIR"

_SOCKET_PATH_BYTES_MAX = 103  # macOS; Linux allows four more
_SOCKET_SUFFIX = "/run/0123456789ab/.s.PGSQL.12345"
_YOUNG_S = 60.0
_UNUSED_CACHE_S = 14 * 86_400.0


def base_directory() -> Path:
    """The directory of this user's embedded servers, created if needed.

    ``LOCKGUARD_TESTING_DIR`` names another one. ``/tmp`` replaces the system's temporary directory when a
    Unix socket below that would have too long a path, or when root runs this and other users cannot reach it
    (Postgres refuses to run as root).

    Raises:
        ConfigurationError: it belongs to another user, or cannot be created.
    """
    named = os.environ.get(DIRECTORY_VARIABLE)
    parent = Path(named) if named else Path(tempfile.gettempdir())
    if not named and not _suitable(parent):
        parent = Path("/tmp")  # noqa: S108 - the directory below is checked to be ours
    base = parent / f"lockguard-{os.getuid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        base.mkdir(mode=0o711, exist_ok=True)
        facts = base.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"{base}: {error.strerror}: name a directory for the embedded servers with {DIRECTORY_VARIABLE}"
        ) from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise ConfigurationError(
            f"{base} is not a directory of user {os.getuid()} alone: "
            f"delete it, or name another place with {DIRECTORY_VARIABLE}"
        )
    return base


def _suitable(parent: Path) -> bool:
    base = f"{parent}/lockguard-{os.getuid()}"
    if len(os.fsencode(base + _SOCKET_SUFFIX)) > _SOCKET_PATH_BYTES_MAX:
        return False
    if os.getuid() != 0:
        return True
    resolved = parent.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (resolved, *resolved.parents) if step.exists())


def cache_directory() -> Path:
    """The directory in which prepared directories are kept between runs."""
    directory = base_directory() / "cache"
    directory.mkdir(mode=0o711, exist_ok=True)
    return directory


def new_run_directory() -> Path:
    """A new empty directory for one server; its name is short, since Unix socket paths must be."""
    run = base_directory() / "run"
    run.mkdir(mode=0o711, exist_ok=True)
    directory = run / secrets.token_hex(6)
    directory.mkdir(mode=0o711)
    return directory


def sweep_leftovers() -> None:
    """Delete what earlier runs left: directories that no warden has locked, and caches long unused."""
    base = base_directory()
    for directory in sorted((base / "run").glob("*")):
        if _is_leftover(directory):
            kill_named_processes(directory)
            remove_directory(directory)
    for directory in sorted((base / "cache").glob("*")):
        if _age_s(directory) > _UNUSED_CACHE_S:
            remove_directory(directory)


def _is_leftover(directory: Path) -> bool:
    # A young directory may belong to a process that has created it but not locked it yet.
    if _age_s(directory) < _YOUNG_S:
        return False
    try:
        descriptor = os.open(directory / OWNER_FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _age_s(directory: Path) -> float:
    try:
        return SYSTEM_CLOCK.wall() - directory.stat().st_mtime
    except OSError:
        return 0.0


def kill_named_processes(directory: Path) -> None:
    """Kill every process, with its descendants, that was started from the directory and still runs."""
    try:
        lines = [line.split() for line in (directory / PIDS_FILE).read_text().splitlines()]
    except OSError:
        return
    for pid, created in lines:
        try:
            process = psutil.Process(int(pid))
            if process.create_time() == float(created):  # otherwise another process has the number now
                kill_tree(process)
        except psutil.NoSuchProcess:
            continue
