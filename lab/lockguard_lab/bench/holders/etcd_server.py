"""A real etcd of one member, if etcd is installed."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
from pathlib import Path

from lockguard.errors import ConfigurationError
from lockguard_lab.servers.binaries import ServerBinary
from lockguard_lab.servers.embedded import EmbeddedServer
from lockguard_lab.servers.ports import LOOPBACK, free_port
from lockguard_lab.servers.supervision import ServerProcess, Spawn, server_environment

__all__ = ["EtcdServer", "find_etcd"]

_ASK_S = 10.0
_CONNECT_S = 1.0


def find_etcd() -> ServerBinary | None:
    """Find this machine's etcd (``apt install etcd-server``); ``None`` if there is none."""
    found = shutil.which("etcd")
    if found is None:
        return None
    said = subprocess.run((found, "--version"), capture_output=True, text=True, timeout=_ASK_S, check=False)
    version = re.search(r"\d+(\.\d+)+", said.stdout)
    return ServerBinary("etcd", version.group() if version else "unknown", Path(found), "PATH")


class EtcdServer(EmbeddedServer):
    """One member on the loopback address. It ends with this process.

    Raises:
        ConfigurationError: this machine has no etcd.
    """

    def __init__(self) -> None:
        binary = find_etcd()
        if binary is None:
            raise ConfigurationError("etcd is not installed: apt install etcd-server")
        super().__init__(binary, 0)

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``, for clients and for the JSON gateway."""
        return f"http://{LOOPBACK}:{self.port}"

    def _prepare(self, directory: Path) -> None:
        pass

    def _discard(self, directory: Path) -> None:
        shutil.rmtree(directory / "etcd", ignore_errors=True)

    def _command(self, directory: Path) -> Spawn:
        peers = f"http://{LOOPBACK}:{free_port()}"
        return Spawn(
            argv=(
                str(self.binary.path),
                *("--data-dir", str(directory / "etcd")),
                *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                *("--initial-cluster", f"default={peers}"),
            ),
            log=str(self._log_path()),
            cwd=str(directory),
            env=server_environment(),
        )

    def _ready(self, directory: Path) -> bool:  # noqa: ARG002 - the others look there
        try:
            asking = http.client.HTTPConnection(LOOPBACK, self.port, timeout=_CONNECT_S)
            try:
                asking.request("GET", "/health")
                return b'"true"' in asking.getresponse().read()
            finally:
                asking.close()
        except (OSError, http.client.HTTPException):
            return False

    def _end(self, process: ServerProcess, *, keep_data: bool) -> None:  # noqa: ARG002 - it keeps none
        process.end(signal.SIGTERM)
