"""A synchronous bot in miniature: it decides in a hook and orders elsewhere, as freqtrade does.

Run as a module, with the addresses and the guard in its environment; its signs are those of
:mod:`lockguard_lab.one_account.race`. A file ``exit`` has it sell what it has bought.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import LockguardError
from lockguard.sync import Lease, LockGuard
from lockguard_ccxt import ccxt_errors, gate_orders, resource_key
from lockguard_lab.child_process import begin_as_child
from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, LocalExchange, point_at
from lockguard_lab.one_account.race import PAIRS, TTL_S, Bot, Guard, Stage
from lockguard_lab.servers import RedisServer

__all__ = ["PlainBot", "plain_bots"]

_URL, _GUARD = "ONE_ACCOUNT_EXCHANGE", "ONE_ACCOUNT_GUARD"
_PAUSE = Event()
_PAUSE_S = 0.1


class PlainBot:
    """The bot.

    Args:
        exchange: of ccxt, synchronous.
        guard: of the leases; ``None`` for a bot without.
    """

    def __init__(self, exchange: Any, guard: LockGuard | None) -> None:
        self._exchange = exchange
        self._guard = guard
        self._bought: set[str] = set()
        self._leases: dict[str, Lease] = {}

    def go_round(self) -> None:
        """Decide and order, for each pair."""
        for pair in {*self._leases} - self._bought:
            self._give_back(pair)
        for pair in PAIRS:
            selling = pair in self._bought
            if selling and not Path("exit").exists():
                continue
            began = SYSTEM_CLOCK.now()
            try:
                if self._hook(pair, selling=selling):
                    self._order(pair, selling=selling)
            except (LockguardError, ccxt_errors().BaseError) as error:
                sys.stdout.write(f"{began:.3f} {pair}: {error}\n")
                sys.stdout.flush()

    def _hook(self, pair: str, *, selling: bool) -> bool:
        if self._guard is not None:
            if pair not in self._leases or self._leases[pair].loss:
                self._give_back(pair)
                resource = resource_key(self._exchange, pair)
                self._leases[pair] = self._guard.acquire(resource, on_busy="raise")
            held = any(position["contracts"] for position in self._exchange.fetch_positions([pair]))
            if held is not selling:
                return False
        if (end := Path("end_here")).exists():
            how = end.read_text(encoding="utf-8")
            end.unlink()
            Path("ended").touch()
            os.kill(os.getpid(), getattr(signal, how))
        return True

    def _give_back(self, pair: str) -> None:
        if lease := self._leases.pop(pair, None):
            with suppress(LockguardError):  # it was lost meanwhile
                lease.release()

    def _order(self, pair: str, *, selling: bool) -> None:
        side, params = ("sell", {"reduceOnly": True}) if selling else ("buy", {})
        price = float(self._exchange.fetch_ticker(pair)["last"])
        amount = self._exchange.amount_to_precision(pair, 200 / price)
        self._exchange.create_order(pair, "market", side, amount, None, params)
        (self._bought.discard if selling else self._bought.add)(pair)


@asynccontextmanager
async def plain_bots(guard: Guard) -> AsyncIterator[Stage]:
    """An exchange and two bots on one account of it, which wait to be told to begin."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="one-account-")))
        redis = await stack.enter_async_context(RedisServer())
        exchange = await stack.enter_async_context(LocalExchange(symbols=[*PAIRS]))
        settings = {"LOCKGUARD_REDIS_URL": redis.url, "LOCKGUARD_TTL": f"{TTL_S}s"}
        settings |= {_URL: exchange.url, _GUARD: guard}
        bots: list[Bot] = []
        for name in ("first", "second"):
            home = folder / name
            home.mkdir()
            bots.append(
                await stack.enter_async_context(Bot(home, [sys.executable, "-m", __name__], settings))
            )
        yield Stage(exchange, redis, *bots)


def _main() -> None:
    begin_as_child()
    kind: Any = import_module("ccxt").binanceusdm
    exchange = kind({"apiKey": LOCAL_API_KEY, "secret": LOCAL_SECRET, "enableRateLimit": False})
    point_at(exchange, os.environ[_URL])
    exchange.load_markets()
    how = os.environ[_GUARD]
    if how == "full":
        gate_orders(exchange, needed=timedelta(milliseconds=200))
    bot = PlainBot(exchange, None if how == "none" else LockGuard.from_env())
    Path("ready").touch()
    while not Path("go").exists():
        _PAUSE.wait(0.005)
    while True:
        with Path("rounds").open("a", encoding="utf-8") as rounds:
            rounds.write("x")
        bot.go_round()
        _PAUSE.wait(_PAUSE_S)


if __name__ == "__main__":
    _main()
