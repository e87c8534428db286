"""The scripts that decide on the server, one .lua file each, loaded once.

The header of each file is its contract: keys, arguments, and what each return means. A script cannot import
another: what several of them do is in ``wake.lua``, and replaces the line ``-- include wake.lua`` in each.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

__all__ = [
    "ACQUIRE",
    "ADMIT",
    "BREAK",
    "CHECK",
    "EXTEND",
    "HISTORY",
    "INSPECT",
    "REJOIN",
    "RELEASE",
    "SCRIPTS",
    "SETTLE",
    "Script",
]


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """A script's text and the SHA-1 by which a server knows it.

    Attributes:
        name: the file's name without its ending.
        source: the Lua text, as sent to the server.
        sha: 40 hexadecimal digits.
    """

    name: str
    source: str
    sha: str


def _text_of(name: str) -> str:
    return (files("lockguard") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _load(name: str) -> Script:
    source = _text_of(name).replace("-- include wake.lua\n", _WAKE)
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_WAKE = _text_of("wake")

ACQUIRE = _load("acquire")
ADMIT = _load("admit")
BREAK = _load("break")
CHECK = _load("check")
EXTEND = _load("extend")
HISTORY = _load("history")
INSPECT = _load("inspect")
REJOIN = _load("rejoin")
RELEASE = _load("release")
SETTLE = _load("settle")

SCRIPTS = (ACQUIRE, ADMIT, BREAK, CHECK, EXTEND, HISTORY, INSPECT, REJOIN, RELEASE, SETTLE)
