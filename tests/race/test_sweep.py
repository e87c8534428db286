"""A short form of the sweep, and what its judge convicts; the long form is a command of its own."""

from __future__ import annotations

from typing import Any

import pytest

from lockguard_positions._exits import Exits
from tests.race.sweep import Trouble, sweep


async def test_no_trouble_at_any_step_of_an_open_a_close_or_a_move_breaks_a_law() -> None:
    """Each seventeenth of the runs, so that all troubles come up, at different steps."""
    assert await sweep(["open", "close", "move"], list(Trouble), every=17) == []


async def test_an_exit_that_goes_after_its_stop_is_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was once: while the exit was refused, nothing protected the position."""
    close = Exits.close

    async def stop_first(self: Exits, position: Any, intent: Any, *sent: Any) -> Any:
        await self._sweeper.sweep(position)
        return await close(self, position, intent, *sent)

    monkeypatch.setattr(Exits, "close", stop_first)
    wrong = await sweep(["close"], [Trouble.DENIED])
    assert any("without a stop" in line for line in wrong)
