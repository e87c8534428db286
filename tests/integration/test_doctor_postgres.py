"""``lockguard doctor`` on databases that are broken on purpose, and on a sound one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest

from lockguard_asyncpg import SCHEMA_VERSION, install, protect
from lockguard_asyncpg._schema import steps
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer
from lockguard_lab.servers import FaultProxy, PostgresServer, RedisServer
from lockguard_positions import migrate
from lockguard_positions._schema import protect_positions
from tests.chaos.failures import until
from tests.integration.doctor_runs import Doctor
from tests.integration.fence_leases import postgres_15
from tests.integration.test_fence_primaries import Standby

DURABLE = {"fsync": "on", "full_page_writes": "on", "autovacuum_naptime": "1d"}
PASSWORD = "of-the-bot"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """As in production: the lab's own does without waiting for the disk."""
    with PostgresServer(settings=DURABLE) as started:
        yield started


@pytest.fixture(scope="module")
def sound_redis() -> Iterator[RedisServer]:
    with RedisServer(persistence="aof") as started:
        yield started


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    """An empty database."""
    name = f"test_{secrets.token_hex(6)}"
    yield server.create_database(name)
    server.drop_database(name)


def run(url: str, *work: str | Callable[[Any], Any]) -> None:
    """Run statements and functions of a connection."""

    async def all_of_it() -> None:
        conn = await asyncpg.connect(url)
        for one in work:
            await (conn.execute(one) if isinstance(one, str) else one(conn))
        await conn.close()

    asyncio.run(all_of_it())


@pytest.fixture
def doctor(server: PostgresServer, sound_redis: RedisServer, url: str) -> Doctor:
    """For the superuser's session; remedies are carried out as the superuser."""
    return of(server, sound_redis, url)


def of(server: PostgresServer, redis: RedisServer, url: str) -> Doctor:
    passwords = {"PGUSER": "postgres", "PGPASSWORD": server.password}
    return Doctor(("--redis", redis.url, "--database", url), passwords=passwords)


def with_positions(url: str) -> None:
    run(url, install, migrate, protect_positions)


TRADES = "create table trades (exchange text, symbol text, price int)"


async def protect_trades(conn: Any) -> None:
    await protect(conn, "trades", resource="{exchange}:{symbol}", exempt=["price"])


# --- nothing is wrong ---


def test_a_sound_database_gives_no_warning(doctor: Doctor, url: str) -> None:
    with_positions(url)
    visit = doctor.visit("--strict")
    assert (visit.amiss, visit.code) == ([], 0)
    sound = {one["code"] for one in visit.told["findings"] if one["severity"] == "ok"}
    assert sound >= {
        *("postgres.schema", "postgres.rights", "postgres.protection", "postgres.pooler"),
        *("postgres.growth", "postgres.connections", "positions.schema", "positions.wrong"),
    }


def test_the_oldest_postgres_that_is_tried_gives_no_warning(sound_redis: RedisServer) -> None:
    with PostgresServer(binary=postgres_15(), settings=DURABLE) as server:
        with_positions(server.url)
        visit = of(server, sound_redis, server.url).visit("--strict")
        assert (visit.amiss, visit.code) == ([], 0)


def test_the_trial_of_a_seal_leaves_nothing(doctor: Doctor, url: str) -> None:
    with_positions(url)
    doctor.visit()

    async def see(conn: Any) -> None:
        assert await conn.fetchval("select count(*) from lockguard.fence") == 0
        assert await conn.fetchval("select count(*) from lockguard.writer") == 0

    run(url, see)


# --- schema, rights, protection ---


def test_a_database_without_a_schema(doctor: Doctor) -> None:
    visit = doctor.visit()
    assert visit.codes == {"postgres.schema"}
    assert visit.code == 1
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


@pytest.mark.parametrize("version", [1, 11, SCHEMA_VERSION - 1])
def test_an_old_schema(doctor: Doctor, url: str, version: int) -> None:
    made = [
        f"{step.sql}; insert into lockguard.schema_version (version) values ({step.version})"
        for step in steps()
        if step.version <= version
    ]
    run(url, *made)
    visit = doctor.visit()
    assert f"version {version}, this library has {SCHEMA_VERSION}" in visit.of("postgres.schema")["found"]
    assert visit.codes == {"postgres.schema"}
    assert visit.code == 1
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


@pytest.fixture
def role(server: PostgresServer, url: str) -> Iterator[tuple[str, str]]:
    """A role without any right, and its URL."""
    name = f"bot_{secrets.token_hex(4)}"
    run(url, f"create role {name} login password '{PASSWORD}'")
    yield name, server.url_for(url.rpartition("/")[2], user=name, password=PASSWORD)
    run(url, f"drop owned by {name}; drop role {name}")


def test_a_role_without_the_fences_rights(
    server: PostgresServer, sound_redis: RedisServer, url: str, role: tuple[str, str]
) -> None:
    run(url, install)
    doctor = of(server, sound_redis, role[1])
    visit = doctor.visit()
    assert visit.codes == {"postgres.rights"}
    assert visit.code == 1
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0
    some = "grant usage on schema lockguard to {0}; grant execute on function lockguard.version() to {0}"
    run(url, f"revoke lockguard_app from {role[0]}; {some.format(role[0])}")
    visit = doctor.visit()
    assert "may not call lockguard." in visit.of("postgres.rights")["found"]
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


def test_a_role_without_rights_on_the_positions(
    server: PostgresServer, sound_redis: RedisServer, url: str, role: tuple[str, str]
) -> None:
    with_positions(url)
    run(url, f"grant lockguard_app to {role[0]}; grant usage on schema monitoring to {role[0]}")
    run(url, f"grant select on all tables in schema monitoring to {role[0]}")
    doctor = of(server, sound_redis, role[1])
    visit = doctor.visit()
    assert visit.codes == {"postgres.rights"}
    assert any("insert, update on monitoring.positions" in one["found"] for one in visit.amiss)
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


def test_a_trigger_that_is_disabled(doctor: Doctor, url: str) -> None:
    run(url, install, TRADES, protect_trades)
    assert doctor.visit("--strict").code == 0
    run(url, "alter table trades disable trigger zz_lockguard_update")
    visit = doctor.visit()
    assert visit.codes == {"postgres.protection"}
    assert visit.code == 1
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0
    run(url, "alter table trades rename to trades_old", TRADES)
    assert any("ought to be protected" in one["found"] for one in doctor.visit().amiss)


NO_OP = "create or replace function lockguard.{0} returns trigger language plpgsql as 'begin return new; end'"

NO_CHECK = """
create or replace function lockguard.check(
  p_resource text, p_token bigint, p_grant uuid, p_sequence bigint default null
) returns bigint language sql as 'select 1::bigint'
"""
NO_REQUIRE = """
create or replace function lockguard.require(p_resource text, p_relation regclass) returns void
language sql as ''
"""
OTHER_TRIGGER = f"""
{NO_OP.format("no_op()")};
drop trigger keep_row on lockguard.floor;
create trigger keep_row before truncate on lockguard.floor execute function lockguard.no_op();
alter table lockguard.floor enable always trigger keep_row
"""


@pytest.mark.parametrize(
    ("harm", "where"),
    [
        (NO_OP.format("keep_monotone()"), "lockguard.keep_monotone"),
        (NO_CHECK, "lockguard.check"),
        (NO_REQUIRE, "lockguard.require"),
        ("drop trigger keep_monotone on lockguard.fence", "lockguard.fence"),
        (OTHER_TRIGGER, "lockguard.floor"),
        ("alter table lockguard.fence set unlogged", "lockguard.fence"),
        ("alter table trades set unlogged", "trades"),
    ],
)
def test_a_fence_that_refuses_nothing(doctor: Doctor, url: str, harm: str, where: str) -> None:
    run(url, install, TRADES, protect_trades, harm)
    visit = doctor.visit()
    assert (visit.codes, visit.code) == ({"postgres.protection"}, 1)
    assert visit.of("postgres.protection")["found"].startswith(f"{where}: ")
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


def test_a_guard_that_checks_nothing(doctor: Doctor, url: str) -> None:
    async def disarm(conn: Any) -> None:
        name = await conn.fetchval("select proname from pg_proc where proname like 'guard\\_trades%'")
        await conn.execute(NO_OP.format(f"{name}()"))

    run(url, install, TRADES, protect_trades, disarm)
    visit = doctor.visit()
    assert (visit.codes, visit.code) == ({"postgres.protection"}, 1)
    assert any("checks no lease" in one["found"] for one in visit.amiss)
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


@pytest.mark.parametrize(
    ("resource", "exempt"), [("{symbol}", []), ("{exchange}:{symbol}", ["current_price", "status"])]
)
def test_positions_that_are_protected_otherwise_than_the_bot_locks_them(
    doctor: Doctor, url: str, resource: str, exempt: list[str]
) -> None:
    async def other(conn: Any) -> None:
        await protect(conn, "monitoring.positions", resource=resource, exempt=exempt)

    with_positions(url)
    run(url, other)
    visit = doctor.visit()
    assert (visit.codes, visit.code) == ({"postgres.protection"}, 1)
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


def test_a_commit_that_waits_for_a_standby_that_is_not_there(sound_redis: RedisServer) -> None:
    with PostgresServer(settings={**DURABLE, "synchronous_standby_names": "gone"}) as server:
        run(server.url, "set synchronous_commit = local", install)
        visit = of(server, sound_redis, server.url).visit()
        assert (visit.codes, visit.code) == ({"postgres.standby"}, 1)
        assert "gone" in visit.of("postgres.standby")["found"]


def test_rights_that_the_bots_group_lacks(
    server: PostgresServer, sound_redis: RedisServer, url: str, role: tuple[str, str]
) -> None:
    run(url, install, f"grant lockguard_app to {role[0]}")
    run(url, "revoke execute on function lockguard.evict(text, bigint) from lockguard_app")
    doctor = of(server, sound_redis, role[1])
    visit = doctor.visit()
    assert "may not call lockguard.evict(" in visit.of("postgres.rights")["found"]
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


def test_a_seal_that_fails_for_another_reason_than_rights(doctor: Doctor, url: str) -> None:
    run(url, install, "alter table lockguard.fence drop constraint fence_pkey")
    visit = doctor.visit()
    assert "ON CONFLICT" in visit.of("postgres.rights")["found"]
    assert "grant" not in visit.of("postgres.rights")["remedy"]


def test_tables_that_nothing_protects(doctor: Doctor, url: str) -> None:
    run(url, install, migrate, TRADES)
    visit = doctor.visit("--tables", "trades", "--tables", "no.such")
    assert visit.codes == {"postgres.unprotected"}
    assert [one["severity"] for one in visit.amiss] == ["error", "error", "warning"]
    assert visit.code == 1
    doctor.mend(one for one in visit.amiss if "no such table" not in one["found"])
    assert doctor.visit("--tables", "trades", "--strict").code == 0


@pytest.mark.parametrize("name", ['"', "other.public.t", "a.b.c.d", "x\x1b[31m", ""])
def test_a_table_that_cannot_be_named(doctor: Doctor, url: str, name: str) -> None:
    run(url, install)
    visit = doctor.visit("--tables", name)
    assert (visit.codes, visit.code) == ({"postgres.unprotected"}, 1)
    assert "\x1b" not in str([one["found"] + one["remedy"] for one in visit.amiss])


# --- settings ---


@pytest.mark.parametrize(
    ("setting", "code", "severity"),
    [
        ("statement_timeout = '100ms'", "postgres.statement_timeout", "error"),
        ("statement_timeout = '3s'", "postgres.statement_timeout", "warning"),
        ("lock_timeout = '50ms'", "postgres.lock_timeout", "warning"),
        ("idle_in_transaction_session_timeout = '200ms'", "postgres.idle_timeout", "warning"),
        ("transaction_timeout = '2s'", "postgres.transaction_timeout", "warning"),
        ("synchronous_commit = off", "postgres.durability", "error"),
        ("default_transaction_read_only = on", "postgres.read_only", "error"),
    ],
)
def test_a_setting_that_hurts(doctor: Doctor, url: str, setting: str, code: str, severity: str) -> None:
    run(url, install, f"alter database {url.rpartition('/')[2]} set {setting}")
    visit = doctor.visit()
    assert visit.codes == {code}
    assert visit.of(code)["severity"] == severity
    assert visit.code == (1 if severity == "error" else 0)
    doctor.env = {"PGOPTIONS": "-c default_transaction_read_only=off"} if "read_only" in code else {}
    doctor.mend(visit.amiss)
    doctor.env = {}
    assert doctor.visit("--strict").code == 0


def test_a_setting_of_the_url_is_taken_out_of_the_url(
    server: PostgresServer, sound_redis: RedisServer, url: str
) -> None:
    run(url, install)
    visit = of(server, sound_redis, f"{url}?statement_timeout=100").visit()
    assert "out of the URL" in visit.of("postgres.statement_timeout")["remedy"]


def test_a_server_that_does_not_wait_for_the_disk(sound_redis: RedisServer, database_url: str) -> None:
    run(database_url, install)
    visit = Doctor(("--redis", sound_redis.url, "--database", database_url)).visit()
    assert visit.codes == {"postgres.durability"}
    assert {one["found"] for one in visit.amiss} == {"fsync is off", "full_page_writes is off"}


def test_a_table_that_is_never_vacuumed(doctor: Doctor, url: str) -> None:
    run(url, install, "alter table lockguard.writer set (autovacuum_enabled = off)")
    visit = doctor.visit()
    assert visit.codes == {"postgres.growth"}
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


def test_dead_rows_that_nothing_removes(doctor: Doctor, url: str) -> None:
    rows = "select '', '', '' from generate_series(1, 11000)"
    fill = f"insert into lockguard.audit (action, subject, reason) {rows}"
    run(url, install, fill, "delete from lockguard.audit")
    visit = doctor.visit()
    assert "lockguard.audit has 11,000 dead rows" in visit.of("postgres.growth")["found"]
    doctor.mend(visit.amiss)
    assert doctor.visit("--strict").code == 0


def test_a_server_with_hardly_a_connection_left(sound_redis: RedisServer) -> None:
    with PostgresServer(settings=DURABLE, max_connections=10) as server:
        run(server.url, install)
        doctor = of(server, sound_redis, server.url)

        async def crowd() -> Any:
            conns = [await asyncpg.connect(server.url) for _ in range(8)]
            visit = await asyncio.to_thread(doctor.visit)
            for conn in conns:
                await conn.close()
            return visit

        assert asyncio.run(crowd()).codes == {"postgres.connections"}
        assert doctor.visit("--strict").code == 0


# --- what is between, and what is not there ---


@pytest.mark.parametrize("mode", ["statement", "transaction", "session"])
def test_a_pooler(server: PostgresServer, sound_redis: RedisServer, url: str, mode: str) -> None:
    if find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")

    class InMode(PgBouncer):
        def _lines(self, users: Any) -> tuple[str, ...]:
            return tuple(line.replace("= transaction", f"= {mode}") for line in super()._lines(users))

    run(url, install)
    with InMode(server) as pooler:
        visit = of(server, sound_redis, pooler.url_for(url)).visit()
    told = [one for one in visit.told["findings"] if one["code"] == "postgres.pooler"]
    assert [one["severity"] for one in told] == [
        {"statement": "error", "transaction": "note", "session": "ok"}[mode]
    ]
    assert mode in told[0]["found"]
    assert visit.codes == ({"postgres.pooler"} if mode == "statement" else set())
    assert visit.code == (1 if mode == "statement" else 0)


def test_a_database_that_is_not_there_and_a_wrong_password(
    server: PostgresServer, sound_redis: RedisServer, url: str
) -> None:
    name = url.rpartition("/")[2]
    wrong = server.url_for(name, user="postgres", password="wrong-secret")
    visit = of(server, sound_redis, wrong).visit()
    assert (visit.codes, visit.code) == ({"postgres.login"}, 1)
    assert "wrong-secret" not in str(visit.told)
    assert "user, password and database" in visit.of("postgres.login")["remedy"]
    visit = of(server, sound_redis, server.url_for("no_such_database")).visit()
    assert (visit.codes, visit.code) == ({"postgres.login"}, 1)
    with PostgresServer() as gone:
        lost = gone.url
    visit = of(server, sound_redis, lost).visit()
    assert (visit.codes, visit.code) == ({"postgres.unreachable"}, 3)


async def test_a_database_that_dies_in_the_middle(sound_redis: RedisServer) -> None:
    with PostgresServer(settings=DURABLE) as server:
        async with FaultProxy(server.port) as proxy:
            doctor = of(server, sound_redis, proxy.url_for(server.url))
            visiting = asyncio.create_task(asyncio.to_thread(doctor.visit, "--watch", "3s"))
            await until(lambda: proxy.to_client.received_bytes > 2_000)  # it is logged in
            proxy.refuse()
            proxy.reset()
            visit = await visiting
    assert visit.of("postgres.unreachable")["unread"]
    assert visit.code == 3


def test_a_standby_is_told_as_one(sound_redis: RedisServer) -> None:
    with PostgresServer() as primary:
        run(primary.url, install)
        with Standby(primary) as standby:
            visit = of(primary, sound_redis, standby.url).visit()
            assert "it is a standby" in visit.of("postgres.read_only")["found"]
            assert visit.code == 1
