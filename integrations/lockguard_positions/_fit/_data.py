"""What the rows say: what has to be decided by a person, and the updates that follow from the answers.

Every update names the rows that it changes by their values, so it can be run again.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard.text import printable
from lockguard_positions._fit._mapping import TYPES, Names, known_status, suggestion
from lockguard_positions._fit._rows import Content, Row, read_side
from lockguard_positions._fit._steps import MACHINE_SINCE, Finding, Kind, Level, Phase, Step
from lockguard_positions._fit._table import Table, ident, literal, update
from lockguard_positions._status import INITIAL, OPEN, TRANSITIONS, PositionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["duplicates", "judge_rows", "transitions", "updates"]

_ROW_LOCKS = "row locks only, on the rows that change"
_OPEN = ", ".join(literal(status.value) for status in PositionStatus if status in OPEN)
_SHOWN_MAX = 10


def judge_rows(table: Table, content: Content, names: Names, *, older_than_s: float) -> Iterator[Finding]:
    """What is wrong with rows, or has to be said by a person, before the flow may have the table."""
    yield from _statuses(table, content, names)
    yield from _sides(table, content, names)
    yield from _values(table, content.open, names)
    yield from _spellings(content.open, names)
    yield from duplicates(table, content, names)
    yield from _half_done(table, content, names, older_than_s)
    yield from _stops(content.open, names, content.to_copy)
    if content.cut:
        told = f"only the first {len(content.open)} open rows were looked at"
        yield Finding(
            Kind.NOTE, told, "so many open positions are rarely true; see the statuses", level=Level.LOOK
        )


def _statuses(table: Table, content: Content, names: Names) -> Iterator[Finding]:
    for status, count in content.unknown(names).items():
        if status is None:
            column = ident(names.columns["status"])
            told, remedy = (
                f"{count} row(s) have no status",
                update(table.sql, f"{column} = ...", f"{column} is null"),
            )
        else:
            told = f"the status {printable(status)!r} is none that lockguard knows; " + (
                f"{count} row(s) have it" if count else "no row has it, and the table allows it"
            )
            remedy = f"--map {_shell(f'{status}={suggestion(status)}')}"
        yield Finding(Kind.STATUS, told, remedy, blocks=True)


def _shell(text: str) -> str:
    plain = all(c.isalnum() or c in "_=-." for c in text)
    return text if plain else "'" + printable(text).replace("'", "'\\''") + "'"


def transitions(content: Content, names: Names) -> Iterator[Finding]:
    """Which changes between the statuses that the table has will be refused from version 3 on."""
    stages: dict[PositionStatus, list[str]] = defaultdict(list)
    for status in dict.fromkeys([*(s for s in content.statuses if s is not None), *content.may_be]):
        stage = known_status(status, names.statuses)
        if stage is not None:
            stages[stage].append(printable(status))

    def shown(stage: PositionStatus) -> str:
        old = [status for status in stages.get(stage, ()) if status != stage.value]
        return f"{stage.value} (now {', '.join(old)})" if old else stage.value

    begins = [shown(stage) for stage in stages if stage not in INITIAL]
    if begins:
        told = f"a new row may not begin as {', '.join(begins)}"
        allowed = ", ".join(stage.value for stage in PositionStatus if stage in INITIAL)
        yield Finding(Kind.TRANSITION, told, f"insert it as {allowed}, then take the steps")
    for old in (stage for stage in PositionStatus if stage in stages):
        refused = [new.value for new in stages if new is not old and new not in TRANSITIONS[old]]
        if refused:
            may = (
                ", ".join(s.value for s in PositionStatus if s in TRANSITIONS[old]) or "nothing: it is an end"
            )
            told = f"refused from then on: {shown(old)} -> {', '.join(refused)}"
            yield Finding(Kind.TRANSITION, told, f"{old.value} may become {may}")


def _sides(table: Table, content: Content, names: Names) -> Iterator[Finding]:
    for side, count in content.sides.items():
        if read_side(side) is None:
            column = ident(names.columns["side"])
            value = f"{column} is null" if side is None else f"{column} = {literal(side)}"
            told = f"{count} row(s) have the side {'NULL' if side is None else repr(printable(side))}"
            remedy = "say which it is: " + update(table.sql, f"{column} = 'long'", value)
            yield Finding(Kind.VALUE, told, remedy, blocks=True)


def _values(table: Table, rows: Iterable[Row], names: Names) -> Iterator[Finding]:
    for row in rows:
        wrong = []
        if row.symbol is None:
            wrong.append(("symbol", "no symbol"))
        if row.exchange is None:
            wrong.append(("exchange", "no exchange"))
        if names.has("quantity") and not _amount_is_clear(row):
            amount = "no quantity" if row.quantity is None else f"the quantity {row.quantity}"
            wrong.append(("quantity", amount))
        for name, what in wrong:
            told = f"row {row.id} ({row.status}, {printable(row.symbol or '?')}) has {what}"
            remedy = f"{_set(table, names, row, name, '...')}"
            yield Finding(Kind.VALUE, told, remedy, blocks=True, rows=(row.id,))
        if row.market is not None and "/" not in row.market:
            told = (
                f"row {row.id} has {printable(row.market)!r} in market, where lockguard keeps the unified"
                " symbol"
            )
            remedy = f"rename the column: alter table {table.sql} rename column market to market_old;"
            yield Finding(Kind.VALUE, told, remedy, blocks=True, rows=(row.id,))
            return


def _amount_is_clear(row: Row) -> bool:
    """Above zero, or the negative amount of a short, which is signed."""
    if row.quantity is None or not row.quantity.is_finite():
        return False
    return row.quantity > 0 or (row.quantity < 0 and read_side(row.side) == "short")


def _set(table: Table, names: Names, row: Row, column: str, value: str) -> str:
    key = ident(names.columns.get("id", "id"))
    where = f"{key} = {row.id}" if row.id.isdigit() else f"{key} = {literal(row.id)}"
    return update(table.sql, f"{ident(names.columns[column])} = {value}", where)


def _spellings(rows: Iterable[Row], names: Names) -> Iterator[Finding]:
    for what in ("symbol", "exchange"):
        found: dict[tuple[str | None, str], set[str]] = defaultdict(set)
        for row in rows:
            value, plain = (row.symbol, row.name) if what == "symbol" else (row.exchange, row.venue)
            if value is not None and plain is not None:
                found[row.venue if what == "symbol" else None, plain].add(value)
        for (_, plain), values in sorted(found.items(), key=lambda item: item[0][1]):
            shown = ", ".join(sorted(printable(value) for value in values))
            if len(values) > 1:
                told = f"one {what} in several spellings: {shown}; each would have a lock of its own"
                yield Finding(Kind.SPELLING, told, f"spell it {plain} in rows and locks", level=Level.GUARD)
            elif values != {plain} and names.has(what):
                told = f"{what} {shown}: lockguard_positions spells it {plain}"
                yield Finding(
                    Kind.SPELLING, told, "the update below does that for open rows; other code must too"
                )


def duplicates(table: Table, content: Content, names: Names) -> Iterator[Finding]:
    """Several open rows of one position, which the index of open rows refuses."""
    by_position: dict[tuple[str | None, str | None], list[Row]] = defaultdict(list)
    for row in content.open:
        by_position[row.venue, row.name].append(row)
    for (exchange, name), rows in by_position.items():
        if len(rows) > 1 and name is not None:
            told = f"{exchange}:{printable(name)} has {len(rows)} open rows: " + ", ".join(
                f"{row.id} ({row.status} {row.side} {row.quantity})" for row in rows[:_SHOWN_MAX]
            )
            end = "closed" if rows[-1].stage is PositionStatus.ACTIVE else "rolled_back"
            ended = _set(table, names, rows[-1], "status", literal(end))
            remedy = (
                "keep the one that the exchange holds (--exchange shows it) and end each other, such as:"
                f" {ended} Or let --apply --switch go up to version 3: then"
                " 'lockguard positions cleanup --only duplicate' settles them by what the exchange holds"
            )
            ids = tuple(row.id for row in rows)
            yield Finding(Kind.DUPLICATE, told, remedy, blocks=True, rows=ids)


def _half_done(table: Table, content: Content, names: Names, older_than_s: float) -> Iterator[Finding]:
    key, status = ident(names.columns.get("id", "id")), ident(names.columns.get("status", "status"))
    here, gone = (_word(content, names, stage) for stage in (PositionStatus.ACTIVE, PositionStatus.CANCELED))
    changes = f"{status} = case when $2::numeric > 0 then {literal(here)} else {literal(gone)} end"
    adopts = update(table.sql, changes, f"{key} = $1")
    for row in content.open:
        if row.stage is PositionStatus.ACTIVE or (row.age_s or 0) <= older_than_s or row.symbol is None:
            continue
        told = (
            f"row {row.id} ({printable(row.symbol)}) is {printable(row.status)} for {row.age_s or 0:.0f} s:"
            " half done"
        )
        remedy = "lockguard positions recover finishes it from what the exchange holds"
        if table.around.version < MACHINE_SINCE:
            remedy = (
                f"under the lease of {row.venue}:{printable(row.name or '')} in a fenced transaction, with"
                f" what the exchange holds of it as $2: {adopts} In the flow, 'lockguard positions recover'"
                " does it"
            )
        yield Finding(Kind.HALF_DONE, told, remedy, level=Level.GUARD, rows=(row.id,))


def _word(content: Content, names: Names, stage: PositionStatus) -> str:
    """The table's own word for a stage."""
    words = [status for status in (*content.statuses, *content.may_be) if status is not None]
    return next((word for word in words if known_status(word, names.statuses) is stage), stage.value)


def _stops(rows: Iterable[Row], names: Names, to_copy: Iterable[str]) -> Iterator[Finding]:
    bare = [
        r.id for r in rows if r.stage is PositionStatus.ACTIVE and not (r.stop_order_id or r.stop_client_id)
    ]
    column = names.sources.get("stop_order_id")
    if column is not None and "stop_order_id" in to_copy:
        told = (
            f"the stops' ids are in {column}: they are copied to stop_order_id, by which lockguard finds a"
            " stop"
        )
        yield Finding(Kind.STOP, told, "--exchange says which of them stand; no stop is placed or cancelled")
    if bare:
        shown = ", ".join(bare[:_SHOWN_MAX]) + (", ..." if len(bare) > _SHOWN_MAX else "")
        told = f"{len(bare)} active row(s) name no stop: {shown}"
        remedy = (
            "if the ids are in a column of another name: --column stop_order_id=NAME; else the flow's first"
            " pass takes"
            " over the stop that stands, or places one"
        )
        yield Finding(Kind.STOP, told, remedy, level=Level.LOOK, rows=tuple(bare))


# --- the updates ---


def updates(table: Table, home: str, content: Content, names: Names) -> Iterator[Step]:
    """The changes of rows, after the renames: statuses, sides, amounts, spellings, stops."""
    where_open = f"status in ({_OPEN})"
    for old in content.statuses:
        stage = None if old is None else known_status(old, names.statuses)
        if stage is not None and old is not None and old != stage.value:
            sql = update(home, f"status = {literal(stage.value)}", f"status = {literal(old)}")
            yield _update(table, sql, f"{printable(old)} is {stage.value}")
    for side in content.sides:
        plain = read_side(side)
        if side is not None and plain is not None:
            sql = update(home, f"side = '{plain}'", f"side = {literal(side)}")
            yield _update(table, sql, f"{printable(side)} is {plain}")
    if any(row.quantity is not None and row.quantity < Decimal(0) for row in content.open):
        sql = update(home, "quantity = -quantity", f"quantity < 0 and side = 'short' and {where_open}")
        yield _update(table, sql, "an amount has no sign: the side says it")
    yield from _spelled(table, home, content, where_open)
    yield from _copied(table, home, content, names, where_open)


def _spelled(table: Table, home: str, content: Content, where_open: str) -> Iterator[Step]:
    symbols = {
        row.symbol: row.name for row in content.open if row.symbol and row.name and row.symbol != row.name
    }
    for old, plain in sorted(symbols.items()):
        changes = f"symbol = {literal(plain)}, market = coalesce(market, {literal(old)})"
        sql = update(home, changes, f"symbol = {literal(old)} and {where_open}")
        yield _update(table, sql, "rows and locks have one spelling; market keeps the unified symbol")
    venues = {r.exchange: r.venue for r in content.open if r.exchange and r.venue and r.exchange != r.venue}
    for exchange, name in sorted(venues.items()):
        where = f"exchange = {literal(exchange)} and {where_open}"
        sql = update(home, f"exchange = {literal(name)}", where)
        yield _update(table, sql, "as the flow calls the exchange in rows and locks")


def _copied(table: Table, home: str, content: Content, names: Names, where_open: str) -> Iterator[Step]:
    """Columns of other names, copied for the open rows: the old ones stay as they are."""
    for ours in content.to_copy:
        theirs, kind = names.sources[ours], TYPES[ours]
        where = f"{ours} is null and {ident(theirs)} is not null and {where_open}"
        sql = update(home, f"{ours} = {ident(theirs)}::{kind}", where)
        yield _update(table, sql, f"the open rows' {ours}, from {theirs}, which stays as it is")


def _update(table: Table, sql: str, why: str) -> Step:
    if table.around.protected:  # no lease covers rows of many symbols
        sql = f"select lockguard.maintenance('lockguard positions fit');\n{sql}"
    return Step(sql, f"{why}: {_ROW_LOCKS}", Phase.SWITCH)
