"""Signals, and how they are parsed from a line of JSON or from the fields of a stream entry.

A signal that cannot be parsed is refused with one line that names the place, the field, its value and the
remedy. It must never end the bot, nor reach the exchange as a guess.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from lockguard.errors import ConfigurationError
from lockguard_positions._model import PositionSide, money, percent, plain_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BadSignal",
    "CloseSignal",
    "OpenSignal",
    "Signal",
    "Stop",
    "Unread",
    "each_once",
    "read_fields",
    "read_line",
]

_Name = TypeVar("_Name", str, bytes)

LINE_BYTES_MAX = 16_384
_TEXT_CHARACTERS_MAX = 200
_SHOWN_CHARACTERS_MAX = 60
_NUMBER_MAX = Decimal("1e15")
_NUMBER_MIN = Decimal("1e-15")
_HUNDRED = Decimal(100)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST, _LATEST = datetime(2015, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
_PER_SECOND = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
_REFUSED_DIGITS_MAX = 30
_IN_ORDER_MAX = 999
"""A stream's entries of one millisecond are a microsecond apart; those after a thousand count as equal."""
_EXACT_MAX = Decimal("1e20")
"""A larger number is not converted to ``int``: 1e999999999 would fill the memory."""


class BadSignal(ValueError):
    """A signal is refused; the message is one readable line.

    Attributes:
        closes: whether it was a signal to close, so that a position may stay open.
    """

    def __init__(self, message: str, *, closes: bool = False) -> None:
        super().__init__(message)
        self.closes = closes


class Unread(BadSignal):
    """A signal is set aside unread, because too many bots died while reading it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The stop of an entry: a price, or a distance in percent of the entry price."""

    value: Decimal
    is_percent: bool

    def percent_at(self, price: Decimal, side: PositionSide) -> Decimal:
        """The stop's distance in percent of ``price``.

        Raises:
            BadSignal: the stop is on the wrong side of the price.
        """
        if self.is_percent:
            return self.value
        distance = price - self.value if side is PositionSide.LONG else self.value - price
        if not 0 < distance < price:
            where = "below" if side is PositionSide.LONG else "above"
            raise BadSignal(
                f"stop={str(self.value)!r} is on the wrong side: the stop of a {side.value} lies {where}"
                f" the price, which is {price}; give such a price, or a percentage such as '2%'"
            )
        return distance / price * _HUNDRED


@dataclass(frozen=True, slots=True)
class OpenSignal:
    """A signal to open a position.

    Attributes:
        id: unique to the signal, and the same on every delivery.
        at: when the signal was given; ``None`` if unknown.
    """

    id: str
    symbol: str
    at: datetime | None
    side: PositionSide
    quantity: Decimal
    stop: Stop


@dataclass(frozen=True, slots=True)
class CloseSignal:
    """A signal to close the whole open position of a symbol.

    Attributes:
        side: close the position only if it is on this side; ``None`` closes either.
    """

    id: str
    symbol: str
    at: datetime | None
    side: PositionSide | None


Signal: TypeAlias = OpenSignal | CloseSignal


def read_line(line: bytes, *, where: str) -> Signal:
    """Parse a signal from a line of JSON.

    Raises:
        BadSignal: the line is not a valid signal; the message names ``where``.
    """
    if len(line) >= LINE_BYTES_MAX:
        raise BadSignal(f"{where}: longer than {LINE_BYTES_MAX} bytes; give one signal a line")
    try:
        # Parse numbers as Decimal: a float would change their value.
        found = json.loads(line, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_Object)
    except (ValueError, RecursionError, ArithmeticError):
        raise BadSignal(
            f"{where}: {_shown(line.decode(errors='replace').strip())} is not JSON; write one object a line,"
            ' such as {"id": "s1", "action": "open", "symbol": "APTUSDT", ...}'
        ) from None
    if not isinstance(found, _Object):
        raise BadSignal(f"{where}: {_shown(found)} is not an object; write {{...}} with the signal's fields")
    if found.twice is not None:
        raise _given_twice(found.twice, where=where, closes=found.closes)
    return _read(found, where=where, at=None)


def each_once(fields: Sequence[bytes], *, where: str) -> dict[bytes, bytes]:
    """The fields of a stream entry, given as names and values in turn.

    Raises:
        BadSignal: one stands in it twice; the message names ``where``.
    """
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    if (twice := _twice(pairs)) is not None:
        closes = (b"action", b"close") in pairs
        raise _given_twice(twice.decode(errors="replace"), where=where, closes=closes)
    return dict(pairs)


class _Object(dict[str, Any]):
    """An object of JSON. Of a key that is there twice Python takes the last, which may be the wrong amount.

    It is refused by who reads it, and not while it is parsed: what stands twice in an object within a signal,
    of which no order is made, must not cost a close.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = _twice(pairs)
        self.closes = ("action", "close") in pairs


def _twice(pairs: Sequence[tuple[_Name, object]]) -> _Name | None:
    """The first name that is there for the second time; ``None`` if each is there once."""
    seen = set[_Name]()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def _given_twice(name: str, *, where: str, closes: bool) -> BadSignal:
    return BadSignal(
        f"{where}: the field {_shown(name)} stands in it twice; give each field once", closes=closes
    )


def read_fields(fields: Mapping[bytes, bytes], *, where: str, at_ms: int, number: int = 0) -> Signal:
    """Parse a signal from the fields of a stream entry.

    Args:
        fields: as returned by Redis.
        where: the entry's name for messages.
        at_ms: when the entry was added, in milliseconds since 1970; a field ``at`` takes precedence.
        number: the entry's number among those of its millisecond, which then come in their order.

    Raises:
        BadSignal: the entry is not a valid signal; the message names ``where``.
    """
    try:
        found = {name.decode(): value.decode() for name, value in fields.items()}
        added_at = _EPOCH + timedelta(milliseconds=at_ms, microseconds=min(number, _IN_ORDER_MAX))
    except UnicodeDecodeError:
        raise BadSignal(f"{where}: a field is not UTF-8 text; write plain text") from None
    except OverflowError:
        raise BadSignal(f"{where}: its id is no time; let Redis make the ids, with *") from None
    # A made-up entry id says nothing about the time; the signal is then undated, like one from a file.
    return _read(found, where=where, at=added_at if _EARLIEST <= added_at < _LATEST else None)


def _read(found: Mapping[str, Any], *, where: str, at: datetime | None) -> Signal:
    try:
        signal_id = _text(found, "id", "give each signal an id of its own, the same on every delivery")
        where = f"{where}: signal {signal_id}"
        symbol = _text(found, "symbol", "write it as APTUSDT or APT/USDT:USDT")
        at = _at(found.get("at"), at)
        match action := _text(found, "action", "write 'open' or 'close'"):
            case "open":
                side = PositionSide.read(_text(found, "side", "write 'long' or 'short'"))
                return OpenSignal(signal_id, symbol, at, side, _quantity(found), _stop(found))
            case "close":
                given = found.get("side")
                return CloseSignal(
                    signal_id, symbol, at, None if given is None else PositionSide.read(_plain(given))
                )
            case _:
                raise BadSignal(f"action={_shown(action)} is not known; write 'open' or 'close'")
    except (BadSignal, ConfigurationError) as exc:
        raise BadSignal(f"{where}: {exc}", closes=found.get("action") == "close") from None
    except Exception as exc:
        raise BadSignal(
            f"{where}: cannot be read ({type(exc).__name__}); write plain texts and numbers",
            closes=found.get("action") == "close",
        ) from exc


def _text(found: Mapping[str, Any], name: str, remedy: str) -> str:
    if name not in found:
        raise BadSignal(f"{name} is missing; {remedy}")
    text = _plain(found[name]).strip()
    if not text or len(text) > _TEXT_CHARACTERS_MAX or not text.isprintable():
        raise BadSignal(f"{name}={_shown(found[name])} is empty, too long or not plain text; {remedy}")
    return text


def _quantity(found: Mapping[str, Any]) -> Decimal:
    return _number(_text(found, "quantity", "say how much, in the base currency"), name="quantity")


def _stop(found: Mapping[str, Any]) -> Stop:
    text = _text(found, "stop", "write a price such as '8.50', or a percentage such as '2%'")
    number, sign, rest = text.partition("%")
    if rest:
        raise BadSignal(f"stop={_shown(text)} is not a stop; write a price such as '8.50', or '2%'")
    value = _number(number.strip(), name="stop")
    return Stop(percent(value, name="stop") if sign else value, is_percent=bool(sign))


def _number(text: str, *, name: str) -> Decimal:
    number = money(text, name=name)
    if not _NUMBER_MIN <= number <= _NUMBER_MAX:
        raise BadSignal(f"{name}={_shown(text)} is out of all bounds; check the unit")
    return number


def _at(given: Any, default: datetime | None) -> datetime | None:
    if given is None:
        return default
    text = _plain(given).strip()
    number = _plain_number(text)
    at: datetime | None = None
    with suppress(ValueError, OverflowError):
        if number is None:
            at = datetime.fromisoformat(text)
            at = None if at.tzinfo is None else at.astimezone(UTC)
        elif -_EXACT_MAX < number < _EXACT_MAX and number == number.to_integral_value():
            at = _EPOCH + timedelta(milliseconds=int(number))
    if at is not None and _EARLIEST <= at < _LATEST:
        return at
    # A number in another unit is an instant in 1970 or in the far future: accepted as it is, it would make a
    # close the oldest of all signals, overtaken by every other one.
    unit = None if number is None else _likely_unit(number)
    why = "is no instant" if at is None else f"would be in the year {at.year}"
    hint = f" (it looks like {unit} since 1970)" if unit not in (None, "milliseconds") else ""
    raise BadSignal(
        f"at={_shown(given)} {why}{hint}; write milliseconds since 1970,"
        " or ISO 8601 with a zone such as 2026-01-31T08:00:00Z"
    )


def _plain_number(text: str) -> Decimal | None:
    if len(text) > _REFUSED_DIGITS_MAX:
        return None
    number = plain_number(text)
    return number if number is not None and number.is_finite() else None


def _likely_unit(number: Decimal) -> str | None:
    """The unit in which a number, counted since 1970, is an instant between 2015 and 2100."""
    for unit, per_second in _PER_SECOND.items():
        with suppress(ArithmeticError, ValueError):
            if _EARLIEST.timestamp() <= number / per_second < _LATEST.timestamp():
                return unit
    return None


def _plain(value: Any) -> str:
    """A string or a number as text; anything else as the empty text, which is refused."""
    return value if isinstance(value, str) else str(value) if isinstance(value, Decimal) else ""


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}..."
