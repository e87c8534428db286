"""Log files as records: an instant, a message, and the lines that belong to it.

A traceback, or Postgres's ``DETAIL``, follows its message on lines without an instant of their own; it is in
those lines that the violated index and its key are. So a record goes on until the next line that begins with
an instant. What a container's runtime puts before each line is taken off first, as are colours.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from lockguard.errors import ConfigurationError
from lockguard_positions.logs.stamps import find_stamp, read_number, read_stamp

__all__ = ["LogFile", "Record", "read_log"]

_RECORD_LINES_MAX = 500
_LINE_CHARACTERS_MAX = 20_000

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RUNTIME = re.compile(r"^[\w.-]+ +\| ")
_LEVEL = re.compile(r"\b(DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL|EXCEPTION|LOG)\b")
_POSTGRES_SEQUEL = re.compile(r"\b(?:DETAIL|HINT|CONTEXT|STATEMENT|QUERY):  ")
_LEVEL_WITHIN = 80

_TIME_KEYS = ("timestamp", "@timestamp", "time", "ts", "asctime", "datetime", "created", "date", "t")
_TEXT_KEYS = ("message", "msg", "event", "text")
_TRACE_KEYS = ("exc_info", "exception", "traceback", "stack_info", "exc_text", "error", "err", "detail")
_FACT_KEYS = ("symbol", "exchange", "position_id", "resource", "token")
_LEVEL_KEYS = ("level", "levelname", "severity", "log_level", "lvl")


@dataclass(frozen=True, slots=True)
class Record:
    """One message of a log.

    Attributes:
        at: when; UTC is assumed where no zone is written.
        level: as written, upper case; empty if there is none.
        text: the message and every line that belongs to it.
        file: which file.
        line: where in it, from 1.
    """

    at: datetime
    level: str
    text: str
    file: str
    line: int

    @property
    def first_line(self) -> str:
        """The message without its traceback."""
        return self.text.partition("\n")[0]


@dataclass(slots=True)
class LogFile:
    """A file that is being read, and what was found in it so far.

    Attributes:
        name: for people; ``-`` is the standard input.
        lines: how many lines it has.
        unread: how many of them have no instant and follow no line that has one.
    """

    name: str
    lines: int = 0
    unread: int = 0
    _open: _Growing | None = field(default=None, repr=False)

    def records(self, lines: Iterable[str]) -> Iterator[Record]:
        """The records of an open file's lines."""
        for raw in lines:
            self.lines += 1
            line = _COLOUR.sub("", raw.rstrip("\r\n")[:_LINE_CHARACTERS_MAX])
            line = _RUNTIME.sub("", line)
            begun = self._begin(line)
            if begun is None:
                self._go_on(line)
                continue
            if self._open is not None:
                yield self._open.record
            self._open = begun
        if self._open is not None:
            yield self._open.record
            self._open = None

    def _begin(self, line: str) -> _Growing | None:
        if line.startswith("{"):
            return self._begin_json(line)
        found = find_stamp(line)
        if found is None:
            return None
        at, start, end = found
        text = (line[:start] + line[end:]).strip(" -|:\t[]")
        if _POSTGRES_SEQUEL.search(line, end, end + _LEVEL_WITHIN):
            return None  # Postgres writes the instant before each of a message's parts
        level = _LEVEL.search(text[:_LEVEL_WITHIN])
        return _Growing(at, "" if level is None else level[0], [text], self.name, self.lines)

    def _begin_json(self, line: str) -> _Growing | None:
        try:
            fields = json.loads(line)
        except ValueError:
            return None
        if not isinstance(fields, dict):
            return None
        at = _instant_of(fields)
        if at is None:
            return None
        text = str(_first(fields, _TEXT_KEYS) or "")
        facts = [f"{key}={fields[key]}" for key in _FACT_KEYS if fields.get(key) is not None]
        parts = [
            " ".join([text, *facts]),
            *(_lines_of(fields[key]) for key in _TRACE_KEYS if fields.get(key)),
        ]
        level = str(_first(fields, _LEVEL_KEYS) or "").upper()
        return _Growing(at, level, parts, self.name, self.lines)

    def _go_on(self, line: str) -> None:
        if self._open is None:
            self.unread += bool(line.strip())
        elif len(self._open.parts) < _RECORD_LINES_MAX:
            self._open.parts.append(line)


@dataclass(slots=True)
class _Growing:
    at: datetime
    level: str
    parts: list[str]
    file: str
    line: int

    @property
    def record(self) -> Record:
        return Record(self.at, self.level, "\n".join(self.parts), self.file, self.line)


def read_log(path: Path | str) -> Iterator[Record]:
    """The records of a file, of a ``.gz``, or of the standard input (``-``).

    Raises:
        ConfigurationError: it cannot be read, or no line in it begins with an instant.
    """
    log = LogFile(str(path))
    found = False
    with _opened(path) as lines:
        for record in log.records(lines):
            found = True
            yield record
    if not found:
        what = "is empty" if not log.lines else f"has no timestamp in any of its {log.lines} lines"
        raise ConfigurationError(
            f"{path} {what}; write the log with one, such as '2026-11-21 05:09:54,123', an epoch,"
            " or JSON lines with a field 'timestamp'"
        )


@contextmanager
def _opened(path: Path | str) -> Iterator[IO[str]]:
    if str(path) == "-":
        yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")
        return
    opener: Any = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as lines:
            yield lines
    except OSError as exc:  # gzip.BadGzipFile is one too
        raise ConfigurationError(f"log {path} cannot be read: {exc.strerror or exc}") from exc
    except (EOFError, zlib.error) as exc:  # click would take an EOFError for Ctrl-D
        raise ConfigurationError(f"log {path} is cut off or damaged: {exc}; copy it again") from exc


def _instant_of(fields: dict[str, Any]) -> datetime | None:
    value = _first(fields, _TIME_KEYS)
    if isinstance(value, int | float):
        return read_number(value)
    return read_stamp(value) if isinstance(value, str) else None


def _first(fields: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((fields[key] for key in keys if fields.get(key) is not None), None)


def _lines_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
