"""How ``lockguard positions fit`` goes on: in two halves, interrupted, in use, without rights or a yes."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import install, protect
from lockguard_positions import version
from tests.integration.fitted import (
    PLAIN,
    Stage,
    opens_syncs_and_closes,
    stage,
)

__all__ = ["stage"]


async def test_the_first_half_leaves_the_old_code_all_it_does_and_the_second_copies_what_came_since(
    stage: Stage,
) -> None:
    await stage.conn.execute(PLAIN)
    done = await stage.fit("--apply", "--yes")
    assert (done.exit_code, await version(stage.conn)) == (1, 0), done.output
    assert "--apply --switch runs them" in done.output
    insert = (
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status, strategy,"
        " sl_order_id) values ('APTUSDT', 'binance', 'long', 10, 8.5, 'active', 'x', 's7')"
    )
    await stage.conn.execute(insert)  # as active at once, which the status machine will refuse
    assert (await stage.apply()).exit_code == 0
    assert await stage.conn.fetchval("select stop_order_id from monitoring.positions") == "s7"
    with pytest.raises(asyncpg.PostgresError, match="cannot go from nothing to active"):
        await stage.conn.execute(insert)


async def test_an_interrupted_fit_goes_on_where_it_was(stage: Stage) -> None:
    """After each statement in turn the command is as good as killed: what is left is found in the catalog."""
    await stage.conn.execute(PLAIN)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status,"
        " sl_order_id, strategy)"
        " values ('APTUSDT', 'binance', 'long', 10, 8.5, 'active', '71', 'x')"
    )
    left = []
    while steps := (await stage.read())["statements"]:
        left.append(len(steps))
        await stage.conn.execute(steps[0]["sql"])
    assert left == list(range(left[0], 0, -1))
    assert left[0] > 10
    assert (await stage.fit()).exit_code == 0
    await opens_syncs_and_closes(stage)


async def test_an_index_whose_building_failed_is_built_again(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    insert = (
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status, strategy)"
        " values ('APTUSDT', 'binance', 'long', 10, 8.5, 'pending_entry', 'x')"
    )
    await stage.conn.execute(f"{insert}; {insert}; drop index monitoring.one_active;")
    with pytest.raises(asyncpg.UniqueViolationError):
        await stage.conn.execute(
            "create unique index concurrently idx_unique_open_position on monitoring.positions (symbol,"
            " exchange)"
        )
    await stage.conn.execute("delete from monitoring.positions where id = 2")
    done = await stage.apply()
    assert done.exit_code == 0, done.output
    definition = "select indexdef from pg_indexes where indexname = 'idx_unique_open_position'"
    assert "WHERE" in await stage.conn.fetchval(definition)


async def test_a_table_in_use_is_waited_for_in_short_turns(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    other = await asyncpg.connect(stage.urls["LOCKGUARD_DATABASE_URL"])
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.fetch("select * from monitoring.positions")
        task = asyncio.create_task(stage.apply())
        waiting = (
            "select count(*) from pg_locks where not granted and relation = 'monitoring.positions'::regclass"
        )
        while not await stage.conn.fetchval(waiting):
            await asyncio.sleep(0.01)  # between two looks at the condition
        await asyncio.wait_for(stage.conn.fetch("select * from monitoring.positions"), 10)
        await transaction.rollback()
        done = await task
        assert done.exit_code == 0, done.output
    finally:
        await other.close()


async def test_a_role_without_rights_is_told_the_grant(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    role = "reader_of_fit"
    await stage.conn.execute(f"drop role if exists {role}; create role {role} login password 'x'")
    try:
        done = await stage.fit(user=f"{role}:x")
        assert isinstance(done.exception, ConfigurationError)
        assert f"grant select on monitoring.positions to {role};" in str(done.exception)
        await stage.conn.execute(
            f"grant usage on schema monitoring to {role}; grant select on monitoring.positions to {role}"
        )
        done = await stage.fit(user=f"{role}:x")
        assert (done.exit_code, f"to {role};" in " ".join(done.output.split())) == (1, True), done.output
        done = await stage.fit("--apply", "--switch", "--yes", user=f"{role}:x")
        assert isinstance(done.exception, ConfigurationError)
        assert f"role {role} does not own monitoring.positions" in str(done.exception)
    finally:
        await stage.conn.execute(f"drop owned by {role}; drop role {role}")


async def test_a_protected_table_is_fitted_in_maintenance_and_guard_is_what_it_has(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    await stage.conn.execute(
        "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status,"
        " sl_order_id, strategy)"
        " values ('APT/USDT:USDT', 'binance', 'long', 10, 8.5, 'active', 's1', 'x')"
    )
    await install(stage.conn)
    assert (await stage.fit("--level", "guard")).exit_code == 1
    await protect(
        stage.conn, "monitoring.positions", resource="{exchange}:{symbol}", exempt=["updated_at"], watch=True
    )
    watched = await stage.fit("--level", "guard")
    assert (watched.exit_code, "lockguard fence watch monitoring.positions" in watched.output) == (1, True)
    await protect(stage.conn, "monitoring.positions", resource="{exchange}:{symbol}", exempt=["updated_at"])
    assert (await stage.fit("--level", "guard")).exit_code == 0
    done = await stage.apply()
    assert done.exit_code == 0, done.output
    assert await stage.conn.fetchval("select symbol from monitoring.positions") == "APTUSDT"
    reasons = "select count(*) from lockguard.audit where reason = 'lockguard positions fit'"
    assert await stage.conn.fetchval(reasons) > 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--map", "open"), "--map 'open' cannot be read; write --map open=active"),
        (("--map", "open=living"), "there is no such stage; write one of pending_entry,"),
        (("--column", "coin=symbol"), "lockguard has no such column; it has id, exchange,"),
        (("--column", "symbol=coin"), "monitoring.positions has no such column; it has id, symbol,"),
        (("--column", "opened_at=strategy"), "cannot be copied to timestamp with time zone"),
        (("--exchange-name", "binance"), "monitoring.positions has exchange"),
        (("--switch",), "--switch goes with --apply"),
        (("--apply", "--level", "guard"), "--apply is for --level flow"),
    ],
)
async def test_a_mistake_in_the_call_is_one_line(stage: Stage, arguments: tuple[str, ...], why: str) -> None:
    await stage.conn.execute(PLAIN)
    done = await stage.fit(*arguments)
    assert isinstance(done.exception, ConfigurationError), done.output
    assert why in str(done.exception)
    assert "\n" not in str(done.exception)


async def test_without_a_yes_nothing_is_run(stage: Stage) -> None:
    await stage.conn.execute(PLAIN)
    before = await stage.shape()
    done = await stage.fit("--apply")
    assert "add --yes where nobody can be asked" in str(done.exception)
    assert await stage.shape() == before
