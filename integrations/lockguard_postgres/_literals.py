"""Values as SQL text, for messages that cannot carry parameters.

asyncpg sends parameters only with a prepared statement, which takes two messages the first time. A pooler in
transaction mode may send them to two servers: the second message then meets the statement that another client
prepared there. A simple query is one message and always whole.

No value that is written here can be read as SQL, whatever the server's settings on quoting: in a string that
begins with E, letters, digits and ``:/_.-`` stand for themselves and every other ASCII character is written
as its hexadecimal code. A text beyond ASCII is the hex of its UTF-8 bytes, which costs the server more.
"""

from __future__ import annotations

import re
from functools import lru_cache
from uuid import UUID

__all__ = ["number", "text", "uuid"]

_NOT_ITSELF = re.compile(r"[^A-Za-z0-9:/_.-]")


@lru_cache(maxsize=1024)
def text(value: str) -> str:
    """Any text, as SQL. What Postgres cannot store (NUL, lone surrogates) is left out or replaced."""
    value = value.replace("\0", "")
    if value.isascii():
        return f"E'{_NOT_ITSELF.sub(_numbered, value)}'::text"
    return f"convert_from(decode('{value.encode('utf-8', 'replace').hex()}','hex'),'UTF8')"


def _numbered(found: re.Match[str]) -> str:
    return f"\\x{ord(found.group()):02x}"


def number(value: int | None) -> str:
    """An integer as an SQL bigint, ``None`` as null."""
    return "null::bigint" if value is None else f"{value:d}::bigint"


@lru_cache(maxsize=1024)
def uuid(value: str) -> str:
    """An SQL uuid, from 32 hexadecimal digits."""
    return f"'{UUID(value)}'::uuid"
