"""Mistakes in the flow of positions, and in what sends its orders."""

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Change, Planted

__all__ = ["FLOW"]

_CCXT, _POSITIONS = "lockguard_ccxt", "lockguard_positions"
_BOTS = "bots without a guard"
_OURS = "our own past"
_CLASSIC = "a trading bot's classic"


def _flow(
    name: str,
    origin: str,
    file: str,
    old: str,
    new: str,
    law: str = "",
    *,
    theme: str = "",
    quick: bool = False,
    more: tuple[Change, ...] = (),
) -> Planted:
    return Planted(name, origin, file, old, new, law, theme, quick, "flow", more)


FLOW: tuple[Planted, ...] = (
    # --- what is sent ---
    _flow(
        "a stop that is not reduce-only",
        _CLASSIC,
        f"{_CCXT}/_venues.py",
        '        """The parameters of a stop; ``stopLossPrice`` makes ccxt use the algo order API."""\n'
        '        return {"stopLossPrice": trigger, "reduceOnly": True, "clientOrderId": client_id}',
        '        """The parameters of a stop; ``stopLossPrice`` makes ccxt use the algo order API."""\n'
        '        return {"stopLossPrice": trigger, "clientOrderId": client_id}',
        "P1",
    ),
    _flow(
        "an exit that is not reduce-only",
        _CLASSIC,
        f"{_CCXT}/_guarded.py",
        'params = {"reduceOnly": True, "clientOrderId": client_id}',
        'params = {"clientOrderId": client_id}',
        "P1",
    ),
    _flow(
        "the side of an exit is that of its entry",
        _CLASSIC,
        f"{_POSITIONS}/_model.py",
        'return "sell" if self is PositionSide.LONG else "buy"',
        'return "buy" if self is PositionSide.LONG else "sell"',
    ),
    _flow(
        "an entry of unknown outcome is sent again",
        "bots that retry an order after a timeout",
        f"{_CCXT}/_placing.py",
        "return not plan.once and (plan.step is Step.STOP or self._venue.ids_unique_for_good)",
        "return True",
        theme="lose entry disconnect late",
    ),
    _flow(
        "an exit of unknown outcome is sent again",
        _OURS,
        f"{_CCXT}/_placing.py",
        "return not plan.once and (plan.step is Step.STOP or self._venue.ids_unique_for_good)",
        "return plan.step is not Step.ENTRY or self._venue.ids_unique_for_good",
        theme="lose close unavailable late",
    ),
    _flow(
        "a client order id of the attempt",
        "ids from uuid4() at the time of sending",
        f"{_CCXT}/_guarded.py",
        "client_id = client_order_id(market.resource, intent, Step.ENTRY)",
        "client_id = client_order_id(market.resource, intent + 1, Step.ENTRY)",
        "S13",
    ),
    _flow(
        "the order is sent before its intent is committed",
        "an await too early",
        f"{_POSITIONS}/_early.py",
        "        self._made = None if prepared is None else _Made(intent, planned, prepared)",
        "        self._made = None if prepared is None else _Made(intent, planned, prepared)\n"
        "        if prepared is not None:\n"
        "            prepared._word.set_result(None)",
        "S13",
        quick=True,
    ),
    _flow(
        "the lease is not checked before a request",
        _BOTS,
        f"{_CCXT}/_gate.py",
        "            lease.ensure(self.needed)",
        "            pass",
        "S13",
        theme="stop on reply read after 0",
    ),
    _flow(
        "a ban is not obeyed",
        "bots that were banned for days",
        f"{_CCXT}/_gate.py",
        "        if left_s > 0:\n            raise",
        "        if False:\n            raise",
        "P: a ban",
        theme="ban",
    ),
    # --- what an answer means ---
    _flow(
        "a truncated answer is a refusal",
        "TRADING.md: it looks like one, and the order was executed",
        f"{_CCXT}/_classify.py",
        "    if type(exc) is errors.ExchangeError and code is None:\n        return None",
        "    if type(exc) is errors.ExchangeError and code is None:\n        return Refusal.UNRECOGNISED",
        theme="lose entry truncated first",
    ),
    _flow(
        "a lost answer is a refusal",
        _BOTS,
        f"{_CCXT}/_classify.py",
        "    if isinstance(exc, errors.OperationFailed) or not isinstance(exc, errors.ExchangeError):\n"
        "        return None",
        "    if isinstance(exc, errors.OperationFailed) or not isinstance(exc, errors.ExchangeError):\n"
        "        return Refusal.OVERLOADED",
        theme="lose entry disconnect first",
    ),
    _flow(
        "a look that fails finds nothing",
        _BOTS,
        f"{_CCXT}/_venues.py",
        "                order = await exchange.fetch_order(None, symbol, params)\n"
        "            except ccxt_errors().OrderNotFound:",
        "                order = await exchange.fetch_order(None, symbol, params)\n"
        "            except ccxt_errors().BaseError:",
        theme="lose entry timeout late+fail reads look",
    ),
    _flow(
        "a read that fails is flat",
        "TRADING.md: one failed fetch_positions closed the rows of live positions",
        f"{_POSITIONS}/_venue.py",
        "        with _translated():\n            return await self._exchange.holding(market)",
        "        try:\n            return await self._exchange.holding(market)\n"
        "        except _exchange_errors():\n            return None",
        theme="fail reads hold",
    ),
    _flow(
        "a denied key is a reason to sell",
        "TRADING.md: a key denied for a minute sold everything",
        f"{_POSITIONS}/_flow.py",
        "            case Refused(refusal=Refusal.INVALID):",
        "            case Refused(refusal=Refusal.INVALID | Refusal.AUTHENTICATION):",
        "P2",
        theme="refuse passing stop -2015",
    ),
    _flow(
        "a refusal of no known meaning is a reason to sell",
        _OURS,
        f"{_POSITIONS}/_flow.py",
        "            case Refused(refusal=Refusal.INVALID):",
        "            case Refused(refusal=Refusal.INVALID | Refusal.UNRECOGNISED):",
        "P2",
        theme="refuse passing stop -9999",
    ),
    _flow(
        "a stop that cannot be placed in time is a reason to sell",
        _OURS,
        f"{_POSITIONS}/_flow.py",
        "        if not at_once or self._unstopped.over or self._venue.closed:\n"
        "            return await self._leave(position, why)",
        "        if not at_once or self._unstopped.over or self._venue.closed:\n"
        "            return await self._out(position, why)",
        "P2",
        theme="refuse passing stop",
    ),
    _flow(
        "a stop that would trigger at once is tried again",
        "TRADING.md: retried",
        f"{_POSITIONS}/_flow.py",
        "                await self._settled(position, intent, outcome.message)\n"
        "                return await self._out(position, _BEYOND)",
        "                await self._settled(position, intent, outcome.message)\n"
        "                return await self._again(position, _BEYOND)",
        theme="price on reply entry",
    ),
    # --- the entry ---
    _flow(
        "an order that is not visible yet is absent",
        "TRADING.md: a fill visible after 4.5 s closed a good position",
        f"{_POSITIONS}/_flow.py",
        "        if age_ms < self._venue.in_doubt_ms:\n            return None\n"
        "        # A position that is held",
        "        # A position that is held",
        theme="lose entry disconnect late",
    ),
    _flow(
        "an order in doubt may not arrive late",
        "timeouts shorter than the exchange's receive window",
        f"{_CCXT}/_guarded.py",
        "return venue_of(self._exchange).window + _CLOCK_AHEAD + self._patience.search",
        "return _CLOCK_AHEAD",
        theme="lose entry disconnect late",
    ),
    _flow(
        "a successor sends the entry again",
        _BOTS,
        f"{_POSITIONS}/_flow.py",
        "        if intent.sent_before:\n            order = await self._venue.find(self._market, intent)\n"
        "            if order is None:\n                return await self._judge_missing_entry",
        "        if False:\n            order = await self._venue.find(self._market, intent)\n"
        "            if order is None:\n                return await self._judge_missing_entry",
        theme="kill on send entry",
    ),
    _flow(
        "the row has what was asked for, not what was filled",
        _CLASSIC,
        f"{_POSITIONS}/_flow.py",
        "        return await self._record_entry(position, intent, order.id, order.average, order.filled)",
        "        return await self._record_entry(position, intent, order.id, order.average, order.amount)",
        "P: rows tell the truth",
    ),
    _flow(
        "the price of the signal stays the price of the entry",
        _CLASSIC,
        f"{_POSITIONS}/_flow.py",
        "        return await self._record_entry(position, intent, order.id, order.average, order.filled)",
        "        return await self._record_entry(position, intent, order.id, None, order.filled)",
        "P: rows tell the truth",
    ),
    _flow(
        "an entry that rests is left in the book",
        _CLASSIC,
        f"{_POSITIONS}/_venue.py",
        "        if order.live:\n            await self.cancel(order)\n",
        "        if order.live:\n",
        theme="partial entry rests",
        more=(
            Change(
                f"{_POSITIONS}/_rest.py",
                "        if order is not None and order.live:\n            await self._venue.cancel(order)\n",
                "        if order is not None and order.live:\n",
            ),
        ),
    ),
    _flow(
        "what an entry fills later is not its row's",
        "our own past",
        f"{_POSITIONS}/_rest.py",
        "        if rest.unrecorded > 0:\n            position =",
        "        if False:\n            position =",
        theme="partial entry rests+refuse passing cancel",
    ),
    _flow(
        "an open does not look at the exchange",
        _BOTS,
        f"{_POSITIONS}/_manager.py",
        "        if ground.held is not None:",
        "        if False:",
        "P",
        theme="person trades",
    ),
    _flow(
        "the stop is on the wrong side of the price",
        _CLASSIC,
        f"{_POSITIONS}/_model.py",
        "return entry_price * (1 - share if side is PositionSide.LONG else 1 + share)",
        "return entry_price * (1 + share if side is PositionSide.LONG else 1 - share)",
    ),
    # --- the stop, and its moves ---
    _flow(
        "a move cancels the old stop first",
        "cancel and replace, as most bots trail",
        f"{_POSITIONS}/_reconcile.py",
        "        moved = await self._flow.drive(await self._store.expect_move(self._lease, row, trigger))",
        "        await self._flow.sweeper.sweep(row)\n"
        "        moved = await self._flow.drive(await self._store.expect_move(self._lease, row, trigger))",
        "P3",
        quick=True,
    ),
    _flow(
        "a move trusts the answer to the new stop",
        "exchanges that drop what they took",
        f"{_POSITIONS}/_stops.py",
        "            if shown is None or not shown.live:\n                return  # left",
        "            if False:\n                return  # left",
        "P3",
        theme="drop",
    ),
    _flow(
        "a move leaves the old stop",
        _CLASSIC,
        f"{_POSITIONS}/_flow.py",
        "                await self.sweeper.sweep_old(moved, was=position)\n",
        "",
        more=(
            Change(
                f"{_POSITIONS}/_reconcile.py",
                "            await self._flow.sweeper.sweep_old(row)\n",
                "",
            ),
        ),
    ),
    _flow(
        "a pass does not see the stop that a move left",
        _OURS,
        f"{_POSITIONS}/_survey.py",
        "        and not left\n",
        "",
        theme="lag orders",
    ),
    _flow(
        "lists show every stop at once",
        _OURS,
        f"{_POSITIONS}/_stops.py",
        "            if intent.client_id not in known and intent.age_ms < self._venue.in_doubt_ms",
        "            if False",
        theme="lag orders",
    ),
    _flow(
        "a stop that no list shows was not placed",
        _OURS,
        f"{_POSITIONS}/_stops.py",
        "        if for_good and self._may_arrive(unanswered):",
        "        if False:",
        theme="cancel on send stop after 0+lose stop disconnect late",
        more=(
            Change(
                f"{_POSITIONS}/_stops.py",
                "                if intent.age_ms >= self._venue.in_doubt_ms:",
                "                if True:",
            ),
        ),
    ),
    _flow(
        "a take-profit is taken for a stop",
        _OURS,
        f"{_POSITIONS}/_stops.py",
        "s.live and s.reduce_only and s.side == side and not s.takes_profit",
        "s.live and s.reduce_only and s.side == side",
        theme="person takes profit+person cancels the stop",
    ),
    _flow(
        "a missing stop is not replaced",
        _BOTS,
        f"{_POSITIONS}/_reconcile.py",
        "        now = await self._flow.replace_stop(row)\n",
        "        now = row\n",
        theme="drop",
    ),
    # --- the way out ---
    _flow(
        "the stop is cancelled before the exit",
        "our own past: ADR 10",
        f"{_POSITIONS}/_exits.py",
        "        outcome = Executed(sent, found=True) if sent else await",
        "        if not sent:\n            await self._sweeper.sweep(position)\n"
        "        outcome = Executed(sent, found=True) if sent else await",
        "P3",
    ),
    _flow(
        "a position that is closed leaves its stop",
        "TRADING.md: the orphan stop opened a reverse position",
        f"{_POSITIONS}/_exits.py",
        "        if not await self._sweeper.sweep(position):\n            if intent.unsent:",
        "        if intent.unsent and not await self._sweeper.sweep(position):\n"
        "            if intent.unsent:",
    ),
    _flow(
        "a refused cancel counts as done",
        _CLASSIC,
        f"{_POSITIONS}/_stops.py",
        "isinstance(outcome, Refused) and outcome.refusal is Refusal.NOT_FOUND\n    )",
        "isinstance(outcome, Refused)\n    )",
        theme="refuse passing cancel",
    ),
    _flow(
        "a stop that is not found stays for ever",
        _CLASSIC,
        f"{_POSITIONS}/_stops.py",
        "isinstance(outcome, Refused) and outcome.refusal is Refusal.NOT_FOUND\n    )",
        "False\n    )",
        theme="price",
    ),
    _flow(
        "an exit that was filled in part ends the row",
        _CLASSIC,
        f"{_POSITIONS}/_exits.py",
        "        if order.filled < intent.amount and ended:  # the order may be for less than all of it\n"
        "            return await self._partly_closed(position, intent, order)\n",
        "",
        "P",
        theme="partial close expires",
    ),
    _flow(
        "a successor does not look for the exit that was sent",
        _BOTS,
        f"{_POSITIONS}/_flow.py",
        "        sent = await self._venue.find(self._market, intent) if intent.sent_before else None",
        "        sent = None",
        theme="kill on reply close",
        more=(
            Change(
                f"{_POSITIONS}/_exits.py",
                "sent = None if intent.unsent else await self._venue.find(",
                "sent = None and await self._venue.find(",
            ),
        ),
    ),
    _flow(
        "a pass does not see an exit in doubt",
        _OURS,
        f"{_POSITIONS}/_survey.py",
        "        and row.exit_reason is None\n        and not holding.leg",
        "        and not holding.leg",
        theme="refuse passing close",
    ),
    _flow(
        "what a person asked for is forgotten",
        _OURS,
        f"{_POSITIONS}/_manager.py",
        "intend_close(row, reason, asked=True)",
        "intend_close(row, reason)",
        "P2",
        quick=True,
    ),
    _flow(
        "every exit was asked for by a person",
        _OURS,
        f"{_POSITIONS}/_flow.py",
        "        return await self.intend_close(position, why)",
        "        return await self.intend_close(position, why, asked=True)",
        "P1",
        theme="refuse final stop",
    ),
    _flow(
        "a position is ours though a person had a hand in it",
        "TRADING.md: adoption sold a position beside its own stop",
        f"{_POSITIONS}/_ownership.py",
        "        if is_ours(self._scope, position, held, fills):",
        "        if held is not None:",
        "P1",
        theme="person trades+refuse final stop",
    ),
    _flow(
        "a second exit beside one in doubt",
        _OURS,
        f"{_POSITIONS}/_manager.py",
        "            if row.exit_reason is not None and await self._store.in_doubt(row, Step.CLOSE):",
        "            if False:",
        theme="refuse passing close",
    ),
    # --- a pass ---
    _flow(
        "a position that is not listed yet has vanished",
        "TRADING.md: lists lag",
        f"{_POSITIONS}/_reconcile.py",
        "        if not whole and row.age_ms < self._grace_ms:",
        "        if False:",
        theme="lag positions",
    ),
    _flow(
        "the echo of what has just ended is adopted",
        _OURS,
        f"{_POSITIONS}/_reconcile.py",
        "        if last is not None and last.age_ms < self._grace_ms:\n"
        '            return self._outcome(SyncAction.SETTLING, last.id, f"ended {last.age_ms} ms ago")\n',
        "",
        theme="lag positions",
    ),
    _flow(
        "a position that vanished leaves its stop",
        _CLASSIC,
        f"{_POSITIONS}/_exits.py",
        "        if not await self._sweeper.sweep(position):\n            if intent.unsent:",
        "        if not intent.unsent and not await self._sweeper.sweep(position):\n"
        "            if intent.unsent:",
        "P: no stop",
        theme="person closes",
    ),
    _flow(
        "the intent of a stop stays in doubt",
        _OURS,
        f"{_POSITIONS}/_store.py",
        '        settled = (statement("settle_placed_stop"),)',
        "        settled = ()",
        "P: no intent",
    ),
    # --- what is told ---
    _flow(
        "nobody is told of a position without a stop",
        _OURS,
        f"{_POSITIONS}/_pace.py",
        "        left_s = max(0.0, self._deadline_s - already_ms / 1000)",
        "        left_s = 1e6",
        "P5",
        theme="refuse passing stop",
        more=(
            Change(
                f"{_POSITIONS}/_flow.py",
                '        self._scope.alert(position, f"it has no stop: {why}")\n',
                "",
            ),
            Change(
                f"{_POSITIONS}/_telling.py",
                "            left_s = max(0.0, self._deadline_s - row.age_ms / 1000)",
                "            left_s = 1e6",
            ),
        ),
    ),
)
