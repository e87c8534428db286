"""A model of ``positions.sql``: each of its statements that the flow uses, by name, over rows in memory.

``tests/sim/test_sim_flow_tables.py`` checks it against the shipped SQL on a real Postgres.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg

from lockguard_lab.sim.flow.records import IllegalChange, Row, unique
from lockguard_positions._rows import COPIED, PART
from lockguard_positions._status import INITIAL, OPEN, TRANSITIONS, PositionStatus

__all__ = ["Tables"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = (
    *("id", "exchange", "symbol", "side", "quantity", "status", "signal_id", "entry_price", "entry_order_id"),
    *("entry_client_id", "stop_loss_percent", "stop_price", "stop_order_id", "stop_client_id", "exit_price"),
    *("exit_order_id", "exit_reason", "error_details", "opened_at", "closed_at", "token", "market"),
)
_INTENT_COLUMNS = (
    *("number", "position_id", "step", "client_id", "side", "amount", "trigger_price", "details"),
)
_OPEN = {status.value for status in OPEN}
_ENDED_ON_THE_EXCHANGE = {"closed", "rolled_back", "canceled"}


class Tables:
    """The rows of ``monitoring.positions`` and ``monitoring.position_intents``.

    Args:
        now: microseconds since 1970, by the server's clock.

    Attributes:
        positions: by id.
        intents: by exchange, symbol and number.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self.positions: dict[int, dict[str, Any]] = {}
        self.intents: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._ids = itertools.count(1)
        self._touched: set[int] = set()
        self._settled: set[tuple[str, str, int]] = set()

    # --- transactions ---

    def begin(self) -> Tables:
        """A copy, whose changes nobody sees before they are committed."""
        copy = Tables(self._now)
        copy.positions, copy.intents, copy._ids = dict(self.positions), dict(self.intents), self._ids
        return copy

    def commit(self, changed: Tables) -> list[tuple[dict[str, Any] | None, dict[str, Any]]]:
        """Take over what a copy has changed; returns the rows of positions before and after."""
        moved = []
        for number in sorted(changed._touched):
            moved.append((self.positions.get(number), changed.positions[number]))
            self.positions[number] = changed.positions[number]
        for key in sorted(changed._settled):
            self.intents[key] = changed.intents[key]
        return moved

    # --- statements ---

    def run(self, name: str, args: Sequence[Any]) -> list[Row]:
        """Execute a statement; returns its rows.

        Raises:
            asyncpg.UniqueViolationError: a symbol would have two open rows.
            IllegalChange: a status would change as it may not.
        """
        found: Iterator[Row] | list[Row] = getattr(self, f"_{name}")(*args)
        return list(found)

    def also(self, name: str, written: Row, args: Sequence[Any]) -> None:
        """Execute a further write of the same statement, which has the row that was written."""
        getattr(self, f"_also_{name}")(written, *args)

    # Reads.

    def _open(self, where: Callable[[dict[str, Any]], bool]) -> list[Row]:
        rows = (row for row in self.positions.values() if row["status"] in _OPEN and where(row))
        return [self._shown(row) for row in sorted(rows, key=lambda row: row["id"])]

    def _open_of_symbol(self, exchange: str, symbol: str) -> list[Row]:
        return self._all_open_of_symbol(exchange, symbol)[:1]

    def _all_open_of_symbol(self, exchange: str, symbol: str) -> list[Row]:
        return self._open(lambda row: (row["exchange"], row["symbol"]) == (exchange, symbol))

    def _open_under_other_labels(self, exchange: str, symbol: str) -> list[Row]:
        venue = exchange.partition("@")[0]
        return self._open(
            lambda row: (
                row["symbol"] == symbol
                and row["exchange"] != exchange
                and row["exchange"].partition("@")[0] == venue
            )
        )

    def _open_of_exchange(self, exchange: str) -> list[Row]:
        return self._open(lambda row: row["exchange"] == exchange)

    def _by_id(self, position_id: int) -> list[Row]:
        row = self.positions.get(position_id)
        return [] if row is None else [self._shown(row)]

    def _last_under(self, exchange: str, symbol: str, token: int) -> list[Row]:
        rows = [
            row
            for row in self.positions.values()
            if (row["exchange"], row["symbol"], row["token"]) == (exchange, symbol, token)
        ]
        return [self._shown(max(rows, key=lambda row: row["id"]))] if rows else []

    def _last_ended(self, exchange: str, symbol: str) -> list[Row]:
        rows = [
            row
            for row in self.positions.values()
            if (row["exchange"], row["symbol"]) == (exchange, symbol)
            and row["status"] in _ENDED_ON_THE_EXCHANGE
        ]
        if not rows:
            return []
        return [self._shown(max(rows, key=lambda row: (row["closed_at"] or _EPOCH, row["id"])))]

    def _intent_in_doubt(self, position_id: int, steps: Sequence[str]) -> list[Row]:
        rows = [
            row
            for row in self.intents.values()
            if row["position_id"] == position_id and row["settled_at"] is None and row["step"] in steps
        ]
        return [self._intent_shown(max(rows, key=lambda row: row["number"]))] if rows else []

    def _loose_stops(self, exchange: str, symbol: str) -> list[Row]:
        rows = [
            row
            for row in self.intents.values()
            if (row["exchange"], row["symbol"], row["step"]) == (exchange, symbol, "stop")
            and row["settled_at"] is None
            and self.positions[row["position_id"]]["status"] not in _OPEN
        ]
        return [self._intent_shown(row) for row in sorted(rows, key=lambda row: row["number"])]

    def _symbols_with_loose_orders(self, exchange: str) -> list[Row]:
        loose = {"entry": {"active"}, "stop": {"active"} | {s.value for s in PositionStatus if s not in OPEN}}
        symbols = {
            row["symbol"]
            for row in self.intents.values()
            if row["exchange"] == exchange
            and row["settled_at"] is None
            and self.positions[row["position_id"]]["status"] in loose.get(row["step"], ())
        }
        return [Row(symbol=symbol) for symbol in sorted(symbols)]

    def _attached_stop(self, position_id: int) -> list[Row]:
        rows = [
            row
            for row in self.intents.values()
            if (row["position_id"], row["step"]) == (position_id, "entry")
            and row["trigger_price"] is not None
        ]
        return [Row(trigger_price=max(rows, key=lambda row: row["number"])["trigger_price"])] if rows else []

    def _stops_of(self, position_id: int) -> list[Row]:
        found = []
        for row in self.intents.values():
            if (row["position_id"], row["step"]) == (position_id, "stop"):
                unanswered = row["settled_at"] is None or row["details"] == COPIED
                stands = {"may_stand": unanswered or row["outcome"] == "executed", "unanswered": unanswered}
                found.append(Row(self._intent_shown(row) | stands))
        return found

    def _has_market(self) -> list[Row]:
        return [Row(exists=True)]

    def _fills_with_stop(self) -> list[Row]:
        return [Row(exists=True)]

    def _next_intent(self, exchange: str, symbol: str) -> list[Row]:
        return [Row(greatest=self._next_number(exchange, symbol))]

    def _next_number(self, exchange: str, symbol: str) -> int:
        last = max((key[2] for key in self.intents if key[:2] == (exchange, symbol)), default=-1)
        return max(self._now(), last + 1)

    # Writes of positions.

    def _insert_position(self, *args: Any) -> list[Row]:
        names = (
            *("exchange", "symbol", "side", "quantity", "status", "signal_id", "entry_price"),
            *("stop_loss_percent", "error_details", "token", "intent", "entry_client_id", "market"),
        )
        values = dict(zip(names, args, strict=False))  # the statement with an intent has one more
        row: dict[str, Any] = dict.fromkeys((*_COLUMNS, "intent", "exit_client_id")) | values
        status = row["status"]
        row["id"] = next(self._ids)  # also of a row that is refused
        if PositionStatus(status) not in INITIAL:
            raise IllegalChange(f"a position cannot begin as {status}")
        row["created_at"] = self._time()
        row["opened_at"] = self._time() if status == "entry_placed" else None
        row["closed_at"] = self._time() if status == "failed" else None
        self._put(row)
        return [self._shown(row)]

    def _also_intend_entry(self, written: Row, *args: Any) -> None:
        number, last = args[10], args[-1]
        self._intend(written, number, "entry", args[11], self._side_of(written, entry=True), last)

    def _change(self, position_id: int, was: str, /, **values: Any) -> list[Row]:
        row = self.positions.get(position_id)
        if row is None or row["status"] != was:
            return []
        row = row | values
        old, new = PositionStatus(was), PositionStatus(row["status"])
        if new is not old and new not in TRANSITIONS[old]:
            raise IllegalChange(f"a position cannot go from {old} to {new}")
        self._put(row)
        return [self._shown(row)]

    def _held(self, position_id: int, name: str) -> Any:
        return self.positions.get(position_id, {}).get(name)

    def _record_entry(
        self,
        position_id: int,
        status: str,
        order_id: str | None,
        price: Decimal | None,
        quantity: Decimal,
        token: int,
        number: int | None,
    ) -> Iterator[Row]:
        self._settle_number(position_id, number, order_id)
        for row in self._change(
            position_id,
            status,
            status="entry_placed",
            entry_order_id=order_id,
            entry_price=self._held(position_id, "entry_price") if price is None else price,
            quantity=quantity,
            opened_at=self._time(),
            error_details=None,
            token=token,
        ):
            row["next_intent"] = self._next_number(row["exchange"], row["symbol"])
            yield row

    def _add_part(
        self, position_id: int, status: str, number: int, filled: Decimal, token: int, order_id: str | None
    ) -> list[Row]:
        row = self.positions.get(position_id)
        more = filled - self._parts_of(position_id)
        if row is None or row["status"] != status or more <= 0:
            return []
        if row["entry_client_id"] is None:
            raise asyncpg.NotNullViolationError("client_id")
        side, part = self._side_of(row, entry=True), row | {"quantity": more, "token": token}
        self._intend(part, number, "entry", row["entry_client_id"], side, None)
        self._settle_number(position_id, number, order_id, PART)
        return [Row(amount=more)]

    def _enlarge(self, position_id: int, status: str, quantity: Decimal, *args: Any) -> list[Row]:
        price, token, anew = args
        was = self.positions.get(position_id, dict.fromkeys(_COLUMNS))
        price, opened_at = was["entry_price"] if price is None else price, was["opened_at"]
        values = {"quantity": quantity, "entry_price": price, "token": token}
        return self._change(position_id, status, **values, opened_at=self._time() if anew else opened_at)

    def _record_entry_with_stop(
        self,
        position_id: int,
        status: str,
        order_id: str | None,
        price: Decimal | None,
        quantity: Decimal,
        token: int,
        _number: int,
        stop_price: Decimal,
        stop_number: int,
        stop_client_id: str,
    ) -> list[Row]:
        return self._change(
            position_id,
            status,
            status="pending_sl",
            entry_order_id=order_id,
            entry_price=self._held(position_id, "entry_price") if price is None else price,
            quantity=quantity,
            opened_at=self._time(),
            error_details=None,
            token=token,
            stop_price=stop_price,
            stop_client_id=stop_client_id,
            stop_order_id=None,
            intent=stop_number,
        )

    def _also_settle_entry(self, written: Row, *args: Any) -> None:
        self._settle_number(written["id"], args[6], args[2])

    def _also_intend_first_stop(self, written: Row, *args: Any) -> None:
        stop, number, client_id = args[7:10]
        self._intend(written, number, "stop", client_id, self._side_of(written, entry=False), stop)

    def _expect_stop(
        self,
        position_id: int,
        status: str,
        number: int,
        client_id: str,
        side: str,
        token: int,
        trigger: Decimal,
    ) -> list[Row]:
        before = self._by_id(position_id)
        rows = self._change(
            position_id,
            status,
            status="pending_sl",
            stop_price=trigger,
            stop_client_id=client_id,
            stop_order_id=None,
            intent=number,
            token=token,
        )
        if rows:
            self._intend(before[0] | {"token": token}, number, "stop", client_id, side, trigger)
        return rows

    def _activate(self, position_id: int, status: str, order_id: str, token: int, *_: Any) -> list[Row]:
        values = {"stop_order_id": order_id, "error_details": None, "token": token}
        return self._change(position_id, status, status="active", **values)

    def _also_settle_placed_stop(self, written: Row, *args: Any) -> None:
        self._settle_number(written["id"], args[4], args[2])

    def _take_over_stop(
        self,
        position_id: int,
        status: str,
        order_id: str,
        client_id: str | None,
        trigger: Decimal | None,
        token: int,
    ) -> list[Row]:
        for key, row in list(self.intents.items()):
            is_it = (row["position_id"], row["step"], row["client_id"]) == (position_id, "stop", client_id)
            if is_it and self._settle_key(key, "executed", order_id, COPIED, keep=False):
                self.intents[key] |= {"recorded_at": self._time()}
        return self._change(
            position_id,
            status,
            status="active",
            stop_order_id=order_id,
            stop_client_id=client_id,
            stop_price=trigger,
            error_details=None,
            token=token,
        )

    def _on_the_way_to_a_stop(self, position_id: int, status: str, token: int) -> list[Row]:
        return self._change(position_id, status, status="pending_sl", token=token)

    def _expect_move(
        self,
        position_id: int,
        status: str,
        number: int,
        client_id: str,
        side: str,
        token: int,
        trigger: Decimal,
    ) -> list[Row]:
        rows = self._change(position_id, status, intent=number, token=token)
        if rows:
            self._intend(rows[0], number, "stop", client_id, side, trigger)
        return rows

    def _move_stop(
        self,
        position_id: int,
        status: str,
        order_id: str,
        client_id: str,
        price: Decimal,
        token: int,
        number: int,
    ) -> list[Row]:
        self._settle_number(position_id, number, order_id)
        return self._change(
            position_id,
            status,
            stop_order_id=order_id,
            stop_client_id=client_id,
            stop_price=price,
            error_details=None,
            token=token,
        )

    def _withdraw_close(self, position_id: int, status: str, token: int) -> list[Row]:
        return self._change(position_id, status, exit_client_id=None, exit_reason=None, token=token)

    def _reduce_by_stop(
        self, position_id: int, status: str, quantity: Decimal, token: int, number: int
    ) -> list[Row]:
        none = {"stop_order_id": None, "stop_client_id": None}
        before = dict(self.positions.get(position_id, {}))
        rows = self._change(position_id, status, quantity=quantity, token=token, **none)
        if rows and self._reduced_from(position_id) is None:
            names = before["stop_client_id"] or "", "sell" if before["side"] == "long" else "buy"
            self._intend(before | {"token": token}, number, "stop", *names, before["stop_price"])
            self._settle_number(position_id, number, before["stop_order_id"])
        return rows

    def _reduced_from(self, position_id: int) -> Decimal | None:
        """The largest amount of a row's stops and exits."""
        found = [row for row in self.intents.values() if row["position_id"] == position_id]
        return max((row["amount"] for row in found if row["step"] != "entry"), default=None)

    def _reduce(self, position_id: int, status: str, quantity: Decimal, token: int) -> list[Row]:
        return self._change(position_id, status, quantity=quantity, token=token)

    def _expect_close(
        self,
        position_id: int,
        status: str,
        number: int,
        client_id: str,
        side: str,
        token: int,
        reason: str,
        details: str | None,
    ) -> list[Row]:
        values = {"exit_client_id": client_id, "exit_reason": reason, "intent": number, "token": token}
        rows = self._change(position_id, status, **values)
        if rows:
            self._intend(rows[0], number, "close", client_id, side, None, details)
        return rows

    def _finish(
        self,
        position_id: int,
        status: str,
        new_status: str,
        reason: str | None,
        price: Decimal | None,
        order_id: str | None,
        error: str | None,
        token: int,
    ) -> list[Row]:
        left, entered = self._held(position_id, "quantity"), self._reduced_from(position_id)
        return self._change(
            position_id,
            status,
            status=new_status,
            quantity=None if left is None else max(left, entered or left, self._parts_of(position_id)),
            exit_reason=self._held(position_id, "exit_reason") if reason is None else reason,
            exit_price=price,
            exit_order_id=order_id,
            error_details=self._held(position_id, "error_details") if error is None else error,
            closed_at=self._time(),
            token=token,
        )

    def _note_error(self, position_id: int, status: str, error: str, token: int) -> list[Row]:
        return self._change(position_id, status, error_details=error, token=token)

    # Writes of intents.

    def _settle_intent(
        self, exchange: str, symbol: str, number: int, outcome: str, order_id: str | None, details: str | None
    ) -> list[Row]:
        if not self._settle_key((exchange, symbol, number), outcome, order_id, details):
            return []
        return [Row(number=number)]

    def _note_gone(self, exchange: str, symbol: str, number: int, details: str | None) -> list[Row]:
        return self._know((exchange, symbol, number), details=details)

    def _renew_intent(self, exchange: str, symbol: str, number: int, details: str | None) -> list[Row]:
        return self._know((exchange, symbol, number), recorded_at=self._time(), details=details)

    def _know(self, key: tuple[str, str, int], **known: object) -> list[Row]:
        row = self.intents.get(key)
        if row is None or row["settled_at"] is not None:
            return []
        self.intents[key] = row | known
        self._settled.add(key)
        return [Row(number=key[2])]

    def _settle_number(
        self, position_id: int, number: int | None, order_id: str | None, details: str | None = None
    ) -> None:
        for key, row in list(self.intents.items()):
            if (row["position_id"], row["number"]) == (position_id, number):
                self._settle_key(key, "executed", order_id, details)

    def _settle_key(
        self,
        key: tuple[str, str, int],
        outcome: str,
        order_id: str | None,
        details: str | None,
        *,
        keep: bool = True,
    ) -> bool:
        row = self.intents.get(key)
        if row is None or row["settled_at"] is not None:
            return False
        order_id = row["order_id"] if order_id is None and keep else order_id
        self.intents[key] = row | {
            "settled_at": self._time(),
            "outcome": outcome,
            "order_id": order_id,
            "details": COPIED if row["details"] == COPIED else details,
        }
        self._settled.add(key)
        return True

    def _intend(
        self,
        row: dict[Any, Any],
        number: int,
        step: str,
        client_id: str,
        side: str,
        trigger: Decimal | None,
        details: str | None = None,
    ) -> None:
        key = (row["exchange"], row["symbol"], number)
        if key in self.intents:
            raise unique("position_intents_pkey")
        self.intents[key] = {
            "exchange": row["exchange"],
            "symbol": row["symbol"],
            "number": number,
            "position_id": row["id"],
            "step": step,
            "client_id": client_id,
            "side": side,
            "amount": row["quantity"],
            "trigger_price": trigger,
            "token": row["token"],
            "recorded_at": self._time(),
            "settled_at": None,
            "outcome": None,
            "order_id": None,
            "details": details,
        }
        self._settled.add(key)

    # Inside.

    def _put(self, row: dict[str, Any]) -> None:
        if row["quantity"] <= 0:
            raise asyncpg.CheckViolationError("positions_quantity")
        if row["status"] in _OPEN:
            for other in self.positions.values():
                same = (other["exchange"], other["symbol"]) == (row["exchange"], row["symbol"])
                if same and other["id"] != row["id"] and other["status"] in _OPEN:
                    raise unique("idx_unique_open_position")
        self.positions[row["id"]] = row
        self._touched.add(row["id"])

    @staticmethod
    def _side_of(row: dict[Any, Any], *, entry: bool) -> str:
        return "buy" if (row["side"] == "long") is entry else "sell"

    def _time(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self._now())

    def _age_ms(self, since: datetime) -> int:
        return round((self._time() - since) / timedelta(milliseconds=1))

    def _shown(self, row: dict[str, Any]) -> Row:
        since = row["closed_at"] or row["opened_at"] or row["created_at"]
        return Row({name: row[name] for name in _COLUMNS} | {"age_ms": self._age_ms(since)})

    def _intent_shown(self, row: dict[str, Any]) -> Row:
        shown = {name: row[name] for name in _INTENT_COLUMNS}
        since = self._parts_of(row["position_id"], after=row["number"])
        return Row(shown | {"age_ms": self._age_ms(row["recorded_at"]), "entered_since": since})

    def _parts_of(self, position_id: int, *, after: int = -1) -> Decimal:
        """The parts that a row's entry was filled in."""
        found = [row for row in self.intents.values() if row["position_id"] == position_id]
        parts = [row for row in found if (row["step"], row["details"]) == ("entry", PART)]
        return sum((row["amount"] for row in parts if row["number"] > after), Decimal(0))
