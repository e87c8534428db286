"""What ``lockguard top`` shows of states made by hand, and what each of its keys does."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from textual.pilot import Pilot

from lockguard._cli.ending import signed
from lockguard._records import FenceStanding
from lockguard.errors import ConfigurationError, FenceUnavailable, QuorumUnavailable
from lockguard_ops._installation import Snapshot
from lockguard_ops._top._app import Top
from lockguard_ops._top._writing import Writing
from tests.unit.installation_in_memory import NOW, InMemory, lock, position, refusal, waiter

APT, ETH, BTC = "binance:APTUSDT", "binance:ETHUSDT", "binance:BTCUSDT"

HOSTILE = {
    "markup": "[/x][bold red]buy[/bold red][@click=app.exit()]",
    "escape sequences": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "marks of direction": "\u202eTDSUPA\u2066",
    "line ends": "a\r\nb\u2028c",
    "200 characters": "x" * 200,
    "wide characters": "注文" * 100,
}


@asynccontextmanager
async def shown(
    installation: InMemory, *, width: int = 80, height: int = 24, **options: Any
) -> AsyncIterator[Pilot[None]]:
    """The program in a terminal that is not there, with a state that was read once."""
    app = Top(installation, servers=2, **{"writing": Writing(), **options})
    async with app.run_test(size=(width, height)) as pilot:
        await until(pilot, lambda: app.seen.at is not None)
        yield pilot


async def until(pilot: Pilot[None], holds: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(20):
        while not holds():
            await pilot.pause(0.02)
    await pilot.pause()


def screen(pilot: Pilot[None]) -> list[str]:
    """The lines of the terminal."""
    app = pilot.app
    width, height = app.size
    lines = app.screen._compositor.render_strips()
    assert len(lines) == height
    assert [line.cell_length for line in lines] == [width] * height
    return [line.text for line in lines]


def text(pilot: Pilot[None]) -> str:
    return "\n".join(line.rstrip() for line in screen(pilot))


def unfolded(pilot: Pilot[None]) -> str:
    """The same with no line ends, for text that is folded."""
    return " ".join(text(pilot).split())


async def see(pilot: Pilot[None], *words: str) -> str:
    """Wait until the terminal shows all of these."""
    await until(pilot, lambda: all(word in text(pilot) or word in unfolded(pilot) for word in words))
    return text(pilot)


def resources(pilot: Pilot[None]) -> list[str]:
    """The resources in the order of the table."""
    return [line[1:].split()[0] for line in screen(pilot) if "binance:" in line[:10]]


def selected(pilot: Pilot[None]) -> str:
    """The resource of the selected line."""
    (line,) = [line for line in screen(pilot) if line.startswith(">")]
    return line[1:].split()[0]


def three(**snapshot: Any) -> InMemory:
    """An installation with three locks."""
    locks = (
        lock(APT, age_ms=30_000, remaining_ms=9_000, waiting=1),
        lock(ETH, age_ms=20_000, remaining_ms=1_000, waiting=3),
        lock(BTC, age_ms=10_000, remaining_ms=5_000, waiting=2),
    )
    return InMemory(Snapshot(NOW, locks, **snapshot))


# What is shown


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (40, ["RESOURCE", "HOLDER"]),
        (60, ["RESOURCE", "HOLDER", "AGE", "LEFT", "LATE", "WAIT"]),
        (80, ["RESOURCE", "HOLDER", "OPERATION", "AGE", "LEFT", "LATE", "WAIT", "WANT", "FENCE"]),
        (120, ["RESOURCE", "HOLDER", "OPERATION", "TOKEN", "AGE", "LEFT", "LATE", "WAIT", "WANT", "FENCE"]),
    ],
)
async def test_the_columns_that_fit_are_shown_and_the_least_important_go_first(
    width: int, columns: list[str]
) -> None:
    async with shown(three(), width=width) as pilot:
        heading = next(line for line in screen(pilot) if "RESOURCE" in line)
        found = [word.rstrip("↓") for word in heading.split()]
        assert found == columns if width > 40 else found[:1] == columns[:1]
        assert all(name[:16] in text(pilot) for name in (APT, ETH, BTC))


async def test_a_lock_is_shown_with_all_that_an_operator_asks_for() -> None:
    held = lock(
        APT, age_ms=190_000, remaining_ms=2_000, waiting=2, wanted="maintenance", fence=FenceStanding.AHEAD
    )
    async with shown(InMemory(Snapshot(NOW, (held,))), width=120) as pilot:
        line = next(line for line in screen(pilot) if APT in line)
        assert line[1:].split() == [
            *(APT, "bot-1:5999/Task-1", "open", "long", "1795239517492224", "3m10s", "2.0s", "4.7s!", "2"),
            *("yes", "ahead!"),
        ]


async def test_the_first_line_counts_and_marks_what_needs_a_look() -> None:
    state = Snapshot(
        NOW,
        (lock(APT, waiting=2), lock(ETH, remaining_ms=100), lock(BTC, held=False, waiting=1)),
        (refusal(times=2), refusal(first_at=NOW - timedelta(hours=3), at=NOW - timedelta(hours=2), times=7)),
        (position(), position("ETHUSDT", status="active")),
    )
    async with shown(InMemory(state), width=120) as pilot:
        first = screen(pilot)[0]
        assert "servers 2  locks 2  waiters 3  late 1!  refused/h 2!  no stop 1!  faults 0" in first
        assert first.rstrip().endswith("UTC")


async def test_what_is_not_held_says_why_and_comes_last() -> None:
    state = Snapshot(
        NOW, (lock(APT, held=False, closed_ms=4_000), lock(ETH, held=False, waiting=1), lock(BTC))
    )
    async with shown(InMemory(state)) as pilot:
        assert resources(pilot) == [BTC, APT, ETH]
        assert "(closed for 4.0s)" in text(pilot)
        assert "(free)" in text(pilot)


async def test_an_empty_installation_says_so() -> None:
    async with shown(InMemory()) as pilot:
        await see(pilot, "no lock is held", "0-0 of 0")
        await pilot.press("a", "b", "enter", "down", "end")
        assert "no lock is held" in text(pilot)


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("width", [60, 80, 120])
async def test_hostile_text_is_shown_inert_wherever_it_stands(what: str, width: int) -> None:
    hostile = HOSTILE[what]
    held = lock(
        hostile,
        holder=hostile,
        operation=hostile,
        wanted=hostile,
        waiters=(waiter(1, holder=hostile, operation=hostile),),
    )
    refused = refusal(hostile, holder=hostile, operation=hostile, reason=hostile)
    installation = InMemory(Snapshot(NOW, (held,), (refused,), (position(),), redis_fault=hostile))
    installation.state = replace(installation.state, redis_fault="")
    async with shown(installation, width=width) as pilot:
        for keys in ([], ["enter"], ["a"], ["escape"], ["escape", "b"], ["escape", "slash", *"x[/"]):
            await pilot.press(*keys)
            await pilot.pause()
            assert all(character.isprintable() for line in screen(pilot) for character in line), keys
        assert pilot.app.is_running
    assert pilot.app.return_code in (0, None)


async def test_hostile_text_is_shown_whole_on_the_page_of_the_resource() -> None:
    held = lock(APT, operation="[/x][red]\x1b[31m")
    async with shown(InMemory(Snapshot(NOW, (held,)))) as pilot:
        await pilot.press("enter")
        await see(pilot, r"operation  [/x][red]\x1b[31m")


@pytest.mark.parametrize("keys", [(), ("enter",), ("b",), ("question_mark",), ("slash", "A")])
async def test_on_a_terminal_of_latin_1_no_other_character_is_written(keys: tuple[str, ...]) -> None:
    held = lock("binance:ÄPTUSDT", operation="注文 📈 öffnen", holder="h" * 100)
    async with shown(InMemory(Snapshot(NOW, (held,))), writing=Writing("iso8859-1")) as pilot:
        await pilot.press(*keys)
        await pilot.pause()
        "\n".join(screen(pilot)).encode("iso8859-1")
        assert "ÄPT" in text(pilot) or keys == ("question_mark",)


# What keys do


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("A", [BTC, ETH, APT]),  # by age is how it begins: pressed again, it turns round
        ("W", [ETH, BTC, APT]),
        ("T", [ETH, BTC, APT]),
        ("R", [APT, BTC, ETH]),
        ("L", [ETH, BTC, APT]),
        ("s", [ETH, BTC, APT]),
    ],
)
async def test_a_key_sorts_by_its_column_and_the_selection_stays_on_its_resource(
    key: str, order: list[str]
) -> None:
    async with shown(three()) as pilot:
        assert resources(pilot) == [APT, ETH, BTC]
        await pilot.press("down")
        assert selected(pilot) == ETH
        await pilot.press(key)
        await pilot.pause()
        assert resources(pilot) == order
        assert selected(pilot) == ETH
        await pilot.press(key)
        await pilot.pause()
        assert (resources(pilot) == order[::-1]) == (key != "s")
        assert selected(pilot) == ETH


async def test_the_selection_follows_its_resource_when_the_locks_change() -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press("end")
        assert selected(pilot) == BTC
        apt, eth, btc = installation.state.locks
        new = lock("binance:NEWUSDT", age_ms=99_000)
        older = replace(btc, lock=replace(btc.lock, age_ms=95_000, grant="another"))
        installation.state = replace(installation.state, locks=(new, older, apt, eth))
        pilot.app.read_now()
        await see(pilot, "NEWUSDT")
        assert resources(pilot) == ["binance:NEWUSDT", BTC, APT, ETH]
        assert selected(pilot) == BTC
        installation.state = replace(installation.state, locks=(new, apt, eth))
        pilot.app.read_now()
        await until(pilot, lambda: BTC not in text(pilot))
        assert selected(pilot) == APT  # where it was


async def test_a_filter_is_applied_as_it_is_typed_and_kept_or_taken_back() -> None:
    async with shown(three()) as pilot:
        await pilot.press("slash", *"eth")
        await until(pilot, lambda: resources(pilot) == [ETH])
        await pilot.press("enter")
        assert "filter 'eth' of 3" in text(pilot)
        await pilot.press("slash", "escape")
        await until(pilot, lambda: resources(pilot) == [APT, ETH, BTC])
        await pilot.press("slash", *"*:b*T", "enter")
        await until(pilot, lambda: resources(pilot) == [BTC])
        await pilot.press("slash", *"zzz", "enter")
        await see(pilot, "no lock matches the filter; Esc shows all")


async def test_p_pauses_and_goes_on() -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press("p")
        await see(pilot, "PAUSED, p goes on")
        before = installation.read
        installation.state = Snapshot(NOW, (lock("binance:NEWUSDT"),))
        await pilot.press("A", "A", "plus", "minus")
        assert (installation.read, "NEWUSDT" in text(pilot)) == (before, False)
        await pilot.press("p")
        await see(pilot, "NEWUSDT", "every 1s")


async def test_nothing_is_read_once_it_is_paused() -> None:
    installation = three()
    async with shown(installation, interval_s=0.2) as pilot:
        await pilot.press("p")
        await see(pilot, "PAUSED, p goes on")
        before, paused = installation.read, time.monotonic()
        installation.state = Snapshot(NOW, (lock("binance:NEWUSDT"),))
        await until(pilot, lambda: time.monotonic() > paused + 3 * 0.2)
        assert (installation.read, "NEWUSDT" in text(pilot)) == (before, False)
        await pilot.press("p")
        await see(pilot, "NEWUSDT")


async def test_a_reading_that_ends_while_it_is_paused_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    installation, asked, answered = three(), asyncio.Event(), asyncio.Event()
    answering, returned = installation.answering, list[object]()

    async def late() -> dict[str, bool]:
        asked.set()
        await answered.wait()
        answered.clear()
        returned.append(None)
        return dict(await answering())

    async with shown(installation, interval_s=0.05) as pilot:
        monkeypatch.setattr(installation, "answering", late)
        await asked.wait()  # a reading of before is over by now, and could not show what comes
        installation.state = Snapshot(NOW, (lock("binance:NEWUSDT"),))
        asked.clear()
        answered.set()
        await asked.wait()
        await pilot.press("p")
        answered.set()
        await until(pilot, lambda: len(returned) == 2)
        assert "NEWUSDT" not in await see(pilot, "PAUSED, p goes on")
        monkeypatch.setattr(installation, "answering", answering)
        await pilot.press("p")
        await see(pilot, "NEWUSDT")


async def test_plus_and_minus_change_the_interval() -> None:
    async with shown(three()) as pilot:
        for key, every in (("plus", 2), ("plus", 5), ("minus", 2), ("minus", 1), ("minus", 1)):
            await pilot.press(key)
            await see(pilot, f"every {every}s")


async def test_reading_that_takes_long_is_done_less_often() -> None:
    async with shown(three(took_s=2.0)) as pilot:
        await see(pilot, "every 8s, as reading takes 2.0s")


async def test_question_mark_explains_the_keys_and_leads_back() -> None:
    for width, height in ((80, 24), (60, 24), (60, 15)):
        async with shown(three(), width=width, height=height) as pilot:
            await pilot.press("question_mark")
            await see(pilot, "select a lock")
            await pilot.press(*["down"] * 30)
            await see(pilot, "positions that may be without a stop")
            await pilot.press("escape")
            await see(pilot, "RESOURCE")


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_q_and_ctrl_c_leave(key: str) -> None:
    async with shown(three()) as pilot:
        await pilot.press(key)
        await until(pilot, lambda: not pilot.app.is_running)
        assert pilot.app.interrupted is (key == "ctrl+c")


async def test_enter_opens_the_resource_and_escape_goes_back() -> None:
    installation = three(refusals=(refusal(times=3), refusal(ETH)), positions=(position(),))
    async with shown(installation) as pilot:
        await pilot.press("enter")
        told = await see(
            pilot,
            "grant      grant-of-binance:APTUSDT",
            "held for   30s, renewed 3 times",
            "nothing is recorded",
        )
        assert re.search(r"long 12.50, entry_placed for \S+, row 7 without a stop!", told)
        assert "  1.  1m00s  bot-2:77/Task-0  sync" in told
        await pilot.press("end")
        told = await see(pilot, "superseded, token 1, in force 2")
        assert told.count("superseded") == 1
        await pilot.press("escape")
        await see(pilot, "RESOURCE")
        assert selected(pilot) == APT


async def test_waiters_are_told_in_order_and_the_rest_is_counted() -> None:
    held = lock(APT, waiting=1_000)
    async with shown(InMemory(Snapshot(NOW, (held,))), height=200) as pilot:
        await pilot.press("enter")
        told = await see(pilot, "Waiters: 1000, the next first", "and 950 more")
        assert [line.split()[2] for line in told.splitlines() if "/Task-" in line and ". " in line] == [
            f"bot-2:77/Task-{place}" for place in range(50)
        ]


async def test_the_page_of_a_resource_stays_while_its_servers_do_not_answer() -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press("enter")
        await see(pilot, "nothing is recorded")
        installation.fails = QuorumUnavailable("Redis does not answer", resource=APT, votes={})
        pilot.app.read_now()
        await see(pilot, "! what follows is as it was read last: Redis does not answer", "grant-of-")
        installation.fails = None
        pilot.app.read_now()
        await until(pilot, lambda: "Redis does not answer" not in text(pilot))


# What a and b do


async def test_a_asks_for_a_reason_and_a_confirmation_and_requests_the_hand_over() -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press("a")
        await see(pilot, f"Ask for a hand-over of {APT}", "bot-1:5999/Task-1", "grant-of-binance:APTUSDT")
        await pilot.press("enter")
        await see(pilot, "! say why")
        await pilot.press(*"stuck", "enter")
        await pilot.press(*"no", "enter")
        await see(pilot, "! that is neither y nor its name")
        assert installation.asked == []
        await pilot.press("backspace", "backspace", "y", "enter")
        await see(pilot, f"{APT}: a hand-over was requested of its holder")
        assert installation.asked == [(APT, signed("stuck"))]


async def test_a_holder_that_came_while_the_dialog_stood_is_not_asked() -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press("a")
        await see(pilot, f"Ask for a hand-over of {APT}")
        apt, *others = installation.state.locks
        changed = replace(apt, lock=replace(apt.lock, grant="another", holder="bot-9:1/Task-1"))
        installation.state = replace(installation.state, locks=(changed, *others))
        await pilot.press(*"stuck", "enter", "y", "enter")
        await see(pilot, f"! {APT} has changed hands and was not asked: bot-9:1/Task-1 holds it now")
        assert installation.asked == []


@pytest.mark.parametrize("key", ["q", "ctrl+q"])
async def test_q_waits_for_what_is_being_done_unless_it_is_pressed_again(key: str) -> None:
    installation = three()
    installation.waits = asyncio.Event()
    async with shown(installation) as pilot:
        await pilot.press("b", *"why", "enter", "y", "enter")
        await see(pilot, f"breaking {APT} ...")
        await pilot.press(key)
        await see(pilot, "! something is being done")
        installation.waits.set()
        await see(pilot, f"{APT} was broken")
        installation.waits.clear()
        await pilot.press("b", *"why", "enter", "y", "enter")
        await see(pilot, f"breaking {APT} ...")
        await pilot.press(key, key)
        await until(pilot, lambda: not pilot.app.is_running)


async def test_b_shows_the_grant_and_breaks_just_that_one() -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press("b")
        await see(pilot, f"Break {APT}", "grant-of-binance:APTUSDT", "Only this grant is broken")
        apt, *others = installation.state.locks
        changed = replace(apt, lock=replace(apt.lock, grant="another"))
        installation.state = replace(installation.state, locks=(changed, *others))
        pilot.app.read_now()
        await pilot.press(*"stuck", "enter", *APT, "enter")
        await see(pilot, f"{APT} was broken; bot-1:5999/Task-1 held it; Postgres")
        assert installation.broken == [(APT, "grant-of-binance:APTUSDT", signed("stuck"))]


@pytest.mark.parametrize(
    "keys", [("b", "escape"), ("a", "escape"), ("b", *"why", "enter", "escape"), ("b", "enter", "escape")]
)
async def test_escape_leaves_everything_as_it_is(keys: tuple[str, ...]) -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press(*keys)
        await see(pilot, "RESOURCE")
        assert (installation.asked, installation.broken) == ([], [])


async def test_what_could_not_be_done_is_told_and_top_goes_on() -> None:
    installation = three()
    async with shown(installation) as pilot:
        for key, fails in (
            ("b", FenceUnavailable("Postgres does not answer [/x]", resource=APT)),
            ("a", QuorumUnavailable("0 of 1 servers did it", resource=APT, votes={})),
        ):
            installation.fails = fails
            await pilot.press(key, *"why", "enter", "y", "enter")
            await see(pilot, f"! {fails}", "RESOURCE")
        assert pilot.app.is_running


async def test_a_break_can_be_asked_for_on_the_page_of_the_resource_too() -> None:
    installation = three()
    async with shown(installation) as pilot:
        await pilot.press("down", "enter")
        await see(pilot, "nothing is recorded")
        await pilot.press("b", *"why", "enter", "y", "enter")
        await see(pilot, f"{ETH} was broken")
        assert installation.broken == [(ETH, f"grant-of-{ETH}", signed("why"))]


async def test_a_password_that_is_changed_meanwhile_is_a_fault_and_no_end() -> None:
    installation = three()
    async with shown(installation) as pilot:
        installation.snapshot_fails = ConfigurationError("Redis refuses the log-in")
        pilot.app.read_now()
        await see(pilot, "! Redis: Redis refuses the log-in", APT, "faults 2!")
        installation.snapshot_fails = None
        pilot.app.read_now()
        await see(pilot, "faults 0")


async def test_a_bug_ends_it_and_is_raised_where_the_terminal_is_as_it_was() -> None:
    installation = three()
    async with shown(installation) as pilot:
        installation.snapshot_fails = bug = RuntimeError("a bug")
        pilot.app.read_now()
        await until(pilot, lambda: not pilot.app.is_running)
        assert pilot.app.bug is bug


async def test_without_a_database_the_first_line_does_not_tell_of_its_tables() -> None:
    installation = three()
    installation.has_database = False
    async with shown(installation, width=120) as pilot:
        assert "servers 2  locks 3  waiters 6  late 2!  faults 0" in screen(pilot)[0]


async def test_a_story_that_cannot_be_read_leaves_the_rest_of_the_page() -> None:
    installation = three()
    async with shown(installation) as pilot:
        installation.story_fails = ConfigurationError("the role may not read refusals")
        await pilot.press("enter")
        await see(pilot, "! the role may not read refusals", "grant-of-binance:APTUSDT", "Waiters: 1")


@pytest.mark.parametrize(
    ("key", "options"), [("b", {"no_break": "not here"}), ("a", {"no_ask": "not here"})], ids=["break", "ask"]
)
async def test_what_is_not_allowed_is_told_and_not_begun(key: str, options: dict[str, str]) -> None:
    installation = three()
    async with shown(installation, **options) as pilot:
        await pilot.press(key)
        await see(pilot, "not here", "RESOURCE")
        assert (installation.asked, installation.broken) == ([], [])


async def test_what_is_not_held_can_neither_be_asked_for_nor_broken() -> None:
    async with shown(InMemory(Snapshot(NOW, (lock(APT, held=False, waiting=1),)))) as pilot:
        for key in "ab":
            await pilot.press(key)
            await see(pilot, f"{APT} is not held", "RESOURCE")


async def test_without_a_fence_the_dialog_says_that_the_holder_can_go_on() -> None:
    installation = three()
    installation.has_database = False
    async with shown(installation) as pilot:
        await pilot.press("b")
        await see(pilot, "There is no fence: its holder can go on writing for up to a second.")


# Servers that do not answer


async def test_while_redis_is_down_the_last_state_stays_with_its_age_and_it_recovers() -> None:
    installation = three()
    async with shown(installation) as pilot:
        installation.state = Snapshot(NOW, redis_fault="connection refused", positions=(position(),))
        pilot.app.read_now()
        told = await see(pilot, "! Redis: connection refused; trying again, and the locks are ", " old")
        assert all(name in told for name in (APT, ETH, BTC, "no stop 1!", "faults 1!"))
        row = next(line for line in pilot.app.screen._compositor.render_strips() if ETH in line.text)
        assert all(segment.style.dim for segment in row if segment.text.strip())
        installation.state = replace(three().state)
        pilot.app.read_now()
        await until(pilot, lambda: "trying again" not in text(pilot))
        row = next(line for line in pilot.app.screen._compositor.render_strips() if ETH in line.text)
        assert not any(segment.style.dim for segment in row)


async def test_while_postgres_is_down_the_locks_are_live_and_the_fence_is_not_known() -> None:
    installation = three(refusals=(refusal(),), positions=(position(),))
    async with shown(installation) as pilot:
        unfenced = tuple(replace(view, fence=None) for view in installation.state.locks)
        installation.state = Snapshot(NOW, unfenced, database_fault="no answer within 5 s")
        pilot.app.read_now()
        told = await see(
            pilot, "! Postgres: no answer within 5 s; trying again, and refusals and positions are "
        )
        assert "refused/h 1!  no stop 1!  faults 1!" in told
        assert [line.split()[-1] for line in told.splitlines() if "binance:" in line[:10]] == ["?"] * 3


async def test_servers_that_never_answered_are_told_apart_from_an_empty_installation() -> None:
    async with shown(InMemory(Snapshot(NOW, redis_fault="connection refused"))) as pilot:
        await see(pilot, "! Redis: connection refused; trying again, and the locks are not known yet")
        assert "no lock is held" not in text(pilot)
        assert "locks ?  waiters ?  late ?  refused/h 0  no stop ?" in text(pilot)


async def test_a_refusal_that_comes_while_top_runs_is_told() -> None:
    installation = three(refusals=(refusal(ETH, times=2),))
    async with shown(installation) as pilot:
        assert "was refused" not in text(pilot)  # it is of before
        installation.state = replace(installation.state, refusals=(refusal(), refusal(ETH, times=2)))
        pilot.app.read_now()
        await see(pilot, f"{APT}: a write of bot-1:5999/Task-1 (open long) was refused")


# Many locks, small terminals


async def test_ten_thousand_locks_are_shown_by_their_first_lines() -> None:
    locks = tuple(lock(f"binance:N{number:05}", age_ms=number) for number in range(10_000))
    async with shown(InMemory(Snapshot(NOW, locks))) as pilot:
        await see(pilot, "1-19 of 10,000")
        assert resources(pilot)[0] == "binance:N09999"
        await pilot.press("end")
        await see(pilot, "9982-10000 of 10,000")
        assert selected(pilot) == "binance:N00000"
        await pilot.press("home", "pagedown")
        assert selected(pilot) == "binance:N09980"


async def test_the_selected_line_stays_on_the_screen_when_the_terminal_shrinks() -> None:
    locks = tuple(lock(f"binance:N{number:05}", age_ms=number) for number in range(100))
    async with shown(InMemory(Snapshot(NOW, locks))) as pilot:
        await pilot.press(*["down"] * 15)
        assert selected(pilot) == "binance:N00084"
        for width, height in ((60, 10), (120, 40), (30, 8), (80, 24)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            assert selected(pilot).startswith("binance:")
            assert "84" in selected(pilot)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10, 3), (20, 5), (300, 100)])
async def test_any_size_of_terminal_is_endured(width: int, height: int) -> None:
    async with shown(three(redis_fault=""), width=width, height=height) as pilot:
        for key in ("down", "enter", "b", "escape", "escape", "question_mark", "escape", "slash", "escape"):
            await pilot.press(key)
            await pilot.pause()
        assert pilot.app.is_running
