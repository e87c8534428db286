"""The live page in a real browser: what it shows, on which screens, by keyboard and to a screen reader."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from lockguard._cli.ending import signed
from lockguard._records import FenceStanding
from lockguard.errors import LockguardError
from tests.integration.web_pages import (
    DESKTOP,
    GRANT,
    HOSTILE,
    PHONE,
    ByHand,
    Visit,
    busy_story,
    chromium,
    lock,
    position,
    refusal,
    served,
    snapshot,
    visit,
    waiter,
)

APT = "binance:APTUSDT"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


def busy() -> ByHand:
    now = datetime.now(UTC)
    source = ByHand(
        snapshot(
            lock("binance:SOLUSDT", age_ms=7_912_000, remaining_ms=2100, operation="adopt", grant="9" * 32),
            lock(APT, waiters=tuple(waiter(n) for n in range(1, 5)), wanted="roll-out"),
            lock("bybit:ARBUSDT", grant="7" * 32, fence=FenceStanding.AHEAD),
            lock("binance:OPUSDT", held=False, holder="", grant="", closed_ms=4100, fence=None),
            refusals=(refusal(APT, times=14), refusal("", holder="", operation="", presented=None)),
            positions=(position(1), position(2, status="active")),
        )
    )
    source.stories[APT] = busy_story(now)
    return source


async def opened(page: Page, name: str = APT) -> None:
    await page.get_by_role("button", name=name, exact=True).click()
    await expect(page.locator("#lines li").first).to_be_visible()


async def focused(page: Page) -> str:
    """Which element has the focus: its id or its words."""
    found: str = await page.evaluate(
        "(({id, textContent}) => id || textContent.trim())(document.activeElement)"
    )
    return found


async def fits(page: Page) -> bool:
    """Whether nothing reaches beyond the screen's width."""
    found: bool = await page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    return found


@pytest.mark.parametrize(
    "viewport", [PHONE, {"width": 768, "height": 1024}, DESKTOP, {"width": 1920, "height": 1080}]
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_the_screen_and_no_rule_of_its_policy_is_broken(
    browser: Browser, viewport: dict[str, int], scheme: str
) -> None:
    async with (
        served(busy(), actions=True) as page,
        visit(browser, page.url, viewport=viewport, color_scheme=scheme) as seen,
    ):
        await expect(seen.page.locator("#lock-rows tr")).to_have_count(4)
        assert seen.page.url == f"{page.origin}/"  # without the token
        assert await fits(seen.page)
        await opened(seen.page)
        assert await fits(seen.page)
        one = seen.page.locator("#one")
        assert await one.evaluate("one => one.scrollWidth <= one.clientWidth")
        await seen.page.get_by_role("button", name="Break it").click()
        assert await fits(seen.page)
        background = await seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 28)"}[scheme]
        assert seen.said == []


async def test_what_is_wrong_comes_first_and_is_told_in_words(browser: Browser) -> None:
    async with served(busy()) as page, visit(browser, page.url) as seen:
        await expect(seen.page.locator("#naked")).to_be_visible()
        headings = await seen.page.get_by_role("heading").all_inner_texts()
        assert headings == ["lockguard", "Positions without a stop", "Locks", "Refused writes"]
        await expect(seen.page).to_have_title("(!) 1 without a stop - lockguard")
        rows = seen.page.locator("#lock-rows tr")
        await expect(rows.nth(0)).to_contain_text("renewal 4.6 s late")
        await expect(rows.nth(1)).to_contain_text("4 waiting")
        await expect(rows.nth(2)).to_contain_text("fence ahead")
        await expect(rows.nth(3)).to_contain_text("closed for 4.1 s")
        await expect(seen.page.locator("#refused-rows tr").first).to_contain_text("14 times")
        await expect(seen.page.locator("#refused-rows tr").nth(1)).to_contain_text("a row without a lock")


async def test_no_alarm_is_told_from_not_knowing(browser: Browser) -> None:
    source = ByHand(snapshot(positions=(position(1, status="active"),)))
    async with served(source) as page, visit(browser, page.url) as seen:
        words = seen.page.locator("#positions")
        await expect(words).to_have_text("1 open position, each with a stop.")
        source.now = snapshot(positions=None)
        await expect(words).to_contain_text("is not known")
        source.now = snapshot(positions=())
        await expect(words).to_have_text("There are no open positions.")
        source.now = snapshot(positions=(position(1),))
        await expect(words).to_be_hidden()
        await expect(seen.page.locator("#naked")).to_be_visible()


async def test_a_lock_tells_its_story(browser: Browser) -> None:
    async with served(busy()) as page, visit(browser, page.url) as seen:
        await opened(seen.page)
        await expect(seen.page.locator("#waiters li")).to_have_count(4)
        await expect(seen.page.locator("#lines li").first).to_contain_text("granted to bot-1:5999/Task-1")
        picture = seen.page.locator("#picture svg")
        await expect(picture).to_have_attribute(
            "aria-label", re.compile("held by bot-1:5999/Task-1.*1 refused")
        )
        assert await picture.locator("rect.first, rect.second").count() >= 4
        assert await picture.locator("line.waits").count() == 4
        assert await picture.locator("line.broken").count() == 1
        assert await picture.locator("path.cross").count() == 1
        await expect(seen.page.locator("#deeds")).to_be_hidden()  # without --allow-break
        await seen.page.get_by_label("in the last").select_option("60")
        await expect(picture.locator("line.broken")).to_have_count(0)


async def test_a_reload_and_a_link_open_the_same_lock(browser: Browser) -> None:
    async with served(busy()) as page, visit(browser, page.url) as seen:
        await opened(seen.page)
        await seen.page.reload()
        await expect(seen.page.get_by_role("heading", name=APT)).to_be_visible()
        await expect(seen.page.locator("#lines li").first).to_be_visible()


# --- hands and ears ---


async def test_all_of_it_is_reached_by_keyboard(browser: Browser) -> None:
    async with served(busy(), actions=True) as page, visit(browser, page.url) as seen:
        await expect(seen.page.locator("#lock-rows tr")).to_have_count(4)
        keyboard = seen.page.keyboard
        await keyboard.press("Tab")
        assert await focused(seen.page) == "Skip to the locks"
        await keyboard.press("Enter")
        assert await focused(seen.page) == "filter"
        await keyboard.press("Tab")
        assert await focused(seen.page) == "binance:SOLUSDT"
        outline = await seen.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "3px"
        await keyboard.press("ArrowDown")
        assert await focused(seen.page) == APT
        await keyboard.press("Enter")
        assert await focused(seen.page) == "one-title"
        await expect(seen.page.locator("#deeds")).to_be_visible()
        order = []
        for _ in range(4):
            await keyboard.press("Tab")
            order.append(await focused(seen.page))
        assert order == ["close", "ask", "break", "span"]
        await keyboard.press("Escape")
        await expect(seen.page.locator("#one")).to_be_hidden()
        assert await focused(seen.page) == APT


async def test_the_dialog_keeps_the_focus_and_gives_it_back(browser: Browser) -> None:
    async with served(busy(), actions=True) as page, visit(browser, page.url) as seen:
        await opened(seen.page)
        keyboard = seen.page.keyboard
        await seen.page.locator("#break").focus()
        await keyboard.press("Enter")
        assert await focused(seen.page) == "reason"
        await keyboard.press("Escape")
        await expect(seen.page.locator("#sure")).to_be_hidden()
        assert await focused(seen.page) == "break"
        await expect(seen.page.locator("#one")).to_be_visible()  # one Escape, one step


async def test_the_focus_stays_where_it_is_while_the_figures_change(browser: Browser) -> None:
    source = busy()
    async with served(source) as page, visit(browser, page.url) as seen:
        button = seen.page.get_by_role("button", name=APT, exact=True)
        await button.focus()
        first, second, *others = source.now.locks
        source.now = replace(
            source.now, locks=(lock("binance:AAAUSDT", grant="1" * 32), second, first, *others)
        )
        await expect(seen.page.locator("#lock-rows tr")).to_have_count(5)
        assert await focused(seen.page) == APT


async def test_on_a_phone_what_is_covered_cannot_be_reached(browser: Browser) -> None:
    async with served(busy()) as page, visit(browser, page.url, viewport=PHONE) as seen:
        await opened(seen.page)
        reached = set()
        for _ in range(12):
            await seen.page.keyboard.press("Tab")
            reached.add(await focused(seen.page))
        assert "filter" not in reached
        assert {"close", "span"} <= reached
        await seen.page.get_by_role("button", name="Close").click()
        await expect(seen.page.locator("#filter")).to_be_visible()


async def test_a_screen_reader_finds_its_way(browser: Browser) -> None:
    async with served(busy(), actions=True) as page, visit(browser, page.url) as seen:
        await opened(seen.page)
        for landmark in ("banner", "main", "contentinfo"):
            await expect(seen.page.get_by_role(landmark)).to_have_count(1)  # type: ignore[arg-type]
        for region in ("Locks", "Refused writes", "Positions without a stop", APT):
            await expect(seen.page.get_by_role("region", name=region, exact=True)).to_have_count(1)
        table = seen.page.get_by_role("table", name=re.compile("All locks"))
        await expect(table.get_by_role("columnheader", name="ttl left")).to_be_visible()
        row = table.get_by_role("rowheader").filter(has_text=APT)
        await expect(row.get_by_role("button")).to_have_attribute("aria-expanded", "true")
        unnamed: list[str] = await seen.page.evaluate(
            """() => [...document.querySelectorAll("button, input, select")]
                .filter((one) => one.checkVisibility() && !one.labels?.length && !one.textContent.trim())
                .map((one) => one.outerHTML)"""
        )
        assert unnamed == []
        length = table.get_by_role("cell", name="7.3 s of 10 s", exact=True)
        await expect(length.first).to_be_visible()  # the length of the bar, in words


async def test_changes_that_matter_are_said_and_ticks_are_not(browser: Browser) -> None:
    source = busy()
    async with served(source) as page, visit(browser, page.url) as seen:
        await opened(seen.page)
        said = seen.page.locator("#said")
        live = await seen.page.evaluate(
            "[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map((one) => one.id)"
        )
        assert sorted(live) == ["done", "said", "sure-fault"]
        source.now = replace(
            source.now,
            locks=tuple(
                replace(one, lock=replace(one.lock, age_ms=one.lock.age_ms + 1000))
                for one in source.now.locks
            ),
        )
        await expect(seen.page.locator("#facts")).to_contain_text("5.2 s")
        await expect(said).to_be_empty()
        source.now = replace(
            source.now, positions=(*(source.now.positions or ()), position(9, symbol="TIAUSDT"))
        )
        await expect(said).to_have_text("binance:TIAUSDT has no stop.")
        source.now = replace(source.now, redis_fault="no answer within 5 s")
        await expect(said).to_have_text("Redis does not answer.")
        source.now = replace(source.now, redis_fault="", locks=(lock(APT, grant="5" * 32, holder="bot-9"),))
        await expect(said).to_have_text(f"Redis answers again. {APT} is held by bot-9 now.")
        source.now = replace(
            source.now, refusals=(refusal("binance:NEW", at=datetime.now(UTC)), *source.now.refusals)
        )
        await expect(said).to_have_text("a write for binance:NEW was refused.")


async def test_nothing_moves_for_those_who_asked_for_stillness(browser: Browser) -> None:
    async with served(busy()) as page, visit(browser, page.url, reduced_motion="reduce") as seen:
        await expect(seen.page.locator("#live")).to_have_class("live on")
        assert await seen.page.evaluate("document.getAnimations().length") == 0


CONTRAST = """() => {
  const light = (text) => {
    const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = text.match(/[0-9.]+/g).map((v) => linear(Number(v) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest(".unseen, .key i, svg")) continue;
    const [one, other] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    if ((one + 0.05) / (other + 0.05) < 4.5) found.push(node.outerHTML);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_word_stands_out(browser: Browser, scheme: str) -> None:
    source = busy()
    async with served(source, actions=True) as page, visit(browser, page.url, color_scheme=scheme) as seen:
        await opened(seen.page)
        assert await seen.page.evaluate(CONTRAST) == []
        source.now = replace(source.now, redis_fault="no answer")
        await expect(seen.page.locator("#faults li")).to_have_count(1)
        assert await seen.page.evaluate(CONTRAST) == []


# --- bad days ---


async def assert_harmless(seen: Visit) -> None:
    assert await seen.page.title() != "owned"
    assert await seen.page.locator("main script, main img").count() == 0
    text = await seen.page.inner_text("body")
    assert not {"\u202e", "\u2066", "\x1b"} & set(text)
    assert "<script>" in text  # shown as what it is
    assert [line for line in seen.said if "404" not in line] == []


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP])
async def test_hostile_texts_are_shown_and_do_nothing(browser: Browser, viewport: dict[str, int]) -> None:
    name = "binance:<img src=x onerror=alert(1)>\u202eTDSU"
    hostile = lock(
        name,
        holder=HOSTILE,
        operation=HOSTILE,
        wanted=HOSTILE,
        waiters=(waiter(1, holder=HOSTILE, operation=HOSTILE),),
    )
    source = ByHand(
        snapshot(
            hostile,
            refusals=(refusal(HOSTILE, holder=HOSTILE, operation=HOSTILE, reason=HOSTILE),),
            positions=(position(1, symbol=HOSTILE, side=HOSTILE, status=HOSTILE),),
            database_fault=HOSTILE,
        ),
        fails=LockguardError(HOSTILE),
    )
    source.stories[name] = [
        replace(each, reason=HOSTILE, holder=HOSTILE, operation=HOSTILE) for each in busy_story(source.now.at)
    ]
    async with served(source, actions=True) as page, visit(browser, page.url, viewport=viewport) as seen:
        await seen.page.locator("#lock-rows button").click()
        await expect(seen.page.locator("#lines li").first).to_be_visible()
        await assert_harmless(seen)
        assert await fits(seen.page)
        await seen.page.get_by_role("button", name="Break it").click()
        await seen.page.get_by_label("Reason").fill("x")
        await seen.page.locator("#sure-yes").click()
        await expect(seen.page.locator("#sure-fault")).to_be_visible()
        seen.said = [line for line in seen.said if "503" not in line]  # the browser tells of a failed request
        await assert_harmless(seen)


async def test_ten_thousand_locks_are_listed_in_part_and_found_by_the_filter(browser: Browser) -> None:
    source = ByHand(snapshot(*(lock(f"binance:S{n}USDT") for n in range(10_000))))
    async with served(source) as page, visit(browser, page.url) as seen:
        await expect(seen.page.locator("#lock-rows tr")).to_have_count(200)
        await expect(seen.page.locator("#count")).to_have_text("10,000 held, 0 waiting")
        await expect(seen.page.locator("#more")).to_have_text("9,800 more are not shown; filter to see them.")
        await seen.page.get_by_label("Filter").fill("s9876")
        await expect(seen.page.locator("#lock-rows tr")).to_have_count(1)
        await seen.page.get_by_label("Filter").fill("nothing has this name")
        await expect(seen.page.locator("#more")).to_have_text("No lock fits the filter.")


async def test_a_server_that_went_silent_leaves_what_it_said_with_its_time(browser: Browser) -> None:
    source = busy()
    async with served(source) as page, visit(browser, page.url) as seen:
        await expect(seen.page.locator("#lock-rows tr")).to_have_count(4)
        source.now = snapshot(redis_fault="127.0.0.1:6379: refused", database_fault="127.0.0.1:5432: refused")
        await expect(seen.page.locator("#faults li")).to_have_count(2)
        await expect(seen.page.locator("#faults li").first).to_contain_text(
            re.compile("What is shown is of .* ago")
        )
        await expect(seen.page.locator("#lock-rows tr")).to_have_count(4)
        await expect(seen.page.locator("#naked-rows tr")).to_have_count(1)
        source.now = snapshot()
        await expect(seen.page.locator("#faults li")).to_have_count(0)
        await expect(seen.page.locator("#more")).to_have_text("No lock is held, and there are no waiters.")


async def test_it_comes_back_after_a_restart_of_the_command(browser: Browser) -> None:
    token, source = "A-token_of_24-characters", busy()
    async with served(source, token=token) as page:
        port = page.port
        kept = visit(browser, page.url)
        seen = await kept.__aenter__()
        await expect(seen.page.locator("#live")).to_have_class("live on")
    try:
        await expect(seen.page.locator("#live")).to_have_class("live off")
        await expect(seen.page.locator("#said")).to_contain_text("The connection is lost")
        async with served(source, token=token, port=port):
            await expect(seen.page.locator("#live")).to_have_class("live on")
        async with served(source, port=port):  # with a token of its own: this browser may not see it any more
            await expect(seen.page.locator("#live")).to_contain_text("open the URL that it printed")
    finally:
        await kept.__aexit__(None, None, None)


async def test_a_break_names_the_grant_that_was_seen(browser: Browser) -> None:
    source = busy()
    async with served(source, actions=True) as page, visit(browser, page.url) as seen:
        await opened(seen.page)
        await seen.page.get_by_role("button", name="Break it").click()
        await expect(seen.page.locator("#sure-words")).to_contain_text("bot-1:5999/Task-1 has held it for")
        await seen.page.locator("#sure-yes").click()
        assert source.done == []  # it asks for a reason
        others = [one for one in source.now.locks if one.lock.resource != APT]
        source.now = replace(source.now, locks=(*others, lock(APT, grant="5" * 32, holder="bot-9")))
        await expect(seen.page.locator("#facts")).to_contain_text("bot-9")
        await seen.page.get_by_label("Reason").fill("stuck in a fill")
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.locator("#done")).to_have_text("It was broken. bot-1:5999/Task-1 held it.")
        assert source.done == [("break", APT, GRANT, signed("stuck in a fill (web)"))]
        await seen.page.get_by_role("button", name="Ask for it").click()
        await seen.page.get_by_label("Reason").fill("roll-out")
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.locator("#done")).to_have_text("The holder was asked.")
        assert source.done[1:] == [("ask", APT, signed("roll-out (web)"))]


async def test_a_page_in_the_background_leaves_the_connection_to_others(browser: Browser) -> None:
    """A browser has six connections for one server; a seventh page would never load."""
    source = busy()
    async with served(source) as page, visit(browser, page.url) as seen:
        await expect(seen.page.locator("#live")).to_have_class("live on")
        hide = """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
        await seen.page.evaluate(hide, True)
        for _ in range(8):
            other = await seen.context.new_page()
            await other.goto(page.origin)
            await expect(other.locator("#lock-rows tr")).to_have_count(4)
            await other.evaluate(hide, True)
        await seen.page.evaluate(hide, False)
        await expect(seen.page.locator("#live")).to_have_class("live on")
