"""A database that takes no writes: whose fault it is, and what puts it right, is said in one line."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard.errors import ConfigurationError, FenceUnavailable
from lockguard_asyncpg import PostgresFence, create_pool, fenced_transaction, install
from lockguard_asyncpg._cli import fence
from lockguard_lab.servers import PostgresServer
from tests.integration.fence_leases import SOON, grant_of, held

SETTING = "default_transaction_read_only"


@asynccontextmanager
async def owner(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Writes whatever the database's default is."""
    conn = await asyncpg.connect(url, server_settings={SETTING: "off"})
    try:
        yield conn
    finally:
        await conn.close()


@pytest.fixture
async def role(postgres_server: PostgresServer, database_url: str) -> AsyncIterator[tuple[str, str]]:
    """A bot's role, whose name has to be quoted, and its URL."""
    name, database = f"Bot_{secrets.token_hex(4)}", database_url.rpartition("/")[2]
    async with owner(database_url) as conn:
        await install(conn)
        await conn.execute(f"create role \"{name}\" login password 'x' in role lockguard_app")
        yield name, postgres_server.url_for(database, user=name, password="x")
        await conn.execute(f'drop owned by "{name}"; drop role "{name}"')


async def sealed(url: str, *, options: dict[str, Any] | None = None, first: bool = False) -> None:
    async with create_pool(url, min_size=0, max_size=3, **(options or {})) as pool:
        async with PostgresFence(pool, seal_with_first_write=first) as fence:
            await fence.seal(grant_of(7), within=SOON)


@pytest.mark.parametrize("scope", ["role", "role in this database", "database"])
async def test_a_default_that_forbids_writes_is_named_with_what_takes_it_back(
    database_url: str, role: tuple[str, str], scope: str
) -> None:
    (name, url), database = role, database_url.rpartition("/")[2]
    whose = {
        "role": f'ROLE "{name}"',
        "role in this database": f'ROLE "{name}" IN DATABASE {database}',
        "database": f"DATABASE {database}",
    }[scope]
    async with owner(database_url) as conn:
        await conn.execute(f"alter {whose} set {SETTING} = on")
        with pytest.raises(ConfigurationError) as caught:
            await sealed(url)
        remedy = f"ALTER {whose} RESET {SETTING}"
        assert f"`{remedy}`" in str(caught.value)
        assert "\n" not in str(caught.value)
        await conn.execute(remedy)
        await sealed(url)


async def test_a_connection_that_asks_for_no_writes_is_told_where_to_leave_it_out(
    role: tuple[str, str],
) -> None:
    with pytest.raises(ConfigurationError, match=f"{SETTING} is on in the connection's own settings"):
        await sealed(role[1], options={"server_settings": {SETTING: "on"}})


async def test_a_server_that_takes_no_writes_for_now_is_unavailable_and_the_setting_is_named() -> None:
    # As providers do it while the disk is full: it passes without a change of the bot's.
    with PostgresServer() as server:
        async with owner(server.url) as conn:
            await install(conn)
            await conn.execute(f"alter system set {SETTING} = on")
            await conn.execute("select pg_reload_conf()")
            with pytest.raises(FenceUnavailable, match=f"{SETTING} is on for the whole server"):
                await sealed(server.url)


async def test_a_write_on_a_read_only_connection_says_why_its_check_cannot_be_made(
    database_url: str, role: tuple[str, str]
) -> None:
    async with (
        create_pool(database_url, min_size=0, max_size=3) as sealing,
        create_pool(role[1], min_size=0, max_size=3, server_settings={SETTING: "on"}) as pool,
    ):
        lease = await held(sealing)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as caught:
            async with fenced_transaction(pool, lease):
                pytest.fail("entered")
        assert any(SETTING in note for note in caught.value.__notes__)


async def test_between_two_primaries_a_url_of_several_hosts_has_none_for_now(
    database_url: str, role: tuple[str, str]
) -> None:
    async with owner(database_url) as conn:
        await conn.execute(f'alter role "{role[0]}" set {SETTING} = on')
    with pytest.raises(FenceUnavailable, match=f"what target_session_attrs asks for: .*{SETTING}"):
        await sealed(f"{role[1]}?target_session_attrs=read-write")


def test_a_command_on_what_takes_no_writes_says_what_may_be_the_cause(database_url: str) -> None:
    url = f"{database_url}?{SETTING}=on"
    result = CliRunner().invoke(fence, ["install", "--url", url])
    assert result.exit_code == 1
    assert f"this is a standby, or {SETTING} is on there" in result.output
