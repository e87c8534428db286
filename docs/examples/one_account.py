"""Two freqtrade instances on one futures account: a pair belongs to the one whose table has it."""

import logging
from contextlib import suppress
from datetime import timedelta
from functools import cache

from freqtrade.enums import RunMode
from freqtrade.persistence import Trade

from lockguard import LockguardError, ResourceBusy
from lockguard.sync import LockGuard
from lockguard_ccxt import gate_orders

logger = logging.getLogger(__name__)
guard = cache(LockGuard.from_env)  # LOCKGUARD_REDIS_URL: the same server for both instances
leases = {}  # of this process, by pair; they outlive a strategy that is reloaded


class OneAccount:
    """A mixin, named before IStrategy: ``class MyStrategy(OneAccount, IStrategy)``."""

    shown_within = timedelta(seconds=5)  # in which the exchange shows an order in its lists

    def bot_start(self, **kwargs):
        super().bot_start(**kwargs)
        self.live = self.dp.runmode is RunMode.LIVE
        if self.live:
            self.account = self.dp._exchange._api
            self.gate = gate_orders(self.account, guard(), leases=lambda: list(leases.values()))

    def bot_loop_start(self, **kwargs):
        mine = {trade.pair for trade in Trade.get_trades_proxy(is_open=True)} if self.live else set()
        for pair in {*leases} - mine:
            self.give_back(pair)
        for pair in mine:
            try:
                self.hold(pair)
            except LockguardError as error:
                logger.warning("%s is in this table, and has no lease: %s", pair, error)
        super().bot_loop_start(**kwargs)

    def confirm_trade_entry(self, pair, **kwargs):
        try:
            free = not self.live or (self.hold(pair) and self.is_free(pair))
        except Exception as error:  # freqtrade takes a hook that raises for one that agrees
            logger.warning("%s is not bought now: %s", pair, error)
            free = False
        if not free:
            self.give_back(pair)
        return free and super().confirm_trade_entry(pair=pair, **kwargs)

    def confirm_trade_exit(self, pair, **kwargs):
        try:
            if self.live:
                self.hold(pair)
        except ResourceBusy as busy:
            logger.warning("%s is not sold: %s", pair, busy)
            return False
        except LockguardError as error:  # an exit does not wait for Redis
            logger.warning("%s is sold without a lease: %s", pair, error)
        return super().confirm_trade_exit(pair=pair, **kwargs)

    def hold(self, pair):
        """Hold the pair until it is given back; raises if it cannot be had now."""
        if pair not in leases or leases[pair].loss:
            self.give_back(pair)
            name = self.gate.resource(pair)
            leases[pair] = guard().acquire(name, on_busy="raise", at_least=self.shown_within)
        return True

    def is_free(self, pair):
        """Whether the account has neither a position nor an order that opens one, read anew."""
        positions = self.account.fetch_positions([pair])
        orders = self.account.fetch_open_orders(pair)
        free = not any(p["contracts"] for p in positions) and all(o["reduceOnly"] for o in orders)
        if not free:
            logger.warning("%s is not bought: the account has a position or an order in it", pair)
        return free

    def give_back(self, pair):
        if lease := leases.pop(pair, None):
            with suppress(LockguardError):  # it was lost meanwhile
                lease.release()
