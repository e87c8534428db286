"""A read-only diagnosis of the positions: the table, the exchange, and one compared with the other.

Nothing is locked, so an open in progress may be seen half done. So the table is read before and after the
exchange, and a symbol whose rows changed in between is not judged. No action is based on these findings: the
clean-up reads again, under each symbol's lease.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lockguard_ccxt._venues import IN_HEDGE_MODE
from lockguard_positions._account import NEVER_HAD, never_had
from lockguard_positions._duplicates import divide
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import Adopt, Position, PositionSide, stop_price_of
from lockguard_positions._pace import Pace
from lockguard_positions._rows import position_of, statement
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import is_own, named, short_by, standing_stop
from lockguard_positions._venue import Venue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import asyncpg

    from lockguard_ccxt import GuardedExchange, Holding, PlacedOrder, Side

__all__ = ["Comparison", "Diagnosis", "Finding", "FindingKind", "StatusFigures", "compare", "diagnose"]

_FILE = "diagnosis.sql"
_MILLISECOND = timedelta(milliseconds=1)
_OLDER_THAN = timedelta(minutes=1)
_PACE = Pace()
_STOP_PERCENT = Decimal(2)


class FindingKind(StrEnum):
    """The kinds of findings."""

    INCOMPLETE = "incomplete"
    """A row has been entering or closing for too long."""
    DUPLICATE = "duplicate"
    """A symbol has more than one open row."""
    WITHOUT_STOP = "without_stop"
    """The exchange holds a position without its stop, or with stops that cover only a part of it."""
    ORPHANED_ROW = "orphaned_row"
    """A row is open and the exchange holds no position."""
    ORPHANED_POSITION = "orphaned_position"
    """The exchange holds a position and no row is open."""
    ORPHANED_STOP = "orphaned_stop"
    """A reduce-only stop waits where there is neither a position nor an open row."""
    MISMATCH = "mismatch"
    """Side or quantity differ between row and exchange."""
    NO_MARKET = "no_market"
    """A row is open in a market that the exchange does not list."""
    UNREADABLE = "unreadable"
    """The exchange did not answer, so it was not compared with the table."""

    @property
    def remedy(self) -> str:
        """What the clean-up does about it, as a text for display."""
        return _REMEDIES[self]


_REMEDIES = {
    FindingKind.INCOMPLETE: "finish it from the exchange's truth",
    FindingKind.DUPLICATE: "leave one row; close what was entered twice, reduce-only",
    FindingKind.WITHOUT_STOP: "place its stop",
    FindingKind.ORPHANED_ROW: "close the row",
    FindingKind.ORPHANED_POSITION: "give it a row and a stop",
    FindingKind.ORPHANED_STOP: "take it back",
    FindingKind.MISMATCH: "tell; a person decides",
    FindingKind.NO_MARKET: "tell; 'lockguard positions close' ends the row",
    FindingKind.UNREADABLE: "nothing, until it answers",
}


_OF_THE_TABLE = frozenset({FindingKind.INCOMPLETE, FindingKind.DUPLICATE})
"""What is wrong with rows whatever the exchange holds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: what is wrong.
        exchange: the account.
        symbol: in the table's spelling; empty if the finding is about the whole exchange.
        position_ids: the rows concerned.
        age_ms: the largest age of these rows in milliseconds; ``None`` without rows.
        details: a text for display.
        orders: every order that a clean-up of the symbol would send, also because of its other findings.
    """

    kind: FindingKind
    exchange: str
    symbol: str
    position_ids: tuple[int, ...]
    age_ms: int | None
    details: str
    orders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusFigures:
    """The rows of one status: their number, and their durations to their end, or to now if still open.

    Attributes:
        status: the status.
        count: how many rows have it.
        duration_ms_average: their average duration, in milliseconds.
        duration_ms_max: the longest, in milliseconds.
    """

    status: str
    count: int
    duration_ms_average: int
    duration_ms_max: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of :func:`diagnose`.

    Attributes:
        findings: what is wrong.
        statistics: figures of all rows, open and ended.
        exchanges: the exchanges that were compared with the table.
        changing: symbols whose rows changed during the diagnosis, which were not judged.
    """

    findings: tuple[Finding, ...]
    statistics: tuple[StatusFigures, ...]
    exchanges: tuple[str, ...]
    changing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all exchanges could be read."""
        return not any(finding.kind is FindingKind.UNREADABLE for finding in self.findings)

    @property
    def symbols(self) -> tuple[tuple[str, str], ...]:
        """Exchange and symbol of the findings, sorted, without repetitions."""
        return tuple(sorted({(f.exchange, f.symbol) for f in self.findings if f.symbol}))


async def diagnose(
    pool: asyncpg.Pool[Any],
    exchanges: Sequence[GuardedExchange] = (),
    *,
    older_than: timedelta = _OLDER_THAN,
    pace: Pace = _PACE,
    adopt: Adopt = Adopt.STOP,
    adopt_stop_loss_percent: Decimal = _STOP_PERCENT,
) -> Diagnosis:
    """Look for what is wrong; changes nothing and takes no lease.

    Args:
        pool: connections to the database that has the tables, of any version.
        exchanges: the exchanges to compare with the table; without any, only the table is checked.
        older_than: how long a row may be entering or closing.
        pace: its ``grace`` says for how long after a change the exchange's lists are not trusted.
        adopt: what a clean-up does about a position without a row; used to predict its orders.
        adopt_stop_loss_percent: how far from its entry price, in percent, the stop of such a position goes;
            used to predict its orders.
    """
    findings: list[Finding] = []
    changing: list[str] = []
    venues = {exchange.name: Venue(exchange, pace) for exchange in exchanges}
    names = list(venues) or [row[0] for row in await pool.fetch(statement("exchanges", _FILE))]
    for name in names:
        venue = venues.get(name)
        before = await _open_rows(pool, name)
        side: _Exchange | None = None
        if venue is not None:
            try:
                side = await _look(venue, before)
            except ExchangeUnreadable as exc:
                findings.append(Finding(FindingKind.UNREADABLE, name, "", (), None, str(exc)))
        after = await _open_rows(pool, name)
        judge = _Judge(name, older_than=older_than, grace=pace.grace)
        symbols = before.keys() | after.keys() | (side.symbols if side is not None else set())
        for symbol in sorted(symbols):
            if _state(before[symbol]) != _state(after[symbol]):
                changing.append(symbol)
                continue
            found = judge.symbol(symbol, after[symbol], side)
            ours = True
            if found and venue is not None and side is not None and symbol not in side.gone:
                found, ours = await _of_this_account(venue, found, after[symbol])
            if found and ours and venue is not None and side is not None and symbol not in side.gone:
                orders = _planned_orders(
                    venue,
                    after[symbol],
                    side.held.get(symbol),
                    side.stops.get(symbol, ()),
                    adopt=adopt,
                    stop_loss_percent=adopt_stop_loss_percent,
                )
                found = [replace(finding, orders=orders) for finding in found]
            findings += found
    only = next(iter(venues)) if len(venues) == 1 else None
    figures = await pool.fetch(statement("statistics", _FILE), only)
    return Diagnosis(
        tuple(findings), tuple(StatusFigures(**row) for row in figures), tuple(venues), tuple(changing)
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """What :func:`compare` saw: the findings, and the open conditional orders by symbol."""

    findings: tuple[Finding, ...]
    stops: Mapping[str, tuple[PlacedOrder, ...]]


async def compare(
    exchange: GuardedExchange,
    rows: Mapping[str, tuple[Position, ...]],
    *,
    older_than: timedelta = _OLDER_THAN,
    pace: Pace = _PACE,
) -> Comparison:
    """Compare open rows, wherever they were read, with an exchange; changes nothing.

    Args:
        exchange: the exchange, its markets loaded.
        rows: the open rows by symbol, as locks spell it.
        older_than: how long a row may be entering or closing.
        pace: its ``grace`` says for how long after a change the exchange's lists are not trusted.

    Raises:
        ExchangeUnreadable: the exchange did not answer.
    """
    venue = Venue(exchange, pace)
    side = await _look(venue, rows)
    judge = _Judge(exchange.name, older_than=older_than, grace=pace.grace)
    found: list[Finding] = []
    for symbol in sorted(rows.keys() | side.symbols):
        found += judge.symbol(symbol, rows.get(symbol, ()), side)
    return Comparison(tuple(found), side.stops)


# --- reading ---


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What an exchange holds, by symbols in the table's spelling."""

    held: Mapping[str, Holding]
    stops: Mapping[str, tuple[PlacedOrder, ...]]
    gone: frozenset[str]
    """Symbols of rows that the exchange does not list."""

    @property
    def symbols(self) -> set[str]:
        return set(self.held) | set(self.stops)


async def _open_rows(pool: asyncpg.Pool[Any], exchange: str) -> defaultdict[str, tuple[Position, ...]]:
    found: defaultdict[str, tuple[Position, ...]] = defaultdict(tuple)
    for row in await pool.fetch(statement("open_rows", _FILE), exchange):
        position = position_of(row)
        found[position.symbol] += (position,)
    return found


async def _look(venue: Venue, before: Mapping[str, tuple[Position, ...]]) -> _Exchange:
    holdings = [held for held in await venue.holdings() if venue.left_alone(held.symbol) is None]
    of_rows = {symbol: rows[0].market or symbol for symbol, rows in before.items() if rows}
    await venue.refresh_for([*(held.symbol for held in holdings), *of_rows.values()])
    held = {venue.name_of(holding.symbol): holding for holding in holdings}
    gone = frozenset(symbol for symbol, market in of_rows.items() if venue.gone(market))
    stops: defaultdict[str, tuple[PlacedOrder, ...]] = defaultdict(tuple)
    for order in await venue.every_waiting_stop(
        sorted(s for s in held.keys() | of_rows if not venue.gone(s))
    ):
        stops[venue.name_of(order.symbol)] += (order,)
    return _Exchange(held, dict(stops), gone)


async def _of_this_account(
    venue: Venue, found: list[Finding], rows: Sequence[Position]
) -> tuple[list[Finding], bool]:
    """The findings of a symbol, and whether the account is that of its rows: else they may well be right.

    What another account holds says nothing about the rows, and no order is sent for them there.
    """
    try:
        strangers = {row.id for row in rows if await never_had(venue, venue.market(row.traded_as), row)}
    except ExchangeUnreadable as exc:
        unread = (FindingKind.UNREADABLE, str(exc))
    else:
        if not strangers:
            return found, True
        unread = (FindingKind.MISMATCH, NEVER_HAD)
    of_table = [one for one in found if one.kind in _OF_THE_TABLE]
    compared = next((one for one in found if one.kind not in _OF_THE_TABLE), found[0])
    kind, details = unread
    return [*of_table, replace(compared, kind=kind, details=details)], False


def _state(rows: Iterable[Position]) -> list[tuple[int, str, str | None]]:
    return [(row.id, row.status.value, row.exit_reason) for row in rows]


# --- judging ---


class _Judge:
    """Finds what is wrong with one symbol."""

    def __init__(self, exchange: str, *, older_than: timedelta, grace: timedelta) -> None:
        self._exchange = exchange
        self._older_than_ms = older_than / _MILLISECOND
        self._grace_ms = grace / _MILLISECOND

    def symbol(self, symbol: str, rows: tuple[Position, ...], side: _Exchange | None) -> list[Finding]:
        found = [
            self._found(FindingKind.INCOMPLETE, symbol, [r], _on_its_way(r)) for r in rows if self._late(r)
        ]
        if len(rows) > 1:
            told = ", ".join(f"{row.id} ({row.status.value} {row.side.value} {row.quantity})" for row in rows)
            found.append(self._found(FindingKind.DUPLICATE, symbol, rows, f"open rows {told}"))
        if side is None:
            return found
        if symbol in side.gone:
            what = "the exchange does not list it"
            return [*found, self._found(FindingKind.NO_MARKET, symbol, rows, what)]
        held, stops = side.held.get(symbol), side.stops.get(symbol, ())
        if held is None:
            return found + self._flat(symbol, rows, stops)
        if held.leg:
            what = IN_HEDGE_MODE.format(what="its position")
            return [*found, self._found(FindingKind.MISMATCH, symbol, rows, what)]
        if not rows:
            what = f"{PositionSide.read(held.side).value} {held.amount} has no row"
            found.append(self._found(FindingKind.ORPHANED_POSITION, symbol, (), what))
        return found + self._standing(symbol, rows, held, stops)

    def _late(self, row: Position) -> bool:
        leaving = row.exit_reason is not None
        return (row.status is not PositionStatus.ACTIVE or leaving) and row.age_ms > self._older_than_ms

    def _flat(self, symbol: str, rows: tuple[Position, ...], stops: tuple[PlacedOrder, ...]) -> list[Finding]:
        if not rows:
            return [
                self._found(
                    FindingKind.ORPHANED_STOP, symbol, (), f"{o.client_id or o.id} waits for {o.trigger}"
                )
                for o in stops
                if o.reduce_only
            ]
        orphaned = [
            row for row in rows if row.status is PositionStatus.ACTIVE and row.age_ms > self._grace_ms
        ]
        what = "the exchange holds nothing"
        return [self._found(FindingKind.ORPHANED_ROW, symbol, [row], what) for row in orphaned]

    def _standing(
        self, symbol: str, rows: tuple[Position, ...], held: Holding, stops: tuple[PlacedOrder, ...]
    ) -> list[Finding]:
        if any(row.age_ms < self._grace_ms or row.status is not PositionStatus.ACTIVE for row in rows):
            return []  # still entering or closing; INCOMPLETE reports it if it is late
        guarding = [order for order in stops if order.side == held.closing_side]
        theirs = [order for row in rows for order in stops if is_own(row, order)]
        found = []
        if not (theirs if rows else guarding):
            other = f"; another order waits for {guarding[0].trigger}" if guarding else ""
            found.append(self._found(FindingKind.WITHOUT_STOP, symbol, rows, f"its stop is not there{other}"))
        elif len(rows) <= 1 and (rest := short_by(stops, held.closing_side, held.amount, *rows)):
            what = f"its stops cover only {held.amount - rest} of {held.amount}"
            found.append(self._found(FindingKind.WITHOUT_STOP, symbol, rows, what))
        if len(rows) == 1:
            (row,) = rows
            way = PositionSide.read(held.side)
            if (way, held.amount) != (row.side, row.quantity):
                what = f"the row says {row.side.value} {row.quantity}"
                what = f"{what}, the exchange holds {way.value} {held.amount}"
                found.append(self._found(FindingKind.MISMATCH, symbol, rows, what))
        return found

    def _found(self, kind: FindingKind, symbol: str, rows: Sequence[Position], details: str) -> Finding:
        age_ms = max((row.age_ms for row in rows), default=None)
        return Finding(kind, self._exchange, symbol, tuple(row.id for row in rows), age_ms, details)


def _on_its_way(row: Position) -> str:
    why = f": {row.error_details}" if row.error_details else ""
    if row.exit_reason is not None:
        return f"{row.status.value}, being closed ({row.exit_reason}){why}"
    return f"{row.status.value}{why}"


# --- what its clean-up would send ---


def _planned_orders(
    venue: Venue,
    rows: Sequence[Position],
    held: Holding | None,
    stops: Sequence[PlacedOrder],
    *,
    adopt: Adopt,
    stop_loss_percent: Decimal,
) -> tuple[str, ...]:
    """The orders of one symbol's clean-up or recovery, one line each.

    Args:
        venue: the exchange, for its steps.
        rows: the open rows of the symbol.
        held: what the exchange holds.
        stops: the open conditional orders of the symbol.
        adopt: what is done about a position without a row.
        stop_loss_percent: how far from its entry price, in percent, the stop of such a position goes.
    """
    if held is not None and held.leg:
        return ()  # a clean-up refuses it
    waiting = [stop for stop in stops if stop.reduce_only]
    if len(rows) > 1:
        division = divide(rows, held, waiting)
        if division is None:
            return ()
        ended = (*division.end, *division.close)
        gone = [s for s in waiting if any(is_own(row, s) for row in ended) and not is_own(division.keep, s)]
        return (
            *(_cancel(stop) for stop in gone),
            *(_exit(row.side.exit, row.quantity) for row in division.close),
            *_of_one(venue, division.keep, held, [stop for stop in waiting if stop not in gone]),
        )
    if rows:
        return _of_one(venue, rows[0], held, waiting)
    if held is None:
        return tuple(_cancel(stop) for stop in waiting)
    side = PositionSide.read(held.side)
    if adopt is not Adopt.STOP or held.entry_price is None or standing_stop(waiting, side.exit, held.amount):
        return ()
    trigger = venue.market(held.symbol).rules.price(stop_price_of(side, held.entry_price, stop_loss_percent))
    return (_stop(side.exit, held.amount, trigger),)


def _of_one(
    venue: Venue, row: Position, held: Holding | None, waiting: Sequence[PlacedOrder]
) -> tuple[str, ...]:
    if held is None or held.side != row.side.entry:
        return tuple(_cancel(stop) for stop in waiting if held is None or is_own(row, stop))
    orders = []
    if row.exit_reason is not None:
        orders.append(
            f"{_exit(row.side.exit, row.quantity)}, if a person asked for that exit ({row.exit_reason})"
        )
    if row.status is PositionStatus.PENDING_ENTRY or any(is_own(row, stop) for stop in waiting):
        return tuple(orders)
    if standing_stop(waiting, row.side.exit, row.quantity) is not None:
        return tuple(orders)
    if row.planned_stop is not None:
        trigger = venue.market(held.symbol).rules.price(row.planned_stop)
        orders.append(_stop(row.side.exit, row.quantity, trigger))
        if row.opened_here and held.amount == row.quantity:
            orders.append(f"{_exit(row.side.exit, row.quantity)}, if the exchange refuses that stop for good")
    return tuple(orders)


def _cancel(stop: PlacedOrder) -> str:
    return f"cancel {named(stop)}"


def _exit(side: Side, amount: Decimal) -> str:
    return f"{side} {amount} at market, reduce-only"


def _stop(side: Side, amount: Decimal, trigger: Decimal) -> str:
    return f"stop {side} {amount} at {trigger}, reduce-only"
