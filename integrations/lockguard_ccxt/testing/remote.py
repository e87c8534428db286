"""Steering a local exchange that runs in another process."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Self, cast

import aiohttp

from lockguard.errors import ConfigurationError
from lockguard_ccxt.testing.record import decode_record, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal
    from types import TracebackType

    from lockguard_ccxt.testing.faults import Fault, Operation
    from lockguard_ccxt.testing.record import ExchangeRecord
    from lockguard_ccxt.testing.render import Json

__all__ = ["ControlClient"]

_NONE = timedelta(0)
_TIMEOUT_S = 10


def _ms(span: timedelta) -> int:
    return round(span / timedelta(milliseconds=1))


class ControlClient:
    """The control methods of :class:`~lockguard_ccxt.testing.LocalExchange`, over HTTP.

    Use it as an async context manager. Every method raises ``ConfigurationError`` when the exchange is not
    there or refuses what is asked.

    Args:
        url: as :attr:`LocalExchange.url <lockguard_ccxt.testing.LocalExchange.url>` gives it.
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
        """The contracts' ids; also shows that the exchange is there."""
        health = await self._ask("GET", "health")
        return tuple(cast("Sequence[str]", health["symbols"]))

    async def set_price(self, symbol: str, price: Decimal, *, mark: Decimal | None = None) -> None:
        """Move a contract's price."""
        await self._ask(
            "POST", "price", symbol=symbol, price=str(price), mark=None if mark is None else str(mark)
        )

    async def walk_price(self, symbol: str, prices: Sequence[Decimal], *, every: timedelta) -> None:
        """Set the first price now and one more at each interval; returns at once."""
        await self._ask("POST", "path", symbol=symbol, prices=[str(p) for p in prices], every_ms=_ms(every))

    async def set_latency(self, latency: timedelta, operation: Operation | None = None) -> None:
        """How long each request takes, or each of one kind."""
        await self._ask("POST", "latency", latency_ms=_ms(latency), operation=operation)

    async def set_visibility(
        self, *, orders: timedelta = _NONE, positions: timedelta = _NONE, trades: timedelta = _NONE
    ) -> None:
        """How far reads lag behind what the exchange has done."""
        await self._ask(
            "POST", "visibility", orders_ms=_ms(orders), positions_ms=_ms(positions), trades_ms=_ms(trades)
        )

    async def inject(self, fault: Fault) -> None:
        """Let a fault wait for the requests it hits."""
        await self._ask("POST", "faults", **encode(fault))

    async def clear_faults(self) -> None:
        """Take all waiting faults back."""
        await self._ask("DELETE", "faults")

    async def record(self) -> ExchangeRecord:
        """What the exchange has done since the start or the last reset."""
        return decode_record(
            cast("Mapping[str, Sequence[Mapping[str, object]]]", await self._ask("GET", "record"))
        )

    async def reset(self) -> None:
        """Forget every order, position, fault and lag; prices start over, the latency stays."""
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
