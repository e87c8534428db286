"""A fenced transaction: what ends it, what it tells, and what an answer that is lost means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from lockguard._lease import Resource, Token
from lockguard.errors import ConfigurationError, LeaseLost, LossReason, StaleToken
from lockguard_asyncpg import (
    CommitUnknown,
    NotCommitted,
    fenced,
    fenced_execute,
    fenced_transaction,
    resolve,
)
from lockguard_asyncpg import _transaction_state as state
from lockguard_asyncpg._errors import Meaning, ended, meaning_of
from lockguard_asyncpg._transaction_state import bare, transaction_state
from lockguard_postgres._presented import CLOSED
from lockguard_postgres._unsealed import UNSEALED
from tests.integration.fence_leases import grant_of, held, lease_of, under
from tests.integration.fence_notes import (
    INSERT,
    fence_over,
    noted,
    notes_url,
    pool,
    resource,
    sealed,
    unaware,
)

__all__ = ["notes_url", "pool", "resource"]


# --- a fenced transaction ---


async def test_a_lost_lease_takes_no_connection(notes_url: str, resource: Resource) -> None:
    async with asyncpg.create_pool(notes_url, min_size=0, max_size=1) as small:
        lease = await held(small, 7, resource)
        lease.end(LossReason.REFUSED)
        async with small.acquire():  # there is none to take
            for write in (
                lambda: fenced_transaction(small, lease).__aenter__(),
                lambda: fenced_execute(small, INSERT, "x", lease=lease),
            ):
                async with asyncio.timeout(2):
                    with pytest.raises(LeaseLost):
                        await write()


async def test_a_lease_that_ends_in_the_body_commits_nothing(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    with pytest.raises(LeaseLost):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, resource)
            lease.end(LossReason.REFUSED)
    assert await noted(pool, resource) == 0


async def test_a_lease_that_ends_before_begin_is_sent_begins_nothing(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as conn, fenced_transaction(conn, lease):
        await conn.execute(INSERT, resource)
        lease.end(LossReason.REFUSED)
        with pytest.raises(LeaseLost):
            async with fenced_transaction(conn, lease):
                pytest.fail("it was begun")
        lease._loss = None
    assert await noted(pool, resource) == 1


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError])
async def test_a_body_that_fails_writes_nothing_and_gives_its_connection_back(
    pool: asyncpg.Pool[Any], resource: Resource, error: type[Exception]
) -> None:
    lease = await held(pool, 7, resource)
    with pytest.raises(error):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, resource)
            raise error
    assert await noted(pool, resource) == 0
    assert pool.get_idle_size() == pool.get_size()


@pytest.mark.parametrize("where", ["on entry", "in the body", "at a lone write"])
async def test_a_refusal_ends_the_lease_wherever_it_comes(
    pool: asyncpg.Pool[Any], resource: Resource, where: str
) -> None:
    lease = unaware(await held(pool, 7, resource))
    if where != "in the body":
        await held(pool, 8, resource)
    with pytest.raises(StaleToken):
        if where == "at a lone write":
            await fenced_execute(pool, INSERT, resource, lease=lease)
        async with fenced_transaction(pool, lease) as conn:
            stale = replace(lease.grant, token=Token(6))
            await conn.execute("select lockguard.check($1, $2, $3)", resource, stale.token, uuid4())
    assert where == "in the body" or lease.loss is LossReason.FENCED
    assert await noted(pool, resource) == 0


async def test_what_the_body_raises_of_its_lease_s_end_is_told_as_that(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    """Also of a call that passed the fence's layer by, which translates errors where they arise."""
    lease = await held(pool, 7, resource)
    with pytest.raises(StaleToken):
        async with fenced_transaction(pool, lease) as conn:
            check = "select lockguard.check($1, 6, $2)"
            await asyncpg.Connection.execute(bare(conn), check, resource, uuid4())
    with pytest.raises(LeaseLost):
        async with fenced_transaction(pool, lease):
            lease.end(LossReason.EXPIRED)
            raise asyncpg.ConnectionDoesNotExistError("the server has ended an idle session")


async def test_a_refusal_by_a_deferred_trigger_is_told_by_the_commit(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    with pytest.raises(StaleToken):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute("insert into late values ($1)", resource)
    assert await pool.fetchval("select count(*) from late where text = $1", resource) == 0


async def test_after_a_commit_that_failed_the_next_transaction_presents_its_lease_again(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with fenced(pool).acquire() as conn:
        with pytest.raises(StaleToken):
            async with fenced_transaction(conn, lease):
                await conn.execute("insert into late values ($1)", resource)
        lease.ensure()  # it was refused under another grant
        await held(pool, 8, resource)
        with pytest.raises(StaleToken):
            async with fenced_transaction(conn, lease):
                pytest.fail("it was begun")


async def test_a_lease_that_ends_while_a_connection_is_waited_for_is_not_sealed_any_more(
    notes_url: str, pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    async with asyncpg.create_pool(notes_url, min_size=0, max_size=1) as small:
        fence = await fence_over(small, seal_with_first_write=True)
        grant, _ = await sealed(fence, 7, resource)
        lease = lease_of(grant)
        async with small.acquire():
            entering = asyncio.create_task(fenced_transaction(small, lease).__aenter__())
            await asyncio.sleep(0)
            lease.end(LossReason.REFUSED)
        with pytest.raises(LeaseLost):
            await entering
        assert await pool.fetchval("select count(*) from lockguard.fence where resource = $1", resource) == 0
        UNSEALED.drop(grant.id)
        await fence.aclose()


async def test_a_transaction_whose_connection_was_lost_has_not_committed(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    with pytest.raises(NotCommitted):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, resource)
            bare(conn).terminate()
    assert await noted(pool, resource) == 0


async def test_a_swallowed_error_is_told_at_commit(pool: asyncpg.Pool[Any], resource: Resource) -> None:
    lease = await held(pool, 7, resource)
    with pytest.raises(NotCommitted):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, resource)
            with pytest.raises(asyncpg.DivisionByZeroError):
                await conn.execute("select 1 / 0")


@pytest.mark.parametrize("why", ["refused", "kept out"])
@pytest.mark.parametrize("by_text", [False, True])
async def test_what_was_never_accepted_is_told_at_commit_in_a_transaction_from_before_its_lease(
    pool: asyncpg.Pool[Any], resource: Resource, why: str, by_text: bool
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as other, fenced(pool).acquire() as conn:
        transaction = conn.transaction()
        if by_text:
            await conn.execute("begin")
        else:
            await transaction.start()
        await conn.execute("set local lock_timeout = '20ms'")
        if why == "refused":
            await held(pool, 8, resource)
        else:
            await other.execute("begin")
            await other.execute("select pg_advisory_xact_lock(lockguard.gate($1))", resource)
        with under(lease):
            with pytest.raises((StaleToken, asyncpg.LockNotAvailableError)):
                await conn.execute(INSERT, resource)
            with pytest.raises((NotCommitted, LeaseLost)):
                await (conn.execute("commit") if by_text else transaction.commit())
        await conn.execute("rollback")
        await other.execute("rollback")
    assert await noted(pool, resource) == 0


@pytest.mark.parametrize("commits_under_it", [False, True])
@pytest.mark.parametrize("by_text", [False, True])
@pytest.mark.parametrize("why", ["refused", "cancelled"])
async def test_a_rollback_is_told_at_commit_though_the_lease_was_never_accepted_and_has_been_left(
    pool: asyncpg.Pool[Any], resource: Resource, why: str, *, by_text: bool, commits_under_it: bool
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as watcher, pool.acquire() as other, fenced(pool).acquire() as conn:

        async def until(state: str) -> None:
            does = "select concat(wait_event_type, ' ', state) from pg_stat_activity where pid = $1"
            async with asyncio.timeout(10):
                while await watcher.fetchval(does, bare(conn).get_server_pid()) != state:
                    await asyncio.sleep(0.01)

        async def commit() -> None:
            with pytest.raises((NotCommitted, StaleToken)):
                await (conn.execute("commit") if by_text else transaction.commit())

        transaction = conn.transaction()
        await (conn.execute("begin") if by_text else transaction.start())
        await conn.execute(INSERT, resource)
        if why == "refused":
            with pytest.raises(asyncpg.PostgresError):
                await conn.execute("select 1 / 0")
        else:
            await other.execute("begin")
            await other.execute("select pg_advisory_xact_lock(lockguard.gate($1))", resource)
        with under(lease):
            writing = asyncio.create_task(conn.execute(INSERT, resource))
            if why == "cancelled":
                await until("Lock active")
                writing.cancel()
                await until("Client idle in transaction (aborted)")
            with pytest.raises((asyncpg.InFailedSQLTransactionError, asyncio.CancelledError)):
                await writing
            if commits_under_it:
                await commit()
        if not commits_under_it:
            await commit()
        await other.execute("rollback")
    assert await noted(pool, resource) == 0


async def test_the_last_write_closes_its_lease_and_the_guard_need_not(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    for write in ("transaction", "execute"):
        lease = await held(pool, 7 if write == "transaction" else 8, resource)
        if write == "transaction":
            async with fenced_transaction(pool, lease, closes=True) as conn:
                await conn.execute(INSERT, resource)
        else:
            await fenced_execute(pool, INSERT, resource, lease=lease, closes=True)
        assert CLOSED.take(lease.grant.id)
        with pytest.raises(StaleToken):
            await fenced_execute(pool, INSERT, resource, lease=unaware(lease))
    assert await noted(pool, resource) == 2


async def test_what_closes_is_refused_inside_another_transaction(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as conn, conn.transaction():
        with pytest.raises(ConfigurationError, match="closes=True"):
            async with fenced_transaction(conn, lease, closes=True):
                pytest.fail("it was begun")
        with pytest.raises(ConfigurationError, match="closes=True"):
            await fenced_execute(conn, INSERT, resource, lease=lease, closes=True)


async def test_a_savepoint_s_end_leaves_the_body_around_it_as_it_was(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease, other = await held(pool, 7, resource), await held(pool, 7, Resource(f"{resource}:other"))
    async with fenced_transaction(pool, lease) as conn:
        outer = transaction_state(bare(conn)).body
        async with fenced_transaction(conn, other):
            pass
        assert transaction_state(bare(conn)).body == outer == (lease,)
        await conn.execute(INSERT, resource)
    assert await noted(pool, resource) == 1


async def test_a_second_lease_is_presented_on_a_connection_that_presented_one(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease, other = await held(pool, 7, resource), await held(pool, 7, Resource(f"{resource}:other"))
    await held(pool, 8, Resource(f"{resource}:other"))
    with pytest.raises(StaleToken):
        async with fenced_transaction(pool, lease) as conn, fenced_transaction(conn, unaware(other)):
            pytest.fail("it was begun")


async def test_a_savepoint_that_was_undone_is_presented_again(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease, other = await held(pool, 7, resource), await held(pool, 7, Resource(f"{resource}:other"))
    claim = "select lockguard.claim_of($1)"
    async with fenced_transaction(pool, lease) as conn:
        with pytest.raises(ValueError, match="undone"):
            async with fenced_transaction(conn, other):
                raise ValueError("undone")
        assert await conn.fetchval(claim, other.resource) is None
        async with fenced_transaction(conn, other):
            assert await conn.fetchval(claim, other.resource) is not None


# --- an answer that is lost ---


def losing(monkeypatch: pytest.MonkeyPatch, what: str, after: Callable[[], Exception | None]) -> None:
    """The answer to a statement that begins so is lost once it has been executed."""
    plain = state.send_plain

    async def sent(con: Any, query: str, **more: Any) -> str:
        tag = await plain(con, query, **more)
        if what in query and (error := after()) is not None:
            raise error
        return tag

    monkeypatch.setattr(state, "send_plain", sent)


async def test_a_snapshot_that_a_seal_overtook_is_renewed_unless_statements_have_seen_it(
    pool: asyncpg.Pool[Any], resource: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, other = await held(pool, 7, resource), await held(pool, 7, Resource(f"{resource}:other"))
    overtaken: list[Exception] = [asyncpg.SerializationError("overtaken") for _ in range(2)]
    losing(monkeypatch, "BEGIN", lambda: overtaken.pop() if overtaken else None)
    async with fenced_transaction(pool, lease) as conn:
        assert not overtaken
        await conn.execute(INSERT, resource)
        overtaken.append(asyncpg.SerializationError("overtaken"))
        losing(monkeypatch, "SAVEPOINT", lambda: overtaken.pop() if overtaken else None)
        with pytest.raises(asyncpg.SerializationError):
            async with fenced_transaction(conn, other):
                pytest.fail("it was begun in the snapshot that it failed in")
    assert await noted(pool, resource) == 1


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, asyncio.CancelledError])
async def test_a_lost_answer_to_commit_is_unknown_and_found_out(
    pool: asyncpg.Pool[Any], resource: Resource, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    lease = await held(pool, 7, resource)
    losing(monkeypatch, "COMMIT", error)  # type: ignore[arg-type, return-value]
    with pytest.raises((CommitUnknown, asyncio.CancelledError)) as caught:
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, resource)
    if isinstance(caught.value, CommitUnknown):
        assert await resolve(pool, caught.value)
    else:
        assert "cancelled during COMMIT" in caught.value.__notes__[0]
    assert await noted(pool, resource) == 1


async def test_the_number_of_a_write_in_doubt_is_not_given_to_another(
    pool: asyncpg.Pool[Any], resource: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await held(pool, 7, resource)
    losses = [ConnectionResetError()]
    losing(monkeypatch, "COMMIT", lambda: losses.pop() if losses else None)
    with pytest.raises(CommitUnknown) as caught:
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, resource)
    for _ in range(3):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, resource)
    assert await resolve(pool, caught.value)


async def test_a_connection_that_cannot_roll_back_is_dropped(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    async with pool.acquire() as conn:
        con = bare(conn)

        async def fails() -> None:
            raise ConnectionResetError

        await state.rolled_back(con, fails())
        assert con.is_closed()
    async with pool.acquire() as conn:
        con = bare(conn)
        rolling = asyncio.create_task(state.rolled_back(con, asyncio.Event().wait()))
        await asyncio.sleep(0)
        rolling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rolling
        assert con.is_closed()


def test_what_an_error_of_asyncpg_says_of_the_work() -> None:
    assert meaning_of(asyncpg.InterfaceError("connection is closed")) is Meaning.LOST
    assert meaning_of(asyncpg.InterfaceError("connection has been released back to the pool")) is Meaning.LOST
    assert meaning_of(asyncpg.InterfaceError("wrong argument")) is Meaning.STATEMENT
    assert meaning_of(TimeoutError()) is Meaning.UNAVAILABLE
    assert meaning_of(ConnectionResetError()) is Meaning.LOST


@pytest.mark.parametrize(
    ("facts", "ends"),
    [({}, True), ({"grant": "f" * 32}, False), ({"reason": "voided"}, False), ({"presented": 6}, False)],
    ids=["its own", "another grant's", "of one write only", "another token's"],
)
def test_a_refusal_ends_the_lease_that_it_names_and_no_other(
    resource: Resource, facts: dict[str, Any], *, ends: bool
) -> None:
    lease = lease_of(grant_of(7, resource))
    refusal: Any = asyncpg.PostgresError("stale")
    refusal.sqlstate = "LG001"
    told = {"resource": resource, "presented": 7, "current": 8, "grant": lease.grant.id} | facts
    refusal.detail = json.dumps(told)
    assert isinstance(ended(refusal, [lease]), StaleToken)
    assert (lease.loss is LossReason.FENCED) is ends


def test_a_connection_that_is_gone_under_a_lease_that_has_ended_is_that_lease_s_loss(
    resource: Resource,
) -> None:
    lease = lease_of(grant_of(7, resource))
    for gone in (asyncpg.ConnectionDoesNotExistError("gone"), asyncpg.AdminShutdownError("terminating")):
        assert ended(gone, [lease]) is None
    lease.end(LossReason.EXPIRED)
    for gone in (asyncpg.ConnectionDoesNotExistError("gone"), asyncpg.AdminShutdownError("terminating")):
        assert isinstance(ended(gone, [lease]), LeaseLost)
    assert ended(asyncpg.UniqueViolationError("no"), [lease]) is None
