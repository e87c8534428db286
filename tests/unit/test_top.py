"""What ``lockguard top`` needs no terminal for: cells, columns, orders, filters, and its bad input."""

from __future__ import annotations

from datetime import timedelta

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from lockguard._cli.app import run
from lockguard_ops._installation import Snapshot
from lockguard_ops._top._cli import top as command
from lockguard_ops._top._columns import SORTS, Order, fitting
from lockguard_ops._top._seen import Seen, matching
from lockguard_ops._top._writing import Writing, span
from tests.unit.installation_in_memory import NOW, lock, position, refusal

APT, ETH, BTC = "binance:APTUSDT", "binance:ETHUSDT", "binance:BTCUSDT"

HOSTILE = {
    "markup": "[/x][bold red]buy[/bold red][@click=app.exit()]",
    "escape sequences": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "marks of direction": "\u202eTDSUPA\u2066",
    "line ends": "a\r\nb\u2028c",
    "200 characters": "x" * 200,
    "wide characters": "注文" * 100,
}


@pytest.mark.parametrize("width", range(1, 200, 7))
def test_columns_take_exactly_the_width_or_one_of_them_all_of_it(width: int) -> None:
    for by in SORTS:
        columns = fitting(width, by)
        assert sum(room for _, room in columns) + len(columns) - 1 == width
        assert columns[0][0].name == "resource"
        assert by in [column.name for column, _ in columns] or width < 16 + 1 + 5


@pytest.mark.parametrize("value", HOSTILE.values())
@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_a_cell_takes_exactly_its_width(value: str, middle: bool, right: bool) -> None:
    for encoding in ("utf-8", "iso8859-1", "ascii"):
        for width in range(1, 40):
            fitted = Writing(encoding).fit(value, width, middle=middle, right=right)
            assert cell_len(fitted) == width
            assert fitted.isprintable()


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (-5, "0.0s"),
        (0, "0.0s"),
        (9_940, "9.9s"),
        (9_960, "10s"),
        (59_499, "59s"),
        (59_500, "1m00s"),
        (187_000, "3m07s"),
        (599_499, "9m59s"),
        (600_000, "10m"),
        (7_500_000, "2h05m"),
        (36_000_000, "10h"),
        (86_400_000 * 3 + 4 * 3_600_000, "3d04h"),
        (86_400_000 * 400, "400d"),
    ],
)
def test_a_time_takes_five_cells_at_most(ms: int, shown: str) -> None:
    assert span(ms) == shown
    assert len(shown) <= 5


def test_a_filter_matches_a_part_or_a_pattern_of_resource_holder_and_operation() -> None:
    locks = [
        lock(APT, holder="alpha:1/T", operation="open"),
        lock(ETH, holder="beta:2/T", operation="sync [x]"),
    ]

    def found(pattern: str) -> list[str]:
        return [view.lock.resource for view in matching(locks, pattern)]

    assert found("") == [APT, ETH]
    assert found("APT") == found("apt") == found("alpha") == found("*/APTUSDT"[2:]) == found("OPEN") == [APT]
    assert found("binance:*") == [APT, ETH]
    assert found("beta*") == found("sync*") == [ETH]
    assert found("binance") == [APT, ETH]
    assert found("inance:*") == found("[") == []


def test_the_last_state_of_each_server_is_kept_by_itself() -> None:
    full = Snapshot(NOW, (lock(),), (refusal(),), (position(),))
    later = NOW + timedelta(seconds=5)
    seen = Seen().after(full).after(Snapshot(later, redis_fault="down", positions=()))
    assert (len(seen.locks), seen.locks_at, seen.positions, seen.refusals, seen.tables_at) == (
        1,
        NOW,
        (),
        (),
        later,
    )
    seen = Seen().after(full).after(Snapshot(later, (), (), None, database_fault="down"))
    assert (seen.locks, seen.locks_at, len(seen.refusals), seen.without_stop, seen.tables_at) == (
        (),
        later,
        1,
        1,
        NOW,
    )


@pytest.mark.parametrize("age_ms", [-(10**18), -(10**15), 10**15])
def test_an_age_that_a_foreign_client_made_up_is_endured(age_ms: int) -> None:
    view = lock(age_ms=age_ms)
    assert Seen().after(Snapshot(NOW, (view,))).age(view) == timedelta(0)


def test_each_order_is_by_its_column_then_by_name() -> None:
    locks = tuple(lock(name, age_ms=1) for name in (ETH, APT, BTC))
    seen = Seen().after(Snapshot(NOW, locks))
    for by in SORTS:
        assert [view.lock.resource for view in Order(by).sort(seen, locks)] == [APT, BTC, ETH]


def test_locks_of_nearly_the_same_age_keep_their_places() -> None:
    """Each age is read with its lock, some milliseconds apart, in an order that varies."""
    seen = Seen().after(Snapshot(NOW, (lock(APT, age_ms=1_002), lock(ETH, age_ms=1_001))))
    later = (lock(ETH, age_ms=2_003), lock(APT, age_ms=2_001))
    seen = seen.after(Snapshot(NOW + timedelta(seconds=1), later))
    assert [view.lock.resource for view in Order("age").sort(seen, seen.locks)] == [APT, ETH]
    taken_anew = (lock(ETH, age_ms=3_000), lock(APT, age_ms=10, grant="another"))
    seen = seen.after(Snapshot(NOW + timedelta(seconds=2), taken_anew))
    assert [view.lock.resource for view in Order("age").sort(seen, seen.locks)] == [ETH, APT]
    assert len(seen.since) == 2  # of grants that are gone nothing is kept


def test_without_a_terminal_it_names_what_to_use(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["top"]) == 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", "lockguard: top needs a terminal; use 'lockguard ls --watch'\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--interval", "0s"], "interval"),
        (["--interval", "1"], "write a whole number and its unit"),
        (["--sort", "price"], "price"),
        (["--no-fence", "--database", "postgresql://u:secret@db/x"], "leave one out"),
        (["--redis", "htp://u:secret@db"], "top needs a terminal"),
    ],
)
def test_a_mistake_in_the_call_is_one_line(
    arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["top", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert told in err
    assert "secret" not in err


def test_help_says_what_it_is() -> None:
    helped = CliRunner().invoke(command, ["--help"])
    assert helped.exit_code == 0
    assert "Watch all locks live" in helped.output
