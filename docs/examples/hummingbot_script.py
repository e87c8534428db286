"""A script of hummingbot: of the instances on one account one trades, and the others stand by."""

import asyncio
from datetime import timedelta
from decimal import Decimal

from hummingbot.core.data_type.common import OrderType
from hummingbot.strategy.script_strategy_base import ScriptStrategyBase

from lockguard import Lease, LeaseLost, LockGuard, LockguardError

guard = LockGuard.from_env()


class OneTrades(ScriptStrategyBase):
    markets = {"binance_perpetual": {"APT-USDT"}}
    leading: asyncio.Task[None] | None = None
    lease: Lease | None = None
    ordered = False

    def on_tick(self) -> None:
        # hummingbot calls this inside its event loop, so it must not wait for a lock: a task does.
        if self.leading is None:
            self.leading = asyncio.create_task(self.lead())
        if self.lease is None:
            return  # another instance trades
        try:
            self.lease.ensure(timedelta(seconds=3))  # the connector sends the order a little later
        except LeaseLost as lost:
            self.logger().warning("nothing is ordered in this tick: %s", lost)
        else:
            self.trade()

    def trade(self) -> None:
        """Your strategy. It begins from what the account has, not from what this instance has done."""
        if not self.ordered and not self.connectors["binance_perpetual"].account_positions:
            self.ordered = True
            self.buy("binance_perpetual", "APT-USDT", Decimal(10), OrderType.MARKET)

    async def lead(self) -> None:
        while True:
            try:
                async with guard.hold("leader:binance_perpetual", wait=timedelta(minutes=1)) as lease:
                    await asyncio.sleep(5)  # so that the connector knows what the last leader ordered
                    self.lease = lease
                    self.logger().info("this instance trades")
                    await asyncio.Event().wait()  # until the lease is lost, or stop() is called
            except LockguardError as error:
                self.logger().warning("this instance stands by: %s", error)
            finally:
                self.lease = None
            await asyncio.sleep(1)

    def stop(self, clock: object) -> None:
        if self.leading is not None:
            self.leading.cancel()  # releases the lease: another instance trades
        super().stop(clock)
