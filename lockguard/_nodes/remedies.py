"""What to do about a server that refuses a user, or is not connected: one line has one remedy."""

from __future__ import annotations

__all__ = ["AGAIN", "no_right", "or_check", "with_rights"]

AGAIN = "; lockguard tries again until it is"
"""The remedy for a server that is not ready: nothing is wrong with its URL, and it runs."""

_NO_RIGHT = ("NOPERM", "The user executing the script can't", "ACL failure in script")
"""How a server says that a user lacks a right: the second is Redis 7.0's of a command within a script, the
third that of later ones and of Valkey. Redis 6 has the first within a text of its own."""


def no_right(told: str) -> bool:
    """Whether an error reply says that the user lacks a right, to a command or to one within a script."""
    return any(words in told for words in _NO_RIGHT)


def with_rights(asked: str, told: str, role: str) -> str:
    """What was asked and what the server said; for a missing right also what to do.

    Args:
        asked: what was asked, such as ``acquire``.
        told: the error reply.
        role: whose rights are needed for it, such as ``an operator``.
    """
    if not no_right(told):
        return f"{asked}: {told}"
    return (
        f"{asked}: the user of the URL lacks a right: {told.rstrip('. ')}; give it the rights of {role} in"
        " this namespace, see docs/howto/least-privilege.md"
    )


def or_check(cause: str) -> str:
    """Why a server is not connected, with a remedy: a refusal has its own, and so has what passes."""
    return cause if "; " in cause else f"{cause}; check the URL and that the server runs"
