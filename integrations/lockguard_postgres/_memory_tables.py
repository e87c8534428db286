"""Tables in memory that a fence guards, and the transactions over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, Self

from lockguard.errors import ConfigurationError
from lockguard_postgres._errors import NotCommitted

if TYPE_CHECKING:
    from types import TracebackType

    from lockguard._lease import GrantId, Lease, Resource
    from lockguard.errors import StaleToken

__all__ = ["MemoryTable", "MemoryTransaction", "Presents", "transaction_of"]

_ABSENT: Any = object()


class Presents(Protocol):
    """What tables and transactions need of their fence."""

    def _present(self) -> Sequence[Lease]:
        """Present the leases of the surrounding bodies; returns them."""
        ...

    def _require(self, resource: str | None, claimed: Sequence[Lease]) -> None:
        """Refuse a protected row whose lease is not among those claimed."""

    def _enter(self, resource: Resource) -> None:
        """Have seals of ``resource`` wait from now on."""

    def _leave(self, resource: Resource) -> None:
        """End what :meth:`_enter` began."""


_open: ContextVar[tuple[MemoryTransaction, ...]] = ContextVar("lockguard_memory_transactions", default=())


def transaction_of(fence: object) -> MemoryTransaction | None:
    """The innermost open transaction of ``fence`` in this context."""
    for transaction in reversed(_open.get()):
        if transaction.fence is fence and transaction.is_open:
            return transaction
    return None


class MemoryTransaction:
    """What :meth:`MemoryFence.transaction` returns: for one ``async with`` or ``with``.

    Raises:
        StaleToken: at its end, if it was raised inside because a lease was superseded, and swallowed.
        NotCommitted: at its end, if any other refusal inside was swallowed.
        LeaseLost: at its end, if a lease that it has presented was lost meanwhile.
        ConfigurationError: it was entered before.
    """

    def __init__(self, fence: Presents) -> None:
        self.fence = fence
        self.is_open = False
        self._used = False
        self._outer: MemoryTransaction | None = None
        self._claims: dict[GrantId, Lease] = {}
        self._undo: list[Callable[[], None]] = []
        self._refusal: StaleToken | None = None

    def __enter__(self) -> Self:
        if self._used:
            raise ConfigurationError(
                "this transaction was entered before; write `async with fence.transaction():` anew"
            )
        self._used = self.is_open = True
        self._outer = transaction_of(self.fence)
        _open.set((*_open.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_open = False
        _open.set(tuple(each for each in _open.get() if each is not self))
        try:
            if exc is None:
                self._commit()
            else:
                self._roll_back()
        except BaseException:
            self._roll_back()
            raise

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)

    def has(self, grant: GrantId) -> bool:
        """Whether it, or one around it, has presented ``grant``."""
        return grant in self._claims or (self._outer is not None and self._outer.has(grant))

    def claim(self, lease: Lease) -> None:
        """Note what was presented, which seals wait for."""
        self._claims[lease.grant.id] = lease
        self.fence._enter(lease.resource)

    def claimed(self) -> tuple[Lease, ...]:
        """All leases that it and those around it have presented."""
        outer = () if self._outer is None else self._outer.claimed()
        return (*outer, *self._claims.values())

    def undo_by(self, undo: Callable[[], None]) -> None:
        """Have ``undo`` called if it is rolled back."""
        self._undo.append(undo)

    def refused(self, refusal: StaleToken) -> None:
        """Note a refusal inside, after which nothing can be committed."""
        self._refusal = self._refusal or refusal

    def _commit(self) -> None:
        if self._refusal is not None:
            if self._refusal.presented is not None:
                raise self._refusal
            # The lease is alive, so the drivers tell no more than that Postgres has rolled back.
            raise NotCommitted(
                "the transaction was rolled back: a write in it was refused and the error was swallowed; let"
                " it through, or give the write that may fail a savepoint"
            ) from self._refusal
        if self._outer is not None:  # a savepoint
            self._outer._claims.update(self._claims)
            self._outer._undo += self._undo
            self._claims, self._undo = {}, []
            return
        for lease in self._claims.values():
            lease.ensure()
        self._undo.clear()
        self._let_go()

    def _roll_back(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._let_go()

    def _let_go(self) -> None:
        claims, self._claims = self._claims, {}
        for lease in claims.values():
            self.fence._leave(lease.resource)


class MemoryTable(MutableMapping[Any, Any]):
    """A dictionary of rows, each write to which is like a statement on a fenced pool.

    Rows are what the test puts there. A row that is changed in place, and not assigned, is not seen: assign a
    changed copy, such as ``dataclasses.replace(row, status="active")``.
    """

    def __init__(self, fence: Presents, protect: str | Callable[[Any, Any], str] | None) -> None:
        if protect is not None and not isinstance(protect, str) and not callable(protect):
            raise ConfigurationError(
                "protect= is a template such as '{exchange}:{symbol}', or a function of key and row"
            )
        self._fence = fence
        self._protect = protect
        self._rows: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        return self._rows[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<MemoryTable {self._rows!r}>"

    def __setitem__(self, key: Any, row: Any) -> None:
        self._write({key: row})

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """As of ``dict``; a statement that finds no row presents the lease too."""
        row = self._rows.get(key, _ABSENT)
        self._write({} if row is _ABSENT else {key: _ABSENT})
        if row is _ABSENT and default is _ABSENT:
            raise KeyError(key)
        return default if row is _ABSENT else row

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As of ``dict``, and of ``insert ... on conflict do nothing``."""
        self._write({} if key in self._rows else {key: default})
        return self._rows[key]

    def update(self, *args: Any, **fields: Any) -> None:
        """As of ``dict``, in one statement: all rows or none."""
        self._write(dict(*args, **fields))

    def clear(self) -> None:
        """As of ``dict``, in one statement."""
        self._write(dict.fromkeys(self._rows, _ABSENT))

    def _write(self, changes: dict[Any, Any]) -> None:
        presented = self._fence._present()
        transaction = transaction_of(self._fence)
        if self._protect is not None:
            claimed = presented if transaction is None else transaction.claimed()
            for key, row in changes.items():
                for version in (self._rows.get(key, _ABSENT), row):
                    if version is not _ABSENT:
                        self._fence._require(self._resource_of(key, version), claimed)
        before = {key: self._rows.get(key, _ABSENT) for key in changes}
        self._put(changes)
        if transaction is not None:
            transaction.undo_by(lambda: self._put(before))

    def _put(self, rows: dict[Any, Any]) -> None:
        for key, row in rows.items():
            if row is _ABSENT:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row

    def _resource_of(self, key: Any, row: Any) -> str | None:
        if callable(self._protect):
            return self._protect(key, row)
        assert self._protect is not None
        fields = _Fields(key, row)
        try:
            resource = self._protect.format_map(fields)
        except KeyError as exc:
            raise ConfigurationError(
                f"protect={self._protect!r} names {exc}, which the row of {key!r} does not have"
            ) from exc
        return None if fields.has_null else resource


class _Fields(dict[str, Any]):
    """The fields of a row for a template: the items of a mapping, or the attributes of any other object."""

    def __init__(self, key: Any, row: Any) -> None:
        super().__init__()
        self._key, self._row = key, row
        self.has_null = False
        """Whether a field was ``None``: such a row belongs to no resource, as in SQL."""

    def __missing__(self, name: str) -> Any:
        if isinstance(self._row, Mapping):
            value = self._row.get(name, _ABSENT)
        else:
            value = getattr(self._row, name, _ABSENT)
        if value is _ABSENT:
            if name != "key":
                raise KeyError(name)
            value = self._key
        self.has_null |= value is None
        return value
