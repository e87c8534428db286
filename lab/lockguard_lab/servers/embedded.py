"""The life cycle that all embedded servers share: start, ready, pause, kill, restart, stop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_lab.servers import ports, scratch, supervision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from lockguard_lab.servers.binaries import ServerBinary
    from lockguard_lab.servers.supervision import ServerProcess, Spawn

__all__ = ["EmbeddedServer", "Startable"]

_START_WAIT_S = 30.0
_LOG_TAIL_LINES = 3


class _PortTaken(Exception):
    pass


class Startable(ABC):
    """Something that a block starts and ends, as a sync or async context manager."""

    @abstractmethod
    def start(self) -> Self:
        """Start and return when ready for use."""

    @abstractmethod
    def stop(self) -> None:
        """Stop and delete the data."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await _to_its_end(self.start)
        except asyncio.CancelledError:
            # Whoever was cancelled here never comes to the end of the block.
            await _to_its_end(self.stop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _to_its_end(self.stop)


async def _to_its_end(work: Callable[[], object]) -> None:
    """Run ``work`` in a thread, which cannot be cancelled, and be cancelled only when it has ended.

    However often the caller is cancelled meanwhile: a server that came up after all would never be stopped.

    Raises:
        asyncio.CancelledError: the caller was cancelled, whatever became of ``work``.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        running.exception()
        raise cancelled
    running.result()


class EmbeddedServer(Startable):
    """A real server on the loopback address that ends with this process, however the process ends.

    It is a context manager, sync and async, and can also be started and stopped by hand. All methods block
    for some milliseconds (:meth:`start` and :meth:`restart` up to a second).
    """

    def __init__(self, binary: ServerBinary, port: int) -> None:
        self._binary = binary
        self._asked_port = port
        self._port = port
        self._directory: Path | None = None
        self._process: ServerProcess | None = None

    # What each kind of server adds.

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL to connect to, with credentials."""

    @abstractmethod
    def _prepare(self, directory: Path) -> None:
        """Write the data and the configuration that do not exist yet."""

    @abstractmethod
    def _discard(self, directory: Path) -> None:
        """Delete the data, so that the next start finds none."""

    @abstractmethod
    def _command(self, directory: Path) -> Spawn:
        """The command that starts the server now."""

    @abstractmethod
    def _ready(self, directory: Path) -> bool:
        """Whether the process that was started last accepts connections."""

    @abstractmethod
    def _end(self, process: ServerProcess, *, keep_data: bool) -> None:
        """End the process in an orderly way."""

    # What all servers share.

    @property
    def binary(self) -> ServerBinary:
        """The server's executable, version and origin."""
        return self._binary

    @property
    def version(self) -> str:
        """The server's version, for example ``9.1.2``."""
        return self._binary.version

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; 0 before the first start if no port was given."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the server; 0 when it is not running."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        """Whether the process exists (a paused one does)."""
        return self._process is not None and self._process.alive()

    @property
    def log(self) -> str:
        """The server's log so far."""
        try:
            return self._log_path().read_text(errors="replace")
        except OSError:
            return ""

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<{type(self).__name__} {self._binary.product} {self.version} port={self._port} {state}>"

    def start(self) -> Self:
        """Start the server and return when it accepts connections.

        Raises:
            ConfigurationError: the port is in use, or the server did not come up; the message says why.
        """
        if self.running:
            return self
        try:
            if self._directory is None:
                directory = scratch.new_run_directory()
                supervision.hold_directory(directory)
                self._directory = directory
            self._prepare(self._directory)
            self._launch(self._directory)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and delete its data. Does nothing when it is not running."""
        process, self._process = self._process, None
        directory, self._directory = self._directory, None
        try:
            if process is not None and process.alive():
                process.resume()
                self._end(process, keep_data=False)
        finally:
            if directory is not None:
                supervision.release_directory(directory)

    def pause(self) -> None:
        """Stop every process of the server (SIGSTOP), as a long stall of its machine would."""
        self._running_process().suspend()

    def resume(self) -> None:
        """Resume a paused server."""
        self._running_process().resume()

    def kill(self) -> None:
        """``kill -9`` every process of the server; its data stay as they are for :meth:`restart`."""
        if self._process is not None:
            self._process.kill()

    def restart(self, *, keep_data: bool = True) -> None:
        """Start the server again on the same port; if it is running, stop it in an orderly way first.

        Args:
            keep_data: with ``False`` it comes back empty.

        Raises:
            ConfigurationError: it was never started, or does not come up.
        """
        directory = self._started_directory()
        process = self._process
        if process is not None and process.alive():
            process.resume()
            self._end(process, keep_data=keep_data)
        if not keep_data:
            self._discard(directory)
        self._prepare(directory)
        self._launch(directory)

    def _launch(self, directory: Path) -> None:
        first_start = self._process is None
        for _ in range(ports.PORT_ATTEMPTS_MAX):
            if first_start and self._asked_port == 0:
                self._port = ports.free_port()
            else:
                self._check_port(first_start=first_start)
            try:
                self._launch_once(directory)
            except _PortTaken:
                continue
            return
        raise ConfigurationError(f"port {self._port} on {ports.LOOPBACK} is in use: end what listens there")

    def _check_port(self, *, first_start: bool) -> None:
        """Refuse a port that is taken; for a server that comes back, wait until its port is free again."""
        given_up_at = SYSTEM_CLOCK.now() + (0 if first_start else _START_WAIT_S)
        while True:
            try:
                return ports.check_free(self._port)
            except ConfigurationError:  # while it was down, another test may have picked its port
                if SYSTEM_CLOCK.now() >= given_up_at:
                    raise
                supervision.pause_s(0.05)

    def _launch_once(self, directory: Path) -> None:
        self._log_path().unlink(missing_ok=True)
        process = supervision.spawn(self._command(directory))
        self._process = process
        deadline = SYSTEM_CLOCK.now() + _START_WAIT_S
        while not self._ready(directory):
            if not process.alive():
                self._explain_early_end()
            if SYSTEM_CLOCK.now() > deadline:
                process.kill()
                raise ConfigurationError(
                    f"{self._binary} did not answer within {_START_WAIT_S:.0f} s: {self._log_tail()}"
                )
            supervision.pause_s(0.005)

    def _explain_early_end(self) -> None:
        if "Address already in use" in self.log:
            raise _PortTaken
        raise ConfigurationError(f"{self._binary} ended at once: {self._log_tail()}")

    def _log_tail(self) -> str:
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        return " | ".join(lines[-_LOG_TAIL_LINES:]) or "it wrote nothing"

    def _log_path(self) -> Path:
        return self._started_directory() / "log"

    def _started_directory(self) -> Path:
        if self._directory is None:
            raise ConfigurationError(f"this {type(self).__name__} was not started: call start() first")
        return self._directory

    def _running_process(self) -> ServerProcess:
        if self._process is None or not self._process.alive():
            raise ConfigurationError(f"this {type(self).__name__} does not run: start() or restart() it")
        return self._process
