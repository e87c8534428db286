"""A client that controls a local exchange in another process."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, cast

import aiohttp

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange.byhand import HandOrder, HandStop
from lockguard_lab.exchange.control import WALLET
from lockguard_lab.exchange.model import MAIN, AlgoOrder, Order, PositionSide
from lockguard_lab.exchange.record import decode, decode_record, encode
from lockguard_lab.exchange.streams import Listener
from lockguard_lab.exchange.venue import Listing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from decimal import Decimal
    from types import TracebackType

    from lockguard_lab.exchange.faults import Fault, Operation
    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.exchange.model import Side
    from lockguard_lab.exchange.record import ExchangeRecord
    from lockguard_lab.exchange.render import Json

__all__ = ["ControlClient"]

_NONE = timedelta(0)
_TIMEOUT_S = 10


def _ms(span: timedelta) -> int:
    return round(span / timedelta(milliseconds=1))


class ControlClient:
    """The control methods of :class:`~lockguard_lab.exchange.LocalExchange`, over HTTP.

    Use it as an async context manager. Every method raises ``ConfigurationError`` when the exchange cannot be
    reached or refuses the call.

    Args:
        url: as :attr:`LocalExchange.url <lockguard_lab.exchange.LocalExchange.url>` gives it.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def symbols(self) -> tuple[str, ...]:
        """The contracts' ids; also shows that the exchange answers."""
        health = await self._ask("GET", "health")
        return tuple(cast("Sequence[str]", health["symbols"]))

    async def set_price(self, symbol: str, price: Decimal, *, mark: Decimal | None = None) -> None:
        """Set a contract's price."""
        await self._ask(
            "POST", "price", symbol=symbol, price=str(price), mark=None if mark is None else str(mark)
        )

    async def walk_price(self, symbol: str, prices: Sequence[Decimal], *, every: timedelta) -> None:
        """Set the first price now and the next after each interval; returns at once."""
        await self._ask("POST", "path", symbol=symbol, prices=[str(p) for p in prices], every_ms=_ms(every))

    async def set_latency(self, latency: timedelta, operation: Operation | None = None) -> None:
        """Set how long each request takes, or each request of one kind."""
        await self._ask("POST", "latency", latency_ms=_ms(latency), operation=operation)

    async def set_visibility(
        self, *, orders: timedelta = _NONE, positions: timedelta = _NONE, trades: timedelta = _NONE
    ) -> None:
        """Set how far reads lag behind what the exchange has done."""
        await self._ask(
            "POST", "visibility", orders_ms=_ms(orders), positions_ms=_ms(positions), trades_ms=_ms(trades)
        )

    async def inject(self, fault: Fault) -> None:
        """Arm a fault for the requests that it hits."""
        await self._ask("POST", "faults", **encode(fault))

    async def clear_faults(self) -> None:
        """Remove all waiting faults."""
        await self._ask("DELETE", "faults")

    async def ban(self, duration: timedelta, *, status: int = 418) -> int:
        """Refuse every request with a 418 or 429; returns the end of the ban, in milliseconds since 1970."""
        answer = await self._ask("POST", "ban", duration_ms=_ms(duration), status=status)
        return cast("int", answer["until_ms"])

    async def lift_ban(self) -> None:
        """End a ban early."""
        await self._ask("DELETE", "ban")

    async def deny(
        self,
        code: int = -2015,
        *,
        operations: Collection[Operation] | None = None,
        account: str | None = None,
    ) -> None:
        """Refuse a key: only its requests that change state, unless ``operations`` names others."""
        chosen = None if operations is None else [operation.value for operation in operations]
        await self._ask("POST", "denial", code=code, operations=chosen, account=account)

    async def allow(self, account: str | None = None) -> None:
        """End the refusals of one account's key, or of every key."""
        await self._ask("DELETE", "denial", account=account)

    async def set_maintenance(self, on: bool) -> None:  # noqa: FBT001 - it is the only thing to say
        """Refuse every request with a 503: the system is under maintenance."""
        await self._ask("POST", "maintenance", on=on)

    async def set_clock_offset(self, offset: timedelta) -> None:
        """Step the exchange's clock: it is this far ahead of its machine's from now on."""
        await self._ask("POST", "clock", offset_ms=_ms(offset))

    async def listeners(self) -> tuple[Listener, ...]:
        """The open websockets."""
        rows = cast("Sequence[Mapping[str, Any]]", await self._ask("GET", "streams"))
        return tuple(Listener(row["account"], tuple(row["streams"])) for row in rows)

    async def cut_streams(self, account: str | None = None) -> None:
        """Cut the websockets that listen to an account, or all, without a closing word."""
        await self._ask("DELETE", "streams", account=account)

    async def expire_listen_keys(self, account: str = MAIN) -> None:
        """End the account's listen keys, as their hour does; its listeners are told, and hear no more."""
        await self._ask("DELETE", "listenkey", account=account)

    async def list_contract(self, contract: str | MarketSpec) -> None:
        """Open a contract to trading."""
        await self._ask(
            "POST", "contract", **({"symbol": contract} if isinstance(contract, str) else encode(contract))
        )

    async def delist_contract(self, symbol: str, *, listing: Listing = Listing.GONE) -> None:
        """Close a contract to orders; its positions stay."""
        await self._ask("DELETE", "contract", symbol=symbol, listing=listing)

    async def add_account(self, name: str, *, api_key: str, secret: str, wallet: Decimal = WALLET) -> None:
        """Add an account with positions and orders of its own."""
        await self._ask("POST", "account", name=name, api_key=api_key, secret=secret, wallet=str(wallet))

    async def set_hedge_mode(self, on: bool, *, account: str = MAIN) -> None:  # noqa: FBT001 - as above
        """Turn hedge mode on or off: with it a contract has two positions, and orders must say which."""
        await self._ask("POST", "hedge", on=on, account=account)

    async def set_permissions(
        self, *, withdrawals: bool = False, futures: bool = True, account: str = MAIN
    ) -> None:
        """Say what the account's key may do, for ``apiRestrictions``; no request is refused for it."""
        await self._ask("POST", "permissions", withdrawals=withdrawals, futures=futures, account=account)

    async def trade_by_hand(
        self,
        symbol: str,
        side: Side,
        qty: Decimal,
        *,
        price: Decimal | None = None,
        reduce_only: bool = False,
        position_side: PositionSide = PositionSide.BOTH,
        account: str = MAIN,
        client_id: str | None = None,
    ) -> Order:
        """Place an order as a person does in the exchange's app."""
        hand = HandOrder(symbol, side, qty, price, reduce_only, position_side, account, client_id)
        return decode(Order, await self._ask("POST", "trade", **encode(hand)))

    async def stop_by_hand(
        self,
        symbol: str,
        side: Side,
        trigger: Decimal,
        *,
        qty: Decimal | None = None,
        reduce_only: bool = True,
        take_profit: bool = False,
        position_side: PositionSide = PositionSide.BOTH,
        account: str = MAIN,
        client_id: str | None = None,
    ) -> AlgoOrder:
        """Place a stop or take-profit as a person does; without ``qty`` it closes the whole position."""
        hand = HandStop(
            symbol, side, trigger, qty, reduce_only, take_profit, position_side, account, client_id
        )
        return decode(AlgoOrder, await self._ask("POST", "stop", **encode(hand)))

    async def cancel_by_hand(self, order_id: int, *, account: str = MAIN) -> None:
        """Cancel an order or a stop of any origin by the exchange's id."""
        await self._ask("POST", "cancel", order_id=order_id, account=account)

    async def release(self, symbol: str | None = None) -> None:
        """Fill the orders that a fault left in the book."""
        await self._ask("POST", "release", symbol=symbol)

    async def record(self) -> ExchangeRecord:
        """What the exchange has done since the start or the last reset."""
        return decode_record(
            cast("Mapping[str, Sequence[Mapping[str, object]]]", await self._ask("GET", "record"))
        )

    async def reset(self) -> None:
        """Forget every order, position, fault, condition and lag; the latency and the accounts stay."""
        await self._ask("POST", "reset")

    async def _ask(self, method: str, what: str, **body: Json) -> Mapping[str, Json]:
        if self._session is None:
            raise ConfigurationError(
                "the control client is used as 'async with ControlClient(url) as control'"
            )
        try:
            async with self._session.request(
                method, f"{self._url}/_control/{what}", json=body or None
            ) as response:
                answer = cast("Mapping[str, Json]", await response.json())
                if response.status >= 400:
                    raise ConfigurationError(f"the local exchange refused {what}: {answer.get('error')}")
                return answer
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise ConfigurationError(
                f"no local exchange answers at {self._url}: {str(exc) or type(exc).__name__}"
            ) from exc
