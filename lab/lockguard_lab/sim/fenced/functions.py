"""What the fence's functions do, written anew from what they promise; and the statements of the schedules."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from lockguard_lab.sim.fenced.database import (
    Database,
    PgError,
    Result,
    Session,
    Steps,
    Transaction,
    Wait,
)
from lockguard_lab.sim.fenced.locks import Key
from lockguard_lab.sim.fenced.sql import Call, Literal_, Unknown, calls_of
from lockguard_lab.sim.fenced.transactions import control

__all__ = [
    "COPY_ENTRY",
    "FENCE_ID",
    "Fence",
    "Writer",
    "account",
    "copied",
    "entries",
    "execute",
    "fence_key",
]

FENCE_ID = UUID(int=0x5EA1)
_NUMBERED = 1 << 62


@dataclass(frozen=True)
class Fence:
    """The fence's row of a resource.

    Attributes:
        within: whether a savepoint's own transaction wrote it, which is none of those that may go on after a
            close.
    """

    token: int
    grant: str
    is_open: bool
    within: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Writer:
    """What is known of the last write of a slot."""

    token: int
    sequence: int
    first: int
    voided: bool = False


def fence_key(resource: str) -> Key:
    """Where the fence's row of a resource is."""
    return ("fence", resource)


def account(resource: str) -> Key:
    """Where the schedules' own row of a resource is."""
    return ("account", resource)


def entries(database: Database, resource: str) -> list[str]:
    """The committed entries of a resource."""
    found = ((key, database.latest(key)) for key in database.keys("op"))
    return sorted(str(key[1]) for key, row in found if _is_entry(row, resource))


def _is_entry(row: object, resource: str) -> bool:
    """Whether a row is an entry of a resource, and no write of its account."""
    return isinstance(row, tuple) and row[0] == resource and row[3] is None


def _gate(resource: str) -> Key:
    return ("gate", resource)


def execute(session: Session, text: str, params: Sequence[Literal_] = ()) -> Steps:
    """The steps of one statement, which give a :class:`Result`.

    Raises:
        Unknown: the model does not know it.
    """
    verb = text.split(None, 1)[0].lower().rstrip(";") if text else ""
    transaction = session.transaction
    if verb in ("commit", "end", "rollback", "begin", "start", "savepoint", "release"):
        return (yield from control(session, verb, text))
    if transaction is not None and transaction.failed:
        raise PgError(
            "25P02", "current transaction is aborted, commands ignored until end of transaction block"
        )
    return (yield from _Statement(session, text, params).steps())


def copied(session: Session, rows: Sequence[Sequence[Literal_]] | None) -> Steps:
    """The steps of the end of a COPY that has waited for its rows: all of them are written, or none.

    Args:
        session: the session that waits for them.
        rows: a resource, a token and an op each; ``None`` if the client gave up.
    """
    session.copying = False
    if rows is None:
        raise PgError("57014", "COPY from stdin failed")
    statement = _Statement(session, COPY_ENTRY, ())
    for resource, token, op in rows:
        if not str(token).isdecimal():
            raise PgError("22P02", f"invalid input syntax for type bigint: {token!r}")
        yield from statement._enter(str(resource), token, op)
    return Result(f"COPY {len(rows)}")


# Statements

_ACCOUNT_READ = re.compile(r"select version from account where resource = (\S+)")
_ACCOUNT_WRITE = re.compile(
    r"update account set version = (.+?), token = (\S+), op = (\S+) where resource = (\S+)"
    r"( returning version)?"
)
_ENTRY = re.compile(r"insert into entry \(resource, token, op\) values \((\S+), (\S+), (\S+)\)")
COPY_ENTRY = 'COPY "entry"("resource", "token", "op") FROM STDIN'
_COPY_OUT = re.compile(r"COPY \((.*)\) TO STDOUT", re.IGNORECASE)
_ENTRIES_READ = re.compile(r'select op from entry where resource = (\S+) order by op collate "C"')
_COPIED = (("copied", "text"),)
_WITH = re.compile(r"with lockguard_write as \((.*?)\) ?select (?:w\.\*|lockguard|\()", re.DOTALL)
_ASKED_BY_PEOPLE = ("pg_settings", "pg_stat_replication", "lockguard.at_the_gate")


class _Statement:
    def __init__(self, session: Session, text: str, params: Sequence[Literal_]) -> None:
        self.session, self.text, self.params = session, text, params
        self.database = session.database

    @property
    def transaction(self) -> Transaction:
        transaction = self.session.transaction
        assert transaction is not None
        return transaction

    def steps(self) -> Steps:  # noqa: C901 - one branch for each kind of statement
        text = self.text.lower()
        if text.startswith(("set ", "close all", "unlisten", "reset all", "select pg_advisory_unlock_all")):
            if "isolation level read committed" in text:
                self.transaction.isolation = "read committed"
            elif "isolation level repeatable read" in text:
                self.transaction.isolation = "repeatable read"
            elif found := re.match(r"set lock_timeout = (\d+)", text):
                self.session.lock_ms = self.transaction.lock_ms = int(found[1])
            return Result(text.split()[0].upper())
        self._snapshot()
        if text == "select" or text == "select 1":
            return Result("SELECT 1")
        if text == "select 1/0":
            raise PgError("22012", "division by zero")
        if any(name in text for name in _ASKED_BY_PEOPLE):
            return Result("SELECT 0")
        if "generate_series(1, lockguard.prune())" in text:
            return Result("SELECT 0")
        if text.startswith(COPY_ENTRY.lower()):
            self.session.copying = True
            return Result("COPY")
        if found := _COPY_OUT.match(self.text):
            return (yield from self._copy_out(found[1]))
        if text.startswith("with lockguard_write"):
            return (yield from self._native())
        if (plain := self._plain()) is not None:
            return (yield from plain)
        return (yield from self._called())

    def _snapshot(self) -> None:
        if self.transaction.snapshot is None or not self.transaction.repeatable:
            self.transaction.snapshot = self.database.commits

    # Rows

    def read(self, key: Key) -> object:
        """A row as this statement sees it. Each statement of a function at READ COMMITTED sees the latest."""
        transaction = self.transaction
        written, value = transaction.own(key)
        if written:
            return value
        if transaction.repeatable:
            assert transaction.snapshot is not None
            return self.database.as_of(key, transaction.snapshot)
        return self.database.latest(key)

    def locked(self, key: Key) -> object:
        """A row that is locked: its latest version, which a snapshot may not be older than."""
        transaction = self.transaction
        assert transaction.snapshot is not None
        written, value = transaction.own(key)
        if written:
            return value
        if transaction.repeatable and self.database.changed_since(key, transaction.snapshot):
            raise PgError("40001", "could not serialize access due to concurrent update")
        return self.database.latest(key)

    def write(self, key: Key, value: object) -> None:
        """Write a row."""
        if isinstance(value, Fence):
            value = replace(value, within=len(self.transaction.levels) > 1)
        self.transaction.levels[-1].writes[key] = value

    # The schedules' own statements

    def _native(self) -> Steps:
        found = _WITH.match(self.text)
        if not found:
            raise Unknown(self.text)
        write = _Statement(self.session, found[1].strip(), self.params)
        checks = self.text[found.end(1) :]
        for call in calls_of(checks, self.params):
            yield from self._call(call)
        plain = write._plain()
        if plain is None:
            raise Unknown(found[1])
        written: Result = yield from plain
        if "select w.*" in self.text:
            return Result(f"SELECT {len(written.rows)}", written.columns, written.rows)
        return Result("SELECT 1", (("check", "int8"),), ((1,),))

    def _plain(self) -> Steps | None:
        text = " ".join(self.text.split())
        if found := _ACCOUNT_READ.fullmatch(text):
            return self._read_account(str(self._value(found[1])))
        if found := _ACCOUNT_WRITE.fullmatch(text):
            version, token, op, resource, returning = found.groups()
            return self._write_account(
                str(self._value(resource)),
                None if version == "version + 1" else int(str(self._value(version))),
                (self._value(token), self._value(op)),
                returning=bool(returning),
            )
        if found := _ENTRY.fullmatch(text):
            resource, token, op = (self._value(part) for part in found.groups())
            return self._enter(str(resource), token, op)
        return None

    def _value(self, text: str) -> Literal_:
        if text.startswith("$"):
            return self.params[int(text[1:].partition("::")[0]) - 1]
        text = text.partition("::")[0]
        return text.strip("'") if text.startswith("'") else int(text)

    def _read_account(self, resource: str) -> Steps:
        row = self.read(account(resource))
        version = row[0] if isinstance(row, tuple) else 0
        yield from ()
        return Result("SELECT 1", (("version", "int8"),), ((version,),))

    def _write_account(
        self, resource: str, version: int | None, by: tuple[Literal_, Literal_], *, returning: bool
    ) -> Steps:
        key = account(resource)
        yield Wait(("row", *key), "alone")
        row = self.locked(key)
        before, writer, _ = row if isinstance(row, tuple) else (0, 0, "")
        after = before + 1 if version is None else version
        self.write(key, (after, *by))
        self.write(("op", by[1]), (resource, by[0], before, after, writer))
        if returning:
            return Result("UPDATE 1", (("version", "int8"),), ((after,),))
        return Result("UPDATE 1")

    def _enter(self, resource: str, token: Literal_, op: Literal_) -> Steps:
        self.write(("op", op), (resource, token, None, None, None))
        yield from ()
        return Result("INSERT 0 1")

    def _copy_out(self, query: str) -> Steps:
        """The rows of a query, as texts."""
        if found := _ENTRIES_READ.fullmatch(query):
            resource = str(self._value(found[1]))
            keys = {*self.database.keys("op"), *(key for key in self.transaction.writes if key[0] == "op")}
            ops = sorted(str(key[1]) for key in keys if _is_entry(self.read(key), resource))
            return Result(f"COPY {len(ops)}", _COPIED, tuple((op,) for op in ops))
        if (plain := _Statement(self.session, query, self.params)._plain()) is None:
            raise Unknown(query)
        result: Result = yield from plain
        rows = tuple(tuple(str(value) for value in row) for row in result.rows)
        return Result(f"COPY {len(rows)}", _COPIED, rows)

    # The fence's calls

    def _called(self) -> Steps:
        calls = calls_of(self.text, self.params)
        if not calls:
            raise Unknown(self.text)
        values: list[object] = []
        for call in calls:
            value = yield from self._call(call)
            values.append(value)
        return self._told(calls, values)

    def _told(self, calls: list[Call], values: list[object]) -> Result:
        """The shape of the answer: the library asks for rows, or for their number."""
        text, first, value = self.text, calls[0].name, values[0]
        if first == "seal":
            assert isinstance(value, tuple)
            if text.startswith("select accepted"):
                return Result("SELECT 1", (("accepted", "bool"), ("token", "int8")), (value,))
            wanted = re.search(r"accepted and token = (\d+)", text)
            fits = value[0] and (wanted is None or value[1] == int(wanted[1]))
            return Result(f"SELECT {int(fits)}")
        if first == "break_grant":
            assert isinstance(value, tuple)
            return Result("SELECT 1", (("broken", "bool"), ("token", "int8")), (value,))
        if first == "status":
            return Result(f"SELECT {int(self._status_fits(value))}")
        if first in ("resolve", "resolve_first"):
            return Result(f"SELECT {int(bool(value))}", (), () if not value else ((),))
        if first == "bound" and " where " in text:
            return Result("SELECT 0")
        if first == "fence_id":
            return Result("SELECT 1", (("fence_id", "uuid"),), ((FENCE_ID,),))
        return Result("SELECT 1", ((first, "int8"),), ((value if isinstance(value, int) else None,),))

    def _status_fits(self, row: object) -> bool:
        found = re.search(r"token = (\d+)::bigint and grant_id = '([^']+)'::uuid and is_open", self.text)
        if not found:
            raise Unknown(self.text)
        return row == Fence(int(found[1]), _hex(found[2]), is_open=True)

    def _call(self, call: Call) -> Steps:
        work: Callable[..., Steps] | None = getattr(self, f"_f_{call.name}", None)
        if work is None:
            raise Unknown(f"lockguard.{call.name}")
        args: list[object] = []
        for arg in call.args:
            value = (yield from self._call(arg)) if isinstance(arg, Call) else arg
            args.append(value)
        return (yield from work(*args))

    def _fence(self, resource: str) -> Fence | None:
        row = self.read(fence_key(resource))
        assert row is None or isinstance(row, Fence)
        return row

    def _is_locked(self, resource: str) -> bool:
        """Try to have the gate alone."""
        key, transaction = _gate(resource), self.transaction
        if transaction.holds(key, "alone") or self.database.locks.try_(transaction, key, "alone"):
            transaction.levels[-1].locks.append((key, "alone"))
            return True
        return False

    def _settle(self, within_ms: object) -> None:
        assert isinstance(within_ms, int)
        self.transaction.lock_ms = max(1, within_ms)
        idle = self.transaction.idle_ms
        self.transaction.idle_ms = min(idle, 1000) if idle else 1000

    def _f_version(self, *_: object) -> Steps:
        yield from ()
        return 1

    def _f_note_refusal(self, *_: object) -> Steps:
        yield from ()
        return 1

    def _f_fence_id(self, *_: object) -> Steps:
        yield from ()
        return FENCE_ID

    def _f_bound(self, lock_ms: int, idle_ms: int) -> Steps:
        transaction = self.transaction
        if lock_ms:
            transaction.lock_ms = min(transaction.lock_ms or lock_ms, lock_ms)
        if idle_ms:
            transaction.idle_ms = min(transaction.idle_ms or idle_ms, idle_ms)
        yield from ()
        return 1

    def _f_known(self, resource: str, fence: str, token: int) -> Steps:
        row = self._fence(resource)
        if (row is None or row.token < token) and UUID(fence) == FENCE_ID:
            raise PgError("LG007", f"this database does not know the seal of {resource}")
        yield from ()
        return resource

    def _f_check(self, resource: str, token: int, grant: str, sequence: int | None = None) -> Steps:
        grant = _hex(grant)
        yield from self._hold(resource, token, grant)
        if sequence is None:
            return token
        key = ("writer", resource, sequence >> 10)
        yield Wait(("row", *key), "alone")
        noted = self.locked(key)
        if noted is None:
            self.write(key, Writer(token, sequence, sequence))
        elif isinstance(noted, Writer) and (noted.token, noted.sequence) < (token, sequence):
            self.write(key, replace(noted, token=token, sequence=sequence, voided=False))
        else:
            self._refuse(resource, token, grant, "voided", self._fence(resource))
        return token

    def _hold(self, resource: str, token: int, grant: str) -> Steps:
        yield Wait(_gate(resource), "shared")
        key = fence_key(resource)
        written, _ = self.transaction.own(key)
        row = self.locked(key)
        if not isinstance(row, Fence):
            self._refuse(resource, token, grant, "unsealed", None)
        elif (row.token, row.grant) != (token, grant):
            self._refuse(resource, token, grant, "superseded", row)
        elif not row.is_open and (not written or row.within):  # what this transaction itself has closed
            self._refuse(resource, token, grant, "closed", row)

    def _refuse(self, resource: str, token: int, grant: str, reason: str, held: Fence | None) -> None:
        facts = {
            "resource": resource,
            "presented": token,
            "current": held.token if held else None,
            "reason": reason,
            "grant": grant,
        }
        raise PgError("LG001", f"stale token for {resource}: {reason}", detail=json.dumps(facts))

    def _f_check_all(
        self, resources: list[str], tokens: list[int], grants: list[str], sequence: int | None = None
    ) -> Steps:
        yield from self._f_check(resources[0], tokens[0], grants[0], sequence)
        for resource, token, grant in zip(resources[1:], tokens[1:], grants[1:], strict=True):
            yield from self._hold(resource, token, _hex(grant))
        return 1

    def _f_check_last(self, resource: str, token: int, grant: str, sequence: int | None = None) -> Steps:
        yield Wait(_gate(resource), "alone")
        yield from self._f_check(resource, token, grant, sequence)
        row = self._fence(resource)
        assert row is not None
        self.write(fence_key(resource), replace(row, is_open=False))
        return token

    def _f_check_first(
        self,
        resource: str,
        token: int,
        grant: str,
        _holder: str,
        _operation: str,
        sequence: int | None = None,
    ) -> Steps:
        by_itself = PgError("LG006", f"the lease on {resource} is sealed by itself")
        if self.transaction.repeatable or not self._is_locked(resource):
            raise by_itself
        row, grant = self._fence(resource), _hex(grant)
        mine = Fence(token, grant, is_open=True)
        if row is None or (row.token < token and row.grant != grant):
            self.write(fence_key(resource), mine)
        elif row != mine:
            raise by_itself
        return (yield from self._f_check(resource, token, grant, sequence))

    def _f_seal(
        self, resource: str, token: int, grant: str, _holder: str, _operation: str, within_ms: int
    ) -> Steps:
        self._settle(within_ms)
        grant = _hex(grant)
        if not self._is_locked(resource):
            row = self._fence(resource)
            if row is not None and row.grant != grant and row.token >= token:
                return False, row.token
            yield Wait(_gate(resource), "alone")
        row = self._fence(resource)
        if row is None or (row.token < token and row.grant != grant):
            self.write(fence_key(resource), Fence(token, grant, is_open=True))
            return True, token
        return row.grant == grant and row.is_open, row.token

    def _f_close(self, resource: str, token: int, grant: str, within_ms: int) -> Steps:
        self._settle(within_ms)
        grant = _hex(grant)
        if not self._is_locked(resource):
            row = self._fence(resource)
            if row is not None and row.grant != grant and (row.token >= token or row.is_open):
                return None
            yield Wait(_gate(resource), "alone")
        key = fence_key(resource)
        held = self.locked(key)
        row = held if isinstance(held, Fence) else None
        if row is None:
            self.write(key, Fence(token, grant, is_open=False))
        elif row.grant == grant and row.is_open:
            self.write(key, Fence(max(row.token, token), grant, is_open=False))
        elif row.grant != grant and row.token < token and not row.is_open:
            self.write(key, Fence(token, grant, is_open=False))
        return None

    def _f_break_(self, resource: str, _reason: str, within_ms: int) -> Steps:
        self._settle(within_ms)
        yield Wait(_gate(resource), "alone")
        row = self._fence(resource)
        token = max(row.token + 1 if row else 0, self._now_us())
        self.write(fence_key(resource), Fence(token, f"break {token}", is_open=False))
        return token

    def _f_break_grant(self, resource: str, token: int, grant: str, _reason: str, within_ms: int) -> Steps:
        self._settle(within_ms)
        grant = _hex(grant)
        mark = hashlib.md5(f"break {UUID(grant)}".encode(), usedforsecurity=False).hexdigest()

        def newer(row: Fence | None) -> bool:
            return row is not None and row.grant not in (grant, mark) and row.token >= token

        if not self._is_locked(resource):
            row = self._fence(resource)
            if row is not None and newer(row):
                return False, row.token
            yield Wait(_gate(resource), "alone")
        row = self._fence(resource)
        if row is not None and row.grant == mark:
            return True, row.token
        if row is not None and newer(row):
            return False, row.token
        higher = max(self._now_us(), row.token + 1 if row else 0, token + 1)
        self.write(fence_key(resource), Fence(higher, mark, is_open=False))
        return True, higher

    def _now_us(self) -> int:
        return int(self.database.clock.wall() * 1_000_000)

    def _f_status(self, resource: str) -> Steps:
        yield from ()
        return self._fence(resource)

    def _f_evict(self, resource: str, token: int | None = None) -> Steps:
        row = self._fence(resource)
        if row is not None and token is not None and row.token >= token:
            return 0
        yield from ()
        return self._end_those_at(resource)

    def _f_evict_before(self, resource: str, token: int, grant: str) -> Steps:
        row = self._fence(resource)
        if row is not None and row.grant != _hex(grant) and row.token >= token:
            return 0
        yield from ()
        return self._end_those_at(resource)

    def _end_those_at(self, resource: str) -> int:
        ended = 0
        for owner, mode in self.database.locks.holders(_gate(resource)):
            session: Session = owner.session
            stays = not session.busy and self.database.clock.now() - session.changed_at > 0.1
            if session is not self.session and (mode == "shared" or stays):
                session.terminate(
                    PgError("57P01", "terminating connection due to administrator command", fatal=True)
                )
                ended += 1
        return ended

    def _f_resolve(self, resource: str, token: int, sequence: int, within_ms: int) -> Steps:
        self._settle(within_ms)
        row = self._fence(resource)
        if row is None or row.token < token:
            raise PgError("LG004", f"token {token} of {resource} was never accepted in this database")
        return (yield from self._resolved(resource, token, sequence))

    def _resolved(self, resource: str, token: int, sequence: int) -> Steps:
        key = ("writer", resource, sequence >> 10)
        yield Wait(("row", *key), "alone")
        noted = self.locked(key)
        if noted is None:
            self.write(key, Writer(token, sequence, sequence, voided=True))
            return False
        assert isinstance(noted, Writer)
        if (noted.token, noted.sequence) < (token, sequence):
            self.write(key, replace(noted, token=token, sequence=sequence, voided=True))
            return False
        if (noted.token, noted.sequence) == (token, sequence):
            return not noted.voided
        if noted.sequence < sequence:
            return False
        raise PgError("LG005", "nobody knows any more whether it has committed")

    def _f_resolve_first(self, resource: str, token: int, sequence: int, within_ms: int) -> Steps:
        row = self._fence(resource)
        if row is None or row.token < token:
            self._settle(within_ms)
            return (yield from self._resolved(resource, token, sequence))
        return (yield from self._f_resolve(resource, token, sequence, within_ms))


def _hex(grant: str) -> str:
    return grant.replace("-", "")
