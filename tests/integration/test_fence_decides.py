"""What the fence in Python decides at each turn of a write: before it, in it, and when an answer is lost.

All tests share a database and have a resource of their own, so that each case takes milliseconds.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from lockguard._lease import Grant, GrantId, Lease, Resource, Token
from lockguard.errors import ConfigurationError, FenceUnavailable, LeaseLost, LossReason, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import (
    CommitUnknown,
    NotCommitted,
    PostgresFence,
    fenced_execute,
    fenced_fetchval,
    fenced_transaction,
    install,
    resolve,
)
from lockguard_asyncpg import _transaction_state as state
from lockguard_asyncpg._errors import Meaning, meaning_of
from lockguard_asyncpg._transaction_state import bare, transaction_state
from lockguard_lab.servers import PostgresServer
from lockguard_postgres._claims import Claim, Limits, presentation_for
from lockguard_postgres._fence import SealUnknown
from lockguard_postgres._presented import CLOSED
from lockguard_postgres._unsealed import UNSEALED, Unsealed, seal_now
from tests.integration.fence_leases import SOON, grant_of, held, lease_of

INSERT = "insert into note values ($1)"


@pytest.fixture(scope="module")
def notes_url(postgres_server: PostgresServer) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    url = postgres_server.create_database(name)

    async def prepare() -> None:
        conn = await asyncpg.connect(url)
        await install(conn)
        await conn.execute("create table note (text text)")
        await conn.close()

    asyncio.run(prepare())
    yield url
    postgres_server.drop_database(name)


@pytest.fixture
async def pool(notes_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(notes_url, min_size=0, max_size=4) as made:
        yield made


@pytest.fixture
def resource() -> Resource:
    return Resource(f"test:{secrets.token_hex(6)}")


async def noted(pool: asyncpg.Pool[Any], resource: str) -> int:
    return int(await pool.fetchval("select count(*) from note where text = $1", resource))


def unaware(lease: Lease) -> Lease:
    """The same lease, as code has it that was not told of a loss."""
    return lease_of(lease.grant)


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


# --- a lone write ---


async def test_a_lone_write_checks_all_its_leases_and_writes_nothing_past_them(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease, other = await held(pool, 7, resource), await held(pool, 7, Resource(f"{resource}:other"))
    await held(pool, 8, Resource(f"{resource}:other"))
    for write in (fenced_execute, fenced_fetchval):
        with pytest.raises(StaleToken):
            query = INSERT if write is fenced_execute else INSERT + " returning text"
            await write(pool, query, resource, lease=[lease, unaware(other)])
    assert await noted(pool, resource) == 0


async def test_a_lone_write_inside_a_transaction_has_no_outcome_of_its_own(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as conn, conn.transaction():
        await fenced_execute(conn, INSERT, resource, lease=lease)
    count = "select (select count(*) from lockguard.writer where resource = $1)"
    count += " + (select count(*) from lockguard.outcome where resource = $1)"
    assert await pool.fetchval(count, resource) == 0


# --- what is presented ---


async def test_what_a_transaction_may_keep_waiting_is_bounded_by_its_shortest_lease(
    resource: Resource,
) -> None:
    long = lease_of(replace(grant_of(7, resource), ttl_ms=60_000))
    short = lease_of(replace(grant_of(7, f"{resource}:a"), ttl_ms=2_000))
    presented = presentation_for([long, short], sequence=5, limits=Limits())
    assert (presented.lock_ms, presented.idle_ms) == (2_000, 2_000)
    alone = presentation_for([long], sequence=5, limits=Limits())
    assert (alone.lock_ms, alone.idle_ms) == (5_000, 60_000)
    given = Limits(lock_timeout=timedelta(seconds=1), idle_timeout=timedelta(0))
    bounded = presentation_for([long], sequence=5, limits=given)
    assert (bounded.lock_ms, bounded.idle_ms) == (1_000, 1)


async def test_claims_are_presented_in_one_order_whatever_the_caller_s(resource: Resource) -> None:
    leases = [lease_of(grant_of(7, f"{resource}:{name}")) for name in "cab"]
    for order in (leases, leases[::-1], sorted(leases, key=lambda one: one.resource)):
        claims = presentation_for(order, sequence=5, limits=Limits()).claims
        assert [claim.resource[-1] for claim in claims] == ["a", "b", "c"]
        sql = presentation_for(order, sequence=5, limits=Limits()).sql()
        assert sql.count("lockguard.check(") == 3


async def test_nothing_is_presented_of_a_lease_that_has_ended(resource: Resource) -> None:
    lease = lease_of(grant_of(7, resource))
    lease.end(LossReason.REFUSED)
    with pytest.raises(LeaseLost):
        presentation_for([lease], sequence=None, limits=Limits())


def test_a_claim_that_is_the_last_one_closes() -> None:
    claim = Claim(Resource("r"), Token(7), GrantId("a" * 32))
    assert "check_last(" in claim.check_sql(5, last=True)
    assert "check(" in claim.check_sql(5)


# --- the fence ---


async def fence_over(pool: asyncpg.Pool[Any], **options: Any) -> Any:
    """The part of a fence that is of this event loop."""
    made: Any = PostgresFence(pool, **options)
    return made


async def sealed(fence: Any, token: int, resource: Resource, *, seal: str = "") -> tuple[Grant, Any]:
    grant = replace(grant_of(token, resource), seal=seal)
    return grant, await fence.seal(grant, within=SOON)


async def test_a_seal_tells_what_is_in_force(pool: asyncpg.Pool[Any], resource: Resource) -> None:
    fence = await fence_over(pool)
    _, first = await sealed(fence, 7, resource)
    assert first == Sealed(Token(7))
    assert first.seal.endswith(" 7")
    _, late = await sealed(fence, 5, resource)
    assert late == Outrun(Token(7))
    await fence.aclose()


async def test_a_database_that_lacks_the_last_seal_takes_none_and_one_of_another_fence_is_no_matter(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool)
    _, first = await sealed(fence, 7, resource)
    name = first.seal.partition(" ")[0]
    with pytest.raises(SealUnknown):
        await sealed(fence, 8, resource, seal=f"{name} 99")
    _, other = await sealed(fence, 8, resource, seal=f"{uuid4().hex} 99")
    assert other == Sealed(Token(8))
    await fence.aclose()


async def test_only_the_open_grant_in_force_is_confirmed(pool: asyncpg.Pool[Any], resource: Resource) -> None:
    fence = await fence_over(pool)
    grant, _ = await sealed(fence, 7, resource)
    assert await fence.confirm(grant, within=SOON)
    assert not await fence.confirm(replace(grant, token=Token(6)), within=SOON)
    assert not await fence.confirm(grant_of(7, resource), within=SOON)
    await fence.close(grant, within=SOON)
    assert not await fence.confirm(grant, within=SOON)
    await fence.aclose()


async def test_a_close_that_cannot_be_made_now_is_made_later(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool)
    grant, _ = await sealed(fence, 7, resource)
    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute(
                "select lockguard.check($1, 7, $2)", resource, asyncpg.pgproto.pgproto.UUID(grant.id)
            )
            with pytest.raises(FenceUnavailable):
                await fence.close(grant, within=timedelta(milliseconds=50))
        query = "select released_at is not null from lockguard.fence where resource = $1"
        async with asyncio.timeout(10):
            while not await conn.fetchval(query, resource):
                await asyncio.sleep(0.02)
    await fence.aclose()


async def test_a_grant_that_is_handed_on_is_closed_by_its_successor_s_seal_or_by_itself(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool)
    closed = "select released_at is not null or token > $2 from lockguard.fence where resource = $1"
    grant, first = await sealed(fence, 7, resource)
    grant = replace(grant, seal=first.seal)
    successor = replace(grant_of(8, resource), seal=first.seal)
    handing = asyncio.create_task(fence.hand_on(grant, successor.id, within=SOON))
    await asyncio.sleep(0)
    taken = await fence.seal(successor, within=SOON)
    assert taken == Sealed(Token(8))
    await handing
    assert await pool.fetchval(closed, resource, 7)
    successor = replace(successor, seal=taken.seal)
    await fence.hand_on(successor, GrantId("f" * 32), within=timedelta(seconds=1))  # nobody comes
    assert await pool.fetchval(closed, resource, 8)
    await fence.aclose()


# --- a seal with the first write ---


async def test_a_first_write_seals_and_until_then_the_database_knows_nothing(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool, seal_with_first_write=True)
    count = "select count(*) from lockguard.fence where resource = $1"
    for write in ("lone", "transaction", "confirm"):
        token = {"lone": 7, "transaction": 8, "confirm": 9}[write]
        grant, answer = await sealed(fence, token, resource)
        assert answer == Sealed(Token(token))
        assert UNSEALED.waits(grant.id)
        if write == "lone":
            assert await pool.fetchval(count, resource) == 0
            await fenced_execute(pool, INSERT, resource, lease=lease_of(grant))
        elif write == "transaction":
            async with fenced_transaction(pool, lease_of(grant)) as conn:
                await conn.execute(INSERT, resource)
        else:
            assert await fence.confirm(grant, within=SOON)
        assert not UNSEALED.waits(grant.id) or write == "confirm"
        row = "select token from lockguard.fence where resource = $1"
        assert await pool.fetchval(row, resource) == token
        await fence.close(grant, within=SOON)
    await fence.aclose()


async def test_a_first_write_that_is_outrun_ends_its_lease_and_the_next_grant_is_sealed_at_once(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool, seal_with_first_write=True)
    grant, _ = await sealed(fence, 7, resource)
    await held(pool, 9, resource)
    lease = lease_of(grant)
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, resource, lease=lease)
    assert lease.loss is LossReason.FENCED
    again, answer = await sealed(fence, 8, resource)
    assert answer == Outrun(Token(9))
    assert not UNSEALED.waits(again.id)
    later, _ = await sealed(fence, 11, resource)
    assert UNSEALED.waits(later.id)
    UNSEALED.drop(later.id)
    await fence.aclose()


async def test_what_an_unsealed_grant_leaves_to_be_closed() -> None:
    async def seal(grant: Grant) -> Sealed:
        sealing.append(grant)
        await asyncio.sleep(0)
        return Sealed(grant.token)

    sealing: list[Grant] = []
    pending = Unsealed()
    never, presented, broken = (grant_of(7, f"r:{name}") for name in "abc")
    for grant in (never, presented, broken):
        pending.note(grant, seal=seal, first_sql="x(", remembered="f 7")
    pending.present(presented.id)
    pending.broken(broken.resource)
    assert [pending.drop(grant.id) for grant in (never, presented, broken)] == [True, False, False]
    pending.note(never, seal=seal, first_sql="x(", remembered="f 7")
    lease = lease_of(never)

    async def once() -> Any:
        answer = await pending.seal(never)
        pending.sealed([lease])
        return answer

    answers = await asyncio.gather(once(), once())
    assert len(sealing) == 1
    assert sorted(answer is None for answer in answers) == [False, True]
    assert lease.grant.seal == "f 7"
    pending.note(never, seal=seal, first_sql="x(", remembered="f 7")
    pending.forget_all()
    assert not pending.waits(never.id)
    await seal_now([lease])


async def test_what_became_of_a_write_is_asked_of_where_it_was_made(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    sequence = (1 << 62) + 5
    claim = (resource, 7, asyncpg.pgproto.pgproto.UUID(lease.grant.id), sequence)
    await pool.execute("select lockguard.check($1, $2, $3, $4)", *claim)
    known = CommitUnknown(resource=resource, token=Token(7), sequence=sequence)
    lost = CommitUnknown(resource=resource, token=Token(7), sequence=sequence + 1)
    assert await resolve(pool, known) is True
    assert await resolve(pool, lost) is False
    never = CommitUnknown(resource=resource, token=Token(9), sequence=sequence + 2_048, first=True)
    assert await resolve(pool, never) is False
