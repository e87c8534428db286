"""The logs of a race's processes, written as a bot writes them; ``lockguard logs analyze`` reads them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TextIO

from lockguard._private_files import append_private

__all__ = ["RaceLog"]

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RaceLog:
    """The log of this process, with one file for each round.

    Rounds open the same symbols on an exchange and a table that are emptied in between, which no log line
    says: in a single file, the second round's rows would look like duplicates of the first's.

    Args:
        folder: the folder of the files; nothing is logged if it is empty.
        number: the number of the process.
    """

    def __init__(self, folder: str, number: int) -> None:
        self._folder = folder
        self._number = number
        self._round = 0
        self._handler: logging.StreamHandler[TextIO] | None = None

    def begin_round(self) -> None:
        """Continue in a new file."""
        if not self._folder:
            return
        self._round += 1
        root = logging.getLogger()
        if self._handler is not None:
            root.removeHandler(self._handler)
            self._handler.stream.close()
        file = Path(self._folder) / f"round-{self._round}-bot-{self._number}.log"
        file.unlink(missing_ok=True)  # of an earlier race, or another user's link
        self._handler = logging.StreamHandler(append_private(file))
        self._handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(self._handler)
        root.setLevel(logging.INFO)
