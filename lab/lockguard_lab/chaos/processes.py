"""One bot of a round, as a process."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lockguard._private_files import write_private
from lockguard_lab.servers.binaries import ServerBinary
from lockguard_lab.servers.embedded import EmbeddedServer
from lockguard_lab.servers.supervision import ServerProcess, Spawn, server_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard_lab.chaos.plan import ChaosWorkerSpec
    from lockguard_lab.chaos.stage import Links

__all__ = ["BotProcess", "why"]

_WORKER = "lockguard_lab.chaos.worker"
_READY = "ready"


class BotProcess(EmbeddedServer):
    """One bot. The servers' warden runs it, so that it ends with this process, even while stopped.

    It imports what this process does: with ``PYTHONPATH`` set to a changed copy of lockguard, that copy.

    Args:
        journal: the file of its history, by whose name it is called there.
        links: how it reaches the servers.
        spec: makes its instructions.
    """

    def __init__(self, journal: Path, links: Links, spec: Callable[[], ChaosWorkerSpec]) -> None:
        super().__init__(ServerBinary("Bot", "", Path(sys.executable), "this Python"), 0)
        self.name = journal.stem
        self.journal = journal
        self.links = links
        self._spec = spec

    @property
    def url(self) -> str:
        """Empty: a bot accepts no connections."""
        return ""

    def _prepare(self, directory: Path) -> None:
        write_private(directory / "told.json", json.dumps(asdict(self._spec())))

    def _discard(self, directory: Path) -> None:
        """Keep the history: it is the round's."""

    def _command(self, directory: Path) -> Spawn:
        return Spawn(
            argv=(str(self.binary.path), "-m", _WORKER, str(directory / "told.json")),
            log=str(self._log_path()),
            cwd=str(directory),
            env=server_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def _ready(self, directory: Path) -> bool:  # noqa: ARG002 - the log is enough
        return _READY in self.log.split()

    def _end(self, process: ServerProcess, *, keep_data: bool) -> None:  # noqa: ARG002 - the history stays
        process.end(signal.SIGTERM)

    def finish(self) -> bool:
        """Let the bot finish what it has begun; returns whether it ended by itself."""
        process = self._running_process()
        process.resume()
        process.end(signal.SIGTERM)
        return "Traceback" not in self.log


def why(log: str) -> str:
    """The lines before the first traceback of a log, and the exception of that traceback."""
    before, _, after = log.partition("Traceback")
    said = before.strip().splitlines()[-1:]
    raised = [line for line in after.splitlines()[1:] if line and not line[0].isspace()][:1]
    return " | ".join([*said, *raised]) or "it wrote nothing"
