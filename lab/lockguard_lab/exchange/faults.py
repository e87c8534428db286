"""Faults: how a request fails, and whether the exchange carries it out nevertheless.

The danger of an exchange's fault is not the answer but the unknown outcome: a timeout says nothing about
whether the order was executed. So each fault states both: how the request ends for the client, and when, if
at all, the exchange carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

__all__ = ["Execution", "Fault", "FaultKind", "FaultPlan", "Operation"]

HOLD_MS_MAX = 120_000


class Operation(StrEnum):
    """The kinds of request."""

    TIME = "time"
    EXCHANGE_INFO = "exchange_info"
    TICKER = "ticker"
    CREATE_ORDER = "create_order"
    AMEND_ORDER = "amend_order"
    TEST_ORDER = "test_order"
    GET_ORDER = "get_order"
    CANCEL_ORDER = "cancel_order"
    CANCEL_ALL = "cancel_all"
    OPEN_ORDERS = "open_orders"
    ALL_ORDERS = "all_orders"
    CREATE_ALGO = "create_algo"
    GET_ALGO = "get_algo"
    CANCEL_ALGO = "cancel_algo"
    CANCEL_ALL_ALGOS = "cancel_all_algos"
    OPEN_ALGOS = "open_algos"
    ALL_ALGOS = "all_algos"
    POSITIONS = "positions"
    ACCOUNT = "account"
    BALANCE = "balance"
    TRADES = "trades"
    LEVERAGE = "leverage"
    MARGIN_TYPE = "margin_type"
    BRACKETS = "brackets"
    POSITION_MODE = "position_mode"
    SET_POSITION_MODE = "set_position_mode"
    """Includes the multi-assets mode."""
    POSITION_MARGIN = "position_margin"
    LISTEN_KEY = "listen_key"
    TRIGGER = "trigger"
    """Not a request: an algo order becomes an order. Only ``EXPIRES`` and ``RESTS`` apply to it."""
    STREAM_ORDER = "stream_order"
    """Not a request, nor are those below: an event on a stream. This one: an order changed without a fill."""
    STREAM_FILL = "stream_fill"
    """An order was filled, in full or in part."""
    STREAM_ALGO = "stream_algo"
    """An algo order changed."""
    STREAM_ACCOUNT = "stream_account"
    """A balance, a position or a setting of the account changed."""
    STREAM_MARKET = "stream_market"
    """Prices and the book."""

    @property
    def of_a_stream(self) -> bool:
        """Whether it is an event on a stream, and no request."""
        return self in _EVENTS

    @property
    def writes(self) -> bool:
        """Whether the request changes state on the exchange."""
        return self in _WRITES


_WRITES = frozenset(
    {
        Operation.CREATE_ORDER,
        Operation.AMEND_ORDER,
        Operation.TEST_ORDER,
        Operation.CANCEL_ORDER,
        Operation.CANCEL_ALL,
        Operation.CREATE_ALGO,
        Operation.CANCEL_ALGO,
        Operation.CANCEL_ALL_ALGOS,
        Operation.LEVERAGE,
        Operation.MARGIN_TYPE,
        Operation.POSITION_MARGIN,
        Operation.SET_POSITION_MODE,
    }
)

_EVENTS = frozenset(
    {
        Operation.STREAM_ORDER,
        Operation.STREAM_FILL,
        Operation.STREAM_ALGO,
        Operation.STREAM_ACCOUNT,
        Operation.STREAM_MARKET,
    }
)


class FaultKind(StrEnum):
    """How a request ends for the client, or what becomes of an event on a stream."""

    UNAVAILABLE = "unavailable"
    """A bare 503."""
    OVERLOADED = "overloaded"
    """A 503 with code -1008."""
    RATE_LIMITED = "rate_limited"
    """A 429."""
    TIMEOUT = "timeout"
    """A 408 with code -1007: the exchange itself does not know the outcome."""
    CLOCK = "clock"
    """A 400 with code -1021: the request's timestamp is outside its receive window."""
    REJECTED = "rejected"
    """A 400 with the fault's own code and message."""
    HANG = "hang"
    """No answer until the client gives up or ``hold_ms`` is over."""
    DISCONNECT = "disconnect"
    """The connection is closed without an answer."""
    TRUNCATED = "truncated"
    """A 200 whose body breaks off."""
    DELAY = "delay"
    """A correct answer, ``hold_ms`` late."""
    EXPIRES = "expires"
    """A correct answer; ``share`` of the order was filled and the rest expired."""
    RESTS = "rests"
    """A correct answer; ``share`` of the order was filled and the rest stays in the book, even of a market
    order, until it is cancelled or released."""
    LOST = "lost"
    """An event on a stream never arrives; the connection stays."""
    TWICE = "twice"
    """An event on a stream arrives twice."""

    @property
    def of_the_book(self) -> bool:
        """Whether the fault affects the order rather than the request."""
        return self in {FaultKind.EXPIRES, FaultKind.RESTS}

    @property
    def of_a_stream(self) -> bool:
        """Whether the fault happens to events on streams only."""
        return self in {FaultKind.LOST, FaultKind.TWICE}


class Execution(StrEnum):
    """When the exchange carries out the request that the fault hits."""

    NEVER = "never"
    FIRST = "first"
    """Before the client sees the fault."""
    LATE = "late"
    """``hold_ms`` after the client saw the fault, or gave up."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that waits for the requests it hits.

    Attributes:
        kind: how the request ends for the client.
        operation: which requests or events it hits; ``None`` for any request, or for any event if the kind
            happens to events only.
        execution: whether and when the request is carried out.
        symbol: only requests for this contract's id; ``None`` for any.
        skip: how many matching requests it lets pass first.
        times: how many requests it then hits.
        hold_ms: how long ``HANG``, ``DELAY`` and ``Execution.LATE`` take.
        code: the error code of ``REJECTED``.
        message: the error text of ``REJECTED``.
        account: only requests of this account; ``None`` for any.
        share: how much of the order ``EXPIRES`` and ``RESTS`` let be filled: from 0 to below 1.
    """

    kind: FaultKind
    operation: Operation | None = None
    execution: Execution = Execution.NEVER
    symbol: str | None = None
    skip: int = 0
    times: int = 1
    hold_ms: int = 1_000
    code: int = -1000
    message: str = "An unknown error occurred while processing the request."
    account: str | None = None
    share: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        if self.operation is Operation.TRIGGER and not self.kind.of_the_book:
            raise ValueError(
                f"{self.kind} happens to a request; an order that triggers only expires or rests"
            )
        if self.kind.of_the_book and self.operation not in {None, *_FILLS}:
            raise ValueError(f"{self.kind} happens to create_order and trigger only, not to {self.operation}")
        self._check_stream()
        if not 0 <= self.share < 1:
            raise ValueError(f"share must be from 0 to below 1, got {self.share}")
        if self.skip < 0 or self.times < 1:
            raise ValueError(
                f"a fault needs skip >= 0 and times >= 1, got skip={self.skip} times={self.times}"
            )
        if not 0 <= self.hold_ms <= HOLD_MS_MAX:
            raise ValueError(f"hold_ms must be from 0 to {HOLD_MS_MAX}, got {self.hold_ms}")

    def _check_stream(self) -> None:
        if self.kind.of_a_stream and self.operation is not None and not self.operation.of_a_stream:
            raise ValueError(f"{self.kind} happens to events on streams only, not to {self.operation}")
        if not self.of_a_stream or self.kind.of_a_stream:
            return
        if self.kind not in _OF_BOTH:
            raise ValueError(
                f"{self.kind} happens to a request; an event is lost, twice, delay or disconnect"
            )
        if self.kind is FaultKind.DISCONNECT and self.execution is Execution.LATE:
            raise ValueError(
                "an event is sent before its connection is cut (first), or is lost with it (never)"
            )

    @property
    def of_a_stream(self) -> bool:
        """Whether it waits for events on streams rather than for requests."""
        return self.kind.of_a_stream or (self.operation is not None and self.operation.of_a_stream)

    def matches(self, operation: Operation, symbol: str | None, account: str | None = None) -> bool:
        """Whether a request, or an order that triggers, is one that this fault hits."""
        if self.kind.of_the_book and operation not in _FILLS:
            return False
        if operation.of_a_stream is not self.of_a_stream:
            return False
        return (
            self.operation in {None, operation}
            and self.symbol in {None, symbol}
            and self.account in {None, account}
        )


_OF_BOTH = frozenset({FaultKind.DELAY, FaultKind.DISCONNECT})
"""The kinds that happen to requests and to events on streams."""
_FILLS = frozenset({Operation.CREATE_ORDER, Operation.TRIGGER})


@dataclass(slots=True)
class _Armed:
    fault: Fault
    seen: int = 0


class FaultPlan:
    """The faults that are waiting, in the order in which they were added."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def add(self, fault: Fault) -> None:
        """Arm a fault."""
        self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Remove all faults."""
        self._armed.clear()

    @property
    def waiting(self) -> tuple[Fault, ...]:
        """The faults that still have requests to hit."""
        return tuple(armed.fault for armed in self._armed)

    def take(self, operation: Operation, symbol: str | None, account: str | None = None) -> Fault | None:
        """The fault that hits this request, if any. At most one does; the others do not count the request."""
        return self._take(operation, symbol, account, of_the_book=False)

    def take_shortage(self, operation: Operation, symbol: str, account: str) -> Fault | None:
        """The shortage that hits an order about to be filled, if any, besides any fault of its request."""
        return self._take(operation, symbol, account, of_the_book=True)

    def _take(
        self, operation: Operation, symbol: str | None, account: str | None, *, of_the_book: bool
    ) -> Fault | None:
        for armed in self._armed:
            fault = armed.fault
            if fault.kind.of_the_book is not of_the_book or not fault.matches(operation, symbol, account):
                continue
            armed.seen += 1
            if armed.seen <= fault.skip:
                continue
            if armed.seen == fault.skip + fault.times:
                self._armed.remove(armed)
            return fault
        return None
