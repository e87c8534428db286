"""Where servers are reached that Sentinels and clusters announce by addresses of their own network.

Behind a NAT, or in containers, a cluster tells its clients addresses that only its own servers can reach.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from lockguard.errors import ConfigurationError
from lockguard.text import kind_of

__all__ = ["AddressMap", "AddressMapping"]

AddressMapping: TypeAlias = (
    Mapping[tuple[str, int], tuple[str, int]] | Callable[[tuple[str, int]], tuple[str, int]]
)
"""What ``address_map=`` takes: announced host and port, and where to reach them."""

_LOG = logging.getLogger("lockguard")
_FORM = "give a function or a mapping from (host, port) to (host, port)"
_PORT_MAX = 65_535


class AddressMap:
    """Maps the addresses that servers announce; those in a URL are used as they are.

    Args:
        given: a mapping, or a function of one tuple, as redis-py's ``address_remap``; ``None`` maps nothing.
            What a mapping lacks is reached as announced.

    Raises:
        ConfigurationError: it is none, or the mapping has something else than addresses, or two for one.
    """

    def __init__(self, given: object = None) -> None:
        self._map: Callable[[tuple[str, int]], Any] | None = None
        self._told = False
        if isinstance(given, Mapping):
            for announced, reached in given.items():
                if not (_is_address(announced) and _is_address(reached)):
                    raise ConfigurationError(f"address_map= has an entry that is none; {_FORM}")
            known: dict[tuple[str, int], tuple[str, int]] = {}
            for (host, port), reached in given.items():
                if known.setdefault((host.lower(), port), reached) != reached:
                    raise ConfigurationError(f"address_map= maps one address to two; {_FORM}")
            self._map = lambda announced: known.get(announced, announced)
        elif callable(given) and not isinstance(given, type):
            if inspect.iscoroutinefunction(given):
                raise ConfigurationError(f"address_map= is a coroutine function; {_FORM}")
            self._map = given
        elif given is not None:
            raise ConfigurationError(f"address_map= is {kind_of(given)}; {_FORM}")

    def __bool__(self) -> bool:
        return self._map is not None

    def __call__(self, host: str, port: int) -> tuple[str, int]:
        """Where to reach the server that is announced at ``host`` and ``port``. Never raises.

        A function that fails is said once in the log, and the address is used as announced.
        """
        if self._map is None:
            return host, port
        why = "returned something else"
        try:
            if _is_address(reached := self._map((host.lower(), port))):
                return reached[0], reached[1]
        except Exception as exc:  # noqa: BLE001 - it is called where replies are read
            why = f"raised {type(exc).__name__}"
        if not self._told:
            self._told = True
            _LOG.warning("address_map= %s for %s:%d, which is used as announced; %s", why, host, port, _FORM)
        return host, port


def _is_address(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and bool(value[0])
        and not value[0].startswith("[")  # of an IPv6 address in a URL; no server announces them
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
        and 1 <= value[1] <= _PORT_MAX
    )
