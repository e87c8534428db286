"""No command reads a number as Python does, which takes ``1_0`` for 10 and ``nan`` for one in every range."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from lockguard._cli.app import lockguard
from lockguard._cli.numbers import DecimalNumber, WholeNumber

NO_NUMBERS = (
    "1_0",
    "1_0.5",
    "\u0661\u0660",
    "1e1",
    "+1",
    " 5",
    "5.",
    ".",
    "5 ",
    "-0",
    "-0.0",
    "nan",
    "inf",
    "1e400",
    "",
    "9" * 400 + ".5",
)


def every(command: click.Command, name: str = "lockguard") -> Iterator[tuple[str, click.Parameter]]:
    yield from ((f"{name} {one.name}", one) for one in command.params)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from every(below, f"{name} {each}")


def test_each_number_of_a_command_is_read_by_the_same_two_types() -> None:
    """Tuples of types have none of Python's own in them either."""
    found = dict(every(lockguard))
    types = {
        name: getattr(parameter.type, "types", [parameter.type])
        for name, parameter in found.items()
        if not getattr(parameter, "count", False)
    }
    numbers = (click.types.IntParamType, click.types.FloatParamType)
    own = (WholeNumber, DecimalNumber)
    assert [
        n for n, of in types.items() if any(isinstance(t, numbers) and not isinstance(t, own) for t in of)
    ] == []
    assert sum(isinstance(t, own) for of in types.values() for t in of) > 40, "the commands were not found"


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize("type_", [WholeNumber(-5, 5000), DecimalNumber(-5, 5000), DecimalNumber(-5)])
def test_what_is_no_plain_number_is_refused(type_: click.ParamType, text: str) -> None:
    with pytest.raises(click.UsageError, match=r"is no (whole )?number; write|is not in the range"):
        type_.convert(text, None, None)


def test_plain_numbers_are_read_and_their_range_is_kept() -> None:
    whole, number = WholeNumber(1, 20), DecimalNumber(0, 10, above=True)
    assert [whole.convert(text, None, None) for text in ("1", "10", "08", 7)] == [1, 10, 8, 7]
    for text, expected in (("0.5", 0.5), (".5", 0.5), ("10", 10.0), ("007.0", 7.0), (3.0, 3.0)):
        assert number.convert(text, None, None) == expected
    for type_, text in ((whole, "0"), (whole, "21"), (whole, "-1"), (number, "0"), (number, "10.1")):
        with pytest.raises(click.UsageError, match="is not in the range"):
            type_.convert(text, None, None)
