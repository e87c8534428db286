"""Commands and bots behind PgBouncer in transaction mode, with ``?statement_cache_size=0`` in the URL."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._dsn import arguments
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lockguard_lab.servers import PostgresServer

SYMBOLS = ("APTUSDT", "SUIUSDT", "ARBUSDT")
OPEN = {"action": "open", "side": "long", "quantity": "10", "stop": "2%"}


@pytest.fixture(scope="module")
def pooler(postgres_server: PostgresServer) -> Iterator[PgBouncer]:
    if find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    with PgBouncer(postgres_server, pool_size=3) as pooler:
        yield pooler


async def lockguard(*words: str, given: str = "", **env: str) -> tuple[int, str]:
    """Run a command; its exit code and all that it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lockguard", *words),
        env={**os.environ, **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(given.encode())
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_bot_and_the_commands_work_behind_a_pooler_in_transaction_mode(
    pooler: PgBouncer, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    env = {
        "LOCKGUARD_DATABASE_URL": f"{pooler.url_for(database_url)}?statement_cache_size=0",
        "LOCKGUARD_REDIS_URL": redis_url,
    }
    signals = tmp_path / "signals.jsonl"
    signals.write_text("".join(json.dumps({**OPEN, "id": name, "symbol": name}) + "\n" for name in SYMBOLS))
    async with LocalExchange() as exchange:
        env["LOCKGUARD_EXCHANGE_URL"] = exchange.url
        for words in ("fence install", "positions migrate", "positions migrate --protect"):
            code, said = await lockguard(*words.split(), **env)
            assert code == 0, said
        bots = await asyncio.gather(
            *(lockguard("bot", "run", "--once", "--signals", str(signals), **env) for _ in range(3))
        )
        for code, said in bots:
            assert code == 0, said
        for words in ("fence check", "fence status", "positions diagnose --mode check"):
            code, said = await lockguard(*words.split(), **env)
            assert code == 0, said
        assert [len(exchange.record().entries(symbol)) for symbol in SYMBOLS] == [1, 1, 1]
    conn = await asyncpg.connect(database_url)
    rows = await conn.fetch("select symbol, status from monitoring.positions order by symbol")
    await conn.close()
    assert [tuple(row) for row in rows] == [(symbol, "active") for symbol in sorted(SYMBOLS)]


@pytest.mark.parametrize(
    ("url", "given"),
    [
        (
            "postgresql://bot:p%40w@pooler:6432/trading?statement_cache_size=0",
            {"dsn": "postgresql://bot:p%40w@pooler:6432/trading", "statement_cache_size": 0},
        ),
        (
            "postgresql://pooler/trading?sslmode=disable&statement_cache_size=7&application_name=a%20b",
            {
                "dsn": "postgresql://pooler/trading?sslmode=disable&application_name=a+b",
                "statement_cache_size": 7,
            },
        ),
        ("postgresql://host/trading?sslmode=disable", {"dsn": "postgresql://host/trading?sslmode=disable"}),
        (None, {"dsn": None}),
    ],
)
def test_the_size_of_the_cache_is_an_argument_and_the_rest_of_the_url_stays(
    url: str | None, given: dict[str, object]
) -> None:
    assert arguments(url) == given


@pytest.mark.parametrize("size", ["", "-1", "none", "0x1", "1e3", "S3cret"])
def test_a_size_that_is_none_is_refused_and_not_shown(size: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        arguments(f"postgresql://bot:pw@host/trading?statement_cache_size={size}")
    assert str(refused.value) == (
        "statement_cache_size in the database URL must be a whole number;"
        " behind a pooler in transaction mode write 0"
    )
