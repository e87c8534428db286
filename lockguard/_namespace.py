"""The first part of every key in Redis, which keeps the guards of two bots or stages on one server apart."""

from __future__ import annotations

import os
import re
import socket
from typing import NewType

from lockguard._lease import new_grant_id
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of

__all__ = ["NAMESPACE", "Namespace", "new_inbox", "parse_namespace"]

Namespace = NewType("Namespace", str)
"""A validated namespace, such as ``bot-a`` or ``staging:bot-a``."""

NAMESPACE = Namespace("lockguard")
"""The namespace of guards that are given none."""

NAMESPACE_MAX = 64
_FORM = "write letters, digits and . _ - : between them, such as 'bot-a' or 'staging:bot-a'"


def parse_namespace(value: object, name: str = "namespace=") -> Namespace:
    """Check a namespace and return it.

    A brace would move the hash tag, so that the keys of one lock would be spread over a cluster. A blank, or
    a character that means something in a pattern (``*``, ``?``, ``[``), would make an ACL's ``~namespace:*``
    cover the keys of others. With ASCII only, no two namespaces look the same.

    Args:
        value: what was given.
        name: where it was given, for the message.

    Raises:
        ConfigurationError: it is no text of 1 to 64 letters, digits and ``. _ - :`` that begins and ends with
            a letter or digit. The message does not show it: it may be a URL in the wrong place.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is {kind_of(value)}, which is no namespace; {_FORM}")
    if not value:
        raise ConfigurationError(f"{name} is empty; leave it out for {NAMESPACE!r}, or {_FORM}")
    if len(value) > NAMESPACE_MAX:
        raise ConfigurationError(
            f"{name} is {len(value)} characters long; the limit is {NAMESPACE_MAX}: use a shorter one"
        )
    if (other := re.search(r"[^A-Za-z0-9._:-]", value)) is not None:
        raise ConfigurationError(f"{name} has the character {other[0]!a}, which it may not have; {_FORM}")
    if not (value[0].isalnum() and value[-1].isalnum()):
        at, which = ("begins", value[0]) if not value[0].isalnum() else ("ends", value[-1])
        raise ConfigurationError(f"{name} {at} with {which!r}; {_FORM}")
    return Namespace(value)


def new_inbox(namespace: Namespace) -> str:
    """A readable and unique name for the channel on which this process is woken."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-._")[:60]
    return f"{namespace}:inbox:{host}:{os.getpid()}:{new_grant_id()[:12]}"
