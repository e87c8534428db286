"""The events of an account's stream as JSON, with the one-letter fields of Binance's documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_lab.exchange.faults import Operation
from lockguard_lab.exchange.model import ZERO, AlgoChange, OrderChange
from lockguard_lab.exchange.render import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.exchange.account import Account
    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.exchange.model import AlgoOrder, Change, Fill, LeverageChange, Order
    from lockguard_lab.exchange.render import Json

__all__ = ["account_events", "listen_key_expired"]


def account_events(
    change: Change, account: Account, now_ms: int
) -> Iterator[tuple[Operation, dict[str, Json]]]:
    """The events that tell of a change, in their order, as the account stands right after it."""
    match change:
        case OrderChange(order, kind, fill):
            spec = account.venue.markets[order.symbol]
            if fill is not None:
                yield Operation.STREAM_ACCOUNT, _account_update(fill, account, spec)
            operation = Operation.STREAM_ORDER if fill is None else Operation.STREAM_FILL
            body = _order(order, kind, fill, spec)
            yield operation, _event("ORDER_TRADE_UPDATE", now_ms, order.updated_ms) | {"o": body}
            if fill is not None and not spec.inverse:
                yield operation, _trade_lite(order, fill, spec, now_ms)
        case AlgoChange(algo):
            body = _algo(algo, account)
            yield Operation.STREAM_ALGO, _event("ALGO_UPDATE", now_ms, algo.updated_ms) | {"o": body}
        case _:
            yield Operation.STREAM_ACCOUNT, _leverage(change, now_ms)


def listen_key_expired(key: str, now_ms: int) -> dict[str, Json]:
    """The last event under a listen key."""
    return {"e": "listenKeyExpired", "E": now_ms, "listenKey": key}


def _event(name: str, now_ms: int, done_ms: int) -> dict[str, Json]:
    return {"e": name, "E": now_ms, "T": done_ms}


def _order(order: Order, kind: str, fill: Fill | None, spec: MarketSpec) -> dict[str, Json]:
    paid: dict[str, Json] = {} if fill is None else {"N": spec.settle, "n": text(fill.commission)}
    return {
        "s": order.symbol,
        "c": order.client_id,
        "S": order.side.value,
        "o": order.type.value,
        "f": order.time_in_force,
        "q": text(order.qty, spec.step),
        "p": text(order.price, spec.tick),
        "ap": text(order.avg_price),
        "sp": "0",
        "x": kind,
        "X": order.status.value,
        "i": order.id,
        "l": text(ZERO if fill is None else fill.qty, spec.step),
        "z": text(order.executed, spec.step),
        "L": text(ZERO if fill is None else fill.price, spec.tick),
        **paid,
        "T": order.updated_ms,
        "t": 0 if fill is None else fill.id,
        "b": "0",
        "a": "0",
        "m": False,
        "R": order.reduce_only,
        "wt": "CONTRACT_PRICE",
        "ot": order.type.value,
        "ps": order.position_side.value,
        "cp": False,
        "rp": text(ZERO if fill is None else fill.realized),
        "pP": False,
        "si": 0,
        "ss": 0,
        "V": "EXPIRE_MAKER",
        "pm": "NONE",
        "gtd": 0,
        **({"ma": spec.settle} if spec.inverse else {}),
    }


def _trade_lite(order: Order, fill: Fill, spec: MarketSpec, now_ms: int) -> dict[str, Json]:
    return _event("TRADE_LITE", now_ms, fill.at_ms) | {
        "s": order.symbol,
        "q": text(order.qty, spec.step),
        "p": text(order.price, spec.tick),
        "m": False,
        "c": order.client_id,
        "S": order.side.value,
        "L": text(fill.price, spec.tick),
        "l": text(fill.qty, spec.step),
        "t": fill.id,
        "i": order.id,
    }


def _account_update(fill: Fill, account: Account, spec: MarketSpec) -> dict[str, Json]:
    position = account.position(fill.symbol, fill.position_side)
    wallet = text(account.wallet(spec.settle))
    isolated = fill.symbol in account.isolated
    own = account.margin(position) + account.added_margin.get(fill.symbol, ZERO) if position.qty else ZERO
    row: dict[str, Json] = {
        "s": fill.symbol,
        "pa": text(position.qty, spec.step),
        "ep": text(position.entry_price),
        "bep": text(position.entry_price),
        "cr": text(account.realized(fill.symbol, fill.position_side)),
        "up": text(account.profit(position)),
        "mt": "isolated" if isolated else "cross",
        "iw": text(own if isolated else ZERO),
        "ps": fill.position_side.value,
        "ma": spec.settle,
    }
    money: dict[str, Json] = {"a": spec.settle, "wb": wallet, "cw": wallet, "bc": "0"}
    return _event("ACCOUNT_UPDATE", fill.at_ms, fill.at_ms) | {"a": {"m": "ORDER", "B": [money], "P": [row]}}


def _algo(algo: AlgoOrder, account: Account) -> dict[str, Json]:
    spec = account.venue.markets[algo.symbol]
    return {
        "caid": algo.client_id,
        "aid": algo.id,
        "at": "CONDITIONAL",
        "o": algo.type.value,
        "s": algo.symbol,
        "S": algo.side.value,
        "ps": algo.position_side.value,
        "f": "GTC",
        "q": text(algo.qty, spec.step),
        "X": algo.status.value,
        "ai": "" if algo.order_id is None else str(algo.order_id),
        "tp": text(algo.trigger, spec.tick),
        "p": text(algo.price, spec.tick),
        "V": "EXPIRE_MAKER",
        "wt": algo.working_type,
        "pm": "NONE",
        "cp": algo.close_position,
        "pP": False,
        "R": algo.reduce_only,
        "tt": algo.triggered_ms,
        "gtd": 0,
    }


def _leverage(change: LeverageChange, now_ms: int) -> dict[str, Json]:
    return _event("ACCOUNT_CONFIG_UPDATE", now_ms, now_ms) | {
        "ac": {"s": change.symbol, "l": change.leverage}
    }
