"""Reads just enough of a statement to know whether it begins or ends a transaction.

This is not an SQL parser, and is trusted with one question only: may the text be wrapped in a fenced
transaction as it is? Quoted text and comments are blanked first, so that a word in a literal is not taken
for a statement.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

from lockguard.errors import ConfigurationError

__all__ = [
    "Kind",
    "ends_in_savepoint",
    "is_commit",
    "is_lone_write",
    "is_write",
    "kind_of",
    "may_end_transaction",
    "may_write_after",
    "read_only_after",
]

_QUOTED = re.compile(
    r"""
      --[^\r\n]*
    | /\*
    | \b[eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | (?<![\w$\x80-\U0010ffff])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$   # a name may contain dollars
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


# Begins with INSERT, UPDATE, DELETE, MERGE or WITH: a statement that is planned, and so cannot end a
# transaction, as a procedure can. A comment within a comment does not match: where it ends is uncertain.
_WRITE = re.compile(
    r"(?:\s|--[^\r\n]*(?:[\r\n]|\Z)|/\*(?:(?!/\*|\*/).)*\*/)*(?:insert|update|delete|merge|with)(?![\w$])",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
# Text that is read the same whatever the session's settings: no backslash, whose meaning depends on
# standard_conforming_strings, no dollar, no comment in a comment. Also no second statement, and no zero byte:
# the server answers that with a broken connection's error, which after a COMMIT leaves the write in doubt.
_LONE = re.compile(
    r"""(?:
      [^'";/\\$\0-]
    | '[^'\\\0]*' | "[^"\\\0]*"
    | --[^\r\n\\$\0]*(?:[\r\n]|\Z) | -(?!-)
    | /\*(?:(?!/\*|\*/)[^\\$\0])*\*/ | /(?!\*)
    )*+(?:;\s*)?""",
    re.VERBOSE,
)


class Kind(Enum):
    """What a text does to the transaction around it."""

    ORDINARY = "ordinary"
    SETTING = "setting"
    """SET, SHOW, RESET: no write, and SET TRANSACTION must come before any query."""
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    """Of the whole transaction or to a savepoint."""
    SAVEPOINT = "savepoint"


_BY_WORD = {
    "BEGIN": Kind.BEGIN,
    "START": Kind.BEGIN,
    "COMMIT": Kind.COMMIT,
    "END": Kind.COMMIT,
    "ROLLBACK": Kind.ROLLBACK,
    "ABORT": Kind.ROLLBACK,
    "SAVEPOINT": Kind.SAVEPOINT,
    "RELEASE": Kind.SAVEPOINT,
    "SET": Kind.SETTING,
    "SHOW": Kind.SETTING,
    "RESET": Kind.SETTING,
}


@lru_cache(maxsize=1024)
def kind_of(query: str) -> Kind:
    """What ``query`` does to the transaction around it.

    Raises:
        ConfigurationError: several statements in one text, one of which begins or ends a transaction, so that
            what follows would escape the fence; or PREPARE TRANSACTION or COMMIT PREPARED.
    """
    parts = [part for part in _plain(query).split(";") if part.strip()]
    kinds = [_kind_of_one(part) for part in parts]
    if len(kinds) > 1 and not {Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK}.isdisjoint(kinds):
        raise ConfigurationError(
            f"under a lease, {query[:60]!r} mixes transaction control with other statements in one text:"
            " use conn.transaction(), or send BEGIN and COMMIT by themselves"
        )
    return kinds[0] if len(kinds) == 1 else Kind.ORDINARY


def is_commit(query: str) -> bool:
    """Whether ``query`` is a COMMIT and nothing else."""
    parts = [part for part in _plain(query).split(";") if part.strip()]
    return len(parts) == 1 and _BY_WORD.get(parts[0].upper().split(maxsplit=1)[0]) is Kind.COMMIT


@lru_cache(maxsize=1024)
def may_end_transaction(query: str) -> bool:
    """Whether ``query`` may end the transaction that it is sent in, perhaps to begin another one."""
    for part in _plain(query).split(";"):
        words = part.upper().split(maxsplit=2)
        kind = _BY_WORD.get(words[0]) if words else None
        if (
            kind is Kind.COMMIT
            or (kind is Kind.ROLLBACK and not ends_in_savepoint(part))
            or words[:2] == ["PREPARE", "TRANSACTION"]
        ):
            return True
    return False


@lru_cache(maxsize=1024)
def is_write(query: str) -> bool:
    """Whether ``query``, which is one statement, is an INSERT, UPDATE, DELETE or MERGE, perhaps with WITH."""
    return _WRITE.match(query) is not None


@lru_cache(maxsize=1024)
def is_lone_write(query: str) -> bool:
    """Whether ``query`` is certainly one statement, and a write as in :func:`is_write`."""
    return is_write(query) and _LONE.fullmatch(query) is not None


def read_only_after(query: str) -> bool | None:
    """Whether BEGIN makes the transaction read-only; ``None`` if it says nothing about that."""
    words = " ".join(_plain(query).upper().split())
    if "READ WRITE" in words:
        return False
    return True if "READ ONLY" in words else None


def ends_in_savepoint(query: str) -> bool:
    """Whether a ROLLBACK goes back only to a savepoint."""
    return "TO" in _plain(query).upper().split()


@lru_cache(maxsize=1024)
def may_write_after(query: str) -> bool:
    """Whether a READ ONLY transaction may be READ WRITE after ``query``, or in the middle of it.

    The name of the setting may be quoted, and BEGIN within a transaction sets its mode too.
    """
    text = query.lower()
    if not any(sign in text for sign in ("write", "read_only", 'u&"')):
        return False
    first = {part.split(maxsplit=1)[0] for part in _plain(text).split(";") if part.strip()}
    return not first.isdisjoint({"set", "reset", "begin", "start"})


def _plain(query: str) -> str:
    """``query`` with quoted text and comments blanked; Postgres has comments within comments."""
    kept: list[str] = []
    at = 0
    while (found := _QUOTED.search(query, at)) is not None:
        kept += query[at : found.start()], " " if found.group().startswith(("--", "/*")) else "''"
        at = _end_of_comment(query, found.end()) if found.group() == "/*" else found.end()
    return "".join((*kept, query[at:]))


def _end_of_comment(query: str, at: int) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(query, at):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(query)


def _kind_of_one(statement: str) -> Kind:
    words = statement.upper().split(maxsplit=2)
    if words[:2] == ["PREPARE", "TRANSACTION"]:
        raise ConfigurationError(
            "PREPARE TRANSACTION under a lease would keep its successor out until somebody ends that"
            " transaction: COMMIT instead"
        )
    if words[:2] == ["COMMIT", "PREPARED"]:
        raise ConfigurationError(
            "COMMIT PREPARED runs in no transaction, so it can present no lease: COMMIT plainly, or send it"
            " in `with unfenced():` if it needs none"
        )
    return _BY_WORD.get(words[0]) or _BY_WORD.get(" ".join(words[:2]), Kind.ORDINARY)
