"""What a Redis server keeps, as a dict, and the commands that lockguard and its scripts use.

It is held to real servers by generated sequences, see tests/sim. A value is ``bytes``, a ``dict`` (hash), a
``list`` or a :class:`Scores` (sorted set).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["ReplyError", "Scores", "Status", "Store", "copied"]


class ReplyError(Exception):
    """An error reply; its text begins with the code."""


class Status(bytes):
    """A simple string, such as OK."""


class Scores(dict[bytes, float]):
    """A sorted set: member to score."""

    def ranked(self) -> list[tuple[bytes, float]]:
        """By score, then by member."""
        return sorted(self.items(), key=lambda pair: (pair[1], pair[0]))


class Publish(Protocol):
    """Delivers a message, to a channel of the shard or of all servers; returns how many had it."""

    def __call__(self, channel: bytes, message: bytes, /, *, shard: bool) -> int:
        """Deliver one."""
        ...


_OK = Status(b"OK")
_WRONG = "WRONGTYPE Operation against a key holding the wrong kind of value"


def copied(value: Any) -> Any:
    """A copy of a value, of which nothing but the whole ever changes its parts; ``None`` of none."""
    return value if value is None or type(value) is bytes else type(value)(value)


def _all_copied(values: dict[bytes, Any]) -> dict[bytes, Any]:
    return {key: copied(value) for key, value in values.items()}


def number(score: float) -> bytes:
    """A score as Redis writes it."""
    return b"%d" % score if score == int(score) and abs(score) < 1e17 else repr(score).encode()


class Store:
    """The data of one server.

    Args:
        clock_ms: the server's clock, in milliseconds since 1970, with a fraction.
        publish: delivers a message; returns how many had it.
    """

    def __init__(self, clock_ms: Callable[[], float], publish: Publish) -> None:
        self._clock_ms = clock_ms
        self._deliver = publish
        self._commands: dict[bytes, Callable[..., Any]] = {}
        self.values: dict[bytes, Any] = {}
        self.ends_ms: dict[bytes, float] = {}
        self._frozen_ms: float | None = None

    def snapshot(self) -> tuple[dict[bytes, Any], dict[bytes, float]]:
        """A copy of all data, for a replica or a file."""
        return _all_copied(self.values), dict(self.ends_ms)

    def restore(self, data: tuple[dict[bytes, Any], dict[bytes, float]]) -> None:
        """Replace all data by a copy."""
        self.values, self.ends_ms = _all_copied(data[0]), dict(data[1])

    def put(self, key: bytes, value: Any, end_ms: float | None) -> None:
        """Set a key and its end, as a replica does; ``None`` deletes it."""
        self._drop(key)
        if value is not None:
            self.values[key] = value
            if end_ms is not None:
                self.ends_ms[key] = end_ms

    def wipe(self) -> None:
        """Forget all data."""
        self.values, self.ends_ms = {}, {}

    def begin_script(self) -> None:
        """Freeze the clock, as while a script runs."""
        self._frozen_ms = self._clock_ms()

    def end_script(self) -> None:
        """Let the clock run again."""
        self._frozen_ms = None

    @property
    def now_ms(self) -> float:
        """The server's clock in milliseconds."""
        return self._clock_ms() if self._frozen_ms is None else self._frozen_ms

    def do(self, *words: bytes) -> Any:
        """Execute a command.

        Raises:
            ReplyError: as the server would.
        """
        command = self._commands.get(words[0])
        if command is None:
            command = getattr(self, f"_{words[0].decode(errors='replace').lower()}", None)
            if command is None or words[0].startswith(b"_"):
                raise ReplyError(f"ERR unknown command '{words[0].decode(errors='replace')}'")
            self._commands[words[0]] = command
        try:
            return command(*words[1:])
        except TypeError as error:
            raise ReplyError(f"ERR wrong number of arguments: {error}") from error

    # Keys.

    def _value(self, key: bytes, kind: type) -> Any:
        if key in self.ends_ms:
            self._expire(key)
        value = self.values.get(key)
        if value is not None and type(value) is not kind:
            raise ReplyError(_WRONG)
        return value

    def _made(self, key: bytes, kind: type) -> Any:
        value = self._value(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def _expire(self, key: bytes) -> None:
        # A key is gone one millisecond after its end, as Redis compares whole milliseconds.
        end = self.ends_ms.get(key)
        if end is not None and int(self.now_ms) > end:
            self._drop(key)

    def _drop(self, key: bytes) -> bool:
        self.ends_ms.pop(key, None)
        return self.values.pop(key, None) is not None

    def _dropped_if_empty(self, key: bytes) -> None:
        if not self.values.get(key):
            self._drop(key)

    def _del(self, *keys: bytes) -> int:
        for key in keys:
            self._expire(key)
        return sum(self._drop(key) for key in keys)

    def _exists(self, *keys: bytes) -> int:
        for key in keys:
            self._expire(key)
        return sum(key in self.values for key in keys)

    def _pexpire(self, key: bytes, ms: bytes) -> int:
        self._expire(key)
        span = _whole(ms)
        if key not in self.values:
            return 0
        if span <= 0:
            self._drop(key)
        else:
            self.ends_ms[key] = int(self.now_ms) + span
        return 1

    def _pttl(self, key: bytes) -> int:
        self._expire(key)
        if key not in self.values:
            return -2
        end = self.ends_ms.get(key)
        return -1 if end is None else max(0, int(end) - int(self.now_ms))

    def _time(self) -> list[bytes]:
        us = int(self.now_ms * 1000)
        return [b"%d" % (us // 1_000_000), b"%d" % (us % 1_000_000)]

    def _keys(self, _pattern: bytes) -> list[bytes]:
        for key in list(self.values):
            self._expire(key)
        return sorted(self.values)

    # Strings.

    def _get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._value(key, bytes)
        return value

    def _set(self, key: bytes, value: bytes, *options: bytes) -> bytes:
        if options and (options[0].upper() != b"PX" or len(options) != 2):
            raise ReplyError("ERR syntax error")
        if options and _whole(options[1]) <= 0:
            raise ReplyError("ERR invalid expire time in 'set' command")
        self._drop(key)
        self.values[key] = value
        if options:
            self.ends_ms[key] = int(self.now_ms) + _whole(options[1])
        return _OK

    # Hashes.

    def _hget(self, key: bytes, field: bytes) -> bytes | None:
        return (self._value(key, dict) or {}).get(field)

    def _hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        found = self._value(key, dict) or {}
        return [found.get(field) for field in fields]

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        if not pairs or len(pairs) % 2:
            raise ReplyError("ERR wrong number of arguments for 'hset' command")
        held = self._made(key, dict)
        new = sum(field not in held for field in set(pairs[::2]))
        held.update(zip(pairs[::2], pairs[1::2], strict=True))
        return new

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        held = self._value(key, dict) or {}
        gone = sum(held.pop(field, None) is not None for field in fields)
        self._dropped_if_empty(key)
        return gone

    def _hlen(self, key: bytes) -> int:
        return len(self._value(key, dict) or {})

    def _hincrby(self, key: bytes, field: bytes, by: bytes) -> int:
        held = self._made(key, dict)
        total = _whole(held.get(field, b"0"), "ERR hash value is not an integer") + _whole(by)
        held[field] = b"%d" % total
        return total

    def _hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in (self._value(key, dict) or {}).items() for part in pair]

    # Lists.

    def _lpush(self, key: bytes, *values: bytes) -> int:
        held = self._made(key, list)
        for value in values:
            held.insert(0, value)
        return len(held)

    def _lpushx(self, key: bytes, *values: bytes) -> int:
        return self._lpush(key, *values) if self._value(key, list) else 0

    def _lrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        return _span(self._value(key, list) or [], first, last)

    def _ltrim(self, key: bytes, first: bytes, last: bytes) -> bytes:
        if (held := self._value(key, list)) is not None:
            held[:] = _span(held, first, last)
            self._dropped_if_empty(key)
        return _OK

    # Sorted sets.

    def _zadd(self, key: bytes, *words: bytes) -> int:
        only_there = words[0].upper() == b"XX"
        pairs = words[1:] if only_there else words
        if only_there and self._value(key, Scores) is None:
            return 0
        held, new = self._made(key, Scores), 0
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            if only_there and member not in held:
                continue
            new += member not in held
            held[member] = _score(score)
        return new

    def _zcard(self, key: bytes) -> int:
        return len(self._value(key, Scores) or ())

    def _zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = (self._value(key, Scores) or {}).get(member)
        return None if score is None else number(score)

    def _zrem(self, key: bytes, *members: bytes) -> int:
        held = self._value(key, Scores) or {}
        gone = sum(held.pop(member, None) is not None for member in members)
        self._dropped_if_empty(key)
        return gone

    def _zrank(self, key: bytes, member: bytes) -> int | None:
        ranked = [name for name, _ in (self._value(key, Scores) or Scores()).ranked()]
        return ranked.index(member) if member in ranked else None

    def _zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        ranked = (self._value(key, Scores) or Scores()).ranked()
        return _shown(_span(ranked, first, last), options)

    def _zrevrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        ranked = (self._value(key, Scores) or Scores()).ranked()[::-1]
        return _shown(_span(ranked, first, last), options)

    def _zpopmin(self, key: bytes) -> list[bytes]:
        held = self._value(key, Scores)
        if not held:
            return []
        member, score = held.ranked()[0]
        del held[member]
        self._dropped_if_empty(key)
        return [member, number(score)]

    # Messages.

    def _publish(self, channel: bytes, message: bytes) -> int:
        return self._deliver(channel, message, shard=False)

    def _spublish(self, channel: bytes, message: bytes) -> int:
        return self._deliver(channel, message, shard=True)


def _whole(word: bytes, refusal: str = "ERR value is not an integer or out of range") -> int:
    try:
        return int(word)
    except ValueError:
        raise ReplyError(refusal) from None


def _score(word: bytes) -> float:
    try:
        return float(word)
    except ValueError:
        raise ReplyError("ERR value is not a valid float") from None


def _span(found: list[Any], first: bytes, last: bytes) -> list[Any]:
    begin, end, size = _whole(first), _whole(last), len(found)
    begin = max(0, begin + size) if begin < 0 else begin
    end = end + size if end < 0 else end
    return found[begin : end + 1] if end >= begin else []


def _shown(pairs: list[tuple[bytes, float]], options: tuple[bytes, ...]) -> list[bytes]:
    if options and options[0].upper() == b"WITHSCORES":
        return [part for member, score in pairs for part in (member, number(score))]
    return [member for member, _ in pairs]
