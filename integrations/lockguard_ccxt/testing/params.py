"""A request's parameters, read with the exchange's own complaints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_ccxt.testing.filters import number
from lockguard_ccxt.testing.model import OrderType, Side
from lockguard_ccxt.testing.rejections import Rejection, illegal, malformed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

__all__ = ["Params"]


class Params:
    """Query and body of one request, together."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def optional(self, name: str) -> str | None:
        """A parameter's text, or ``None`` when it is absent or empty."""
        return self._values.get(name) or None

    def text(self, name: str) -> str:
        """A parameter that must be there."""
        value = self.optional(name)
        if value is None:
            raise malformed(name)
        return value

    def number(self, name: str) -> Decimal:
        """A number that must be there."""
        return number(name, self.text(name))

    def optional_number(self, name: str) -> Decimal | None:
        """A number, or ``None``."""
        value = self.optional(name)
        return None if value is None else number(name, value)

    def whole(self, name: str) -> int | None:
        """A whole number, or ``None``."""
        value = self.optional(name)
        if value is None:
            return None
        if not value.isdecimal():
            raise illegal(name, "^[0-9]{1,20}$")
        return int(value)

    def flag(self, name: str) -> bool:
        """``true`` or ``false`` in any case; absent is false."""
        return (self.optional(name) or "").lower() == "true"

    def side(self) -> Side:
        """``BUY`` or ``SELL``."""
        try:
            return Side(self.text("side"))
        except ValueError:
            raise Rejection(-1117, "Invalid side.") from None

    def order_type(self) -> OrderType:
        """One of the order types."""
        try:
            return OrderType(self.text("type"))
        except ValueError:
            raise Rejection(-1116, "Invalid orderType.") from None

    def order_key(self, id_name: str, client_name: str) -> tuple[int | None, str | None]:
        """By which name an order is asked for: the exchange's id wins over the client's."""
        order_id = self.whole(id_name)
        client_id = self.optional(client_name)
        if order_id is None and client_id is None:
            raise Rejection(
                -1102, f"Param '{client_name}' or '{id_name}' must be sent, but both were empty/null!"
            )
        return order_id, client_id
