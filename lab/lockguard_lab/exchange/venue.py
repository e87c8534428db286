"""What all accounts of the exchange share: the contracts, their prices, and the counters of ids.

Contracts come and go while the exchange runs. One that is *settling* is still in ``exchangeInfo``, under that
status, but takes no orders; one that is *gone* is known to no endpoint by its name, but an account that held
a position in it still sees it in the list of positions.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING

from lockguard_lab.exchange.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from lockguard_lab.exchange.markets import MarketSpec

__all__ = ["Listing", "MarketData"]


class Listing(StrEnum):
    """The status of a contract on the exchange."""

    TRADING = "TRADING"
    SETTLING = "SETTLING"
    GONE = "GONE"


class MarketData:
    """The contracts, their listing and their prices."""

    def __init__(self, markets: Iterable[MarketSpec], *, now_ms: int = 0) -> None:
        self.markets: dict[str, MarketSpec] = {}
        self.prices: dict[str, Decimal] = {}
        self.marks: dict[str, Decimal] = {}
        self._listing: dict[str, Listing] = {}
        self._book_ids: dict[str, int] = {}
        self._first_book_id = now_ms  # so that ids grow over a reset too
        self.order_ids = count(1_000_000_001)
        self.algo_ids = count(4_000_000_000_000_001)
        self.fill_ids = count(1)
        for spec in markets:
            self.list(spec)

    def list(self, spec: MarketSpec) -> None:
        """Open the contract to trading; one that is listed already keeps its price."""
        known = self.markets.get(spec.id)
        self.markets[spec.id] = spec
        self._listing[spec.id] = Listing.TRADING
        if known is None:
            self.prices[spec.id] = self.marks[spec.id] = spec.price
            self._book_ids[spec.id] = self._first_book_id

    def book_id(self, symbol: str) -> int:
        """The number of the last update of the contract's book."""
        return self._book_ids[symbol]

    def update_book(self, symbol: str) -> int:
        """Number an update of the contract's book."""
        self._book_ids[symbol] += 1
        return self._book_ids[symbol]

    def set_price(self, symbol: str, price: Decimal, mark: Decimal) -> None:
        """Set the contract's last price and mark price; its book moves along."""
        self.prices[symbol], self.marks[symbol] = price, mark
        self.update_book(symbol)

    def delist(self, symbol: str, listing: Listing) -> None:
        """Close the contract to orders."""
        self._listing[symbol] = listing

    def listing(self, symbol: str) -> Listing:
        """The contract's status."""
        return self._listing[symbol]

    def listed(self, *, inverse: bool) -> Iterable[MarketSpec]:
        """The contracts of USD-M or of COIN-M that ``exchangeInfo`` shows."""
        return [
            spec
            for spec in self.markets.values()
            if spec.inverse is inverse and self._listing[spec.id] is not Listing.GONE
        ]

    def market(self, symbol: str, *, inverse: bool | None = None) -> MarketSpec:
        """The contract of this id.

        Args:
            symbol: its id.
            inverse: only a contract of COIN-M, or only one of USD-M; ``None`` for either.

        Raises:
            Rejection: there is no such contract.
        """
        spec = self.markets.get(symbol)
        if spec is None or self._listing[symbol] is Listing.GONE or inverse not in {None, spec.inverse}:
            raise Rejection(-1121, "Invalid symbol.")
        return spec

    def tradable(self, symbol: str) -> MarketSpec:
        """The contract of this id if it takes orders; raises the exchange's refusal otherwise."""
        spec = self.market(symbol)
        if self._listing[symbol] is not Listing.TRADING:
            raise Rejection(
                -4108, "Symbol is on delivering or delivered or settling or closed or pre-trading."
            )
        return spec
