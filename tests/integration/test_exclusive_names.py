"""What a call locks: callers that mean the same lock the same; what has no one text is refused by name."""

from __future__ import annotations

import enum
import functools
import inspect
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockguard import ConfigurationError, LockGuard, ResourceBusy, Skipped, current_lease, exclusive
from lockguard._naming import argument_text
from lockguard.text import kind_of


class Venue(str, enum.Enum):  # noqa: UP042 - not a StrEnum, that is the point
    """As in most bots: equal to its string, and read as ``Venue.BINANCE``."""

    BINANCE = "binance"


class Plain(enum.Enum):
    BINANCE = "binance"
    PRICE = Decimal(1)
    NESTED = Venue.BINANCE


class Endless(enum.Enum):
    ITSELF = 1

    @property
    def value(self):
        return self


class Number(enum.IntEnum):
    SEVEN = 7


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Text(enum.StrEnum):
    BINANCE = "binance"


class Shouting(str):
    """Equal to its characters, and shown as something else."""

    __slots__ = ()

    def __str__(self):
        return self.upper()

    __format__ = __repr__ = lambda self, *_: self.upper()


class Int64:
    """An integer of another library: equal to Python's, and of no class of Python's."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number

    def __eq__(self, other):
        return self.number == other

    def __hash__(self):
        return hash(self.number)

    def __str__(self):
        return f"{self.number:08d}"


class Float64(float):
    """A float of another library."""

    __slots__ = ()


@dataclass
class Request:
    symbol: object
    exchange: str = "binance"


@pytest.fixture
def locked(guard):
    """What a call of a function of one argument locks."""

    @guard.exclusive("{value}")
    async def body(value):
        return current_lease().resource

    return body


async def test_an_enum_locks_out_the_string_that_it_equals(guard, redis_url):
    async with LockGuard.from_url(redis_url) as other:

        @other.exclusive("{exchange}:{symbol}", on_busy="raise")
        async def body(exchange, symbol):
            raise AssertionError("it ran beside the holder")

        async with guard.hold("binance:A"):
            callers = (
                Venue.BINANCE,
                "binance",
                Plain.BINANCE,
                Text.BINANCE,
                Plain.NESTED,
                Shouting("binance"),
            )
            for one in callers:
                with pytest.raises(ResourceBusy):
                    await body(one, "A")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("APTUSDT", "APTUSDT"),
        (Shouting("apt"), "apt"),
        (Venue.BINANCE, "binance"),
        (Plain.NESTED, "binance"),
        (Number.SEVEN, "7"),
        (Access.READ | Access.WRITE, "3"),
        (7, "7"),
        (Int64(7), "7"),
        (-1, "-1"),
        (UUID("{12345678-1234-5678-1234-567812345678}"), "12345678-1234-5678-1234-567812345678"),
    ],
)
async def test_what_has_one_text_locks_that_text(locked, value, text):
    assert await locked(value) == text


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "None"),
        ("", "empty"),
        (" A", "blank"),
        ("A ", "blank"),
        (Decimal("1.0"), "a Decimal"),
        (1.0, "a float"),
        (Float64(1), "a Float64"),
        (float("nan"), "a float"),
        (Fraction(1), "a Fraction"),
        (1j, "a complex"),
        (True, "a bool"),
        (b"APT", "a bytes"),
        (bytearray(b"APT"), "a bytearray"),
        (["A"], "a list"),
        (("A",), "a tuple"),
        ({"A"}, "a set"),
        ({"A": 1}, "a dict"),
        (datetime(2026, 1, 1, tzinfo=UTC), "a datetime"),
        (date(2026, 1, 1), "a date"),
        (Path("/a/./b"), "a PosixPath"),
        (Plain.PRICE, "a Plain whose value is a Decimal"),
        (Request("A"), "a Request"),
        (Endless.ITSELF, "an Endless"),
        (object(), "an object"),
        (Request, "a type"),
        (10**5000, "an int"),
    ],
    ids=lambda one: type(one).__name__ if not isinstance(one, str) else None,
)
async def test_what_has_no_one_text_is_refused_by_parameter_and_type(locked, guard, value, told):
    with pytest.raises(ConfigurationError) as caught:
        await locked(value)
    line = str(caught.value)
    assert "'value' in the key of" in line
    assert told in line
    assert "pass" in line
    assert "\n" not in line


_VALUES = st.one_of(
    st.text(max_size=4),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(),
    st.decimals(),
    st.fractions(),
    st.binary(max_size=3),
    st.uuids(),
    st.datetimes(timezones=st.timezones()),
    st.sampled_from([*Venue, *Plain, *Number, *Text, Shouting("binance"), "binance", 7, 7.0, Int64(7)]),
)


@settings(max_examples=200, deadline=None, database=None)
@given(_VALUES, _VALUES)
def test_values_that_are_equal_never_have_two_texts(one, other):
    texts = []
    for value in (one, other):
        try:
            texts.append(argument_text(value, "it"))
        except ConfigurationError:
            return
    if one == other:
        assert texts[0] == texts[1]


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(max_size=12))
def test_a_string_is_locked_as_it_is_or_refused(text):
    try:
        assert argument_text(text, "it") == text
    except ConfigurationError:
        assert text == "" or text != text.strip()


async def test_names_that_look_alike_are_refused_and_not_locked_beside_each_other(guard):
    for name in ("cafe\u0301:A", " binance:A", "binance:A ", "binance:\u200bA", "binance:\u00a0A", "\u202ea"):
        with pytest.raises(ConfigurationError):
            guard.hold(name)
    guard.hold("caf\u00e9:A")


@pytest.mark.parametrize("wrong", [None, 7, 1.5, b"x", ["x"], {"x": 1}, True, Number.SEVEN, object()])
async def test_a_resource_that_is_no_text_is_refused_with_what_it_is(guard, wrong):
    for hold in (guard.hold, lambda name: guard.hold_many(["a", name])):
        with pytest.raises(ConfigurationError, match=f"{kind_of(wrong)}; pass its name as text"):
            hold(wrong)
    for ask in (guard.inspect, functools.partial(guard.break_, reason="r")):
        with pytest.raises(ConfigurationError, match="pass its name as text"):
            await ask(wrong)


async def test_a_string_of_any_class_is_held_as_its_characters(guard):
    for name in (Venue.BINANCE, Shouting("binance"), Text.BINANCE):
        async with guard.hold(name) as lease:
            assert type(lease.resource) is str
            assert f"{lease.resource}" == "binance"
            assert (await guard.inspect("binance")).held


# The ways to write a key, and the ways to call.


async def test_a_key_may_be_a_function_of_the_calls_arguments(guard):
    @guard.exclusive(key=lambda request: f"{request.exchange}:{request.symbol}")
    async def body(request):
        return current_lease().resource

    assert await body(Request("A")) == "binance:A"
    assert await body(request=Request("B")) == "binance:B"


async def test_a_key_function_sees_defaults_keywords_and_the_rest(guard):
    seen = []

    @guard.exclusive(key=lambda *args, **kwargs: seen.append((args, kwargs)) or "x")
    async def body(symbol, exchange="binance", *rest, side="long", **more):
        return current_lease().resource

    await body(symbol="A")
    await body("A", "bybit", 1, 2, side="short", x=1)
    assert seen == [
        (("A", "binance"), {"side": "long"}),
        (("A", "bybit", 1, 2), {"side": "short", "x": 1}),
    ]


async def test_a_key_function_that_gives_no_one_text_is_refused_when_called(guard):
    for given_back in (None, "", Decimal(1), 1.5):

        @guard.exclusive(key=lambda _, answer=given_back: answer)
        async def body(symbol):
            raise AssertionError("it ran")

        with pytest.raises(ConfigurationError, match=r"what the key of .*body\(\) gave"):
            await body("A")


async def test_a_key_function_that_cannot_be_called_as_the_function_is_refused_when_decorating(guard):
    async def body(symbol, exchange, *, side):
        pass

    with pytest.raises(ConfigurationError, match="write key=lambda symbol, exchange, side"):
        guard.exclusive(key=lambda symbol: symbol)(body)
    with pytest.raises(ConfigurationError, match="'async def' function and no key"):
        guard.exclusive(key=body)


async def test_a_decorator_without_its_arguments_says_what_to_write(guard):
    async def body(symbol):
        pass

    for decorate, told in (
        (lambda: guard.exclusive(body), r"write the decorator with one, such as @guard\.exclusive"),
        (guard.exclusive, "the key is None; write a template such as '{exchange}:{symbol}'"),
        (lambda: exclusive(body), r"write the decorator with one, such as @guard\.exclusive"),
        (exclusive, "the key is None; write a template"),
        (
            lambda: exclusive("{symbol}")(body),
            r"guard= is None; .* with a guard at hand write @guard\.exclusive",
        ),
    ):
        with pytest.raises(ConfigurationError, match=told):
            decorate()


async def test_what_the_key_function_raises_is_the_callers_also_where_a_busy_lock_is_skipped(guard):
    def key(symbol):
        raise ResourceBusy("not the lock", resource="other")

    @guard.exclusive(key=key, on_busy="skip")
    async def body(symbol):
        pass

    with pytest.raises(ResourceBusy, match="not the lock"):
        await body("A")


class Bot:
    exchange = "binance"

    def __init__(self, guard):
        self.guard = guard

    @exclusive("{self.exchange}:{symbol}", guard="guard")
    async def method(self, symbol="A", *more):
        return current_lease().resource

    @exclusive(key=lambda self, symbol: f"{self.exchange}:{symbol}", guard=lambda self, _: self.guard)
    async def by_function(self, symbol):
        return current_lease().resource

    @exclusive("{order[symbol]}:{order[legs][0]}", guard="guard")
    async def by_item(self, order):
        return current_lease().resource


async def test_methods_work_however_they_are_called(guard):
    bot = Bot(guard)
    assert await bot.method() == "binance:A"
    assert await bot.method(symbol="B") == "binance:B"
    assert await bot.method("B", 1, 2) == "binance:B"
    assert await Bot.method(self=bot, symbol="C") == "binance:C"
    assert await bot.by_function("B") == await bot.by_function(symbol="B") == "binance:B"
    assert await bot.by_item({"symbol": Venue.BINANCE, "legs": [1]}) == "binance:1"


async def test_class_and_static_methods_partials_and_callable_objects_work(guard):
    class Home:
        @classmethod
        @guard.exclusive("{cls.__name__}:{symbol}")
        async def of_class(cls, symbol):
            return current_lease().resource

        @staticmethod
        @guard.exclusive("{symbol}")
        async def static(symbol):
            return current_lease().resource

        async def __call__(self, symbol, side="long"):
            return current_lease().resource

        async def bound(self, symbol):
            return current_lease().resource

    assert await Home.of_class("A") == await Home().of_class(symbol="A") == "Home:A"
    assert await Home.static("A") == await Home().static(symbol="A") == "A"
    assert await guard.exclusive("{symbol}")(Home())("A") == "A"
    assert await guard.exclusive("{symbol}")(Home().bound)(symbol="A") == "A"

    async def two(exchange, symbol):
        return current_lease().resource

    assert await guard.exclusive("{symbol}")(functools.partial(two, "binance"))("A") == "A"
    assert (
        await guard.exclusive("{exchange}:{symbol}")(functools.partial(two, exchange="b"))(symbol="A")
        == "b:A"
    )
    by_object = guard.exclusive("{side}")(functools.partial(Home(), side="long"))
    assert inspect.iscoroutinefunction(by_object)
    assert "Home" in by_object.__qualname__


async def test_what_a_call_lacks_is_named(guard):
    bot = Bot(guard)
    with pytest.raises(
        ConfigurationError, match=r"names 'order\[symbol\]', which this call's arguments do not"
    ):
        await bot.by_item({})
    with pytest.raises(TypeError, match="symbol"):
        await bot.by_function()


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{symbol!r}", "formats 'symbol'; write {symbol}"),
        ("{symbol:>8}", "formats 'symbol'"),
        ("{symbol:{symbol}}", "formats 'symbol'"),
        ("{symbol}\n", "can give no name: .*control"),
        (" {symbol}", "can give no name: .*blank"),
        ("{{{symbol}}}", "can give no name: .*brace"),
        ("e\u0301{symbol}", "can give no name: .*NFC"),
        ("{exchange}", r"write \{more\[exchange\]\} for one of its keyword arguments"),
    ],
)
async def test_a_template_that_could_give_two_names_or_none_is_refused_when_decorating(guard, template, told):
    async def body(symbol, **more):
        pass

    with pytest.raises(ConfigurationError, match=told):
        guard.exclusive(template)(body)


# The wrong ways to write the decorator.


async def test_a_decorator_without_its_key_says_so(guard):
    with pytest.raises(
        ConfigurationError, match=r"write the decorator with one, such as @guard\.exclusive\('"
    ):

        @guard.exclusive
        async def body(symbol):
            pass

    @guard.exclusive
    def plain(symbol):
        pass

    with pytest.raises(ConfigurationError, match=r"the decorator needs a key"):
        plain("A")


@pytest.mark.parametrize("wrong", [None, 7, b"{symbol}", ["{symbol}"]])
async def test_a_key_that_is_neither_template_nor_function_is_refused(guard, wrong):
    with pytest.raises(ConfigurationError, match=f"the key is {kind_of(wrong)}; write a template"):
        guard.exclusive(wrong)


async def test_an_async_generator_is_refused_with_what_to_write(guard):
    with pytest.raises(ConfigurationError, match=r"body is an async generator: .* around the loop over it"):

        @guard.exclusive("{symbol}")
        async def body(symbol):
            yield symbol


async def test_a_class_or_static_method_below_the_decorator_is_refused_with_the_right_order(guard):
    for kind in (classmethod, staticmethod):

        async def body(symbol):
            pass

        with pytest.raises(ConfigurationError, match=f"write @{kind.__name__} above the decorator"):
            guard.exclusive("{symbol}")(kind(body))


async def test_a_guard_that_is_at_hand_or_none_is_refused_when_decorating(guard):
    with pytest.raises(ConfigurationError, match=r"with a guard at hand write @guard\.exclusive"):
        exclusive("{symbol}", guard=guard)
    for wrong in (None, 7, ["guard"]):
        with pytest.raises(ConfigurationError, match=f"guard= is {kind_of(wrong)}"):
            exclusive("{symbol}", guard=wrong)


async def test_a_guard_that_is_not_there_at_the_call_is_told_without_the_callers_text(guard):
    class Secretive:
        guard = None

        def __repr__(self):
            return "Secretive(api_secret='hunter2')"

        @exclusive("{symbol}", guard="guard")
        async def body(self, symbol):
            pass

    with pytest.raises(ConfigurationError, match="attribute 'guard' of Secretive gave None") as caught:
        await Secretive().body("A")
    assert "hunter2" not in str(caught.value)

    @exclusive("{symbol}", guard=lambda *_: "redis://:hunter2@h")
    async def body(*, symbol):
        pass

    with pytest.raises(ConfigurationError, match="gave a str for a call") as caught:
        await body(symbol="A")
    assert "hunter2" not in str(caught.value)


async def test_wrong_options_of_the_decorator_are_told_when_decorating(guard):
    for options, told in (
        ({"operation": 7}, "operation is an int"),
        ({"wait": 5}, "wait=5 has no unit"),
        ({"ttl": 5.5}, r"ttl=5\.5 has no unit"),
        ({"on_busy": None}, "on_busy=None"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            guard.exclusive("{symbol}", **options)


async def test_a_skipped_call_is_false_and_says_who_holds_it(guard, redis_url):
    async with LockGuard.from_url(redis_url) as other:

        @other.exclusive(key=lambda symbol: symbol, on_busy="skip")
        async def body(symbol):
            raise AssertionError("it ran")

        async with guard.hold("A", operation="open"):
            skipped = await body("A")
    assert isinstance(skipped, Skipped)
    assert not skipped
    assert skipped.busy.operation == "open"
