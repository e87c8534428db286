"""Two bots of docker-compose.yml, their servers, and the signals that they are given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg
import redis.asyncio

from lockguard_lab.exchange.remote import ControlClient

if TYPE_CHECKING:
    from tests.packaging.composition import Composition

OPTIONS = "--ttl 2 --recover-every 0.5 --claim-after 2 --sync-every 2 --receive-window 1 --reads-lag 1"
SIGNAL = {"action": "open", "side": "long", "quantity": "10", "stop": "2%"}
APT, SUI = "APTUSDT", "SUIUSDT"
SOON_S = 60.0
"""The shared machine may be slow; what is waited for takes 2 to 6 s."""


class Bots:
    """Two bots of a service, their servers, and the signals that they are given."""

    def __init__(self, compose: Composition, service: str, passwords: dict[str, str]) -> None:
        self.compose = compose
        self.service = service
        of_redis, of_postgres = (passwords[f"LOCKGUARD_{name}_PASSWORD"] for name in ("REDIS", "POSTGRES"))
        self.redis = redis.asyncio.Redis.from_url(compose.url("REDIS", of_redis), decode_responses=True)
        self.database_url = compose.url("POSTGRES", of_postgres)
        self.control = ControlClient(compose.url("EXCHANGE", ""))

    @staticmethod
    async def until(condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(SOON_S):
            while not await condition():
                await asyncio.sleep(0.05)

    async def until_logged(self, container: str, text: str, *, times: int = 1) -> None:
        async def logged() -> bool:
            said = await asyncio.to_thread(self.compose.run, "docker", "logs", container)
            return said.stdout.count(text) >= times

        await self.until(logged)

    async def both_run(self) -> None:
        for container in self.containers().values():
            await self.until_logged(container, "running on binance")

    def containers(self) -> dict[str, str]:
        found = self.compose.containers(running=True)
        return {name: container for name, container in found.items() if name.startswith(f"{self.service}-")}

    async def give(self, symbol: str) -> None:
        await self.redis.xadd("signals", {**SIGNAL, "id": f"open {symbol}", "symbol": symbol})

    async def holder_of(self, symbol: str) -> str:
        """The container whose bot holds the symbol and has sent its entry; waits until there is one."""
        name = ""

        async def held() -> bool:
            nonlocal name
            name = str(await self.redis.hget(f"lockguard:{{binance:{symbol}}}", "holder") or "")
            return bool(name) and bool((await self.control.record()).orders)

        await self.until(held)
        host = name.partition(":")[0]
        return next(found for found in self.containers().values() if found.startswith(host))

    async def rows(self) -> list[tuple[str, str]]:
        conn = await asyncpg.connect(self.database_url)
        try:
            rows = await conn.fetch("select symbol, status from monitoring.positions order by id")
        finally:
            await conn.close()
        return [(row["symbol"], row["status"]) for row in rows]

    async def until_active(self, *symbols: str) -> None:
        async def active() -> bool:
            return await self.rows() == [(symbol, "active") for symbol in symbols]

        await self.until(active)

    async def all_is_well(self, *symbols: str) -> None:
        """One entry, one stop and one row for each; the exit codes of the commands say the same."""
        record = await self.control.record()
        for symbol in symbols:
            assert (len(record.entries(symbol)), len(record.open_stops(symbol))) == (1, 1)
        assert await self.rows() == [(symbol, "active") for symbol in symbols]
        alive = next(iter(self.containers())).rpartition("-")
        for command in ("positions diagnose --mode check", "positions recover", "fence check"):
            self.compose("exec", "--index", alive[2], self.service, "lockguard", *command.split())


async def started(compose: Composition, service: str) -> Bots:
    passwords = compose.set_passwords()
    compose.env["LOCKGUARD_BOT_OPTIONS"] = OPTIONS
    await asyncio.to_thread(compose, "up", "--build", "--detach", service)
    bots = Bots(compose, service, passwords)
    await bots.both_run()
    return bots
