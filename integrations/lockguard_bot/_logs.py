"""A bot's log: one readable line, or one JSON object, per event.

*Everything* that the process prints passes through here: the logs of libraries, asyncio's reports of failed
tasks, warnings and uncaught exceptions. So a JSON reader never meets a line that is not JSON, and the secrets
that sign requests are masked in every line.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from lockguard._settings import Settings
from lockguard.errors import ConfigurationError
from lockguard.text import printable
from lockguard_ccxt._masking import MASK, masked

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["known_secrets", "log_to_output"]

_LOGGER = "lockguard"
_OF_EVENTS = "lockguard_"
"""The beginning of the names under which observers give the facts of an event to a record."""
_SECRET_CHARS_MIN = 6
_FIELDS_CHARS_MAX = 65_536
_SECRET_OPTION = re.compile("pass|token|key|secret", re.IGNORECASE)
_WITH_SECRETS = ("_KEY", "_SECRET", "_PASSWORD", "_TOKEN", "_PASSPHRASE", "_TWOFA")
_Raised: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType | None]"


def known_secrets() -> tuple[str, ...]:
    """The secrets that this process was given: keys, passwords, and those in URLs; the longest first.

    They are looked for in ``LOCKGUARD_*`` variables, ``PGPASSWORD``, the arguments and ``lockguard.toml``.
    """
    found: set[str] = {os.environ.get("PGPASSWORD", "")}
    for name, value in os.environ.items():
        if not name.startswith("LOCKGUARD_"):
            continue
        if name.endswith(_WITH_SECRETS):
            found.add(value)
        for url in value.split():
            found.update(_secrets_of(url))
    for argument in sys.argv[1:]:
        found.update(_secrets_of(argument))
    with suppress(ConfigurationError):  # told by whoever needs the setting
        settings = Settings.read()
        for url in (*settings.redis, settings.database or ""):
            found.update(_secrets_of(url))
    return tuple(sorted((text for text in found if len(text) >= _SECRET_CHARS_MIN), key=len, reverse=True))


def _secrets_of(url: str) -> set[str]:
    try:
        parts = urlsplit(url)
        password = parts.password or ""
    except ValueError:
        return set()
    if not parts.scheme or "://" not in url:
        return set()
    options = {value for name, value in parse_qsl(parts.query) if _SECRET_OPTION.search(name)}
    return {password, unquote(password), *options}


class _Masking(logging.Formatter):
    """Masks the secrets that sign requests, whichever library logged them."""

    def __init__(self, secrets: tuple[str, ...], fmt: str | None = None) -> None:
        super().__init__(fmt)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return self._masked(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of logging
        """One line: an exchange's error, or a row that another program wrote, forges no other."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return masked(text)


class _JsonLines(_Masking):
    """One JSON object per line: ``time``, ``level``, ``logger``, ``message`` and the facts of a decision.

    The facts of an event of lockguard are there too, under names that begin with ``lockguard_``.

    A traceback is in the field ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message_of(record),
            **getattr(record, "facts", {}),
            **{name: value for name, value in vars(record).items() if name.startswith(_OF_EVENTS)},
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps({name: self._clean(value) for name, value in line.items()}, default=str)

    def _clean(self, value: object) -> object:
        if isinstance(value, str):
            return self._masked(value[:_FIELDS_CHARS_MAX])
        if isinstance(value, dict):
            return {str(name): self._clean(each) for name, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(each) for each in value]
        # What is no JSON is written as text, see default= above.
        return value if isinstance(value, bool | int | float | None) else self._masked(str(value))


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a library's bad log call must not lose the line
        return f"{record.msg!r} {record.args!r}"


def log_to_output(*, as_json: bool) -> None:
    """Log to the standard output: lockguard's records from INFO up, all others from WARNING up."""
    secrets = known_secrets()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        _JsonLines(secrets) if as_json else _Masking(secrets, "%(asctime)s %(levelname)s %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger = logging.getLogger(_LOGGER)
    logger.handlers[:] = []
    logger.setLevel(logging.INFO)
    logger.propagate = True
    logging.raiseExceptions = False  # a closed output must not fill the standard error with tracebacks
    logging.captureWarnings(capture=True)
    warnings.simplefilter("default")
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _uncaught(kind: type[BaseException], exc: BaseException | None, traceback: TracebackType | None) -> None:
    raised: _Raised = (kind, exc if exc is not None else kind(), traceback)
    logging.getLogger("lockguard.bot").critical("uncaught: %s", kind.__name__, exc_info=raised)
