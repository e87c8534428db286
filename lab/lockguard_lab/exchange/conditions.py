"""Lasting states of the exchange: a ban, keys that may not trade, maintenance, a wrong clock.

A :class:`~lockguard_lab.exchange.Fault` hits a number of requests; a condition holds until it is lifted or
its time is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Collection

    from lockguard_lab.exchange.faults import Operation

__all__ = ["BANNED", "Conditions"]

BANNED = "banned"
"""The outcome, in the record, of a request that came during a ban."""

_BAN_STATUSES = {418: "Way too many requests", 429: "Too many requests"}
_DENIALS = {
    -2014: "API-key format invalid.",
    -2015: "Invalid API-key, IP, or permissions for action.",
}
_MAINTENANCE = "System is under maintenance."


@dataclass(frozen=True, slots=True)
class _Ban:
    until_ms: int
    status: int


@dataclass(frozen=True, slots=True)
class _Denial:
    code: int
    operations: frozenset[Operation] | None

    def covers(self, operation: Operation) -> bool:
        return operation.writes if self.operations is None else operation in self.operations


class Conditions:
    """The conditions in force."""

    def __init__(self) -> None:
        self.maintenance = False
        self._ban: _Ban | None = None
        self._denials: dict[str | None, _Denial] = {}

    def ban(self, until_ms: int, status: int) -> None:
        """Refuse every request until ``until_ms``.

        Raises:
            ConfigurationError: a status other than 418 and 429.
        """
        if status not in _BAN_STATUSES:
            raise ConfigurationError(f"a ban is told with status 418 or 429, not {status}")
        self._ban = _Ban(until_ms, status)

    def lift_ban(self) -> None:
        """End the ban before its time."""
        self._ban = None

    def deny(self, account: str | None, code: int, operations: Collection[Operation] | None) -> None:
        """Refuse these requests to one account's key, or to every key; ``None``: all that change state.

        Raises:
            ConfigurationError: a code other than -2014 and -2015.
        """
        if code not in _DENIALS:
            raise ConfigurationError(f"a key is refused with code -2014 or -2015, not {code}")
        self._denials[account] = _Denial(code, None if operations is None else frozenset(operations))

    def allow(self, account: str | None) -> None:
        """End the refusals of one account's key, or all refusals."""
        if account is None:
            self._denials.clear()
        else:
            self._denials.pop(account, None)

    def check_address(self, now_ms: int) -> None:
        """Refuse a request before its sender is identified.

        Raises:
            Rejection: there is a ban, or maintenance.
        """
        ban = self._ban
        if ban is not None and now_ms < ban.until_ms:
            raise Rejection(
                -1003,
                f"{_BAN_STATUSES[ban.status]}; IP(127.0.0.1) banned until {ban.until_ms}."
                " Please use the websocket for live updates to avoid bans.",
                ban.status,
                headers={"Retry-After": str(-(-(ban.until_ms - now_ms) // 1000))},
                outcome=BANNED,
            )
        if self.maintenance:
            raise Rejection(1, _MAINTENANCE, 503)

    def check_permission(self, account: str, operation: Operation) -> None:
        """Refuse an operation that the account's key may not do.

        Raises:
            Rejection: the key may not do it.
        """
        for name in (account, None):
            denial = self._denials.get(name)
            if denial is not None and denial.covers(operation):
                raise Rejection(denial.code, _DENIALS[denial.code], 401)
