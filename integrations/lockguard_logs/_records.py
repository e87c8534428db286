"""Parses log files into records: a timestamp, a message, and the lines that belong to it.

A traceback, or Postgres's ``DETAIL``, follows its message on lines without a timestamp, and those lines name
the violated index and its key. So a record extends to the next line that begins with a timestamp. Colours and
what a container runtime adds to each line are removed first.

A file may contain anything, so the length kept of a line and the size of unpacked data are bounded.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

from lockguard.errors import ConfigurationError
from lockguard_logs._stamps import find_stamp, read_number, read_stamp

__all__ = ["LogFile", "NothingToRead", "Record", "read_log", "read_logs"]

_RECORD_LINES_MAX = 500
_LINE_CHARACTERS_MAX = 20_000
_LINE_BYTES_MAX = 4 * _LINE_CHARACTERS_MAX
_FACTS_MAX = 20
_FACT_CHARACTERS_MAX = 200

_GZIP = b"\x1f\x8b"
_PACKED = {
    _GZIP: "zcat",
    b"\x28\xb5\x2f\xfd": "zstdcat",
    b"\xfd7zXZ\x00": "xzcat",
    b"BZh": "bzcat",
    b"\x04\x22\x4d\x18": "lz4cat",
    b"PK\x03\x04": "unzip -p",
}
"""Leading bytes of compressed data, and the command that unpacks it.

Read as text, compressed data may yield lines that look complete and contain no duplicates.
"""
_RATIO_MAX = 200
"""Bound on a gzip log's compression ratio: repetitive logs reach 60, a file of zeros reaches 1,000."""
_RATIO_FROM_BYTES = 64 * 1024 * 1024
_UNPACKED_BYTES_MAX = 4 * 1024 * 1024 * 1024

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RUNTIME = re.compile(r"^[\w.-]+ +\| ")
_LEVEL = re.compile(r"\b(DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL|EXCEPTION|LOG)\b")
_BRACKETED_LEVEL = re.compile(r"^(?:\[)?(debug|info|warning|error|critical) *\]")
"""The level in structlog's console output; its opening bracket was removed along with the timestamp."""
_POSTGRES_SEQUEL = re.compile(r"\b(?:DETAIL|HINT|CONTEXT|STATEMENT|QUERY):  ")
_LEVEL_WITHIN = 80

_TIME_KEYS = ("timestamp", "@timestamp", "time", "ts", "asctime", "datetime", "created", "date", "t")
_TEXT_KEYS = ("message", "msg", "event", "text", "MESSAGE")
_TRACE_KEYS = ("exc_info", "exception", "traceback", "stack_info", "exc_text", "error", "err", "detail")
_FACT_KEY = re.compile(
    r"(?i)^id$|symbol|pair|instrument|inst_?id|market|exchange|venue|position|trade|order|row|resource|token"
)
_CRI = re.compile(
    r"^(?P<at>\d{4}-\d\d-\d\dT\S+) std(?:out|err) (?P<part>[FP])(?: |$)(?P<line>.*)$", re.DOTALL
)
"""A line as Kubernetes runtimes write it: timestamp, stream, and whether the line is complete."""
_SEQUEL = re.compile(
    r"^(?:\s|$|Traceback \(most recent|During handling of|The above exception|[A-Z]+:  "
    r"|[\w.]+(?:Error|Exception)\b)"
)
"""Lines that continue the message before them, in a log whose program writes no timestamps."""
_LEVEL_KEYS = ("level", "levelname", "severity", "log_level", "lvl")


@dataclass(frozen=True, slots=True)
class Record:
    """One message of a log.

    Attributes:
        at: the timestamp; UTC if it names no zone.
        level: as written, in upper case; empty if there is none.
        text: the message and every line that belongs to it.
        file: the file's name.
        line: the line number in the file, from 1.
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
    """A file being read, and its line counts so far.

    Attributes:
        name: the file's name for messages; ``-`` is the standard input.
        lines: the number of lines read.
        unread: the number of non-blank lines that have no timestamp and follow no line that has one.
    """

    name: str
    lines: int = 0
    unread: int = 0
    _open: _Growing | None = field(default=None, repr=False)
    _partial: str = field(default="", repr=False)
    _stamped: bool = field(default=False, repr=False)

    def records(self, lines: Iterable[str]) -> Iterator[Record]:
        """Group an open file's lines into records."""
        for raw in lines:
            self.lines += 1
            for wrapped, at in self._unwrapped(raw[:_LINE_CHARACTERS_MAX].rstrip("\r\n")):
                line = _RUNTIME.sub("", _COLOUR.sub("", wrapped))
                begun = self._begin(line, at)
                if begun is None:
                    self._go_on(line)
                    continue
                if self._open is not None:
                    yield self._open.record
                self._open = begun
        if self._open is not None:
            yield self._open.record
            self._open = None

    def _unwrapped(self, line: str) -> Iterator[tuple[str, datetime | None]]:
        """The program's own line and, if a container runtime wrapped it, the runtime's timestamp.

        Docker writes one JSON object per line, Kubernetes a timestamp and the stream; both split long lines.
        """
        if line.startswith('{"log":') and (fields := _object(line)) is not None:
            text, at = str(fields["log"]), _instant_of(fields)
            whole = text.endswith("\n")
        elif (match := _CRI.match(line)) and (at := read_stamp(match["at"])) is not None:
            text, whole = match["line"], match["part"] == "F"
        else:
            yield line, None
            return
        self._partial = (self._partial + text)[:_LINE_CHARACTERS_MAX]
        if whole:
            text, self._partial = self._partial, ""
            yield text.rstrip("\r\n"), at

    def _begin(self, line: str, wrapped_at: datetime | None) -> _Growing | None:
        begun = self._begin_json(line) if line.startswith("{") else self._begin_text(line)
        if wrapped_at is None:
            return begun
        if begun is not None:
            self._stamped = True
            return begun
        if self._stamped or _SEQUEL.match(line):
            return None  # The program writes timestamps; a line without one continues the line before.
        level = _LEVEL.search(line[:_LEVEL_WITHIN])
        return _Growing(wrapped_at, "" if level is None else level[1], [line], self.name, self.lines)

    def _begin_text(self, line: str) -> _Growing | None:
        found = find_stamp(line)
        if found is None:
            return None
        at, start, end = found
        text = (line[:start] + line[end:]).strip(" -|:\t[]")
        if _POSTGRES_SEQUEL.search(line, end, end + _LEVEL_WITHIN):
            return None  # Postgres repeats the timestamp on each part of a message
        level = _LEVEL.search(text[:_LEVEL_WITHIN]) or _BRACKETED_LEVEL.search(text[:_LEVEL_WITHIN])
        return _Growing(at, "" if level is None else level[1].upper(), [text], self.name, self.lines)

    def _begin_json(self, line: str) -> _Growing | None:
        fields = _object(line)
        at = None if fields is None else _instant_of(fields)
        if fields is None or at is None:
            return None
        text = str(_first(fields, _TEXT_KEYS) or "")
        parts = [
            " ".join([text, *_facts(fields)]),
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


class NothingToRead(ConfigurationError):
    """A log is empty, or no line in it begins with a timestamp."""


def read_logs(paths: Iterable[Path | str], note: Callable[[str], None]) -> Iterator[Record]:
    """The records of several logs, one after the other.

    Args:
        paths: as for :func:`read_log`.
        note: called with a message for each log without records, if another log has some.

    Raises:
        NothingToRead: no log has any records.
        ConfigurationError: a log cannot be read.
    """
    nothing: list[NothingToRead] = []
    found = False
    for path in paths:
        try:
            for record in read_log(path):
                found = True
                yield record
        except NothingToRead as exc:
            nothing.append(exc)
    if not found and nothing:
        raise nothing[0]
    for reason in nothing:
        note(str(reason))


def read_log(path: Path | str) -> Iterator[Record]:
    """The records of a file, plain or gzipped, or of the standard input (``-``).

    Raises:
        NothingToRead: the log is empty, or no line in it begins with a timestamp.
        ConfigurationError: the log cannot be read, or it unpacks beyond the bounds.
    """
    log = LogFile(str(path))
    found = False
    with _opened(path) as lines:
        for record in log.records(lines):
            found = True
            yield record
    if not found:
        what = "is empty" if not log.lines else f"has no timestamp in any of its {log.lines} lines"
        raise NothingToRead(
            f"{path} {what}; write the log with one, such as '2026-11-21 05:09:54,123', an epoch,"
            " or JSON lines with a field 'timestamp'"
        )


@contextmanager
def _opened(path: Path | str) -> Iterator[Iterator[str]]:
    if str(path) == "-":
        yield _lines(sys.stdin.buffer, path)
        return
    try:
        with open(path, "rb") as file:
            if not str(path).endswith(".gz") and not file.peek(2).startswith(_GZIP):
                yield _lines(file, path)
                return
            with gzip.open(file) as unpacked:
                yield _lines(cast("IO[bytes]", unpacked), path, _Bound(path, file).check)
    except OSError as exc:  # includes gzip.BadGzipFile
        raise ConfigurationError(f"log {path} cannot be read: {exc.strerror or exc}") from exc
    except (EOFError, zlib.error) as exc:  # click would take an EOFError for Ctrl-D
        raise ConfigurationError(f"log {path} is cut off or damaged: {exc}; copy it again") from exc


def _lines(
    stream: IO[bytes], path: Path | str, check: Callable[[int], None] = lambda _read: None
) -> Iterator[str]:
    """A stream's lines, each cut at a bound, so that input without line ends cannot fill the memory.

    Args:
        stream: open for reading.
        path: its name for messages.
        check: called after each read with the total number of bytes read.

    Raises:
        ConfigurationError: the stream is compressed.
    """
    read, within = 0, False
    while piece := stream.readline(_LINE_BYTES_MAX):
        if not read:
            _refuse_packed(piece, path)
        read += len(piece)
        check(read)
        if not within:
            for line in piece.splitlines():
                yield line.decode("utf-8", errors="replace")
        within = not piece.endswith(b"\n")


def _refuse_packed(beginning: bytes, path: Path | str) -> None:
    for magic, unpacks in _PACKED.items():
        if beginning.startswith(magic):
            raise ConfigurationError(
                f"log {path} is packed; unpack it first: {unpacks} FILE | lockguard logs analyze -"
            )


@dataclass(slots=True)
class _Bound:
    """Bounds the unpacked size of a gzip log, since a small file of zeros would take hours to read."""

    path: Path | str
    file: IO[bytes]
    next_bytes: int = 0

    def check(self, read: int) -> None:
        if read < _RATIO_FROM_BYTES or read < self.next_bytes:
            return
        self.next_bytes = read + _RATIO_FROM_BYTES
        times = read // max(1, self.file.tell())
        if times > _RATIO_MAX:
            raise ConfigurationError(
                f"log {self.path} unpacks to more than {times} times its size, which a log does not;"
                f" if it is one, unpack it first: zcat {self.path} > unpacked.log"
            )
        if read > _UNPACKED_BYTES_MAX:
            raise ConfigurationError(
                f"log {self.path} unpacks to more than {_UNPACKED_BYTES_MAX >> 30} GiB; give a part of it:"
                f" zcat {self.path} | grep 2026-11-21 | lockguard logs analyze -"
            )


def _object(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _facts(fields: dict[str, Any]) -> list[str]:
    """The fields, including nested ones, that may identify the position, as ``key=value`` texts."""
    flat = [
        (key, value)
        for outer, inner in fields.items()
        for key, value in (inner.items() if isinstance(inner, dict) else [(outer, inner)])
    ]
    known = {*_TIME_KEYS, *_TEXT_KEYS, *_TRACE_KEYS, *_LEVEL_KEYS}
    return [
        f"{key}={str(value)[:_FACT_CHARACTERS_MAX]}"
        for key, value in flat
        if isinstance(value, str | int) and key not in known and _FACT_KEY.search(key)
    ][:_FACTS_MAX]


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
