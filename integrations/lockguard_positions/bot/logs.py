"""A bot's log: a line for people, or a JSON object for programs, for each thing that happened."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["log_to_output"]

_LOGGER = "lockguard"


class _JsonLines(logging.Formatter):
    """One object a line: ``time``, ``level``, ``logger``, ``message``, and the facts of a decision."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_output(*, as_json: bool) -> None:
    """Write what lockguard and the bot log to the standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        _JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logger = logging.getLogger(_LOGGER)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False  # a reader that has gone must not fill the standard error with tracebacks
