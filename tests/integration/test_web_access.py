"""Who may see the live page, and who may do something on it: each rule over HTTP."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from lockguard._cli.ending import signed
from lockguard.errors import ChangedHands, ConfigurationError, LockguardError
from lockguard.ports import Broken, Token
from lockguard_ops._web import _access
from lockguard_ops._web._access import HEADERS, Access, is_loopback
from tests.integration.web_pages import GRANT, ByHand, Served, lock, served, snapshot

SAFE = {"Content-Type": "application/json", "X-Lockguard": "1"}
BREAK = {"resource": "binance:APTUSDT", "grant": GRANT, "reason": "stuck"}
PATHS = (
    "/",
    "/events",
    "/page.js",
    "/page.css",
    "/icon.svg",
    "/break",
    "/nothing",
    "/?token=",
    "/?token=wrong",
    "/..%2f",
)


class Client:
    """Requests with exactly the headers that a test gives."""

    def __init__(self, session: aiohttp.ClientSession, origin: str) -> None:
        self.session, self.origin = session, origin

    async def get(self, path: str, **headers: str) -> tuple[int, Any, str]:
        return await self.send("GET", path, headers)

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: str | None = None
    ) -> tuple[int, Any, str]:
        async with self.session.request(
            method, self.origin + path, headers=headers, data=body, allow_redirects=False
        ) as answer:
            return answer.status, answer.headers.copy(), await answer.text()


@asynccontextmanager
async def client_of(page: Served) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Client(session, page.origin)


async def enter(client: Client, page: Served) -> str:
    """The cookie for the token in the URL."""
    status, headers, _ = await client.get(f"/?token={page.access.token}")
    assert status == 200
    return str(headers["Set-Cookie"].partition(";")[0])


async def do(
    client: Client, path: str, given: Any, cookie: str, **headers: str
) -> tuple[int, dict[str, str]]:
    sent = {"Origin": client.origin, "Cookie": cookie, **SAFE, **headers}
    status, _, text = await client.send(
        "POST", path, sent, given if isinstance(given, str) else json.dumps(given)
    )
    return status, json.loads(text)


async def test_without_the_token_everything_is_the_same_404() -> None:
    async with served(ByHand(), actions=True) as page, client_of(page) as client:
        answers = [await client.get(path) for path in PATHS]
        answers += [await client.get(path, Cookie=f"lockguard-web-{page.port}=wrong") for path in PATHS]
        for method in ("POST", "PUT", "HEAD", "OPTIONS", "DELETE"):
            status, headers, text = await client.send(method, "/break", {})
            answers.append((status, headers, text or answers[0][2]))
        told = {
            (status, text, *sorted(f"{k}: {v}" for k, v in headers.items() if k != "Date"))
            for status, headers, text in answers
        }
        assert len(told) == 1
        assert told.pop()[0] == 404


async def test_every_request_is_judged_by_the_same_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(_access.hmac, "compare_digest", counted)
    seen = []
    async with served(ByHand()) as page, client_of(page) as client:
        for path, headers in (
            ("/", {}),
            ("/nothing", {}),
            ("/?token=a", {}),
            (f"/?token={page.access.token[:-1]}", {}),
            ("/", {"Cookie": f"lockguard-web-{page.port}=a"}),
            ("/", {"Host": "evil.example"}),
        ):
            compared.clear()
            assert (await client.get(path, **headers))[0] == 404
            seen.append(tuple(compared))
    assert len(set(seen)) == 1
    assert seen[0] == ((32, 32), (32, 32))  # equal lengths, whatever was given


async def test_the_token_works_once_and_becomes_a_cookie() -> None:
    async with served(ByHand()) as page, client_of(page) as client:
        url = f"/?token={page.access.token}"
        status, headers, text = await client.get(url)
        assert status == 200
        assert page.access.token not in url, "the next browser needs another one"
        set_cookie = headers["Set-Cookie"]
        for attribute in ("HttpOnly", "SameSite=Strict", "Path=/"):
            assert attribute in set_cookie
        assert 'http-equiv="refresh" content="0;url=/"' in text  # without the token
        assert url.partition("=")[2] not in set_cookie + text
        assert (await client.get(url))[0] == 404
        cookie = set_cookie.partition(";")[0]
        assert (await client.get("/", Cookie=cookie))[0] == 200
        assert "lockguard" in (await client.get("/", Cookie=cookie))[2]


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", "/"), ("POST", "/"), ("GET", "/events"), ("GET", "/page.js")]
)
async def test_the_token_is_taken_at_the_door_only(method: str, path: str) -> None:
    """A preview of the link by a chat, or a script's address in a log, does not use it up."""
    async with served(ByHand()) as page, client_of(page) as client:
        token = page.access.token
        assert (await client.send(method, f"{path}?token={token}", {}))[0] == 404
        assert page.access.token == token


async def test_a_token_of_the_environment_stays_valid_over_a_restart() -> None:
    token = "A-token_of_24-characters"
    async with served(ByHand(), token=token) as page, client_of(page) as client:
        cookie = await enter(client, page)
        assert await enter(client, page) == cookie
        port = page.port
    async with served(ByHand(), token=token, port=port) as page, client_of(page) as client:
        assert (await client.get("/", Cookie=cookie))[0] == 200
    async with served(ByHand(), port=port) as page, client_of(page) as client:
        assert (await client.get("/", Cookie=cookie))[0] == 404


@pytest.mark.parametrize("token", ["short", "a b c d e f g h i j k l m n", "ü" * 30, "x" * 21, "x" * 201])
def test_a_weak_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match="LOCKGUARD_WEB_TOKEN") as refused:
        Access(host="127.0.0.1", token=token)
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8765", True),
        ("localhost:9999", True),  # another port: the near end of a tunnel
        ("[::1]:8765", True),
        ("LOCALHOST", True),
        ("evil.example:8765", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example@127.0.0.1", False),
        ("192.168.0.7:8765", False),
        ("0.0.0.0:8765", False),
        ("[::1", False),
        ("127.0.0.1:x", False),
        ("127.0.0.1:99999", False),
        ("", False),
    ],
)
async def test_only_our_own_names_are_answered(host: str, known: bool) -> None:
    """A foreign page whose name points to 127.0.0.1 would otherwise read this one in its visitor's place."""
    async with served(ByHand()) as page, client_of(page) as client:
        cookie = await enter(client, page)
        port = host.rpartition(":")[2] if host.endswith(("8765", "9999")) else "80"
        value = cookie.partition("=")[2]
        status, _, _ = await client.get("/", Host=host, Cookie=f"lockguard-web-{port}={value}")
        assert status == (200 if known else 404)


def test_a_name_that_can_be_reached_is_no_loopback() -> None:
    assert [is_loopback(name) for name in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")] == [
        True
    ] * 5
    assert not any(
        is_loopback(name) for name in ("0.0.0.0", "::", "10.0.0.1", "", "localhost.example", "bot")
    )


async def test_every_response_forbids_what_a_page_could_be_used_for() -> None:
    async with (
        served(ByHand(snapshot(lock("binance:APTUSDT"))), actions=True) as page,
        client_of(page) as client,
    ):
        cookie = await enter(client, page)
        every = [
            await client.get(path, Cookie=cookie)
            for path in ("/", "/page.js", "/page.css", "/drawing.css", "/nothing")
        ]
        every += [await client.get("/"), await client.send("POST", "/break", {"Cookie": cookie}, "{}")]
        for _, headers, _ in every:
            assert {name: headers[name] for name in HEADERS} == HEADERS
            assert "Python" not in headers["Server"]
            assert "aiohttp" not in headers["Server"]
        async with client.session.get(f"{page.origin}/events", headers={"Cookie": cookie}) as stream:
            assert {name: stream.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy.replace("http-equiv", "")


async def test_the_page_has_nothing_that_its_policy_forbids_and_no_secret() -> None:
    async with served(ByHand()) as page, client_of(page) as client:
        token = page.access.token
        cookie = await enter(client, page)
        for path in ("/", "/page.js", "/picture.js", "/page.css", "/drawing.css"):
            status, _, text = await client.get(path, Cookie=cookie)
            assert status == 200
            assert token not in text
            assert cookie.partition("=")[2] not in text
            for forbidden in (
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
                " onclick",
                " style=",
            ):
                assert forbidden not in text, path
            assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path


async def test_without_permission_nothing_can_be_done() -> None:
    source = ByHand()
    async with served(source) as page, client_of(page) as client:
        cookie = await enter(client, page)
        for path in ("/ask", "/break"):
            status, _, _ = await client.send(
                "POST", path, {"Origin": client.origin, "Cookie": cookie, **SAFE}, json.dumps(BREAK)
            )
            assert status == 404
    assert source.done == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"X-Lockguard": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_foreign_page_cannot_break_a_lock(headers: dict[str, str]) -> None:
    source = ByHand()
    async with served(source, actions=True) as page, client_of(page) as client:
        cookie = await enter(client, page)
        assert (await do(client, "/break", BREAK, cookie, **headers))[0] == 403
        assert source.done == []
        assert (await do(client, "/break", BREAK, cookie, **{"Sec-Fetch-Site": "same-origin"}))[0] == 200
    assert source.done == [("break", "binance:APTUSDT", GRANT, signed("stuck (web)"))]


async def test_a_break_needs_the_cookie_and_not_the_url() -> None:
    source = ByHand()
    async with served(source, actions=True) as page, client_of(page) as client:
        headers = {"Origin": client.origin, **SAFE}
        status, _, _ = await client.send(
            "POST", f"/break?token={page.access.token}", headers, json.dumps(BREAK)
        )
        assert status == 404
    assert source.done == []


@pytest.mark.parametrize(
    "given",
    [
        "",
        "{",
        "[]",
        '"x"',
        "{}",
        {"resource": "binance:APTUSDT", "reason": "stuck"},
        {**BREAK, "grant": ""},
        {**BREAK, "reason": "  "},
        {**BREAK, "reason": 1},
    ],
)
async def test_a_break_that_says_too_little_does_nothing(given: Any) -> None:
    source = ByHand()
    async with served(source, actions=True) as page, client_of(page) as client:
        status, told = await do(client, "/break", given, await enter(client, page))
        assert status == 400
        assert told["error"]
    assert source.done == []


async def test_a_body_of_any_length_is_cut_off() -> None:
    source = ByHand()
    async with served(source, actions=True) as page, client_of(page) as client:
        cookie = await enter(client, page)
        sent = {"Origin": client.origin, "Cookie": cookie, **SAFE}
        status, _, _ = await client.send(
            "POST", "/break", sent, json.dumps({**BREAK, "reason": "x" * 100_000})
        )
        assert status == 413
    assert source.done == []


async def test_what_a_server_says_is_told_in_one_harmless_line() -> None:
    source = ByHand(fails=LockguardError("the fence\u202e does not\x1b[31m answer\nat all"))
    async with served(source, actions=True) as page, client_of(page) as client:
        status, told = await do(client, "/break", BREAK, await enter(client, page))
    assert (status, told) == (503, {"error": "the fence\\u202e does not\\x1b[31m answer"})


async def test_a_hand_over_is_requested_of_the_holder_that_was_seen() -> None:
    source = ByHand(snapshot(lock("binance:APTUSDT")))
    async with served(source, actions=True) as page, client_of(page) as client:
        cookie = await enter(client, page)
        status, told = await do(client, "/ask", {**BREAK, "grant": "5" * 32}, cookie)
        assert status == 409
        assert "changed hands" in told["error"]
        assert source.done == []
        assert (await do(client, "/ask", BREAK, cookie))[0] == 200
    assert source.done == [("ask", "binance:APTUSDT", signed("stuck (web)"))]


async def test_a_break_that_comes_second_is_not_told_as_a_break() -> None:
    """Two operators broke one lock: the second one was told "It was broken" too, without a holder."""
    source = ByHand(broken=Broken("", "", Token(9)))
    async with served(source, actions=True) as page, client_of(page) as client:
        status, told = await do(client, "/break", BREAK, await enter(client, page))
    assert (status, told) == (
        200,
        {
            "told": "It was free in Redis: there was no lock to break."
            " Postgres accepts nothing below token 9 for it."
        },
    )


async def test_a_lock_that_changed_hands_is_told_as_such() -> None:
    fault = ChangedHands("held by bot-9 now", resource="binance:APTUSDT", grant="5" * 32, holder="bot-9")
    async with served(ByHand(fails=fault), actions=True) as page, client_of(page) as client:
        status, told = await do(client, "/break", BREAK, await enter(client, page))
    assert (status, told) == (409, {"error": "held by bot-9 now"})
