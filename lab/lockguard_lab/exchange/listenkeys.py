"""Listen keys: each names one account's stream of events at USD-M or at COIN-M, for an hour."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from lockguard_lab.exchange.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ListenKeys", "Owner"]

_VALID_MS = 3_600_000
_HALF_LENGTH = 32


class Owner(NamedTuple):
    """Whose events a listen key names.

    Attributes:
        account: the account's name.
        inverse: its events at COIN-M rather than at USD-M.
    """

    account: str
    inverse: bool


class ListenKeys:
    """The listen keys that are valid: at most one for each owner."""

    def __init__(self) -> None:
        self._keys: dict[Owner, tuple[str, int]] = {}

    def start(self, owner: Owner, now_ms: int) -> str:
        """The owner's key, a new one if it has none; valid for another hour."""
        key, _ = self._keys.get(owner, (secrets.token_hex(_HALF_LENGTH), 0))
        self._keys[owner] = key, now_ms + _VALID_MS
        return key

    def keep(self, owner: Owner, now_ms: int) -> str:
        """Make the owner's key valid for another hour.

        Raises:
            Rejection: it has none.
        """
        if owner not in self._keys:
            raise Rejection(-1125, "This listenKey does not exist.")
        return self.start(owner, now_ms)

    def end(self, owner: Owner) -> str | None:
        """Make the owner's key invalid; returns it, or ``None`` if it had none."""
        key, _ = self._keys.pop(owner, (None, 0))
        return key

    def due(self, now_ms: int) -> Iterable[Owner]:
        """The owners whose keys have outlived their hour."""
        return [owner for owner, (_, until_ms) in self._keys.items() if until_ms <= now_ms]

    def owner(self, key: str) -> Owner | None:
        """Whose key it is; ``None`` for a key that is not valid."""
        return next((owner for owner, (known, _) in self._keys.items() if known == key), None)

    def key(self, owner: Owner) -> str | None:
        """The owner's key, if it has a valid one."""
        return self._keys.get(owner, (None, 0))[0]
