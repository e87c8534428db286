"""Mistakes about what others change: the exchange by itself, and a person in the account's settings."""

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Change, Planted

__all__ = ["OTHERS"]

_CCXT, _POSITIONS = "lockguard_ccxt", "lockguard_positions"

OTHERS: tuple[Planted, ...] = (
    Planted(
        "a position that the exchange liquidated was stopped out",
        "bots that take every end for their stop's",
        f"{_POSITIONS}/_reconcile.py",
        "        fired = stop is not None and ended_it(stop, row)\n",
        "        fired = stop is not None and not stop.live\n",
        "P: rows tell the truth",
        "liquidation",
        judge="flow",
    ),
    Planted(
        "nobody is told that the exchange made a position smaller",
        "bots that trust their own table",
        f"{_POSITIONS}/_reconcile.py",
        "    def _mismatch(self, row: Position, message: str) -> SyncOutcome:\n"
        "        self._scope.alert(row, message)\n",
        "    def _mismatch(self, row: Position, message: str) -> SyncOutcome:\n",
        "P: what others changed",
        "deleveraging",
        judge="flow",
    ),
    Planted(
        "a row keeps the amount of which its stop has sold a part",
        "our own past",
        f"{_POSITIONS}/_fired.py",
        "    if stop is None or not filled_in_part(stop, position):\n        return position\n",
        "    if True:\n        return position\n",
        topology="short stop",
        judge="flow",
        more=(
            Change(
                f"{_POSITIONS}/_reconcile.py",
                "        if held.amount < row.quantity:\n            filled =",
                "        if False:\n            filled =",
            ),
        ),
    ),
    Planted(
        "a leg of hedge mode is taken for a position",
        "bots that were written for one-way mode",
        f"{_CCXT}/_venues.py",
        '        if _is_leg(position.get("info") or {}):',
        "        if False:",
        "P: only positions of one-way mode",
        "hedge mode",
        judge="flow",
    ),
    Planted(
        "an entry whose rest has expired was not filled",
        "bots that wait for the state FILLED",
        f"{_POSITIONS}/_flow.py",
        "        if not order.filled:\n            if order.live:",
        "        if order.state is not OrderState.CLOSED:\n            if order.live:",
        topology="rest ends entry expires",
        judge="flow",
    ),
)
