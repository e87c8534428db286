"""Retry predicates: which errors are worth another attempt."""

from __future__ import annotations

from tenacity import retry_if_exception

from lockguard.errors import LockguardError, ResourceBusy

__all__ = ["retry_if_busy", "retry_if_network_failed", "retry_if_retryable"]

_NETWORK_CLASSES = frozenset(
    {
        ("ccxt", "OperationFailed"),
        ("aiohttp", "ClientConnectionError"),
        ("redis", "ConnectionError"),
        ("redis", "TimeoutError"),
        ("asyncpg", "PostgresConnectionError"),
        ("asyncpg", "CannotConnectNowError"),
    }
)
"""By package and class name, so that none of the packages has to be installed."""


class retry_if_busy(retry_if_exception):  # noqa: N801 - tenacity's naming convention
    """Retry while another process holds the resource."""

    def __init__(self) -> None:
        super().__init__(lambda exc: isinstance(exc, ResourceBusy))


class retry_if_retryable(retry_if_exception):  # noqa: N801 - tenacity's naming convention
    """Retry after any ``retryable`` lockguard error: the same call may simply be repeated.

    A lost lease and a stale token are not retryable: the caller must first read the state again.
    """

    def __init__(self) -> None:
        super().__init__(lambda exc: isinstance(exc, LockguardError) and exc.retryable)


class retry_if_network_failed(retry_if_exception):  # noqa: N801 - tenacity's naming convention
    """Retry after a lost connection, a timeout, or an exchange or server that did not answer.

    Only for calls that change nothing. After such an error the outcome of the call is unknown, and an order
    sent again is a second order.
    """

    def __init__(self) -> None:
        super().__init__(_network_failed)


def _network_failed(exc: BaseException) -> bool:
    if isinstance(exc, (ConnectionError, TimeoutError)):
        return True
    return any(
        (kind.__module__.partition(".")[0], kind.__name__) in _NETWORK_CLASSES for kind in type(exc).__mro__
    )
