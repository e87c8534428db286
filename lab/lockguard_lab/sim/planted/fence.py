"""Mistakes in the fence: its SQL, and what presents a lease to it."""

# ruff: noqa: E501 - the texts are those of the sources

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Change, Planted

__all__ = ["FENCE"]

_SQL = "lockguard_postgres/sql/"
_CHECK_THEN_ACT = "check, then act"
_MONOTONE = "Kleppmann's scheme as often built"
_OURS = "our own past"
_STATE = "lockguard_asyncpg/_transaction_state.py"


def _in_sql(name: str, origin: str, file: str, old: str, new: str, *more: Change) -> Planted:
    return Planted(name, origin, f"{_SQL}{file}", old, new, judge="sequences", more=more)


def _in_python(
    name: str, origin: str, file: str, old: str, new: str, law: str = "", *more: Change
) -> Planted:
    return Planted(name, origin, file, old, new, judge="fenced", law=law, more=more)


_IN_SQL = (
    _in_sql(
        "a seal with the same token is accepted",
        f"{_MONOTONE}: >= for >",
        "0013_less_work.sql",
        "   where f.resource = p_resource and f.token < p_token and f.grant_id <> p_grant;\n  if found then\n"
        "    accepted := true;",
        "   where f.resource = p_resource and f.token <= p_token;\n  if found then\n    accepted := true;",
    ),
    _in_sql(
        "a seal takes any token",
        "last writer wins",
        "0013_less_work.sql",
        "   where f.resource = p_resource and f.token < p_token and f.grant_id <> p_grant;\n  if found then\n"
        "    accepted := true;",
        "   where f.resource = p_resource and f.grant_id <> p_grant;\n  if found then\n    accepted := true;",
    ),
    _in_sql(
        "a closed grant is accepted again by its own seal",
        "a seal that is idempotent beyond its close",
        "0013_less_work.sql",
        "  accepted := held.grant_id = p_grant and held.released_at is null;",
        "  accepted := held.grant_id = p_grant;",
    ),
    _in_sql(
        "a seal does not wait for the writers that are in",
        _CHECK_THEN_ACT,
        "0013_less_work.sql",
        "    perform pg_advisory_xact_lock(lockguard.gate(p_resource));\n  end if;\n  update lockguard.fence f",
        "  end if;\n  update lockguard.fence f",
    ),
    _in_sql(
        "a late sealer waits for its successor's writers",
        _OURS,
        "0013_less_work.sql",
        "    if held.grant_id <> p_grant and held.token >= p_token then\n      accepted := false;",
        "    if false then\n      accepted := false;",
    ),
    _in_sql(
        "a check locks no row and stands in no line",
        _CHECK_THEN_ACT,
        "0013_less_work.sql",
        "  perform pg_advisory_xact_lock_shared(lockguard.gate(p_resource));\n  perform from lockguard.fence f\n"
        "    where f.resource = p_resource and f.token = p_token and f.grant_id = p_grant and f.released_at is null\n"
        "    for share;",
        "  perform from lockguard.fence f\n"
        "    where f.resource = p_resource and f.token = p_token and f.grant_id = p_grant and f.released_at is null;",
    ),
    _in_sql(
        "a check compares the token and not the grant",
        _MONOTONE,
        "0013_less_work.sql",
        "    where f.resource = p_resource and f.token = p_token and f.grant_id = p_grant and f.released_at is null\n"
        "    for share;",
        "    where f.resource = p_resource and f.token <= p_token and f.released_at is null\n    for share;",
    ),
    _in_sql(
        "a check accepts a closed grant",
        "fences without a close",
        "0013_less_work.sql",
        "    where f.resource = p_resource and f.token = p_token and f.grant_id = p_grant and f.released_at is null\n"
        "    for share;",
        "    where f.resource = p_resource and f.token = p_token and f.grant_id = p_grant\n    for share;",
    ),
    _in_sql(
        "a close forgets the writers that are in",
        "releases that wait for nothing",
        "0013_less_work.sql",
        "      return;\n    end if;\n    perform pg_advisory_xact_lock(lockguard.gate(p_resource));\n  end if;\n"
        "  -- A seal of this grant",
        "      return;\n    end if;\n  end if;\n  -- A seal of this grant",
    ),
    _in_sql(
        "a close of whoever closes the successor",
        "redis-py before 2.10: released by whoever calls",
        "0013_less_work.sql",
        "    where (f.grant_id = excluded.grant_id and f.released_at is null)\n",
        "    where (f.released_at is null)\n",
    ),
    _in_sql(
        "a close before its seal is forgotten",
        "a late command of a caller that gave up",
        "0013_less_work.sql",
        "       or (f.grant_id <> excluded.grant_id and f.token < excluded.token and f.released_at is not null);",
        "       ;",
    ),
    _in_sql(
        "a break leaves the lease open",
        "a break that only notes who did it",
        "0003_in_line.sql",
        "        operation = excluded.operation, sealed_at = clock_timestamp(), released_at = clock_timestamp()\n"
        "  returning f.token into broken;",
        "        operation = excluded.operation, sealed_at = clock_timestamp(), released_at = null\n"
        "  returning f.token into broken;",
    ),
    _in_sql(
        "a break stands in no line",
        _CHECK_THEN_ACT,
        "0003_in_line.sql",
        "  perform lockguard.settle_session(p_within_ms);\n"
        "  perform pg_advisory_xact_lock(lockguard.gate(p_resource));\n"
        "  select f.* into before from lockguard.fence f where f.resource = p_resource;\n"
        "  insert into lockguard.fence as f (resource, token, grant_id, holder, operation, released_at)\n"
        "  values (p_resource, now_us",
        "  perform lockguard.settle_session(p_within_ms);\n"
        "  select f.* into before from lockguard.fence f where f.resource = p_resource;\n"
        "  insert into lockguard.fence as f (resource, token, grant_id, holder, operation, released_at)\n"
        "  values (p_resource, now_us",
    ),
    _in_sql(
        "the transaction that closes shares the gate",
        "two that close wait for each other",
        "0014_fewer_messages.sql",
        "  perform pg_advisory_xact_lock(lockguard.gate(p_resource));\n  perform lockguard.check(",
        "  perform lockguard.check(",
    ),
    _in_sql(
        "the last write does not close",
        "a close that is left to the next one",
        "0014_fewer_messages.sql",
        "  update lockguard.fence f set released_at = clock_timestamp() where f.resource = p_resource"
        " and f.released_at is null;\n",
        "",
    ),
    _in_sql(
        "a first write seals over whoever is in",
        _MONOTONE,
        "0014_fewer_messages.sql",
        "   where f.resource = p_resource and f.token < p_token and f.grant_id <> p_grant;\n  if not found then\n"
        "    -- It is sealed already",
        "   where f.resource = p_resource;\n  if not found then\n    -- It is sealed already",
    ),
    _in_sql(
        "a lost write may still arrive",
        "an outcome that is looked up and not barred",
        "0013_less_work.sql",
        "      where (w.token, w.sequence) < (excluded.token, excluded.sequence)\n    returning w.first into made_for;",
        "      where (w.token, w.sequence) <= (excluded.token, excluded.sequence)\n    returning w.first into made_for;",
    ),
    _in_sql(
        "a committed write is called lost",
        "an outcome that is guessed",
        "0009_long_gone.sql",
        "        return not noted.voided;\n      end if;\n      if noted.sequence",
        "        return false;\n      end if;\n      if noted.sequence",
    ),
    _in_sql(
        "who is evicted may be the successor",
        _OURS,
        "0004_nobody_stays.sql",
        "  if exists (select from lockguard.status(p_resource) s where s.token >= p_token) then\n    return 0;",
        "  if false then\n    return 0;",
    ),
)

_IN_PYTHON = (
    _in_python(
        "a lost COMMIT is called lost",
        "every driver's connection error",
        _STATE,
        "        if presentation is not None and leaves_in_doubt(exc):\n            return presentation.unknown()",
        "        if False:\n            return presentation.unknown()",
        "S15",
    ),
    _in_python(
        "a lost answer to a lone write is called lost",
        "every driver's connection error",
        "lockguard_asyncpg/_native.py",
        "            if leaves_in_doubt(exc):\n                raise presentation.unknown() from exc",
        "            pass",
        "S15",
    ),
    _in_python(
        "a lost answer to a pipelined write is called lost",
        "every driver's connection error",
        "lockguard_asyncpg/_pipelining.py",
        "        if not known and leaves_in_doubt(exc):\n            raise unknown from exc",
        "        pass",
        "S15",
    ),
    _in_python(
        "a connection that broke at COMMIT is an answer",
        _OURS,
        "lockguard_postgres/_errors.py",
        "        return self.meaning_of(exc) is Meaning.LOST or isinstance(exc, TimeoutError)",
        "        return isinstance(exc, TimeoutError)",
        "S15",
    ),
    _in_python(
        "COMMIT that was answered by ROLLBACK counts as done",
        "asyncpg: the command tag is not looked at",
        _STATE,
        '        if tag == "ROLLBACK" and (presentation is not None or unaccepted):',
        "        if False:",
        "S15",
    ),
    _in_python(
        "an unknown outcome is guessed",
        "an outcome that is guessed",
        "lockguard_postgres/_fence.py",
        '        return bool(await make(database, call, resource=error.resource, within=within) == "SELECT 1")',
        '        return bool(await make(database, call, resource=error.resource, within=within) != "SELECT 1")',
        "S15",
    ),
    _in_python(
        "the number of a write in doubt is used again",
        _OURS,
        "lockguard_asyncpg/_pipelining.py",
        "    unknown = presentation.unknown()\n",
        "    unknown = presentation.unknown()\n    NUMBERS.give_back((presentation.sequence,))\n",
    ),
    _in_python(
        "a close that failed is not made later",
        "releases that nobody repeats",
        "lockguard_postgres/_fence.py",
        "            if grant.id not in self._closing:\n                self._closing.add(grant.id)",
        "            if False:\n                self._closing.add(grant.id)",
    ),
    _in_python(
        "a close is sent and never awaited for its failure",
        "releases that nobody awaits",
        "lockguard_postgres/_fence.py",
        "        if not _is_closed(grant):\n            await self._close_or_later(grant, within=within)\n\n    async def hand",
        "        return\n\n    async def hand",
    ),
    _in_python(
        "the last transaction closes nothing and says it did",
        "a close that is left to the next one",
        "lockguard_asyncpg/_transaction.py",
        'closing=self._closing_sql(leases) if self._closes else "",',
        'closing="",',
    ),
    _in_python(
        "a seal that was outrun passes for one",
        _MONOTONE,
        "lockguard_postgres/_fence.py",
        "        return self._sealed(Token(current)) if accepted else Outrun(Token(current))",
        "        return self._sealed(grant.token)",
        "S3",
    ),
    _in_python(
        "a lone write carries no check",
        "autocommit",
        "lockguard_asyncpg/_native.py",
        "    text = _fenced(query, tuple(also), len(args), leases=len(presentation.claims), returning=returning)",
        "    text, presented = query, []",
    ),
    _in_python(
        "check and write are two messages",
        "a batch that is taken for a transaction",
        "lockguard_asyncpg/_pipelining.py",
        '        for kind, body in ((b"P", parse), (b"B", bytes(8)), (b"E", bytes(5)))',
        '        for kind, body in ((b"P", parse), (b"B", bytes(8)), (b"E", bytes(5)), (b"S", b""))',
    ),
    _in_python(
        "what one of two bodies released is written under the other",
        _OURS,
        "lockguard_postgres/_claims.py",
        "    leases = leases_of_bodies() if lease is None",
        "    leases = __import__('lockguard._context', fromlist=['x']).current_leases() if lease is None",
    ),
    _in_python(
        "the body begins before its seal",
        "the seal after the read",
        "lockguard/_hold.py",
        "sealed_ms = 0.0 if core.fence is None else await self._seal(lease, request)",
        "sealed_ms = 0.0\n            asyncio.create_task(self._seal(lease, request))",
        "S3",
    ),
)

FENCE: tuple[Planted, ...] = (*_IN_SQL, *_IN_PYTHON)
