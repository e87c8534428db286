"""Whatever an exchange answers, nothing that cannot be read is taken for a number, or for "flat"."""

from __future__ import annotations

import math
from typing import Any

import ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockguard.errors import ConfigurationError
from lockguard_ccxt._venues import parse_holdings, parse_order

ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["", "0", "-1.5", "NaN", "Infinity", "1e400", "0x10", "1_000", "\u0663"])
)
INFO = st.none() | st.dictionaries(
    st.sampled_from(
        ["positionSide", "positionIdx", "closePosition", "orderType", "triggerDirection", "reduceOnly"]
    ),
    ODD,
)
POSITION = st.fixed_dictionaries(
    {"symbol": st.sampled_from(["APT/USDT:USDT", "1000PEPE/USDT:USDT"])},
    optional={"contracts": ODD, "side": ODD, "entryPrice": ODD, "info": INFO},
)
FIELDS = "id clientOrderId symbol side status amount filled average triggerPrice"
ORDER = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS.split(), ODD) | {"info": INFO})


@given(st.lists(POSITION, max_size=3))
def test_what_is_held_is_a_number_or_an_error_and_never_flat_by_mistake(
    positions: list[dict[str, Any]],
) -> None:
    try:
        held = parse_holdings(positions)
    except (ConfigurationError, ccxt.BadResponse):
        return
    assert all(one.amount.is_finite() and one.amount > 0 for one in held)
    numbers = [one.get("contracts") for one in positions]
    readable = [number for number in numbers if number not in (None, "")]
    assert len(held) == sum(float(number) != 0 for number in readable)


@given(ORDER)
def test_an_order_has_finite_numbers_whatever_the_exchange_answers(order: dict[str, Any]) -> None:
    found = parse_order(order)
    for number in (found.amount, found.filled, found.average, found.trigger):
        assert number is None or number.is_finite()


@pytest.mark.parametrize("amount", [math.nan, math.inf, "abc", "NaN", {}, True])
def test_an_amount_that_cannot_be_read_is_not_flat(amount: Any) -> None:
    """The row of a position that was taken for flat would be ended, and its stop taken back."""
    with pytest.raises(ccxt.BadResponse, match="the amount of APT/USDT:USDT cannot be read"):
        parse_holdings([{"symbol": "APT/USDT:USDT", "contracts": amount, "side": "long"}])
