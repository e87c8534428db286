"""How the fence stands to the lock, in one place."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lockguard._lease import Resource
from lockguard._records import FenceStanding, FenceState, standing
from lockguard.ports import Inspection

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def seen(token: int, *, held: bool) -> Inspection:
    return Inspection(Resource("r"), held, "g" if held else "", token, "h", "o", 0, 0, 0, 0, ())


def state(token: int, *, is_open: bool) -> FenceState:
    return FenceState("r", token, "g", "h", "o", is_open, NOW, None if is_open else NOW)


@pytest.mark.parametrize(
    ("found", "fence", "expected"),
    [
        (seen(7, held=True), None, None),
        (seen(7, held=True), state(7, is_open=True), FenceStanding.OPEN),
        (seen(7, held=True), state(7, is_open=False), FenceStanding.CLOSED),
        (seen(7, held=True), state(8, is_open=False), FenceStanding.AHEAD),
        (seen(7, held=True), state(8, is_open=True), FenceStanding.AHEAD),
        (seen(8, held=True), state(7, is_open=False), FenceStanding.CLOSED),
        (seen(8, held=True), state(7, is_open=True), FenceStanding.OPEN),
        (seen(7, held=False), state(7, is_open=False), FenceStanding.CLOSED),
        (seen(7, held=False), state(8, is_open=False), FenceStanding.AHEAD),
        # Redis has forgotten its last token, as it may after a week.
        (seen(0, held=False), state(8, is_open=False), FenceStanding.CLOSED),
        (seen(0, held=False), state(8, is_open=True), FenceStanding.OPEN),
    ],
)
def test_open_closed_or_ahead(
    found: Inspection, fence: FenceState | None, expected: FenceStanding | None
) -> None:
    assert standing(found, fence) is expected
