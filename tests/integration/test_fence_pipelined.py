"""A lone write on a fenced pool leaves with its check in one round trip, and differs in nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard.errors import StaleToken
from lockguard_asyncpg import CommitUnknown, create_pool, install, resolve, unfenced
from lockguard_lab.servers import HOLD, FaultProxy
from lockguard_postgres._numbers import NUMBERS
from lockguard_postgres._statements import is_lone_write, is_write
from tests.integration.fence_leases import APT, held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lockguard_lab.servers import PostgresServer

SET_UP = """
create type mood as enum ('good', 'bad');
create table note (id int primary key, text text, mood mood, at timestamptz);
create table other (id int primary key references note deferrable initially deferred);
create function wrong() returns int language plpgsql
  as $$ begin raise exception 'of my own' using errcode = 'UX001'; end $$;
create procedure ends() language plpgsql as $$ begin commit; insert into note values (99); end $$;
"""


@pytest.fixture(params=[100, 0], ids=["cached", "uncached"])
async def pool(request: Any, database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    pool = create_pool(database_url, min_size=0, max_size=5, statement_cache_size=request.param)
    async with pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(SET_UP)
        yield pool


async def outcome(work: Awaitable[Any]) -> object:
    """What a caller sees of a statement: what it gives, or all that its error tells."""
    try:
        return await work
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        told = {n: getattr(exc, n, None) for n in ("sqlstate", "position", "query", "detail", "hint")}
        return type(exc), str(exc), told


async def _prepared(conn: Any) -> Any:
    statement = await conn.prepare("insert into note (id) values ($1) returning id")
    await statement.fetchrow(11)
    return await statement.fetchval(12), statement.get_statusmsg()


WRITES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "insert": lambda c: c.execute("insert into note values ($1, $2)", 5, "x"),
    "insert without parameters": lambda c: c.execute("insert into note (id, text) values (5, 'a;b--c')"),
    "insert several": lambda c: c.execute("insert into note (id) select generate_series(5, 9);"),
    "update": lambda c: c.execute("update note set text = $1", "y"),
    "update of none": lambda c: c.execute("update note set text = 'y' where id = 77"),
    "delete": lambda c: c.execute(" -- first\n/* why */ delete from note where id = $1", 1),
    "merge": lambda c: c.execute(
        "merge into note n using (select 1 as id) s on n.id = s.id when matched then delete"
    ),
    "with": lambda c: c.execute("with s as (select $1::int as id) insert into note (id) select id from s", 5),
    "with that writes": lambda c: c.fetch(
        "with gone as (delete from note returning id) select id from gone order by id"
    ),
    "on conflict": lambda c: c.fetchrow(
        "insert into note values ($1, $2) on conflict (id) do update set text = excluded.text returning *",
        1,
        "z",
    ),
    "returning nothing": lambda c: c.fetchval("update note set text = '' where id = 77 returning id"),
    "several rows, one wanted": lambda c: c.fetchval("update note set text = 'all' returning id"),
    "an enum": lambda c: c.fetchval("insert into note (id, mood) values (5, $1) returning mood", "good"),
    "prepared": _prepared,
    "unique violation": lambda c: c.execute("insert into note values ($1)", 1),
    "unique violation without parameters": lambda c: c.execute("insert into note values (1)"),
    "deferred violation": lambda c: c.execute("insert into other values ($1)", 77),
    "deferred violation without parameters": lambda c: c.execute("insert into other values (77)"),
    "syntax": lambda c: c.execute("insert into note values ($1) nonsense here", 1),
    "syntax without parameters": lambda c: c.execute("insert into note values (1) nonsense here"),
    "no such column": lambda c: c.fetch("update note set nonsense = 1"),
    "no such table, without parameters": lambda c: c.execute("update\n  nonsense set a = 1"),
    "an error of a function": lambda c: c.execute("update note set id = wrong()"),
    "wrong type": lambda c: c.execute("insert into note values ($1)", "one"),
    "too few": lambda c: c.execute("insert into note values ($1, $2)", 5),
    "too many": lambda c: c.execute("insert into note values ($1)", 5, "x"),
    "parameters but none given": lambda c: c.execute("insert into note values ($1)"),
    "two statements": lambda c: c.execute("insert into note values (5); insert into note values (6)"),
    "a zero byte": lambda c: c.execute("insert into note (id, text) values ($1, 'a\0b')", 5),
    "a zero byte without parameters": lambda c: c.execute("insert into note (id, text) values (5, 'a\0b')"),
    "one of two fails": lambda c: c.execute("insert into note values (5); insert into note values (1)"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_lone_write_gives_and_raises_what_it_does_without_a_lease(
    pool: asyncpg.Pool[Any], write: Callable[[Any], Awaitable[Any]]
) -> None:
    seen = []
    for lease in (None, await held(pool)):
        with unfenced():
            await pool.execute("truncate note cascade; insert into note (id, text) values (1, 'a'), (2, 'b')")
        async with pool.acquire() as conn:
            pid = conn.get_server_pid()
            if lease is None:
                told = [await outcome(write(conn))]
            else:
                with under(lease):
                    told = [await outcome(write(conn))]
            with unfenced():  # on the same connection, which goes on
                told.append(await conn.fetch("select * from note order by id"))
                assert (await conn.fetchval("select pg_backend_pid()"), conn.is_in_transaction()) == (
                    pid,
                    False,
                )
        seen.append(told)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "write",
    [
        w
        for name, w in WRITES.items()
        if name in {"insert", "insert without parameters", "with", "merge", "prepared"}
    ],
)
async def test_a_lone_write_is_refused_by_the_check_before_it_waits_for_any_row(
    pool: asyncpg.Pool[Any], write: Callable[[Any], Awaitable[Any]]
) -> None:
    lease = await held(pool)
    with unfenced():
        await pool.execute("insert into note (id, text) values (1, 'a')")
    async with pool.acquire() as other, pool.acquire() as conn:
        with unfenced():
            await other.execute("begin")
            await other.execute(
                "insert into note (id) values (5), (11); update note set text = 'q' where id = 1"
            )
        await held(pool, 8)
        with under(lease), pytest.raises(StaleToken):
            await write(conn)
        with unfenced():
            assert await other.fetchval("select count(*) from note") == 3
            await other.execute("rollback")


async def test_a_seal_waits_for_a_lone_write(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    async with pool.acquire() as slow:
        with under(lease):
            writing = asyncio.create_task(
                slow.execute("insert into note (id, at) select 1, now() from pg_sleep($1)", 0.4)
            )
            await _until(pool, "select exists (select from lockguard.under_way($1))")
        await held(pool, 8)
        with unfenced():
            assert await pool.fetchval("select count(*) from note") == 1  # what is read now is final
        assert await writing == "INSERT 0 1"


async def _until(pool: asyncpg.Pool[Any], question: str) -> None:
    with unfenced():
        async with asyncio.timeout(5):
            while not await pool.fetchval(question, APT):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "change", ["alter table note add more int", "alter table note alter text type varchar"]
)
async def test_a_statement_that_returns_all_columns_goes_on_after_alter_table(
    pool: asyncpg.Pool[Any], change: str
) -> None:
    lease = await held(pool)
    insert = "insert into note (id) values ($1) returning *"
    async with pool.acquire() as conn:
        for n in range(3):
            with under(lease):
                assert (await conn.fetchrow(insert, n))["id"] == n
        with unfenced():
            await pool.execute(change)
        with under(lease):
            row = await conn.fetchrow(insert, 5)
            assert list(row.keys())[4:] == (["more"] if "more" in change else [])


async def test_what_ends_its_transaction_by_itself_is_not_taken_for_a_write(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool)):
        for text in ("call ends()", "/* /* */ insert */ call ends()", "do $$ begin commit; end $$"):
            with pytest.raises(asyncpg.InvalidTransactionTerminationError):
                await pool.execute(text)
        assert await pool.execute("explain (analyze) insert into note values (5)") == "EXPLAIN"
    with unfenced():
        assert await pool.fetchval("select count(*) from note") == 1


async def test_a_lost_reply_to_a_lone_write_is_unknown_and_can_be_resolved(
    postgres_server: PostgresServer, database_url: str
) -> None:
    async with create_pool(database_url, min_size=1, max_size=2) as near:
        async with near.acquire() as conn:
            await install(conn)
            await conn.execute(SET_UP)
        lease = await held(near)
        async with FaultProxy(postgres_server.port) as proxy:
            async with create_pool(proxy.url_for(database_url), min_size=1, max_size=1, ssl="disable") as far:
                for n, query in enumerate(
                    ("insert into note (id) values ($1)", "insert into note (id) values (1)")
                ):
                    with under(lease):
                        await far.execute(
                            "insert into note (id) values ($1)", 100 + n
                        )  # prepared from here on
                        proxy.to_client.set(HOLD)
                        writing = asyncio.create_task(far.execute(query, *([n] if "$" in query else [])))
                        with unfenced():
                            async with asyncio.timeout(5):
                                while (
                                    await near.fetchval("select count(*) from note where id < 100") != n + 1
                                ):
                                    await asyncio.sleep(0.01)
                        proxy.reset()
                        with pytest.raises(CommitUnknown) as unknown:
                            await writing
                        proxy.heal()
                    assert await resolve(near, unknown.value)


async def test_a_write_that_never_left_is_not_called_unknown(
    postgres_server: PostgresServer, database_url: str
) -> None:
    insert = "insert into note (id) values ($1)"
    async with create_pool(database_url, min_size=1, max_size=2) as near:
        async with near.acquire() as conn:
            await install(conn)
            await conn.execute(SET_UP)
        lease = await held(near)
        async with FaultProxy(postgres_server.port) as proxy:
            async with create_pool(proxy.url_for(database_url), min_size=1, max_size=1, ssl="disable") as far:
                with under(lease):
                    await far.execute("insert into note (id) values (1)")
                    proxy.to_client.set(HOLD)  # what Parse is answered, which the write waits for
                    writing = asyncio.create_task(far.execute(insert, 2))
                    await _until(
                        near,
                        f"select exists (select from pg_stat_activity where query = '{insert}' and $1 > '')",
                    )
                    proxy.reset()
                    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
                        await writing
                    proxy.heal()
                    assert await far.execute(insert, 2) == "INSERT 0 1"


@pytest.mark.parametrize("query", ["insert into note (id) select $1::int from pg_sleep(30)", None])
async def test_a_lone_write_that_is_given_up_is_certainly_not_made(
    pool: asyncpg.Pool[Any], query: str | None
) -> None:
    with under(await held(pool)):
        with pytest.raises(TimeoutError):
            if query is None:
                await pool.execute("insert into note (id) select 1 from pg_sleep(30)", timeout=0.2)
            else:
                await pool.execute(query, 1, timeout=0.2)
        assert await pool.execute("insert into note (id) values ($1)", 1) == "INSERT 0 1"


async def test_a_write_whose_time_is_up_as_it_is_to_leave_is_not_said_to_have_committed(
    pool: asyncpg.Pool[Any],
) -> None:
    query = "insert into note (id) values ($1)"
    with under(await held(pool)):
        async with pool.acquire() as conn:
            await conn.execute(query, 1)
            insert = await conn.prepare(query)
            # asyncpg looks at the time last, where the check has left already.
            for write in (insert.fetch(2, timeout=0), conn.execute(query, 2, timeout=1e-9)):
                with pytest.raises(TimeoutError):
                    await write
            assert await conn.fetch("select id from note") == [(1,)]
            await insert.fetch(2)


async def test_another_tasks_statement_on_the_same_connection_is_left_in_peace(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool)
    async with pool.acquire() as conn:
        insert = await conn.prepare("insert into note (id) values ($1)")
        await insert.fetch(1)
        for busy in ("select 7 from pg_sleep(0.2)", "select pg_sleep(0.2)"):
            with unfenced():
                other = asyncio.create_task(conn.fetchval(busy) if "7" in busy else conn.execute(busy))
                await asyncio.sleep(0)
            with under(lease):
                for write in (insert.fetch(2), conn.execute("insert into note (id) values ($1)", 3)):
                    with pytest.raises(asyncpg.InterfaceError, match="another operation"):
                        await write
            assert await other in {7, "SELECT 1"}
        with under(lease):
            await insert.fetch(4)
    with unfenced():
        assert [r["id"] for r in await pool.fetch("select id from note order by id")] == [1, 4]


@pytest.mark.parametrize(
    ("text", "write", "lone"),
    [
        ("insert into t values (1)", True, True),
        ("  /* a */ -- b\n update t set a = 'x;y' ; ", True, True),
        ("WITH a AS (select 1) DELETE FROM t", True, True),
        ("merge into t using s on true when matched then delete", True, True),
        ("insert into t values (1); commit", True, False),
        ("insert into t values ('\\'); commit; insert into t values ('x')", True, False),
        ("insert into t values ($$a;b$$)", True, False),
        ("insert into t values (1) /* /* */ ; commit; */", True, False),
        ("insert into t values ('a)", True, False),
        ("/* /* */ insert */ call p()", False, False),
        ("inserts into t", False, False),
        ("withdraw", False, False),
        ("explain analyze insert into t values (1)", False, False),
        ("select f()", False, False),
        ("call p()", False, False),
        ("do $$ begin commit; end $$", False, False),
        ("insert into t values ('a\0b')", True, False),
        ("", False, False),
    ],
)
def test_what_is_taken_for_a_write(text: str, write: bool, lone: bool) -> None:
    assert (is_write(text), is_lone_write(text)) == (write, lone)


async def test_a_lost_write_of_a_superseded_lease_is_resolved_though_its_process_wrote_on(
    pool: asyncpg.Pool[Any],
) -> None:
    stale = await held(pool)
    lost = NUMBERS.take()
    NUMBERS.give_back([lost])
    fresh = await held(pool, 8)
    with under(fresh):
        await pool.execute("insert into note (id) values ($1)", 1)  # in the same row, one number further
    asked = CommitUnknown(resource=APT, token=stale.token, sequence=lost + 2)
    assert not await resolve(pool, asked)


@pytest.mark.parametrize(
    ("write", "args"),
    [
        ("insert into note (id) values (31)", ()),
        ("insert into note (id) values ($1)", (32,)),
        ("insert into note (id) values (1)", ()),
        ("insert into note (id) values ($1)", (1,)),
        ("update\n  nonsense set a = 1", ()),
    ],
)
async def test_a_query_logger_is_told_the_callers_text_and_not_the_check_before_it(
    pool: asyncpg.Pool[Any], write: str, args: tuple[Any, ...]
) -> None:
    await pool.execute("insert into note (id) values (1)")
    lease = await held(pool)
    async with pool.acquire() as conn:
        seen: list[Any] = []
        conn.add_query_logger(seen.append)
        with under(lease):
            await outcome(conn.execute(write, *args))
        await asyncio.sleep(0)  # asyncpg calls it in the next turn of the loop
        (record,) = seen
        assert (record.query, record.args) == (write, args)
        if isinstance(record.exception, asyncpg.PostgresError):
            assert record.exception.query == write  # type: ignore[attr-defined]
        await held(pool, 8)
        with under(lease), pytest.raises(StaleToken) as refused:
            await conn.execute(write.replace("nonsense", "note").replace("a =", "id ="), *args)
        assert "lockguard" not in refused.value.__cause__.query  # type: ignore[union-attr]
        await asyncio.sleep(0)  # as before
        assert ["lockguard" in record.query for record in seen] == [False, False]
