"""A bot's rows by SQLAlchemy 2."""

import asyncio
import os
import sys

import asyncpg
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard_asyncpg import PostgresFence
from lockguard_asyncpg.sqlalchemy import fenced_engine

URL = os.environ["LOCKGUARD_DATABASE_URL"]

engine = fenced_engine(create_async_engine(URL.replace("postgresql:", "postgresql+asyncpg:")))
sessions = async_sessionmaker(engine)


class Base(DeclarativeBase): ...


class Position(Base):
    __tablename__ = "positions"
    symbol: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]


async def open_position(guard: LockGuard, symbol: str) -> None:
    async with guard.hold(f"binance:{symbol}"):
        async with sessions.begin() as session:
            session.add(Position(symbol=symbol, status="opening"))
        print("opening", flush=True)
        await asyncio.sleep(0.5)  # the order and its fill: no transaction is open meanwhile
        async with sessions.begin() as session:
            position = await session.get(Position, symbol)
            position.status = "active"


async def main() -> None:
    async with (
        asyncpg.create_pool(URL, min_size=0, max_size=4) as pool,  # the fence's own
        LockGuard.from_env(fence=PostgresFence(pool)) as guard,
    ):
        try:
            await open_position(guard, sys.argv[1])
            print("active")
        except (StaleToken, LeaseLost) as refused:
            print(f"refused: {refused}")
        finally:
            await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
