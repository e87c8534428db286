"""A Sentinel as an embedded server, for :class:`~lockguard_lab.servers.SentinelRedis`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_lab.servers.ports import LOOPBACK
from lockguard_lab.servers.redis_server import RedisServer, TlsFiles
from lockguard_lab.servers.supervision import Spawn

if TYPE_CHECKING:
    from pathlib import Path

    from lockguard_lab.servers.binaries import ServerBinary

__all__ = ["SentinelServer"]


class SentinelServer(RedisServer):
    """Watches one master and, with its companions, promotes a replica when the master is gone.

    Args:
        master_port: the master's port on 127.0.0.1.
        service: the name by which it knows the master.
        quorum: how many Sentinels have to consider the master down.
        down_after_ms: how long the master may be silent.
        password: the password of the master and the other Sentinels, also asked of clients.
        tls: to use with the master, the other Sentinels and clients.
        binary: which server to run; by default :func:`find_valkey` decides.
    """

    def __init__(
        self,
        *,
        master_port: int,
        service: str,
        quorum: int,
        down_after_ms: int,
        password: str,
        tls: TlsFiles | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        super().__init__(binary=binary, tls=tls, password=password)
        self._watched = (
            f"sentinel monitor {service} {LOOPBACK} {master_port} {quorum}",
            f"sentinel down-after-milliseconds {service} {down_after_ms}",
            f"sentinel failover-timeout {service} {max(3_000, 3 * down_after_ms)}",
            f"sentinel parallel-syncs {service} 1",
            *_passwords(service, password),
        )

    def _lines(self, directory: Path) -> list[str]:
        return [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f'dir "{directory / "data"}"',
            "daemonize no",
            *(self._tls.lines(self._tls_port) if self._tls is not None else ()),
            *((f'requirepass "{self.password}"',) if self.password else ()),
            *self._watched,
            "loglevel notice",
            'logfile ""',
        ]

    def _command(self, directory: Path) -> Spawn:
        spawn = super()._command(directory)
        return Spawn(
            argv=(*spawn.argv, "--sentinel"),
            log=spawn.log,
            cwd=spawn.cwd,
            env=spawn.env,
            uid=spawn.uid,
            gid=spawn.gid,
        )

    def _ready(self, directory: Path) -> bool:  # noqa: ARG002 - the log is enough
        return "+monitor master" in self.log


def _passwords(service: str, password: str) -> tuple[str, ...]:
    """The configuration lines with the passwords for the master and among Sentinels."""
    if not password:
        return ()
    return f'sentinel auth-pass {service} "{password}"', f'sentinel sentinel-pass "{password}"'
