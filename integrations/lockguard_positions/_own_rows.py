"""Which rows' orders an account has shown, so that it is asked about each row once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_positions._status import PositionStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard_positions._model import Position

__all__ = ["OUR_STOPS", "OwnRows", "has_our_stop"]

OUR_STOPS = "lgs-"
"""The prefix of our stops' client order ids; see :func:`~lockguard_ccxt.client_order_id`."""


class OwnRows:
    """The ids of the rows whose orders an account has shown, so that it is asked about each only once.

    Args:
        key: returns the API key that requests are signed with; with another one, nothing is known any more.
    """

    def __init__(self, key: Callable[[], object]) -> None:
        self._key = key
        self._of = key()
        self._ids: set[int] = set()

    def __contains__(self, position: Position) -> bool:
        return position.id in self._now()

    def shown(self, position: Position) -> None:
        """Note that the account has an order that was sent for the row."""
        self._now().add(position.id)

    def moved(self, position: Position) -> None:
        """Note what the writing of a row shows: an active one has its stop, one that has ended nothing.

        A stop that a person named shows nothing: two accounts may have orders of one name.
        """
        if position.status is PositionStatus.ACTIVE and has_our_stop(position):
            self.shown(position)
        elif not position.status.open:
            self._ids.discard(position.id)

    def _now(self) -> set[int]:
        if (key := self._key()) != self._of:
            self._of, self._ids = key, set()
        return self._ids


def has_our_stop(position: Position) -> bool:
    """Whether a row's stop is named by us, and not by a person whose stop was taken over."""
    return (position.stop_client_id or "").startswith(OUR_STOPS)
