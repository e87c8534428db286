"""The laws of the flow at rest: rows, orders and intents agree."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lockguard_positions._status import OPEN

if TYPE_CHECKING:
    from lockguard_lab.exchange.model import AlgoOrder
    from lockguard_lab.sim.flow.judge import Book, FlowJudge

__all__ = ["judge_rest"]

_OPEN = {status.value for status in OPEN}


def judge_rest(judge: FlowJudge) -> None:
    """All is healed, and a pass says that all is settled: rows, orders and intents agree."""
    tables, engine = judge.database.tables, judge.exchange.desk.engine()
    open_rows = {row["symbol"]: row for row in tables.positions.values() if row["status"] in _OPEN}
    for symbol in judge.exchange.desk.venue.markets:
        _judge_symbol(judge, symbol, open_rows.get(symbol))
    orders, names = list(engine.orders()), Counter(algo.client_id for algo in engine.algo_orders())
    for row in tables.intents.values():
        found = [order for order in orders if order.client_id == row["client_id"] and order.algo_id is None]
        if row["settled_at"] is None:
            judge.accuse("P: no intent stays in doubt", f"{row['client_id']} does")
        elif row["outcome"] in ("refused", "absent") and any(order.executed for order in found):
            told = f"{row['client_id']} is {row['outcome']}, and was executed"
            judge.accuse("P: rows tell the truth", told)
        elif row["outcome"] in ("refused", "absent") and names[row["client_id"]]:
            judge.accuse("P: rows tell the truth", f"{row['client_id']} is {row['outcome']}, and was placed")
        elif row["outcome"] == "executed" and row["step"] != "stop" and not found:
            judge.accuse("P: rows tell the truth", f"{row['client_id']} is executed, and never was placed")
        if len(found) > 1:
            judge.accuse("P: an order is placed once", f"{row['client_id']} was placed {len(found)} times")


def _judge_symbol(judge: FlowJudge, symbol: str, row: dict[str, Any] | None) -> None:
    book = judge.book(symbol)
    waiting = [one for one in judge.exchange.desk.engine().open_algo_orders() if one.symbol == symbol]
    # A copy that was sent before, and arrives when its name is free again, is told of and left to a person.
    names = Counter(algo.client_id for algo in judge.exchange.desk.engine().algo_orders())
    ours = [algo for algo in waiting if algo.client_id.startswith("lgs-") and names[algo.client_id] == 1]
    if len(ours) > 1:
        judge.accuse("P: one stop for one position", f"{len(ours)} of ours wait for {symbol}")
    if row is not None:
        _judge_row(judge, book, row, waiting)
    elif book.qty and book.ours and not book.touched:
        judge.accuse("P: rows tell the truth", f"{book.qty} {symbol} is held and has no row")
    elif ours and not book.qty:
        judge.accuse("P: no stop without a position", f"{ours[0].client_id} waits for nothing")


def _judge_row(judge: FlowJudge, book: Book, row: dict[str, Any], waiting: list[AlgoOrder]) -> None:
    said = f"row {row['id']} is {row['status']} {row['side']} {row['quantity']}"
    if not book.qty:
        judge.accuse("P: rows tell the truth", f"{said}, and {row['symbol']} is flat")
        return
    if row["status"] != "active" and book.touched and not book.ours:
        # A person's position whose price is beyond a stop: it is told of, and left to the person.
        if not judge.told_of(row["symbol"]):
            judge.accuse("P5: a position without a stop is an alert", said)
        return
    if not judge.stops(row["symbol"]):
        judge.accuse("P: no position stays without a stop", f"{book.qty} {row['symbol']} has none")
    amount = abs(book.qty) if not book.touched else row["quantity"]
    held = ("active", "long" if book.qty > 0 else "short", amount)
    if (row["status"], row["side"], row["quantity"]) != held:
        judge.accuse("P: rows tell the truth", f"{said}, and {book.qty} is held")
    if abs(book.qty) != row["quantity"] and not judge.told_of(row["symbol"]):
        judge.accuse("P: what others changed is an alert", f"{said}, and {book.qty} is held")
    own = [algo for algo in waiting if str(algo.id) == row["stop_order_id"]]
    if not own:
        judge.accuse("P: rows tell the truth", f"the stop of row {row['id']} does not wait")
    elif own[0].trigger != row["stop_price"]:
        told = f"the stop of row {row['id']} waits at {own[0].trigger}, not at {row['stop_price']}"
        judge.accuse("P: rows tell the truth", told)
