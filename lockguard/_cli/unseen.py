"""Keeping a password out of an error that quotes what was typed.

A URL is soon given where none is expected, as in ``--redis URL1 URL2``, and click, the operating system and
our own errors quote an argument that they cannot use. Most errors go on to a log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lockguard.text import hidden

__all__ = ["unseen"]

_LOG_IN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/{1,2})(?P<log_in>.*)@", re.DOTALL)
_OPTION = re.compile(r"[?&][^=&]*=(?P<value>[^&]+)")


def unseen(text: str, arguments: Sequence[str]) -> str:
    """The text without the users, passwords and options of the URLs among a command's arguments.

    Args:
        text: an error.
        arguments: what was typed.
    """
    for argument in arguments:
        if (found := _LOG_IN.search(argument)) is not None:
            user, colon, password = found["log_in"].partition(":")
            text = text.replace(found[0], f"{found['scheme']}***@")
            text = hidden(text, found["log_in"], password if colon else user)
        if "://" in argument:
            text = hidden(text, *(option["value"] for option in _OPTION.finditer(argument)))
    return text
