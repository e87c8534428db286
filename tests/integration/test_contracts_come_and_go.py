"""A contract that is listed or delisted while bots run is one symbol's trouble, and no other's."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lockguard._audience import Audience
from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_ccxt import GuardedExchange, UnknownMarket
from lockguard_lab.exchange import Execution, Fault, FaultKind, Operation, Side
from lockguard_positions import Alert, Opened, SyncAction
from lockguard_positions._cli import positions
from tests.integration.test_bot import FAST, OPEN, STREAM, Stage, stage, until
from tests.integration.test_bot_trader import Desk, closing, desk, opening
from tests.integration.test_positions_not_ours import OLD_INTENTS

__all__ = ["desk", "stage"]

FRESH = "FRESH/USDT:USDT"
MS = timedelta(milliseconds=1)


class Alerts(list[Alert]):
    """What a person was told."""

    def on(self, event: object) -> None:
        if isinstance(event, Alert):
            self.append(event)


def watched(desk: Desk) -> Alerts:
    alerts = Alerts()
    desk.manager._telling._audience = Audience([alerts], clock=SYSTEM_CLOCK)
    return alerts


async def opened(desk: Desk, symbol: str) -> int:
    result = await desk.manager.open_position_atomic(
        None, symbol, "binance", "long", "10", desk.exchange.price(symbol), "2"
    )
    assert isinstance(result, Opened)
    return result.position.id


def by_symbol(report: Any) -> dict[str, SyncAction]:
    return {outcome.symbol: outcome.action for outcome in report.outcomes}


async def test_a_position_by_hand_in_a_contract_of_today_is_looked_at_like_any_other(desk: Desk) -> None:
    await opened(desk, "APTUSDT")
    desk.exchange.list_contract(FRESH)
    desk.exchange.trade_by_hand(FRESH, Side.BUY, Decimal(5))
    forget_when_markets_were_loaded(desk)
    report = await desk.manager.sync_exchange_positions("binance")
    assert by_symbol(report) == {"APTUSDT": SyncAction.IN_STEP, "FRESHUSDT": SyncAction.ADOPTED}
    assert await desk.does(closing("c1")) == ("closed", False)


async def test_a_signal_for_a_contract_of_today_is_carried_out_and_a_name_of_nothing_costs_one_load(
    desk: Desk,
) -> None:
    desk.exchange.list_contract(FRESH)
    forget_when_markets_were_loaded(desk)
    signal = opening("s1")
    fresh = type(signal)(signal.id, "FRESHUSDT", None, signal.side, signal.quantity, signal.stop)
    assert await desk.does(fresh) == ("opened", False)
    loads = len(infos(desk))
    for number in range(20):
        with pytest.raises(ValueError, match="has no market 'NOPE"):
            await desk.trader.carry_out(type(signal)("s2", f"NOPE{number}", None, *signal_rest(signal)))
    assert len(infos(desk)) == loads


async def test_an_exit_in_doubt_stays_in_doubt_though_its_market_is_gone(desk: Desk) -> None:
    """Were its row ended, it could still arrive when the contract is back, and reduce what is opened then."""
    desk.exchange.list_contract(FRESH)
    await desk.manager._venue("binance")._exchange.exchange.load_markets(True)
    row = await opened(desk, FRESH)
    desk.exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, Execution.NEVER))
    await desk.manager.close_position("FRESHUSDT", "binance")
    desk.exchange.delist_contract(FRESH)
    forget_when_markets_were_loaded(desk)
    report = await desk.manager.sync_exchange_positions("binance")
    assert by_symbol(report) == {"FRESHUSDT": SyncAction.NO_MARKET}
    left = await desk.manager.close_position("FRESHUSDT", "binance", reason="closed by hand")
    assert left is not None
    assert (left.id, left.unsettled) == (row, True)
    assert "its exit may still arrive" in (left.error_details or "")
    orders = len(desk.exchange.record().orders)
    await desk.pool.execute(OLD_INTENTS)
    ended = await desk.manager.close_position("FRESHUSDT", "binance", reason="closed by hand")
    assert ended is not None
    assert (ended.id, ended.status.value, ended.exit_reason) == (
        row,
        "closed",
        "closed by hand: its market is gone",
    )
    assert len(desk.exchange.record().orders) == orders


async def test_a_row_whose_market_is_gone_is_told_and_stops_no_other_symbol_and_is_ended_by_a_word(
    desk: Desk,
) -> None:
    """On 8290112 every pass raised before it looked at another symbol, and only SQL could end the row."""
    alerts = watched(desk)
    desk.exchange.list_contract(FRESH)
    await desk.manager._venue("binance")._exchange.exchange.load_markets(True)
    gone = await opened(desk, FRESH)
    other = await opened(desk, "APTUSDT")
    orders = len(desk.exchange.record().orders)
    desk.exchange.delist_contract(FRESH)
    forget_when_markets_were_loaded(desk)
    desk.exchange.trade_by_hand("APTUSDT", Side.SELL, Decimal(10))  # the other one needs the pass, too
    report = await desk.manager.sync_exchange_positions("binance")
    assert by_symbol(report) == {"APTUSDT": SyncAction.CLOSED, "FRESHUSDT": SyncAction.NO_MARKET}
    assert not report.settled
    (alert,) = [a for a in alerts if a.resource == "binance:FRESHUSDT"]
    assert "unprotected" in alert.message
    assert "'lockguard positions close' ends a row of it" in alert.message
    (cleaned,) = await desk.manager.clean_up("FRESHUSDT", "binance")
    assert cleaned.action is SyncAction.NO_MARKET

    ended = await desk.manager.close_position("FRESHUSDT", "binance", reason="closed by hand")
    assert ended is not None
    assert (ended.id, ended.status.value) == (gone, "closed")
    assert ended.exit_reason == "closed by hand: its market is gone"
    assert gone != other
    assert len(desk.exchange.record().orders) == orders + 1  # the person's own
    # The exchange still shows what it cannot trade: that stays a person's matter, and no other symbol's.
    left = by_symbol(await desk.manager.sync_exchange_positions("binance"))
    assert left == {"FRESHUSDT": SyncAction.NO_MARKET}
    assert (await desk.manager.recover("binance")).settled


async def test_a_name_of_nothing_is_no_row_to_be_ended(desk: Desk) -> None:
    with pytest.raises(ConfigurationError, match="has no market 'NOPEUSDT'"):
        await desk.manager.close_position("NOPEUSDT", "binance")


async def test_a_bot_lives_through_contracts_that_come_and_go_and_the_commands_end_the_row(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.exchange.list_contract(FRESH)
    await stage.stream.xadd(STREAM, {**OPEN, "symbol": "FRESHUSDT"})
    bot = await stage.bot("--json", "--stream", STREAM, *FAST)
    await until(stage.protected)
    await until(stage.acknowledged)
    stage.exchange.delist_contract(FRESH)
    stage.exchange.list_contract("NEWER/USDT:USDT")
    stage.exchange.trade_by_hand("NEWER/USDT:USDT", Side.BUY, Decimal(5))
    await stage.stream.xadd(STREAM, {**OPEN, "id": "s2"})
    await until(stage.acknowledged)
    bot.terminate()
    ended = await bot.end()
    assert (ended.code, ended.outcomes()) == (0, {"s1": "opened", "s2": "opened"})

    monkeypatch.chdir(tmp_path)
    for name, value in stage.env.items():
        monkeypatch.setenv(name, value)
    runner = CliRunner()
    found = json.loads((await command(runner, "diagnose", "--json", "--older-than", "0")).output)
    kinds = {(finding["kind"], finding["symbol"]) for finding in found["findings"]}
    assert ("no_market", "FRESHUSDT") in kinds
    cleaned = await command(runner, "cleanup", "--confirm", "--json")
    assert cleaned.exit_code in (0, 1), cleaned.output
    dry = await command(runner, "close", "FRESHUSDT")
    assert "--confirm ends the row without an order" in dry.output
    assert (dry.exit_code, await rows(stage, "FRESHUSDT")) == (1, ["active"])
    done = await command(runner, "close", "FRESHUSDT", "--confirm")
    assert (done.exit_code, await rows(stage, "FRESHUSDT")) == (0, ["closed"]), done.output


async def test_what_is_no_symbol_is_refused_by_close_with_and_without_confirm(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in stage.env.items():
        monkeypatch.setenv(name, value)
    for symbol in ("", "a\nb", "NOPEUSDT", "NOPE/USDT:USDT"):
        told = [await command(CliRunner(), "close", symbol, *more) for more in ((), ("--confirm",))]
        assert all(isinstance(one.exception, ConfigurationError) for one in told), told
        assert str(told[0].exception) == str(told[1].exception)
    none = await command(CliRunner(), "close", "APTUSDT")
    assert (none.exit_code, none.output) == (0, "binance:APTUSDT has no open position.\n")


async def command(runner: CliRunner, *arguments: str) -> Any:
    return await asyncio.to_thread(runner.invoke, positions, list(arguments))


async def rows(stage: Stage, symbol: str) -> list[str]:
    found = await stage.pool.fetch("select status from monitoring.positions where symbol = $1", symbol)
    return [row[0] for row in found]


def forget_when_markets_were_loaded(desk: Desk) -> None:
    desk.manager._venue("binance")._exchange._loaded_at = None


def infos(desk: Desk) -> list[Any]:
    return [r for r in desk.exchange.record().requests if r.operation == "exchange_info"]


def signal_rest(signal: Any) -> tuple[Any, ...]:
    return signal.side, signal.quantity, signal.stop


# --- contracts that count in something else ---


def counts_in_thousands(client: Any, symbol: str) -> None:
    """As ccxt would list a contract of a thousand coins."""
    client.markets = {**client.markets, symbol: {**client.markets[symbol], "contractSize": 1000}}


async def test_contracts_that_count_in_something_else_are_refused_as_the_markets_are_loaded(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    client = desk.manager._venue("binance")._exchange.exchange
    counts_in_thousands(client, "APT/USDT:USDT")
    counts_in_thousands(client, "SOL/USDT:USDT")
    client.markets["XRP/USDT:USDT"] = {**client.markets["XRP/USDT:USDT"], "inverse": True, "linear": False}
    guarded = GuardedExchange(client)
    with caplog.at_level("INFO", logger="lockguard.ccxt"):
        await guarded.load(["BTCUSDT"])
    assert [record.getMessage() for record in caplog.records] == [
        "no positions are kept in 2 contracts of binance (contract size), such as APT/USDT:USDT",
        "no positions are kept in 1 contracts of binance (inverse), such as XRP/USDT:USDT",
    ]
    for symbol, why in (("APTUSDT", "counts in contracts of 1000"), ("XRP/USDT:USDT", "is inverse")):
        with pytest.raises(ConfigurationError, match=f"^{symbol[:3]}/USDT:USDT {why}"):
            await guarded.load(["BTCUSDT", symbol])
    with pytest.raises(ConfigurationError, match="has no market 'NOPE'"):
        await guarded.load(["NOPE"])
    assert desk.exchange.record().orders == ()


async def test_a_row_in_a_contract_that_counts_in_something_else_gets_no_order(desk: Desk) -> None:
    """It was made before such contracts were refused: its number is not what the exchange counts."""
    alerts = watched(desk)
    await opened(desk, "APTUSDT")
    (stop,) = desk.exchange.record().open_stops("APTUSDT")
    desk.exchange.cancel_by_hand(stop.id)
    before = len(desk.exchange.record().requests)
    counts_in_thousands(desk.manager._venue("binance")._exchange.exchange, "APT/USDT:USDT")
    report = await desk.manager.sync_exchange_positions("binance")
    assert by_symbol(report) == {"APTUSDT": SyncAction.LEFT_ALONE}
    with pytest.raises(ConfigurationError, match="counts in contracts of 1000"):
        await desk.manager.move_stop("APTUSDT", "binance", "8")
    sent = {one.operation for one in desk.exchange.record().requests[before:]}
    assert not [one for one in sent if one.writes]
    (alert,) = alerts
    assert "counts in contracts of 1000" in alert.message


async def test_a_row_of_another_market_of_that_name_gets_no_order(desk: Desk) -> None:
    """A name of today may be another contract than the one that the row was written for."""
    alerts = watched(desk)
    await opened(desk, "APTUSDT")
    (stop,) = desk.exchange.record().open_stops("APTUSDT")
    desk.exchange.cancel_by_hand(stop.id)
    await desk.pool.execute("update monitoring.positions set market = 'SOL/USDT:USDT'")
    before = len(desk.exchange.record().requests)
    report = await desk.manager.sync_exchange_positions("binance")
    assert by_symbol(report) == {"APTUSDT": SyncAction.NO_MARKET}
    with pytest.raises(UnknownMarket, match="position 1 is one in SOL/USDT:USDT"):
        await desk.manager.close_position("APTUSDT", "binance")
    assert not [one for one in desk.exchange.record().requests[before:] if one.operation.writes]
    (alert,) = alerts
    assert "APTUSDT stands for APT/USDT:USDT now" in alert.message


async def test_a_row_whose_market_is_gone_is_told_though_its_name_leads_to_another_one(desk: Desk) -> None:
    """Of that one it would be said that all is well, or the row would end, as nothing is held there."""
    alerts = watched(desk)
    await opened(desk, "APTUSDT")
    await desk.pool.execute("update monitoring.positions set symbol = 'OLDUSDT', market = null")
    desk.exchange.trade_by_hand("APTUSDT", Side.SELL, Decimal(10))
    client = desk.manager._venue("binance")._exchange.exchange
    client.markets_by_id = {**client.markets_by_id, "OLDUSDT": [client.markets["SOL/USDT:USDT"]]}
    client.markets = dict(client.markets)
    report = await desk.manager.sync_exchange_positions("binance")
    assert by_symbol(report) == {"OLDUSDT": SyncAction.NO_MARKET}
    assert await desk.pool.fetchval("select status from monitoring.positions") == "active"
    assert any("its name leads to SOL/USDT:USDT" in alert.message for alert in alerts)
