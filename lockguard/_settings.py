"""Which servers a process uses, and the guard's options: given, in the environment, or in a file.

The file is ``lockguard.toml``, or ``[tool.lockguard]`` of a ``pyproject.toml``, in the current directory or
the nearest one above it; ``LOCKGUARD_CONFIG`` names another. An argument counts before the environment, and
the environment before the file. Errors name the setting and never its value: it may be a URL with a password.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from lockguard._namespace import NAMESPACE, Namespace, parse_namespace
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of, printable

__all__ = ["NO_REDIS", "Settings"]

NO_REDIS = (
    "no Redis is named: set LOCKGUARD_REDIS_URL (several URLs of a quorum stand apart by blanks), write"
    ' redis = "redis://HOST:6379/0" in lockguard.toml, or give --redis to a command'
)

_ADDRESS_MAP = (
    'write announced and reached addresses, as "10.0.0.5:6379" = "localhost:7001" in a table of the file, or'
    " 10.0.0.5:6379=localhost:7001 in the environment, apart by blanks"
)

_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")
_PATH_SHOWN_MAX = 200
_PLACE = re.compile(r"\(at .*\)$")
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}


@dataclass(frozen=True, slots=True, repr=False)  # without a repr: URLs have passwords
class Settings:
    """The settings of a process.

    Attributes:
        redis: the servers' URLs; several form a quorum; empty if none is named.
        database: the URL of the database with the fence; ``None`` if none is named.
        options: the guard's options that are set, by name, such as ``{"ttl": timedelta(seconds=10)}``.
        min_replicas: as for ``LockGuard.from_url``.
        namespace: the first part of every key.
        address_map: where servers are reached that Sentinels and clusters announce elsewhere.
    """

    redis: tuple[str, ...]
    database: str | None
    options: Mapping[str, Any]
    min_replicas: int
    namespace: Namespace = NAMESPACE
    address_map: Mapping[tuple[str, int], tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        *,
        redis: Iterable[str] = (),
        database: str | None = None,
        namespace: str | None = None,
        environ: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Self:
        """Read the settings; what is given counts before all else.

        Args:
            redis: the servers' URLs, empty for those of the environment or the file.
            database: the database's URL; ``None`` for that of the environment or the file.
            namespace: the first part of every key; ``None`` for that of the environment or the file.
            environ: the environment; the process's own by default.
            directory: where the search for the file begins; the current directory by default.

        Raises:
            ConfigurationError: the file cannot be read, or a setting is unknown or malformed.
        """
        environ = os.environ if environ is None else environ
        found = _from_file(environ, directory) | _from_environment(environ)
        found_redis, found_database = found.pop("redis", ()), found.pop("database", None)
        given = found.pop("namespace", NAMESPACE)
        return cls(
            redis=tuple(redis) or found_redis,
            database=database or found_database,
            min_replicas=found.pop("min_replicas", 0),
            namespace=given if namespace is None else parse_namespace(namespace, "--namespace"),
            address_map=found.pop("address_map", {}),
            options=found,
        )


def _urls(name: str, value: object) -> tuple[str, ...]:
    listed = value.split() if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(url, str) and url.strip() for url in listed):
        raise ConfigurationError(f"{name} is {kind_of(value)}, which is no URL and no list of URLs")
    if not listed:  # or a command would work on the server of this machine
        raise ConfigurationError(f"{name} names no server; write a URL, or leave it out")
    return tuple(url.strip() for url in listed)


def _url(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is {kind_of(value)}, which is no URL")
    if not value.strip():
        raise ConfigurationError(f"{name} is empty; write a URL, or leave it out")
    return value.strip()


def _duration(name: str, value: object) -> timedelta:
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ConfigurationError(
            f"{name} is no length of time; write a whole number and its unit, such as 10s, 500ms or 2m"
        )
    try:
        return int(found[1]) * _UNITS[found[2]]
    except OverflowError:
        raise ConfigurationError(f"{name} is too long a time") from None


def _count(name: str, value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationError(f"{name} is no whole number")
    return value


def _namespace(name: str, value: object) -> Namespace:
    return parse_namespace(value, name)


def _address_map(name: str, value: object) -> dict[tuple[str, int], tuple[str, int]]:
    if isinstance(value, str):
        cut = [pair.partition("=") for pair in value.split()]
        pairs = [(start, end) for start, _, end in cut]
    elif isinstance(value, dict) and all(isinstance(end, str) for end in value.values()):
        pairs = list(value.items())
    else:
        raise ConfigurationError(f"{name} is {kind_of(value)}; {_ADDRESS_MAP}")
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for start, end in pairs:
        announced, reached = _endpoint(name, start), _endpoint(name, end)
        if found.setdefault(announced, reached) != reached:
            raise ConfigurationError(f"{name} maps one address to two; {_ADDRESS_MAP}")
    return found


def _endpoint(name: str, text: str) -> tuple[str, int]:
    host, _, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not _is_host(host) or not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise ConfigurationError(f"{name} has an address that is none; {_ADDRESS_MAP}")
    return host.lower(), int(port)


def _is_host(text: str) -> bool:
    """Whether a text can be a host's name or address; pairs that are apart by commas would have one."""
    if ":" not in text:
        return re.fullmatch(r"[^\s,;=/@\[\]]+", text) is not None
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is {kind_of(value)}, which is no text; write it in quotes")
    return value.strip()


_READERS: dict[str, Callable[[str, object], Any]] = {
    "redis": _urls,
    "database": _url,
    "ttl": _duration,
    "wait": _duration,
    "max_hold": _duration,
    "lock_delay": _duration,
    "fence_within": _duration,
    "node_timeout": _duration,
    "history": _count,
    "name": _text,
    "min_replicas": _count,
    "namespace": _namespace,
    "address_map": _address_map,
}

_URLS = ("redis", "database")
"""The environment calls them ``LOCKGUARD_REDIS_URL`` and ``LOCKGUARD_DATABASE_URL``."""


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, read in _READERS.items():
        variable = f"LOCKGUARD_{name.upper()}" + ("_URL" if name in _URLS else "")
        if (value := environ.get(variable, "")).strip():
            found[name] = read(variable, value)
    return found


def _from_file(environ: Mapping[str, str], directory: Path | None) -> dict[str, Any]:
    named = environ.get("LOCKGUARD_CONFIG", "")
    if named:
        path, table = Path(named), _table(Path(named), "LOCKGUARD_CONFIG: ")
        if table is None:
            raise ConfigurationError(f"LOCKGUARD_CONFIG: {_shown(path)} has no table [tool.lockguard]")
    else:
        try:
            path, table = next(_tables(directory or Path.cwd()), (Path(), {}))
        except OSError as exc:  # a directory that is gone, or closed to this user, may have had one
            raise ConfigurationError(
                f"lockguard.toml cannot be looked for in the current directory and above it: {exc.strerror};"
                f" change to another directory, or name the file with LOCKGUARD_CONFIG"
            ) from None
    found = {}
    for key, value in table.items():
        name = str(key).replace("-", "_")
        if name not in _READERS:
            near = get_close_matches(name, _READERS, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_READERS)}"
            shown = repr(key) if _KEY.fullmatch(key) else "what stands before an '='"
            raise ConfigurationError(f"{_shown(path)}: {shown} is no setting of lockguard; {meant}")
        found[name] = _READERS[name](f"{_shown(path)}: {key}", value)
    return found


def _shown(path: Path) -> str:
    """A path in one line; what looks like a URL, which was meant for another setting, may have a password."""
    text = str(path)
    if ":/" in text or "@" in text:
        return "the file (not shown, as it may be a URL)"
    return printable(text) if len(text) <= _PATH_SHOWN_MAX else f"{printable(text[:_PATH_SHOWN_MAX])}..."


def _tables(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for place in (directory, *directory.parents):
        for path in (place / "lockguard.toml", place / "pyproject.toml"):
            if path.is_file() and (table := _table(path, "")) is not None:
                _require_own(path)
                yield path, table


def _require_own(path: Path) -> None:
    """In a directory that all may write to, such as /tmp, another user's file would name his servers."""
    if path.stat().st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"{path} belongs to another user and would name the servers; set LOCKGUARD_CONFIG={path} if it is"
            " meant"
        )


def _table(path: Path, where: str) -> dict[str, Any] | None:
    """The file's settings; ``None`` for a ``pyproject.toml`` without the table.

    Args:
        path: the file.
        where: what named it, for errors.

    Raises:
        ConfigurationError: it cannot be read, or is no TOML.
    """
    shown = f"{where}{_shown(path)}"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"{shown} cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{shown} cannot be read: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as exc:
        place = _PLACE.search(str(exc))
        raise ConfigurationError(f"{shown} is not TOML {place[0] if place else ''}".rstrip()) from None
    if path.name != "pyproject.toml":
        return content
    tool = content.get("tool", {})
    table = tool.get("lockguard") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigurationError(
            f"{shown}: tool.lockguard is {kind_of(table)}; write a table [tool.lockguard]"
        )
    return table
