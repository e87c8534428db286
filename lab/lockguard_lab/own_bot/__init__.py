"""A bot as people write it, in two processes on one account, with the guard put around it and without.

The bot is ``docs/examples/own_bot``: it looks for a position outside of the function that opens one, its sync
pass is one long loop, tasks write by a row's number, and ``except Exception`` logs and goes on. Both
processes get every signal, and both make sync passes. One is stopped for longer than its lease, one is
killed, and locks are broken under their holders. The exchange's own record and the table say what came of
it::

    python -m lockguard_lab.own_bot
"""

from __future__ import annotations

from lockguard_lab.own_bot.counting import Counted, counted
from lockguard_lab.own_bot.processes import BotProcess
from lockguard_lab.own_bot.race import BOTS, Place, race
from lockguard_lab.own_bot.stage import Stage, stage

__all__ = ["BOTS", "BotProcess", "Counted", "Place", "Stage", "counted", "race", "stage"]
