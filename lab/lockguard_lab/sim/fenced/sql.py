"""The SQL that the model reads: the fence's calls, transactions, and the writes of the schedules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Call", "Literal_", "Unknown", "calls_of", "parameters_of", "split"]

_STATEMENT = re.compile(r"(?:[^;']|'[^']*(?:'|\Z))+")
_CALL = re.compile(r"\b(?:lockguard\.)(\w+)\(")
_PARAMETER = re.compile(r"\$(\d+)::(\w+)")
_TEXT = re.compile(r"E'((?:[^'\\]|\\x[0-9a-f]{2})*)'::text")
_QUOTED = re.compile(r"'([^']*)'(?:::\w+)?")
_NUMBER = re.compile(r"(-?\d+)(?:::\w+)?")
_FIRST = re.compile(r"case lockguard\.fence_id\(\) when '([0-9a-f-]+)'::uuid then (\d+)::bigint else 0 end")

Literal_ = str | int | bool | None


class Unknown(Exception):
    """The model does not know a statement; a schedule must not send it."""


@dataclass(frozen=True)
class Call:
    """A call of one of the fence's functions."""

    name: str
    args: tuple[object, ...]


@lru_cache(maxsize=4096)
def split(text: str) -> tuple[str, ...]:
    """The statements of a text."""
    return tuple(part.strip() for part in _STATEMENT.findall(text) if part.strip())


@lru_cache(maxsize=4096)
def parameters_of(text: str) -> tuple[str, ...]:
    """The types of a statement's parameters, by their casts."""
    found = {int(number): kind for number, kind in _PARAMETER.findall(text)}
    return tuple(found[number] for number in range(1, len(found) + 1))


def calls_of(text: str, params: Sequence[Literal_]) -> list[Call]:
    """The outermost calls of the fence's functions, in their order."""
    found: list[Call] = []
    at = 0
    while (match := _CALL.search(text, at)) is not None:
        if _FIRST.match(text, match.start() - 5):  # part of an argument
            at = match.end()
            continue
        end = _closing(text, match.end())
        args = tuple(_value(part, params) for part in _parts(text[match.end() : end]))
        found.append(Call(match[1], args))
        at = end
    return found


def _closing(text: str, at: int) -> int:
    depth, quoted = 1, False
    while depth:
        sign = text[at]
        quoted = quoted != (sign == "'")
        if not quoted:
            depth += (sign == "(") - (sign == ")")
        at += 1
    return at - 1


@lru_cache(maxsize=4096)
def _parts(text: str) -> tuple[str, ...]:
    parts, depth, quoted = [""], 0, False
    for sign in text:
        quoted = quoted != (sign == "'")
        depth += (sign in "([") - (sign in ")]") if not quoted else 0
        if sign == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += sign
    return tuple(part.strip() for part in parts if part.strip())


def _value(text: str, params: Sequence[Literal_]) -> object:
    if text.startswith("$"):
        return params[int(text[1:].partition("::")[0]) - 1]
    if text.startswith("null"):
        return None
    if text.startswith("array["):
        return [_value(part, params) for part in _parts(text[6:-1])]
    if text.startswith("lockguard."):
        return calls_of(text, params)[0]
    if found := _FIRST.fullmatch(text):
        return int(found[2])
    if found := _TEXT.fullmatch(text):
        return re.sub(r"\\x([0-9a-f]{2})", lambda sign: chr(int(sign[1], 16)), found[1])
    if found := _QUOTED.fullmatch(text):
        return found[1]
    if found := _NUMBER.fullmatch(text):
        return int(found[1])
    raise Unknown(f"an argument {text!r}")
