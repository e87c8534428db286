"""SQLAlchemy's ORM on a fenced engine: fenced inside a guarded body, SQLAlchemy's own outside of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    MetaData,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import NullPool

from lockguard import LockGuard, current_lease
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason, StaleToken
from lockguard.events import FenceCloseFailed
from lockguard_asyncpg import NotCommitted, PostgresFence, install, protect
from lockguard_asyncpg.sqlalchemy import fenced_engine
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer
from lockguard_lab.servers import PostgresServer
from lockguard_psycopg import FencedConnection
from tests.integration.fence_leases import APT, held, lease_of, under


class Base(DeclarativeBase):
    pass


class Position(Base):
    __tablename__ = "position"
    id: Mapped[int] = mapped_column(primary_key=True)
    symbol: Mapped[str]
    orders: Mapped[list[Order]] = relationship(cascade="all, delete-orphan", lazy="selectin")


class Order(Base):
    __tablename__ = "order_"
    id: Mapped[int] = mapped_column(primary_key=True)
    position_id: Mapped[int] = mapped_column(ForeignKey("position.id"))
    side: Mapped[str]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    """Not fenced: what the fence uses, and what a test looks with."""
    async with asyncpg.create_pool(database_url, min_size=0, max_size=4) as pool:
        async with pool.acquire() as conn:
            await install(conn)
        yield pool


def url_of(database_url: str) -> str:
    return database_url.replace("postgresql://", "postgresql+asyncpg://", 1)


@pytest.fixture
async def make(database_url: str, pool: asyncpg.Pool[Any]) -> AsyncIterator[Callable[..., AsyncEngine]]:
    """Makes engines that are disposed of after the test, by default of one connection."""
    made: list[AsyncEngine] = []

    def make_one(*, url: str = database_url, **options: Any) -> AsyncEngine:
        if "poolclass" not in options:
            options = {"pool_size": 1, "max_overflow": 0, **options}
        made.append(create_async_engine(url_of(url), **options))
        return made[-1]

    yield make_one
    for engine in made:
        await engine.dispose()


@pytest.fixture
async def engine(make: Callable[..., AsyncEngine]) -> AsyncEngine:
    engine = fenced_engine(make(pool_size=2))
    await make_tables(engine)
    return engine


async def make_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)


def a_position(number: int = 1) -> Position:
    return Position(id=number, symbol="APTUSDT", orders=[Order(side="buy"), Order(side="sell")])


async def rows(pool: asyncpg.Pool[Any]) -> int:
    return int(await pool.fetchval("select (select count(*) from position) + (select count(*) from order_)"))


async def _flush(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(a_position())
        await session.commit()


async def _begin(engine: AsyncEngine) -> None:
    async with async_sessionmaker(engine).begin() as session:
        session.add(a_position())


async def _bulk(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(insert(Position), [{"id": 1, "symbol": "A"}, {"id": 2, "symbol": "B"}])
        await session.execute(insert(Order), [{"position_id": 1, "side": "buy"}])


async def _savepoint(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        async with session.begin_nested():
            session.add(Position(id=1, symbol="APTUSDT"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await session.execute(insert(Position).values(id=1, symbol="twice"))
        async with session.begin_nested():
            session.add_all([Order(position_id=1, side="buy"), Order(position_id=1, side="sell")])


async def _sync_code(engine: AsyncEngine) -> None:
    def work(session: Session) -> None:
        assert session.scalar(select(func.count()).select_from(Position)) == 0
        session.add(a_position())
        session.commit()

    async with AsyncSession(engine) as session:
        await session.run_sync(work)


async def _autocommit(engine: AsyncEngine) -> None:
    async with engine.connect() as raw:
        conn = await raw.execution_options(isolation_level="AUTOCOMMIT")
        await conn.execute(insert(Position).values(id=1, symbol="APTUSDT"))
        await conn.execute(insert(Order).values(position_id=1, side="buy"))
        await conn.execute(insert(Order).values(position_id=1, side="sell"))


async def _core(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("insert into position values (1, 'APTUSDT')"))
        many = [{"side": "buy"}, {"side": "sell"}]
        await conn.execute(insert(Order.__table__).values(position_id=1, side=bindparam("side")), many)


async def _streamed(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        made = await conn.stream(
            insert(Position).values([{"id": n, "symbol": "x"} for n in (1, 2, 3)]).returning(Position.id)
        )
        assert [row.id async for row in made] == [1, 2, 3]


async def _serializable(engine: AsyncEngine) -> None:
    async with AsyncSession(engine.execution_options(isolation_level="SERIALIZABLE")) as session:
        session.add(a_position())
        await session.commit()


WAYS: dict[str, Callable[[AsyncEngine], Awaitable[None]]] = {
    "flush": _flush,
    "begin": _begin,
    "bulk": _bulk,
    "savepoint": _savepoint,
    "run_sync": _sync_code,
    "autocommit": _autocommit,
    "core": _core,
    "stream": _streamed,
    "serializable": _serializable,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@ways
async def test_each_way_to_write_is_refused_as_stale_token_once_the_lease_is_superseded(
    engine: AsyncEngine, pool: asyncpg.Pool[Any], way: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    stale = await held(pool, 7)
    await held(pool, 8)
    before = await pool.fetchval("select max(backend_start) from pg_stat_activity")
    with under(stale), pytest.raises(StaleToken) as caught:
        await way(engine)
    assert (caught.value.presented, caught.value.current) == (7, 8)
    assert stale.loss is LossReason.FENCED
    assert await rows(pool) == 0
    await way(engine)  # and outside of the body the engine is as good as new
    assert await rows(pool) == 3
    assert await pool.fetchval("select max(backend_start) from pg_stat_activity") == before


@ways
async def test_each_way_to_write_works_under_the_lease_and_leaves_no_transaction(
    engine: AsyncEngine, pool: asyncpg.Pool[Any], way: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    lease = await held(pool, 7)
    with under(lease):
        await way(engine)
    assert await rows(pool) == 3
    assert await pool.fetchval("select count(*) from pg_stat_activity where state like 'idle in%'") == 0
    assert await pool.fetchval("select max(token) from lockguard.writer") == 7  # the check was made


@ways
async def test_each_way_to_write_is_refused_after_the_lease_is_known_lost(
    engine: AsyncEngine, pool: asyncpg.Pool[Any], way: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    lease = await held(pool, 7)
    with under(lease):
        lease.mark_lost(LossReason.EXPIRED)
        with pytest.raises(LeaseLost):
            await way(engine)
    assert await rows(pool) == 0
    await way(engine)


async def test_a_statement_that_was_prepared_outside_of_bodies_carries_the_lease(
    engine: AsyncEngine, pool: asyncpg.Pool[Any]
) -> None:
    """The dialect keeps what it has prepared, and so does asyncpg."""
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    query = update(Position).values(symbol="other")
    await _flush(engine)
    for _ in range(2):
        async with alone.connect() as conn:
            await conn.execute(query)
    grant = (await held(pool, 7)).grant
    await held(pool, 8)
    for _ in range(2):
        with under(lease_of(grant)), pytest.raises(StaleToken):
            async with alone.connect() as conn:
                await conn.execute(query.values(symbol="late"))
    assert await pool.fetchval("select symbol from position") == "other"


async def test_an_engine_in_use_is_fenced_in_place_with_all_that_it_has_prepared(
    make: Callable[..., AsyncEngine], pool: asyncpg.Pool[Any]
) -> None:
    engine = make()
    await make_tables(engine)
    await _flush(engine)
    lent = await engine.connect()
    await lent.execute(text("select 1"))
    assert fenced_engine(engine) is engine
    assert fenced_engine(engine) is engine
    await lent.close()
    stale = await held(pool, 7)
    await held(pool, 8)
    with under(stale), pytest.raises(StaleToken):
        async with AsyncSession(engine) as session, session.begin():
            session.add(a_position(2))
    assert await rows(pool) == 3


async def test_the_lease_reaches_through_the_greenlet_and_is_that_of_its_own_task(
    engine: AsyncEngine, redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    seen: dict[str, str] = {}
    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda *args: seen.update({str(current_lease() and current_lease().resource): args[2]}),  # type: ignore[union-attr]
    )

    async def work(symbol: str) -> None:
        async with guard.hold(symbol), AsyncSession(engine) as session:
            await session.run_sync(lambda sync: sync.execute(text(f"select '{symbol}'")))
            await both.wait()

    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        both = asyncio.Barrier(2)
        await asyncio.gather(work("a"), work("b"))
    assert seen == {"a": "select 'a'", "b": "select 'b'"}


async def test_a_session_that_is_refused_can_be_used_again_after_its_rollback(
    engine: AsyncEngine, pool: asyncpg.Pool[Any]
) -> None:
    async with AsyncSession(engine) as session:
        lease = await held(pool, 7)
        await held(pool, 8)
        with under(lease):
            session.add(a_position())
            with pytest.raises(StaleToken):
                await session.flush()
            with pytest.raises(PendingRollbackError):
                await session.commit()
            await session.rollback()
        session.add(a_position())
        await session.commit()
    assert await rows(pool) == 3


async def test_a_transaction_begun_before_the_lease_is_fenced(
    engine: AsyncEngine, pool: asyncpg.Pool[Any]
) -> None:
    async with AsyncSession(engine) as session:
        assert (await session.scalars(select(Position))).all() == []
        lease = await held(pool, 7)
        await held(pool, 8)
        session.add(a_position())
        with under(lease), pytest.raises(StaleToken):
            await session.flush()
    assert await rows(pool) == 0


async def test_a_transaction_begun_under_a_lease_cannot_commit_what_is_flushed_after_it(
    engine: AsyncEngine, pool: asyncpg.Pool[Any], redis_url: str
) -> None:
    seen: list[object] = []

    class Observed:
        def on(self, event: object) -> None:
            seen.append(event)

    async with (
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[Observed()]) as guard,
        AsyncSession(engine) as session,
    ):
        async with guard.hold(APT):
            session.add(a_position())
            await session.flush()
        assert any(isinstance(event, FenceCloseFailed) for event in seen)  # it waited for the transaction
        session.add(a_position(2))
        with pytest.raises(LeaseNotHeld):
            await session.commit()
        await session.rollback()
        assert await rows(pool) == 0
        async with guard.hold(APT):
            session.add(a_position(3))
            await session.commit()
    assert await rows(pool) == 3


async def test_a_session_kept_across_leases_writes_under_the_one_in_force(
    engine: AsyncEngine, pool: asyncpg.Pool[Any], redis_url: str
) -> None:
    async with (
        LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard,
        AsyncSession(engine, expire_on_commit=False) as session,
    ):
        tokens = []
        for number in (1, 2):
            async with guard.hold(APT) as lease:
                session.add(a_position(number))
                await session.commit()
                tokens.append(lease.token)
                assert await pool.fetchval("select max(token) from lockguard.writer") == lease.token
    assert tokens == sorted(tokens)
    assert await rows(pool) == 6


async def test_objects_that_outlive_the_lease_are_refused_by_a_protected_table(
    engine: AsyncEngine, pool: asyncpg.Pool[Any]
) -> None:
    """Outside of every body a flush presents nothing, so only Postgres can know that it must not pass."""
    async with pool.acquire() as conn:
        await protect(conn, "position", resource="binance:{symbol}")
    async with AsyncSession(engine, expire_on_commit=False) as session:
        with under(await held(pool, 7)):
            position = a_position()
            session.add(position)
            await session.commit()
        position.symbol = "SUIUSDT"
        with pytest.raises(StaleToken) as caught:
            await session.flush()
        assert caught.value.presented is None
        assert isinstance(caught.value.__cause__, asyncpg.PostgresError)
        await session.rollback()
        assert await session.scalar(text("select symbol from position")) == "APTUSDT"


async def test_errors_of_the_statement_are_those_of_sqlalchemy(
    engine: AsyncEngine, pool: asyncpg.Pool[Any]
) -> None:
    with under(await held(pool, 7)):
        await _flush(engine)
        with pytest.raises(IntegrityError) as caught:
            async with engine.begin() as conn:
                await conn.execute(insert(Position).values(id=1, symbol="twice"))
        assert caught.value.orig is not None
        assert isinstance(caught.value.orig.__cause__, asyncpg.UniqueViolationError)
        with pytest.raises(NotCommitted):
            async with engine.begin() as conn:
                with pytest.raises(IntegrityError):
                    await conn.execute(insert(Position).values(id=1, symbol="twice"))


async def test_ddl_that_a_migration_tool_sends_works_under_a_lease(
    engine: AsyncEngine, pool: asyncpg.Pool[Any]
) -> None:
    table = Table("note", MetaData(), Column("id", Position.id.type, primary_key=True))

    def upgrade(conn: Any) -> None:
        table.create(conn)
        conn.execute(text("alter table note add column more text; "))
        conn.execute(text("create index on note (more)"))

    with under(await held(pool, 7)):
        async with engine.begin() as conn:
            await conn.run_sync(upgrade)
        await _flush(engine)
        async with engine.connect() as conn:
            await conn.execute(delete(Order))
            await conn.run_sync(table.drop)
            await conn.rollback()
    assert await pool.fetchval("select to_regclass('note')") == "note"
    assert await rows(pool) == 3


@pytest.mark.parametrize("options", [{"poolclass": NullPool}, {}], ids=["NullPool", "the queue"])
async def test_a_connection_that_the_server_ended_with_the_lease_is_not_given_out_again(
    make: Callable[..., AsyncEngine], pool: asyncpg.Pool[Any], options: dict[str, Any]
) -> None:
    """SQLAlchemy asks only for errors of its driver whether the connection is gone, and LeaseLost is none."""
    engine = fenced_engine(make(**options))
    await make_tables(engine)
    lease = await held(pool, 7)
    with under(lease):
        async with engine.connect() as conn:
            query = text("select pg_backend_pid()")
            await pool.fetchval("select pg_terminate_backend($1, 5000)", await conn.scalar(query))
            lease.mark_lost(LossReason.EXPIRED)
            with pytest.raises(LeaseLost):  # also of a statement that was prepared before
                await conn.execute(query)
    await _flush(engine)
    assert await rows(pool) == 3


async def test_a_lost_lease_costs_the_pool_no_connection_that_is_pinged(
    make: Callable[..., AsyncEngine], pool: asyncpg.Pool[Any], caplog: pytest.LogCaptureFixture
) -> None:
    engine = fenced_engine(make(pool_pre_ping=True))
    await make_tables(engine)
    async with engine.begin() as conn:
        pid = await conn.scalar(text("select pg_backend_pid()"))
    lease = await held(pool, 7)
    with under(lease):
        await _flush(engine)
        lease.mark_lost(LossReason.EXPIRED)
        with pytest.raises(LeaseLost):
            await _flush(engine)
    async with engine.connect() as conn:
        assert await conn.scalar(text("select pg_backend_pid()")) == pid
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("swallowed", [False, True])
async def test_a_refusal_ends_the_hold_as_fenced_and_leaves_the_engine_in_order(
    engine: AsyncEngine,
    pool: asyncpg.Pool[Any],
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    swallowed: bool,
) -> None:
    """It cancels the body, perhaps while the session closes: then LeaseLost arrives in its place."""
    await _count(engine)
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        with pytest.raises((StaleToken, LeaseLost), match="stale token for binance:APTUSDT: presented "):
            async with guard.hold(APT) as lease:
                await held(pool, lease.token + 1)
                if swallowed:
                    with contextlib.suppress(StaleToken):
                        await _begin(engine)
                    await asyncio.Event().wait()
                await _begin(engine)
        assert lease.loss is LossReason.FENCED
        assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        async with guard.hold(APT, wait=timedelta(seconds=5)):
            await _begin(engine)
    assert await rows(pool) == 3
    assert [record for record in caplog.records if record.name.startswith("sqlalchemy")] == []


async def test_a_body_that_is_cut_in_a_statement_leaves_the_engine_in_order(
    engine: AsyncEngine, pool: asyncpg.Pool[Any], redis_url: str
) -> None:
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(APT) as lease, AsyncSession(engine) as session:
                session.add(a_position())
                await session.flush()
                asyncio.get_running_loop().call_later(0.1, lease.end, LossReason.FENCED)
                await session.execute(text("select pg_sleep(30)"))
        assert await rows(pool) == 0
        async with guard.hold(APT, wait=timedelta(seconds=5)):
            await asyncio.gather(*(_count(engine) for _ in range(4)))
            await _flush(engine)
    assert await rows(pool) == 3


async def _count(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.scalar(select(func.count()).select_from(Position))


async def test_behind_pgbouncer_in_transaction_mode_as_sqlalchemys_own_page_says(
    make: Callable[..., AsyncEngine],
    database_url: str,
    pool: asyncpg.Pool[Any],
    postgres_server: PostgresServer,
) -> None:
    if find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    with PgBouncer(postgres_server, pool_size=2) as pooler:
        engine = fenced_engine(
            make(
                url=pooler.url_for(database_url),
                poolclass=NullPool,
                connect_args={"statement_cache_size": 0, "prepared_statement_cache_size": 0},
            )
        )
        await make_tables(engine)
        for token, (name, way) in enumerate(WAYS.items(), 7):
            lease = await held(pool, token * 2)
            with under(lease):
                await way(engine)
            assert await rows(pool) == 3, name
            await held(pool, token * 2 + 1)
            await pool.execute("delete from order_")
            await pool.execute("delete from position")
            with under(lease), pytest.raises(StaleToken):
                await way(engine)
            assert await rows(pool) == 0, name


async def test_over_psycopg_a_fenced_connection_is_given_by_the_creator(
    database_url: str, engine: AsyncEngine, pool: asyncpg.Pool[Any]
) -> None:
    connect = partial(FencedConnection.connect, database_url)
    sync_engine = create_engine("postgresql+psycopg://", creator=connect)

    def write() -> None:
        with Session(sync_engine) as session, session.begin():
            session.add(a_position())

    stale = await held(pool, 7)
    await held(pool, 8)
    with under(stale), pytest.raises(StaleToken):
        await asyncio.to_thread(write)
    assert await rows(pool) == 0
    with under(await held(pool, 9)):
        await asyncio.to_thread(write)
    assert await rows(pool) == 3
    assert await pool.fetchval("select max(token) from lockguard.writer") == 9
    sync_engine.dispose()


@pytest.mark.parametrize("what", ["an asyncpg pool", "a synchronous engine", "another driver"])
async def test_what_is_no_engine_of_asyncpg_is_refused_in_one_line(
    what: str, make: Callable[..., AsyncEngine], pool: asyncpg.Pool[Any], database_url: str
) -> None:
    wrong: Any = {
        "an asyncpg pool": lambda: pool,
        "a synchronous engine": lambda: make().sync_engine,
        "another driver": lambda: create_async_engine("postgresql+psycopg://"),
    }[what]()
    with pytest.raises(ConfigurationError, match=r"create_async_engine\('postgresql\+asyncpg://") as caught:
        fenced_engine(wrong)
    assert "\n" not in str(caught.value)
    assert database_url not in str(caught.value)
