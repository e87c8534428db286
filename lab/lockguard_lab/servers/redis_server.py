"""A real Valkey or Redis server for tests and demonstrations."""

from __future__ import annotations

import secrets
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote, urlencode

from lockguard._private_files import write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.servers.binaries import ServerBinary, find_valkey
from lockguard_lab.servers.embedded import EmbeddedServer
from lockguard_lab.servers.ports import LOOPBACK, free_port
from lockguard_lab.servers.redis_commands import Answer, command, credentials
from lockguard_lab.servers.supervision import ServerProcess, Spawn, server_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Persistence", "RedisServer", "TlsFiles"]

Persistence = Literal["none", "aof"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The TLS files that servers and clients use; all in PEM format.

    Attributes:
        authority: the certificate of the authority that both trust.
        certificate: a certificate for 127.0.0.1, issued by that authority.
        key: the private key of the certificate.
    """

    authority: Path
    certificate: Path
    key: Path

    @property
    def query(self) -> str:
        """The options of a ``rediss://`` URL for a client that presents the same certificate."""
        files = {"ssl_ca_certs": self.authority, "ssl_certfile": self.certificate, "ssl_keyfile": self.key}
        return urlencode(files)

    def lines(self, port: int) -> list[str]:
        """The lines of a server's configuration that make it listen with TLS on ``port``."""
        return [
            f"tls-port {port}",
            f"tls-ca-cert-file {_quoted(str(self.authority))}",
            f"tls-cert-file {_quoted(str(self.certificate))}",
            f"tls-key-file {_quoted(str(self.key))}",
            "tls-auth-clients yes",
            "tls-replication yes",
        ]


class RedisServer(EmbeddedServer):
    """A Valkey or Redis server on 127.0.0.1, which every user of the machine can reach.

    It therefore asks for a password, and :attr:`url` contains it: a client that may send commands could run
    code as you. Debug commands and protected settings are allowed from this machine: fault tests need them.

    Args:
        port: the TCP port; 0 picks a free one.
        password: asked of every client (``requirepass``); by default a random one. ``""`` asks for none.
        acl: further users, each as the rest of a ``user`` line: ``"bot on >secret ~lockguard:* +@all"``.
        config: further lines of the configuration file: ``"maxmemory 2mb"``.
        persistence: ``"none"``: the data are lost in every restart. ``"aof"``: they survive kills.
        unix_socket: listen on a Unix socket too, see :attr:`unix_url`.
        tls: listen with TLS too, see :attr:`tls_url`, and use it for replication. Not every server is built
            with TLS; :func:`find_system_redis` finds one on Debian.
        binary: which server to run; by default :func:`find_valkey` decides.

    Raises:
        ConfigurationError: an argument is out of range, or this machine has no server.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        password: str | None = None,
        acl: Sequence[str] = (),
        config: Sequence[str] = (),
        persistence: Persistence = "none",
        unix_socket: bool = False,
        tls: TlsFiles | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        if persistence not in {"none", "aof"}:
            raise ConfigurationError(f"persistence={persistence!r} is unknown: give 'none' or 'aof'")
        for line in (password or "", *acl, *config):
            if "\n" in line or "\r" in line:
                raise ConfigurationError("a password, an ACL or a configuration line has a line break in it")
        super().__init__(binary if binary is not None else find_valkey(), port)
        self._password = secrets.token_hex(16) if password is None else password
        self._acl = tuple(acl)
        self._config = tuple(config)
        self._persistence = persistence
        self._unix_socket = unix_socket
        self._tls = tls
        self._tls_port = 0
        self._started = False

    @property
    def url(self) -> str:
        """``redis://default:password@127.0.0.1:port/0``."""
        return f"redis://{self._credentials()}{LOOPBACK}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """``unix://default:password@/path/to/redis.sock?db=0``.

        Raises:
            ConfigurationError: the server was made without ``unix_socket=True``, or was not started.
        """
        if not self._unix_socket:
            raise ConfigurationError("this RedisServer has no Unix socket: make it with unix_socket=True")
        return f"unix://{self._credentials()}{self._started_directory() / 'redis.sock'}?db=0"

    @property
    def tls_url(self) -> str:
        """``rediss://default:password@127.0.0.1:port/0?...``: the client presents the server's certificate.

        Raises:
            ConfigurationError: the server was made without ``tls=``, or was not started.
        """
        if self._tls is None or not self._tls_port:
            raise ConfigurationError(
                "this RedisServer has no TLS: make it with tls=TlsFiles(...), and start it"
            )
        return f"rediss://{self._credentials()}{LOOPBACK}:{self._tls_port}/0?{self._tls.query}"

    @property
    def password(self) -> str:
        """The default user's password; empty if none is needed."""
        return self._password

    @property
    def password_file(self) -> Path:
        """A file with only the password, for this user alone: ``REDISCLI_AUTH=$(cat FILE) redis-cli``.

        Raises:
            ConfigurationError: the server was not started.
        """
        return self._started_directory() / "password"

    @property
    def told_port(self) -> int:
        """The port to give other servers and clients: with ``tls``, the TLS port."""
        return self._tls_port or self.port

    def url_for(self, user: str, password: str, *, database: int = 0) -> str:
        """The URL for a user of ``acl``."""
        return f"redis://{quote(user, safe='')}:{quote(password, safe='')}@{LOOPBACK}:{self.port}/{database}"

    def command(self, *words: str | int) -> Answer:
        """Send one command as the default user and return the reply: to set a test up, not for locking.

        Raises:
            NodeRefused: the server answered with an error.
            NodeUnknown: it did not answer.
        """
        return command(self.port, *words, password=self._password or None)

    def _credentials(self) -> str:
        return credentials(self._password)

    def _prepare(self, directory: Path) -> None:
        (directory / "data").mkdir(mode=0o700, exist_ok=True)

    def _discard(self, directory: Path) -> None:
        shutil.rmtree(directory / "data")

    def start(self) -> Self:
        """Start the server and return when it accepts connections.

        Raises:
            ConfigurationError: the port is in use, or the server did not come up; the message says why.
        """
        super().start()
        self._started = True
        return self

    def _command(self, directory: Path) -> Spawn:
        if self._tls is not None and not self._started:
            # A new port in each attempt: another process may have taken it, or the port of its cluster bus.
            self._tls_port = free_port()
        # A file and not arguments: every user can read the arguments of a process.
        path = directory / "redis.conf"
        write_private(path, "\n".join(self._lines(directory)) + "\n")
        write_private(directory / "password", self._password)
        return Spawn(
            argv=(str(self.binary.path), str(path)),
            log=str(self._log_path()),
            cwd=str(directory),
            env=server_environment(),
        )

    def _lines(self, directory: Path) -> list[str]:
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"dir {_quoted(str(directory / 'data'))}",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self._persistence == 'aof' else 'no'}",
            "enable-debug-command local",
            "enable-protected-configs local",
        ]
        if self._tls is not None:
            lines += [*self._tls.lines(self._tls_port), "tls-cluster yes"]
        if self._unix_socket:
            lines += [f"unixsocket {_quoted(str(directory / 'redis.sock'))}", "unixsocketperm 700"]
        if self._password:
            # Also the password for its master, so that replicas with one password accept each other.
            lines += [f"{key} {_quoted(self._password)}" for key in ("requirepass", "masterauth")]
        lines += [f"user {line}" for line in self._acl]
        lines += self._config
        # Last, so that nothing above overrides it: the log shows when the server is ready.
        return [*lines, "loglevel notice", 'logfile ""', "syslog-enabled no"]

    def _ready(self, directory: Path) -> bool:  # noqa: ARG002 - the log is enough
        # Not a PING: another server may answer on the port while ours fails to bind it.
        return "Ready to accept connections" in self.log

    def _end(self, process: ServerProcess, *, keep_data: bool) -> None:
        if keep_data and self._persistence == "aof":
            process.end(signal.SIGTERM)
        else:
            process.kill()


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
