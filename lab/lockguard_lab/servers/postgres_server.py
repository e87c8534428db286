"""A real PostgreSQL server for tests and demonstrations."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING
from urllib.parse import quote

from lockguard._private_files import write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.servers import postgres_files, warden
from lockguard_lab.servers.binaries import ServerBinary, find_postgres
from lockguard_lab.servers.embedded import EmbeddedServer
from lockguard_lab.servers.ports import LOOPBACK
from lockguard_lab.servers.postgres_files import SUPERUSER
from lockguard_lab.servers.supervision import ServerProcess, Spawn, server_environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["PostgresServer"]

# fsync=off is safe when processes are killed (the kernel keeps what was written), but not in a power cut.
# synchronous_commit stays on: without it kill -9 loses committed rows.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",  # in the data directory: nothing stays in /dev/shm after a kill
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class PostgresServer(EmbeddedServer):
    """A PostgreSQL server on 127.0.0.1, which every user of the machine can reach.

    Its superuser is ``postgres``.

    Every connection is asked for a password (SCRAM-SHA-256), and :attr:`url` contains it: a superuser can run
    code as the user that the server runs as.

    Args:
        port: the TCP port; 0 picks a free one.
        password: the superuser's password; by default a random one, the same for all servers of this user.
        max_connections: how many connections the server accepts.
        settings: further settings, name to value.
        binary: which server to run; by default :func:`find_postgres` decides.

    Raises:
        ConfigurationError: an argument is out of range, or this machine has no server.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        password: str | None = None,
        max_connections: int = 100,
        settings: Mapping[str, str] | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        if password is not None and (not password or "\n" in password or "\r" in password):
            raise ConfigurationError("the password must be one line of at least one character")
        if max_connections < 1:
            raise ConfigurationError(f"max_connections={max_connections} admits nobody: give at least 1")
        super().__init__(binary if binary is not None else find_postgres(), port)
        self._asked_password = password
        self._password = password or ""
        self._settings = {**_SETTINGS, "max_connections": str(max_connections), **(settings or {})}
        self._user = postgres_files.run_as()
        self._installed = self.binary

    @property
    def url(self) -> str:
        """``postgresql://postgres:password@127.0.0.1:port/postgres``."""
        return self.url_for("postgres")

    def url_for(self, database: str, *, user: str | None = None, password: str | None = None) -> str:
        """The URL of a database, for the superuser or for the user named."""
        name, secret = (SUPERUSER, self._password) if user is None else (user, password)
        credentials = quote(name, safe="") + (f":{quote(secret, safe='')}" if secret is not None else "")
        return f"postgresql://{credentials}@{LOOPBACK}:{self.port}/{quote(database, safe='')}"

    @property
    def password(self) -> str:
        """The superuser's password; empty before the first start if none was given."""
        return self._password

    @property
    def passfile(self) -> Path:
        """A file that lets psql log in as the superuser without a password argument: ``PGPASSFILE=FILE``.

        Raises:
            ConfigurationError: the server was not started.
        """
        return self._started_directory() / "pgpass"

    @property
    def socket_directory(self) -> Path:
        """The directory of its Unix socket (``host=`` of a connection)."""
        return self._started_directory() / "socket"

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database, from ``template`` if given, and return its URL.

        Raises:
            ConfigurationError: the server refused; the message says why.
        """
        copied = ' TEMPLATE :"template"' if template is not None else ""
        self._psql(f'CREATE DATABASE :"name"{copied};', name=name, template=template or "")
        return self.url_for(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending its connections."""
        self._psql('DROP DATABASE IF EXISTS :"name" WITH (FORCE);', name=name)

    def _psql(self, statement: str, **variables: str) -> None:
        """Run one statement, with the variables inserted in quotes by psql's ``:"name"``."""
        assignments = [f"--set={name}={value}" for name, value in variables.items()]
        postgres_files.run_tool(
            (
                str(self.binary.path.parent / "psql"),
                *("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"),
                *assignments,
                f"--host={LOOPBACK}",
                f"--port={self.port}",
                f"--username={SUPERUSER}",
                "--dbname=postgres",
            ),
            postgres_files.RunAs(None, None),
            stdin=statement,
            env={"PGPASSFILE": str(self.passfile)},
        )

    def _prepare(self, directory: Path) -> None:
        self._installed = postgres_files.installation_for(self.binary, self._user)
        if not (directory / "socket").exists():
            (directory / "socket").mkdir(mode=0o711)
            postgres_files.own(directory / "socket", self._user)
        if not (directory / "data").exists():
            made = postgres_files.copy_template(self._installed, self._user, directory / "data")
            if self._asked_password is None:
                self._password = made
            else:
                postgres_files.set_password(
                    self._installed, self._user, directory / "data", self._asked_password
                )

    def _discard(self, directory: Path) -> None:
        warden.drop_shared_memory(directory / "data")
        shutil.rmtree(directory / "data")

    def _command(self, directory: Path) -> Spawn:
        secret = self._password.replace("\\", "\\\\").replace(":", "\\:")
        write_private(self.passfile, f"*:{self.port}:*:{SUPERUSER}:{secret}\n")
        settings = {
            **self._settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_directory),
        }
        return Spawn(
            argv=(
                str(self._installed.path),
                *("-D", str(directory / "data")),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ),
            log=str(self._log_path()),
            cwd=str(directory),
            env=server_environment(),
            uid=self._user.uid,
            gid=self._user.gid,
        )

    def _ready(self, directory: Path) -> bool:
        # Compare the postmaster's process id: the file may be left from one that was killed before.
        try:
            lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _end(self, process: ServerProcess, *, keep_data: bool) -> None:
        # Not SIGKILL: an orderly end removes the shared memory. SIGQUIT skips the checkpoint.
        process.end(signal.SIGINT if keep_data else signal.SIGQUIT)
