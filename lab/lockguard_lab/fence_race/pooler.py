"""A real PgBouncer in transaction mode in front of an embedded Postgres, if PgBouncer is installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lockguard._private_files import write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.servers import postgres_files
from lockguard_lab.servers.binaries import ServerBinary
from lockguard_lab.servers.embedded import EmbeddedServer
from lockguard_lab.servers.ports import LOOPBACK, url_at
from lockguard_lab.servers.supervision import ServerProcess, Spawn, server_environment

if TYPE_CHECKING:
    from lockguard_lab.servers import PostgresServer

__all__ = ["PgBouncer", "find_pgbouncer"]

_ASK_S = 10.0
_CONNECT_S = 1.0


def find_pgbouncer() -> ServerBinary | None:
    """Find this machine's PgBouncer (``apt install pgbouncer``); ``None`` if there is none."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        return None
    said = subprocess.run((found, "--version"), capture_output=True, text=True, timeout=_ASK_S, check=False)
    version = re.search(r"\d+(\.\d+)+", said.stdout)
    return ServerBinary("PgBouncer", version.group() if version else "unknown", Path(found), "PATH")


class PgBouncer(EmbeddedServer):
    """Shares few connections of ``server``, one for each transaction. It ends with this process.

    Args:
        server: the Postgres behind it, started. Clients log in as its superuser, with its password.
        pool_size: how many connections to the server, for each database and user.

    Raises:
        ConfigurationError: this machine has no PgBouncer.
    """

    def __init__(self, server: PostgresServer, *, pool_size: int = 6) -> None:
        binary = find_pgbouncer()
        if binary is None:
            raise ConfigurationError("PgBouncer is not installed: apt install pgbouncer")
        super().__init__(binary, 0)
        self._server = server
        self._pool_size = pool_size
        self._user = postgres_files.run_as()

    @property
    def url(self) -> str:
        """The URL of the server's own database through the pooler."""
        return self.url_for(self._server.url)

    def url_for(self, url: str) -> str:
        """The same URL, through the pooler."""
        return url_at(self.port, url)

    def _prepare(self, directory: Path) -> None:
        pass

    def _discard(self, directory: Path) -> None:
        pass

    def _command(self, directory: Path) -> Spawn:
        config, users = directory / "pgbouncer.ini", directory / "users"
        secret = self._server.password.replace('"', '""')
        write_private(config, "\n".join(self._lines(users)) + "\n")
        write_private(users, f'"{postgres_files.SUPERUSER}" "{secret}"\n')
        for path in (config, users):
            postgres_files.own(path, self._user)  # it refuses to run as root
        return Spawn(
            argv=(str(self.binary.path), str(config)),
            log=str(self._log_path()),
            cwd=str(directory),
            env=server_environment(),
            uid=self._user.uid,
            gid=self._user.gid,
        )

    def _lines(self, users: Path) -> tuple[str, ...]:
        return (
            "[databases]",
            f"* = host={LOOPBACK} port={self._server.port} user={postgres_files.SUPERUSER}",
            "[pgbouncer]",
            f"listen_addr = {LOOPBACK}",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            # Clients log in to the pooler, and the pooler to the server, with the password in the file.
            "auth_type = scram-sha-256",
            f"auth_file = {users}",
            "pool_mode = transaction",
            f"default_pool_size = {self._pool_size}",
            "max_client_conn = 200",
            "server_reset_query =",
            # Reconnect when the server comes back after a crash, not 15 s later.
            "server_login_retry = 0.2",
        )

    def _ready(self, directory: Path) -> bool:  # noqa: ARG002 - the others look there
        try:
            socket.create_connection((LOOPBACK, self.port), _CONNECT_S).close()
        except OSError:
            return False
        return True

    def _end(self, process: ServerProcess, *, keep_data: bool) -> None:  # noqa: ARG002 - it keeps none
        process.end(signal.SIGINT)
