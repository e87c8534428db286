"""Whatever a template and its values are, a call locks one valid name or is refused in one line."""

from __future__ import annotations

import contextlib
import enum
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockguard import ConfigurationError, LockGuard
from lockguard._exclusive import binder
from lockguard._lease import RESOURCE_BYTES_MAX, parse_resource
from lockguard._naming import compile_key
from tests.fuzz.lines import attempt, one_line

GUARD = LockGuard.in_memory(observers=[])


async def body(exchange: Any, symbol: Any, *, password: str = "d3fault\n", **more: Any) -> None:
    """Has a parameter with a default that no message may show."""


def locked(template: str, *given: Any, **more: Any) -> str:
    """The name that a call of ``body`` locks."""
    return compile_key(template, body)(binder(body)(*given, **more))


ANY_TEXT = st.text(st.characters(), max_size=8)  # with surrogates, NUL and all that moves a cursor
ODD_TEXTS = (
    *("{", "}", "{}", "{symbol}", "{{symbol}}", "{0}", "%s", "${symbol}", "{symbol!r}"),
    *(
        "\0",
        "a\0b",
        "\ud800",
        "\udcff",
        "\n",
        "a\nb",
        "\x1b[2J",
        "\u202eA",
        "\u200b",
        "\ufeff",
        "\x85",
        "\u2028",
    ),
    *("", " ", " A", "A ", "A B", "\u00a0A", "e\u0301", "\u00e9", "\u212b", "\ufb00", "\uff21", "\N{ROCKET}"),
    *("x" * 200, "x" * 201, "\u00e9" * 101, "x" * 100_000, "None", "redis://:hunter2@h/0", "a:b", ":", "::"),
)
TEXTS = ANY_TEXT | st.sampled_from(ODD_TEXTS)


class Lying(str):
    """A text whose own methods say something else than its characters."""

    __slots__ = ()

    def __str__(self) -> str:
        return "{another}"

    __repr__ = __str__

    def __format__(self, _: str) -> str:
        return "another\n"

    def __len__(self) -> int:
        return 1

    def strip(self, *_: Any) -> Any:
        return self

    def encode(self, *_: Any) -> Any:
        return b""

    def isprintable(self) -> bool:
        return True


class Venue(str, enum.Enum):  # noqa: UP042 - not a StrEnum, as in most bots
    A = "a"
    BRACE = "{symbol}"
    LINE = "a\nb"


class Wrapped(enum.Enum):
    TEXT = "a"
    NUMBER = 7
    BYTES = b"a"
    NONE = None
    NESTED = Venue.A
    PRICE = Decimal("1.0")


VALUES = (
    TEXTS
    | TEXTS.map(Lying)
    | st.sampled_from([*Venue, *Wrapped])
    | st.integers()
    | st.integers(4000, 5000).map(lambda digits: 10**digits)
    | st.none()
    | st.booleans()
    | st.floats()
    | st.decimals()
    | st.binary(max_size=4)
    | st.uuids()
    | st.lists(st.integers(), max_size=2)
    | st.just(type("A\nB", (), {})())
)
PIECES = st.sampled_from(
    [
        *(
            "{exchange}",
            "{symbol}",
            "{symbol",
            "{",
            "}",
            "{{",
            "}}",
            "{symbol.",
            "{symbol[",
            "]",
            ".",
            "..",
            "[",
        ),
        *(
            "}:{",
            "!r}",
            ":>8}",
            ":{symbol}}",
            "{more[a]}",
            "{more.",
            "{0}",
            "{}",
            "{symbol\n",
            "{symbol]",
            "9" * 5000,
        ),
        *(
            "{symbol.upper}",
            "{symbol.__class__.__init__}",
            "{symbol[0]}",
            "{symbol[a]b}",
            "{nobody}",
            "{ symbol }",
        ),
    ]
)
TEMPLATES = st.lists(PIECES | TEXTS, max_size=5).map("".join)


@given(TEMPLATES, st.sampled_from(["binance", "b"]), st.sampled_from(["APTUSDT", "A"]))
def test_a_template_that_is_no_template_is_refused_in_one_line_when_the_function_is_decorated(
    template: str, exchange: str, symbol: str
) -> None:
    _, refusal = attempt(lambda: GUARD.exclusive(template)(body))
    if refusal is not None:
        assert "d3fault" not in str(refusal)
        return
    # What is accepted works for plain texts, unless it names a part that texts do not have.
    name, refusal = attempt(lambda: locked(template, exchange, symbol, a="x"))
    if name is None:
        told = str(refusal)
        assert any(
            why in told for why in ("do not have", "may read differently", "bytes long", "blank", "apart")
        )
    else:
        assert parse_resource(name) == name


@given(VALUES, VALUES)
def test_whatever_a_call_is_given_it_locks_one_valid_name_or_is_refused_in_one_line(
    exchange: Any, symbol: Any
) -> None:
    name, _ = attempt(lambda: locked("{exchange}:{symbol}", exchange, symbol))
    if name is None:
        return
    assert type(name) is str
    assert name.isprintable()
    assert name == name.strip()
    assert set(name).isdisjoint("{}")
    assert 0 < len(name.encode()) <= RESOURCE_BYTES_MAX
    for value in (exchange, symbol):
        if isinstance(value, str) and not isinstance(value, enum.Enum):
            assert str.__str__(value) in name


@given(st.data(), TEXTS, TEXTS)
def test_two_symbols_and_two_exchanges_never_share_one_name(data: Any, one: str, other: str) -> None:
    """Exchanges are named without a colon, by ccxt and by everybody."""
    exchanges = st.sampled_from(["binance", "binance@a", "okx", "b"]) | st.text("ab.-_@ \u00e9", max_size=3)
    first, second = data.draw(exchanges), data.draw(exchanges)
    names = []
    for exchange, symbol in ((first, one), (second, other)):
        with contextlib.suppress(ConfigurationError):
            names.append(locked("{exchange}:{symbol}", exchange, symbol))
    assert len(set(names)) == len(names) or (first, one) == (second, other)


@given(TEXTS)
def test_a_value_that_looks_like_a_template_is_text_and_never_read_again(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert locked("{exchange}:{symbol}", text, "x", password="y") == f"{text}:x"
    for value in ("{exchange}", "{symbol.__class__}", f"{text}{{symbol}}"):
        with pytest.raises(ConfigurationError) as refused:
            locked("{exchange}:{symbol}", "a", value)
        one_line(refused.value)


@given(VALUES)
def test_a_guard_refuses_what_is_no_name_in_one_line_and_without_a_server(value: Any) -> None:
    for use in (GUARD.hold, GUARD.resource):
        _, refusal = attempt(lambda use=use: use(value))  # type: ignore[misc]
        assert refusal is not None or isinstance(getattr(value, "value", value), str)


@pytest.mark.parametrize(
    "template",
    ["{symbol.}", "{symbol..a}", "{symbol[]}", "{symbol[a]b}", f"{{symbol[{'9' * 5000}]}}", "{symbol\n}"],
    ids=lambda one: repr(one[:20]),
)
def test_a_path_in_a_template_that_no_argument_can_have_is_refused_before_the_first_call(
    template: str,
) -> None:
    """Each of these was accepted, and the first call raised ValueError in the middle of the night."""
    with pytest.raises(ConfigurationError) as refused:
        GUARD.exclusive(template)(body)
    assert "d3fault" not in one_line(refused.value)
