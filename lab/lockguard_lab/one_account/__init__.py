"""Two synchronous bots on one account of the local exchange, with and without the guard.

Both see a signal for every pair at once, and each keeps its own table of what it has bought, so that neither
knows what the other has. The exchange's own record says how often each pair was bought. One of the two may be
stopped or killed between the hook in which it decides and its order.

The bots are freqtrade as it is published (:mod:`~lockguard_lab.one_account.freqtrade`), or a bot in miniature
that needs nothing but ccxt (:mod:`~lockguard_lab.one_account.plain_bot`)::

    python -m lockguard_lab.one_account --python FREQTRADE/bin/python
    python -m lockguard_lab.one_account
"""

from __future__ import annotations

from lockguard_lab.one_account.race import GUARDS, PAIRS, TTL_S, Bot, Bought, End, Guard, Stage, race

__all__ = ["GUARDS", "PAIRS", "TTL_S", "Bot", "Bought", "End", "Guard", "Stage", "race"]
