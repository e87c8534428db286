"""A check right before bytes leave this machine, for clients that send with ``requests``.

Between ccxt's ``fetch`` and the first byte of a request lie the look-up of the host's name, the connection
and the handshake of TLS. In an outage they take as long as the client's timeout, ten seconds, and an order
checked before them would leave after its lease had ended. So the check is made by the connection itself, once
it is open.

Under it lie the repetitions of urllib3, which an adapter may have been given, and redirects: an order whose
answer was lost would be placed again. So the connection also tells of each request that it begins.
"""

from __future__ import annotations

from typing import Any, Protocol

from lockguard.errors import ConfigurationError

__all__ = ["Wire", "check_before_bytes"]

_CHECKED = "_lockguard_checked"


class Wire(Protocol):
    """What is asked in the thread that sends; what it raises reaches the caller of ``requests``."""

    def begins(self) -> None:
        """A request begins, for the first time or once more."""

    def leaves(self) -> None:
        """A piece of a request is about to be written."""


def check_before_bytes(session: Any, wire: Wire) -> None:
    """Ask ``wire`` before each request of a ``requests.Session``, and before each piece of it; idempotent.

    What it raises reaches the caller, and the connection is closed: a request whose end was not sent is not
    carried out.

    Args:
        session: its adapters stay as they are, those for proxies included.
        wire: is asked.

    Raises:
        ConfigurationError: an adapter does not send with urllib3.
    """
    for prefix, adapter in session.adapters.items():
        if getattr(adapter, "poolmanager", None) is None:
            raise ConfigurationError(
                f"the adapter {type(adapter).__name__} for {prefix} does not send with urllib3, so nothing"
                " can be checked when it sends; mount a requests.adapters.HTTPAdapter"
            )
        if not getattr(adapter, _CHECKED, False):
            _watch(adapter.poolmanager, wire)
            _watch_proxies(adapter, wire)
            setattr(adapter, _CHECKED, True)


def _watch_proxies(adapter: Any, wire: Wire) -> None:
    make = adapter.proxy_manager_for

    def proxy_manager_for(*args: Any, **kwargs: Any) -> Any:
        manager = make(*args, **kwargs)
        _watch(manager, wire)
        return manager

    adapter.proxy_manager_for = proxy_manager_for


def _watch(manager: Any, wire: Wire) -> None:
    if not getattr(manager, _CHECKED, False):
        kinds = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: _checking(kind, wire) for scheme, kind in kinds.items()}
        manager.clear()  # of pools that were made before
        setattr(manager, _CHECKED, True)


def _checking(pool: type[Any], wire: Wire) -> type[Any]:
    """The class of a pool whose connections ask before they send, when they are open."""

    def putrequest(self: Any, *args: Any, **kwargs: Any) -> Any:
        wire.begins()
        return pool.ConnectionCls.putrequest(self, *args, **kwargs)

    def send(self: Any, data: Any) -> Any:
        if self.sock is None and self.auto_open:
            self.connect()
        wire.leaves()
        return pool.ConnectionCls.send(self, data)

    asking = {"putrequest": putrequest, "send": send}
    connection = type(pool.ConnectionCls.__name__, (pool.ConnectionCls,), asking)
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})
