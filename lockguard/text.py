"""Text for display: who holds a lock, what for, why it was broken.

It comes from any source: a task's name may be a chat message. It is kept, because it is what an operator has
to go by, but it cannot begin a new line of a history or a log, nor control a terminal.
"""

from __future__ import annotations

from lockguard.errors import ConfigurationError

__all__ = [
    "TEXT_CHARACTERS_MAX",
    "decoded",
    "first_line",
    "hidden",
    "kind_of",
    "one_word",
    "printable",
    "remark",
]

TEXT_CHARACTERS_MAX = 200
"""The longest holder, operation or reason, in characters."""

_SECRET_CHARACTERS_MIN = 4
_PIECE_CHARACTERS = 8


def kind_of(value: object) -> str:
    """A value's type with its article, for an error that must not show the value itself."""
    if value is None:
        return "None"
    name = printable(type(value).__name__)
    return f"an {name}" if name[:1].lower() in ("a", "e", "i", "o") else f"a {name}"


def printable(text: str) -> str:
    r"""The text with every character escaped that is not displayed as itself.

    Line ends, terminals' escape sequences, marks that change the direction of writing, characters without
    width and broken Unicode become ``\n``, ``\x1b``, ``\u202e`` and so on. All else stays, a backslash too,
    so that text which was escaped once is not changed again.

    Args:
        text: anything.
    """
    text = str.__str__(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_word(text: str) -> str:
    """Like :func:`printable`, without blanks: in a line of a history it cannot pass for the next field."""
    if type(text) is str and text.isprintable() and " " not in text:
        return text
    return printable(text).replace(" ", "\\x20")


def remark(text: str, name: str) -> str:
    """An operation or a reason from a caller, made printable and cut to ``TEXT_CHARACTERS_MAX``.

    Args:
        text: what the caller gave.
        name: the parameter's name, for the error.

    Raises:
        ConfigurationError: it is not text.
    """
    if not isinstance(text, str):
        raise ConfigurationError(
            f"{name} is {kind_of(text)}; write text for people, such as {name}='open long'"
        )
    if type(text) is str and text.isprintable() and len(text) <= TEXT_CHARACTERS_MAX:
        return text
    return printable(text[:TEXT_CHARACTERS_MAX])[:TEXT_CHARACTERS_MAX]


def first_line(exc: BaseException) -> str:
    """The first line of an error's text, or the name of its type if that is empty."""
    return str(exc).partition("\n")[0] or type(exc).__name__


def hidden(text: str, *secrets: str | None) -> str:
    """The text with secrets replaced by ``***``, also pieces of them, as where something has cut it.

    Args:
        text: what a server or a library said, which may quote what it was sent.
        secrets: each from 4 characters up; pieces of one count from 8 characters up.
    """
    covered: set[int] = set()
    for secret in secrets:
        if not secret or len(secret) < _SECRET_CHARACTERS_MIN:
            continue
        size = min(len(secret), _PIECE_CHARACTERS)
        for piece in {secret[start : start + size] for start in range(len(secret) - size + 1)}:
            start = text.find(piece)
            while start >= 0:
                covered.update(range(start, start + size))
                start = text.find(piece, start + 1)
    return "".join(
        char if at not in covered else "" if at - 1 in covered else "***" for at, char in enumerate(text)
    )


def decoded(text: bytes) -> str:
    """Text for display as a server keeps it, made printable: any client may have written it."""
    return printable(text.decode(errors="backslashreplace"))
