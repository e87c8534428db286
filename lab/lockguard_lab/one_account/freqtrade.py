"""freqtrade as it is published; only its configuration leads to the local exchange.

Its strategy is the user's own: for each pair it sees a signal to buy, always, and never one to sell.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, LocalExchange, ccxt_settings
from lockguard_lab.one_account.race import PAIRS, TTL_S, Bot, Guard, Stage
from lockguard_lab.servers import RedisServer

__all__ = ["freqtrades"]

_STRATEGY = """
import os, signal, time
from datetime import timedelta
from pathlib import Path

from freqtrade.strategy import IStrategy
{imports}

class Always({bases}IStrategy):
    INTERFACE_VERSION = 3
    timeframe = "1h"
    minimal_roi = {{"0": 10}}
    stoploss = -0.5
    shown_within = timedelta(seconds=1)
    startup_candle_count = 0
    process_only_new_candles = False
    order_types = {{"entry": "market", "exit": "market", "stoploss": "market", "stoploss_on_exchange": True}}

    def populate_indicators(self, dataframe, metadata):
        return dataframe

    def populate_entry_trend(self, dataframe, metadata):
        dataframe["enter_long"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe, metadata):
        return dataframe

    def bot_loop_start(self, **kwargs):
        super().bot_loop_start(**kwargs)
        Path("ready").touch()
        while not Path("go").exists():
            time.sleep(0.005)
        with open("rounds", "a") as rounds:
            rounds.write("x")

    def confirm_trade_entry(self, pair, **kwargs):
        confirmed = super().confirm_trade_entry(pair=pair, **kwargs)
        if confirmed and Path("end_here").exists():  # between the hook and the order
            how = Path("end_here").read_text()
            Path("end_here").unlink()
            Path("ended").touch()
            os.kill(os.getpid(), getattr(signal, how))
        return confirmed
"""
_WITHOUT_GATE = """
import one_account
from types import SimpleNamespace
one_account.gate_orders = lambda *_, **__: SimpleNamespace(resource=lambda pair: f"binance:{{pair}}")
"""


@asynccontextmanager
async def freqtrades(
    python: Path, recipe: Path, guard: Guard, keep: Path | None = None
) -> AsyncIterator[Stage]:
    """An exchange and two instances of freqtrade on one account of it, which wait to be told to begin.

    Args:
        python: an interpreter that has freqtrade and lockguard.
        recipe: the file of the recipe.
        guard: how they are guarded.
        keep: a folder for the logs of both.

    Raises:
        ConfigurationError: there is no openssl, which makes the certificate.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="one-account-")))
        redis = await stack.enter_async_context(RedisServer())
        exchange = LocalExchange(symbols=[*PAIRS, "BTCUSDT"], tls=_certificate(folder))
        await stack.enter_async_context(exchange)
        settings = {"LOCKGUARD_REDIS_URL": redis.url, "LOCKGUARD_TTL": f"{TTL_S}s"}
        bots: list[Bot] = []
        for name in ("first", "second"):
            home = _home(folder / name, recipe, guard, exchange.url)
            if keep is not None:
                stack.callback(shutil.copy, home / "log", keep / f"{guard}-{name}.log")
            command = [
                str(python),
                "-m",
                "freqtrade",
                "trade",
                "--config",
                "config.json",
                "--strategy",
                "Always",
            ]
            command += ["--strategy-path", "strategies", "--userdir", str(home)]
            bots.append(
                await stack.enter_async_context(
                    Bot(home, [*command, "--db-url", "sqlite:///trades.sqlite"], settings)
                )
            )
        yield Stage(exchange, redis, *bots)


def _home(home: Path, recipe: Path, guard: Guard, exchange_url: str) -> Path:
    (home / "strategies").mkdir(parents=True)
    shutil.copy(recipe, home / "strategies" / "one_account.py")
    (home / "strategies" / "always.py").write_text(_strategy(guard), encoding="utf-8")
    (home / "config.json").write_text(json.dumps(_config(home.name, exchange_url)), encoding="utf-8")
    return home


def _strategy(guard: Guard) -> str:
    if guard == "none":
        return _STRATEGY.format(imports="", bases="")
    imports = "from one_account import OneAccount\n"
    if guard == "hooks":
        imports += _WITHOUT_GATE.format()
    return _STRATEGY.format(imports=imports, bases="OneAccount, ")


def _config(name: str, exchange_url: str) -> dict[str, Any]:
    pricing = {"price_side": "other", "use_order_book": True, "order_book_top": 1}
    return {
        "bot_name": name,
        "max_open_trades": len(PAIRS),
        "stake_currency": "USDT",
        "stake_amount": 100,
        "dry_run": False,
        "trading_mode": "futures",
        "margin_mode": "isolated",
        "entry_pricing": pricing,
        "exit_pricing": pricing,
        "exchange": {
            "name": "binance",
            "key": LOCAL_API_KEY,
            "secret": LOCAL_SECRET,
            "ccxt_config": {**ccxt_settings(exchange_url), "enableRateLimit": False},
            "pair_whitelist": list(PAIRS),
            "enable_ws": False,
        },
        "pairlists": [{"method": "StaticPairList"}],
        "initial_state": "running",
        "internals": {"process_throttle_secs": 1, "heartbeat_interval": 0},
    }


def _certificate(folder: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        raise ConfigurationError("a certificate is made with openssl, which is not installed")
    files = folder / "certificate.pem", folder / "key.pem"
    what = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command = [openssl, "req", *what, "-keyout", str(files[1]), "-out", str(files[0])]
    subprocess.run(command, check=True, capture_output=True)
    return files
