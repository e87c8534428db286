"""The bot's positions: their tables' version, rows without a stop or long on their way, their markets."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from lockguard.errors import ConfigurationError
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_positions._diagnosis import FindingKind, diagnose
from lockguard_positions._schema import LATEST, version
from lockguard_positions._status import OPEN

if TYPE_CHECKING:
    import asyncpg

    from lockguard_ccxt import GuardedExchange
    from lockguard_ops._doctor._session import Session
    from lockguard_positions._diagnosis import Finding

__all__ = ["check_positions"]

_SHOWN_MAX = 10
_SERVER = "Positions"
_CODES = {
    FindingKind.WITHOUT_STOP: ("positions.without_stop", Severity.ERROR),
    FindingKind.INCOMPLETE: ("positions.on_their_way", Severity.WARNING),
    FindingKind.NO_MARKET: ("exchange.markets", Severity.ERROR),
    FindingKind.UNREADABLE: ("positions.unread", Severity.ERROR),
}
_STOPLESS = """
select exchange || ':' || symbol as name, id from monitoring.positions
 where status = 'active' and exit_reason is null and stop_order_id is null and stop_client_id is null
 order by id
"""
_OPEN = """
select distinct symbol from monitoring.positions
 where exchange = $1 and status = any ($2) order by 1
"""


async def check_positions(session: Session, exchange: GuardedExchange | None, report: Report) -> None:
    """Look at the open rows, and compare them with the exchange if there is one.

    Raises:
        asyncpg.PostgresError, OSError: the database does not answer.
    """
    conn = session.conn
    if await conn.fetchval("select to_regclass('monitoring.positions')") is None:
        return
    found = await version(conn)
    severity, remedy = Severity.OK, ""
    if found < LATEST:
        severity, remedy = Severity.WARNING, session.lockguard("lockguard positions migrate")
    elif found > LATEST:
        severity, remedy = Severity.WARNING, "pip install --upgrade lockguard"
    report.add("positions.schema", severity, _SERVER, f"version {found} of {LATEST}", remedy)
    exchanges = [] if exchange is None else [exchange]
    # One connection is a pool of one here: nothing is asked concurrently.
    told = await diagnose(cast("asyncpg.Pool[Any]", conn), exchanges)
    shown = Counter[str]()
    for one in told.findings:
        _tell(one, shown, report)
    if exchange is None:
        rows = await conn.fetch(_STOPLESS)
        for row in rows[:_SHOWN_MAX]:
            what = f"{row['name']} row {row['id']}: no stop is recorded"
            report.add("positions.without_stop", Severity.ERROR, _SERVER, what, _cleanup("without_stop"))
    else:
        await _check_markets(conn, exchange, report)
    if not any(one.server == _SERVER and one.code != "positions.schema" for one in report.findings):
        compared = "compared with the exchange" if exchange is not None else "the table alone"
        report.add("positions.wrong", Severity.OK, _SERVER, f"nothing is wrong, {compared}")


def _tell(one: Finding, shown: Counter[str], report: Report) -> None:
    code, severity = _CODES.get(one.kind, ("positions.wrong", Severity.ERROR))
    shown[one.kind] += 1
    if shown[one.kind] > _SHOWN_MAX:
        return
    ids = f" row {', '.join(map(str, one.position_ids))}" if one.position_ids else ""
    found = f"{one.exchange}:{one.symbol}{ids}: {one.details}"
    if one.kind is FindingKind.UNREADABLE:
        remedy = "lockguard positions diagnose"
    elif one.kind is FindingKind.INCOMPLETE:
        remedy = "lockguard positions recover --confirm"
    elif one.kind in {FindingKind.MISMATCH, FindingKind.NO_MARKET}:
        remedy = advice(f"{one.kind.remedy}: lockguard positions diagnose")
    else:
        remedy = _cleanup(one.kind.value)
    report.add(code, severity, _SERVER, found, remedy, unread=one.kind is FindingKind.UNREADABLE)


def _cleanup(kind: str) -> str:
    return f"lockguard positions cleanup --only {kind} --confirm"


async def _check_markets(conn: Any, exchange: GuardedExchange, report: Report) -> None:
    for row in await conn.fetch(_OPEN, exchange.name, [status.value for status in OPEN]):
        try:
            active = exchange.market(row["symbol"]).active
        except ConfigurationError:
            continue  # a finding of the diagnosis
        if not active:
            found = f"{exchange.name}:{row['symbol']} is open, and its market does not trade now"
            remedy = advice("see what the exchange announced about it")
            report.add("exchange.markets", Severity.WARNING, _SERVER, found, remedy)
