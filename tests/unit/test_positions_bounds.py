"""What cannot work is refused where it is given, not where an order waits for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
import pytest

from lockguard.errors import ConfigurationError
from lockguard_bot._cli import bot
from lockguard_logs._cli import logs
from lockguard_positions import Pace
from lockguard_positions._cli import positions


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        ("settle", timedelta(seconds=-1)),
        ("poll", "x"),
        ("stop_deadline", 5),
        ("retry_pause", None),
        ("grace", timedelta(days=-1)),
        ("overdue", 30.0),
        ("attempts", 0),
    ],
)
def test_a_pace_that_cannot_work_is_refused_by_name(bound: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{bound}="):
        Pace(**{bound: value})


@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "1e300"])
@pytest.mark.parametrize("group", [bot, positions, logs], ids=lambda group: str(group.name))
def test_no_option_that_is_a_length_of_time_takes_what_is_no_number(group: click.Group, value: str) -> None:
    options = [option for command in group.commands.values() for option in command.params]
    lengths = [option for option in options if isinstance(option.type, click.FloatRange)]
    assert lengths
    for option in lengths:
        with pytest.raises(click.BadParameter):
            option.type.convert(value, option, None)
