"""What is worth another attempt."""

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
"""By package and name, so that none of the packages has to be installed."""


class retry_if_busy(retry_if_exception):  # noqa: N801 - tenacity names its strategies so
    """Again while somebody else holds the resource."""

    def __init__(self) -> None:
        super().__init__(lambda exc: isinstance(exc, ResourceBusy))


class retry_if_retryable(retry_if_exception):  # noqa: N801 - tenacity names its strategies so
    """Again after every error of lockguard that says of itself that the same call may simply be made again.

    A lost lease and a stale token are not among them: they call for reading the state again first.
    """

    def __init__(self) -> None:
        super().__init__(lambda exc: isinstance(exc, LockguardError) and exc.retryable)


class retry_if_network_failed(retry_if_exception):  # noqa: N801 - tenacity names its strategies so
    """Again after a lost connection, a timeout, or an exchange or a server that did not answer.

    For calls that change nothing only. Such an error does not say whether the call was carried out, and an
    order sent again is a second order.
    """

    def __init__(self) -> None:
        super().__init__(_network_failed)


def _network_failed(exc: BaseException) -> bool:
    if isinstance(exc, (ConnectionError, TimeoutError)):
        return True
    return any(
        (kind.__module__.partition(".")[0], kind.__name__) in _NETWORK_CLASSES for kind in type(exc).__mro__
    )
