"""One instance trades. The others stand by, and one of them takes over when it ends, hangs or is cut off."""

import asyncio
import contextlib
import os
import signal
from datetime import timedelta

import asyncpg

from lockguard import LeaseLost, LockGuard, LockguardError
from lockguard_asyncpg import PostgresFence, fenced_transaction


async def trade(pool: asyncpg.Pool) -> None:
    """What only the leader does. It is cancelled when the lease is lost."""
    while True:
        async with fenced_transaction(pool) as database:  # refused if another instance leads by now
            await database.execute("insert into beats (process) values ($1)", os.getpid())
        await asyncio.sleep(0.05)


async def main() -> None:
    this = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, this.cancel
    )  # so that the lease is released
    async with (
        asyncpg.create_pool(os.environ["LOCKGUARD_DATABASE_URL"], min_size=1) as pool,
        LockGuard.from_env(fence=PostgresFence(pool)) as guard,
    ):
        while True:
            try:
                async with guard.hold("leader:bot-7", wait=timedelta(minutes=1)):
                    print("leads", flush=True)
                    await trade(pool)
            except LeaseLost as lost:
                print(f"leads no longer: {lost.reason.value}", flush=True)
            except (
                LockguardError
            ) as error:  # another one leads, or a server does not answer or refused a write
                print(f"stands by: {error}", flush=True)
                await asyncio.sleep(1)


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
