"""What the fence asks of a driver and its pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lockguard_postgres._errors import Errors

__all__ = ["Database"]


class Database(Protocol):
    """A driver's pool on the fence's database.

    Attributes:
        errors: what the driver's errors mean.
        failures: what it raises when a statement fails or no connection can be had, its timeouts included.
    """

    errors: Errors
    failures: tuple[type[Exception], ...]

    def require_usable(self) -> None:
        """Check that the pool can be used in the running event loop.

        Raises:
            ConfigurationError: it is closed, not connected yet, or of another event loop.
        """
        ...

    def is_closing(self) -> bool:
        """Whether the pool is closed, or about to be."""
        ...

    def has_room(self) -> bool:
        """Whether a connection can be had that no other task waits for."""
        ...

    def size(self) -> int:
        """How many connections the pool has."""
        ...

    def is_pooled(self) -> bool:
        """Whether it is set up as behind a pooler in transaction mode, as far as the driver tells."""
        ...

    def why_not(self, exc: BaseException, /) -> str:
        """What an error of the driver's own says to an operator; empty where its own text will do."""
        ...

    async def acquire(self) -> Any:
        """A connection, for :meth:`once` or :meth:`drop`."""
        ...

    def drop(self, conn: Any) -> None:
        """Close a connection at once, whatever it does."""
        ...

    async def once(self, conn: Any, query: str, *, rows: bool, alone: bool = True) -> Any:
        """Run a call of the fence's and give the connection back; returns its row or its command tag.

        It runs in a transaction of its own, at READ COMMITTED and without a statement timeout, and carries no
        lease. A server that does not answer keeps no cancelled caller waiting.

        Args:
            conn: what :meth:`acquire` gave.
            query: the call.
            rows: whether its row is wanted.
            alone: whether a row needs the transaction: where nothing is written, and no pooler is in
                between, it does not.
        """
        ...

    async def fetch(self, query: str) -> Sequence[Mapping[str, Any]]:
        """The rows of a question, each by the names of its columns; carries no lease."""
        ...
