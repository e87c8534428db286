"""The label ``group``: bounded, whatever the names of resources are.

A label for each resource would be a time series for each, which a monitoring system keeps for weeks: a bot
that locks by signal or by order would fill it. So resources are told in groups, by default the exchanges.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from lockguard.errors import ConfigurationError
from lockguard.text import kind_of, printable

__all__ = ["OTHER", "Groups", "Label", "exchange_of"]

Label = Callable[[str], str]

OTHER = "other"
"""The group of a resource that has none, and of all groups beyond the cap."""

_LOG = logging.getLogger("lockguard.metrics")
_CHARACTERS_MAX = 80
_REMEMBERED_MAX = 10_000


def exchange_of(resource: str) -> str:
    """The part of a resource before its first colon: the exchange of ``binance:APTUSDT``.

    A name without a colon gives ``other``.
    """
    exchange, colon, _ = resource.partition(":")
    return exchange if colon else OTHER


class Groups:
    """The group of each resource.

    Args:
        label: gives the group of a resource.
        groups_max: of how many groups are told by name; the others are ``other``.

    Raises:
        ConfigurationError: ``label`` cannot be called, or ``groups_max`` is no whole number from 1.
    """

    def __init__(self, label: Label, groups_max: int) -> None:
        if not callable(label):
            raise ConfigurationError(f"label= is {kind_of(label)}; give a function of a resource's name")
        if type(groups_max) is not int or groups_max < 1:
            raise ConfigurationError(f"groups_max={groups_max!r} cannot work; give a whole number from 1")
        self._label = label
        self._groups_max = groups_max
        self._named: set[str] = set()
        self._of: dict[str, str] = {}
        self._failed = False

    def of(self, resource: str) -> str:
        """The group of a resource."""
        group = self._of.get(resource)
        return self._find(resource) if group is None else group

    def of_account(self, exchange: str) -> str:
        """The group of what concerns a whole account; the function is given its name with a colon behind."""
        return self.of(f"{exchange}:")

    def _find(self, resource: str) -> str:
        group = self._capped(self._asked(resource))
        if len(self._of) < _REMEMBERED_MAX:
            self._of[resource] = group
        return group

    def _asked(self, resource: str) -> str:
        try:
            return printable(str(self._label(resource)))[:_CHARACTERS_MAX]
        except Exception:  # noqa: BLE001 - a user's function must not lose the event
            if not self._failed:
                self._failed = True
                _LOG.exception("label= failed; resources for which it fails are counted as %r", OTHER)
            return OTHER

    def _capped(self, group: str) -> str:
        if group in self._named:
            return group
        if len(self._named) >= self._groups_max:
            return OTHER
        self._named.add(group)
        return group
