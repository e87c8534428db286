"""Values as SQL text, for messages that cannot carry parameters.

asyncpg sends parameters only with a prepared statement, which is two messages the first time and which a
pooler in transaction mode may spread over two servers: the second message then meets the statement that
another client prepared there. A simple query is one message and always whole.

Only digits, hexadecimal digits and dashes are ever written here: a text is the hex of its UTF-8 bytes, so
nothing in it can be read as SQL, whatever the server's settings on quoting are.
"""

from __future__ import annotations

from uuid import UUID

__all__ = ["number", "text", "uuid"]


def text(value: str) -> str:
    """Any text. What Postgres cannot keep (NUL, lone surrogates) is left out or replaced."""
    return (
        f"convert_from(decode('{value.replace(chr(0), '').encode('utf-8', 'replace').hex()}','hex'),'UTF8')"
    )


def number(value: int | None) -> str:
    """A bigint or null."""
    return "null::bigint" if value is None else f"{value:d}::bigint"


def uuid(value: str) -> str:
    """A uuid, from 32 hexadecimal digits."""
    return f"'{UUID(value)}'::uuid"
