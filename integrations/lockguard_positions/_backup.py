"""The backup of rows before a clean-up changes them: a file with one line of JSON for each row.

A file, not a table, because the rows that most need a clean-up are in a schema that cannot be migrated before
it. Each line is the whole row with its intents, on disk before anything is changed.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockguard._private_files import append_private
from lockguard.errors import ConfigurationError
from lockguard_positions._rows import statement

if TYPE_CHECKING:
    import asyncpg

__all__ = ["RowBackup"]

_PRIVATE = 0o600


class RowBackup:
    """Writes rows to a new file; give :meth:`take` to ``AtomicPositionManager.clean_up``.

    Args:
        pool: connections to the database.
        path: the new file; it must not exist yet, so that no earlier backup is lost.

    Raises:
        ConfigurationError: the file exists, or cannot be written.
    """

    def __init__(self, pool: asyncpg.Pool[Any], path: Path) -> None:
        self._pool = pool
        self._path = path
        self._rows = 0
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, _PRIVATE))
        except FileExistsError as exc:
            raise ConfigurationError(f"{path} exists; a backup goes to a new file") from exc
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be written: {exc.strerror}") from exc

    @property
    def path(self) -> Path:
        """The file with the rows."""
        return self._path

    @property
    def rows(self) -> int:
        """How many rows were written."""
        return self._rows

    async def take(self, exchange: str, symbol: str) -> None:
        """Write the rows of a symbol that may be changed; returns once they are on disk.

        Raises:
            OSError: the rows could not be written.
        """
        found = await self._pool.fetch(statement("snapshot", "diagnosis.sql"), exchange, symbol)
        lines = [
            json.dumps({"position": json.loads(row["position"]), "intents": json.loads(row["intents"])})
            + "\n"
            for row in found
        ]
        await asyncio.to_thread(self._append, lines)
        self._rows += len(lines)

    def _append(self, lines: list[str]) -> None:
        with append_private(self._path) as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
