"""The servers that a command works on: one way to name them, for every command.

``--redis`` and ``--database`` count before the environment, and the environment before ``lockguard.toml``;
see ``lockguard/_settings.py``.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Unpack

import click

from lockguard._cli.plugins import COMMANDS, contributed, load
from lockguard._guard import GuardOptions, LockGuard, guard_over
from lockguard._nodes.named import require_all_named
from lockguard._settings import Settings
from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from lockguard._namespace import Namespace
    from lockguard._records import Records
    from lockguard.ports import Fence

__all__ = ["LOCALHOST", "Servers", "database_option", "namespace_option", "redis_option", "with_servers"]

LOCALHOST = "redis://localhost:6379/0"
"""The server of commands that only look or end a lock, where none is named."""

redis_option = click.option(
    "--redis",
    "redis_urls",
    envvar="LOCKGUARD_REDIS_URL",
    multiple=True,
    metavar="URL",
    help="The server; several times where several independent ones decide together. In the environment they"
    " stand apart by blanks, and a password is safer there.  [env: LOCKGUARD_REDIS_URL, then lockguard.toml]",
)

database_option = click.option(
    "--database",
    "database_url",
    envvar="LOCKGUARD_DATABASE_URL",
    metavar="URL",
    help="Where the fence is.  [env: LOCKGUARD_DATABASE_URL, then lockguard.toml]",
)


namespace_option = click.option(
    "--namespace",
    metavar="NAME",
    help="The first part of every key, as the bot's guard has it.  [default: LOCKGUARD_NAMESPACE, then"
    " lockguard.toml, then lockguard]",
)


def with_servers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name servers to a command, which gets them as ``servers`` (:class:`Servers`)."""

    @redis_option
    @database_option
    @namespace_option
    @wraps(command)
    def with_urls(
        redis_urls: tuple[str, ...], database_url: str | None, namespace: str | None, **rest: Any
    ) -> Any:
        return command(servers=Servers.read(redis_urls, database_url, namespace), **rest)

    return with_urls


class Servers:
    """The servers that a command was told to work on. It has no repr of its own: URLs have passwords.

    Args:
        settings: what options, environment and file say.
    """

    def __init__(self, settings: Settings) -> None:
        self._guessed = not settings.redis
        self._settings = settings if settings.redis else replace(settings, redis=(LOCALHOST,))

    @classmethod
    def read(
        cls, redis_urls: Sequence[str], database_url: str | None = None, namespace: str | None = None
    ) -> Servers:
        """The servers by a command's options, the environment and the file.

        Raises:
            ConfigurationError: the file cannot be read, or a setting is unknown or malformed.
        """
        return cls(Settings.read(redis=redis_urls, database=database_url, namespace=namespace))

    def require_named(self) -> None:
        """Refuse to guess: on each host another server would answer on localhost, and each would lock alone.

        Raises:
            ConfigurationError: no server is named.
        """
        if self._guessed:
            raise ConfigurationError(
                "no Redis is named: give --redis, set LOCKGUARD_REDIS_URL (cron and systemd do not know a"
                " shell's), or write it in lockguard.toml"
            )

    @property
    def redis(self) -> tuple[str, ...]:
        """At least one URL; several form a quorum."""
        return self._settings.redis

    @property
    def database(self) -> str | None:
        """The URL of the database with the fence; ``None`` if none is named."""
        return self._settings.database

    @property
    def namespace(self) -> Namespace:
        """The first part of every key."""
        return self._settings.namespace

    @property
    def address_map(self) -> Mapping[tuple[str, int], tuple[str, int]]:
        """Where servers are reached that Sentinels and clusters announce elsewhere."""
        return self._settings.address_map

    @property
    def ttl(self) -> timedelta | None:
        """The ttl of leases by environment or file; ``None`` if they do not say."""
        ttl: timedelta | None = self._settings.options.get("ttl")
        return ttl

    @property
    def min_replicas(self) -> int:
        """How many replicas must have a lock, by environment or file; 0 if they do not say."""
        return self._settings.min_replicas

    def guard(self, **options: Unpack[GuardOptions]) -> LockGuard:
        """A guard over the servers, which tells no observers by default.

        Args:
            **options: as for the class, such as ``fence``; they count before those of environment and file.

        Raises:
            ConfigurationError: a URL or an option cannot work.
        """
        with warnings.catch_warnings(action="ignore"):  # an even number of servers is for the bot to fix
            merged: GuardOptions = {"observers": [], **options}
            return guard_over(self._settings, **merged)

    def fence(self) -> AbstractAsyncContextManager[Fence]:
        """The fence of ``database``, from the package with the command ``fence``: this one knows no Postgres.

        Raises:
            ConfigurationError: no database is named, or the package is not installed.
        """
        opened: AbstractAsyncContextManager[Fence] = self._of_postgres().open_fence(self._named_database())
        return opened

    def records(self) -> AbstractAsyncContextManager[Records]:
        """What the fence of ``database`` keeps for operators. Connects when it is first asked.

        Raises:
            ConfigurationError: no database is named, or the package is not installed.
        """
        opened: AbstractAsyncContextManager[Records] = self._of_postgres().open_records(
            self._named_database()
        )
        return opened

    def _named_database(self) -> str:
        if self.database is None:
            raise ConfigurationError("no database is named: give --database or set LOCKGUARD_DATABASE_URL")
        return self.database

    def _of_postgres(self) -> Any:
        point = contributed(COMMANDS).get("fence")
        if point is None:
            raise ConfigurationError(
                "no fence is installed; pip install 'lockguard[postgres]', or say --no-fence"
            )
        load(point)
        return import_module(point.module)

    async def require_all(self) -> None:
        """Check that no server of a quorum is left out, see :func:`require_all_named`."""
        await require_all_named(self.redis, namespace=self.namespace)
