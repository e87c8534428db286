"""The page's requests and responses."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import click
from aiohttp import web
from aiohttp_sse import sse_response

from lockguard._cli.ending import signed
from lockguard.errors import ChangedHands, ConfigurationError, LockguardError
from lockguard.text import first_line, printable
from lockguard_logs._drawing import style
from lockguard_ops._web._access import HEADERS, Access, Admission
from lockguard_ops._web._feed import Feed, Full, Page, Source
from lockguard_ops._web._seen import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp.typedefs import Handler

    from lockguard.ports import Broken

__all__ = ["Actions", "application"]

_SEND_S = 20.0
"""A page that takes nothing for so long is gone: a phone without a network says no goodbye."""

_RETRY_MS = 2000
"""After how long a browser whose connection was cut tries again."""

_BODY_MAX = 16 * 1024
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

_MOVED_IN = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>lockguard</title>'
    '<link rel="icon" href="/icon.svg"><meta http-equiv="refresh" content="0;url=/">'
    '<p><a href="/">Open the page</a></p></html>'
)
"""After the token: the browser goes on by itself. It takes this for a visit from our own page, and a redirect
for one from wherever the URL was clicked, to which it would not send the cookie."""


class Actions(Protocol):
    """What an operator may do on the page."""

    async def ask(self, resource: str, *, grant: str, reason: str) -> bool:
        """Request a hand-over of this grant; returns whether the resource is held."""
        ...

    async def break_(self, resource: str, *, grant: str, reason: str) -> Broken:
        """Break the lock of this grant."""
        ...


def application(
    source: Source,
    access: Access,
    *,
    about: Mapping[str, Any],
    interval_s: float = 1.0,
    actions: Actions | None = None,
    entered: Callable[[], None] = lambda: None,
) -> web.Application:
    """The page as an application.

    Args:
        source: what it shows.
        access: who may see it.
        about: what it says of the installation, which stays the same.
        interval_s: how often it is renewed, in seconds.
        actions: what it can do; ``None``: it only shows.
        entered: called when the URL's token was used.
    """
    app = web.Application(middlewares=[_guarded(access, entered)], client_max_size=_BODY_MAX)
    feed = Feed(source, interval_s=interval_s)

    async def close(_app: web.Application) -> None:
        await feed.aclose()

    app.on_shutdown.append(close)
    app.on_response_prepare.append(_protect)
    app.router.add_get("/events", _events(feed, {**about, "actions": actions is not None}), allow_head=False)
    for path, (text, kind) in _assets().items():
        app.router.add_get(path, _text(text, kind), allow_head=False)
    if actions is not None:
        app.router.add_post("/ask", _doing(access, _ask(actions)))
        app.router.add_post("/break", _doing(access, _break(actions)))
    return app


def _guarded(access: Access, entered: Callable[[], None]) -> Any:
    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        admission = access.judge(request)
        if admission is Admission.NONE:
            return web.Response(status=404, text="404: Not Found")
        if admission is Admission.COOKIE and "token" not in request.query:
            return await handler(request)
        moved_in = web.Response(text=_MOVED_IN, content_type="text/html")
        if admission is Admission.URL:
            access.use(request, moved_in)
            entered()
        return moved_in

    return guarded


async def _protect(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers["Server"] = "lockguard"  # and not which versions of which libraries


def _assets() -> dict[str, tuple[str, str]]:
    folder = files("lockguard_ops") / "_web" / "assets"
    read = {
        f"/{name}": (folder / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page.js", "picture.js", "icon.svg")
    }
    read["/"] = read.pop("/page.html")
    read["/drawing.css"] = style()
    return {
        path: (text, _TYPES[path.rpartition(".")[2]] if "." in path else "text/html")
        for path, text in read.items()
    }


def _text(text: str, kind: str) -> Handler:
    async def respond(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind)

    return respond


def _events(feed: Feed, about: Mapping[str, Any]) -> Handler:
    async def events(request: web.Request) -> web.StreamResponse:
        try:
            with feed.page(View.read(request.query)) as page:
                return await _stream(request, page, about)
        except Full:
            raise web.HTTPServiceUnavailable(text="too many pages are open") from None

    return events


async def _stream(request: web.Request, page: Page, about: Mapping[str, Any]) -> web.StreamResponse:
    async with sse_response(request) as stream:
        try:
            async with asyncio.timeout(_SEND_S):
                await stream.send(json.dumps(about), event="about", retry=_RETRY_MS)
            async for told in page:
                async with asyncio.timeout(_SEND_S):
                    await stream.send(told)
        except ConnectionResetError:
            pass  # the page was closed
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # what it was sent waits for it, and closing would wait too
    return stream


def _doing(access: Access, action: Callable[[dict[str, str]], Awaitable[dict[str, Any]]]) -> Handler:
    """A request that changes something: only from our own page, and with an answer for each failure."""

    async def do(request: web.Request) -> web.Response:
        if not access.is_from_our_page(request):
            return _refused(403, "only the page itself may ask for this")
        try:
            given = await request.json()
        except ValueError:
            given = None
        if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
            return _refused(400, "that is no request of the page")
        try:
            return web.json_response(await action(given))
        except (ConfigurationError, KeyError) as exc:
            return _refused(400, first_line(exc))
        except ChangedHands as exc:
            return _refused(409, first_line(exc))
        except LockguardError as exc:
            return _refused(503, first_line(exc))
        except click.ClickException as exc:
            return _refused(503, exc.format_message())

    return do


def _ask(actions: Actions) -> Callable[[dict[str, str]], Awaitable[dict[str, Any]]]:
    async def ask(given: dict[str, str]) -> dict[str, Any]:
        resource, grant, reason = given["resource"], _grant(given), _reason(given)
        held = await actions.ask(resource, grant=grant, reason=reason)
        _tell(f"asked for {resource}" if held else f"{resource} was asked for and is free")
        return {"told": "The holder was asked." if held else "It is free."}

    return ask


def _break(actions: Actions) -> Callable[[dict[str, str]], Awaitable[dict[str, Any]]]:
    async def break_(given: dict[str, str]) -> dict[str, Any]:
        resource, grant = given["resource"], _grant(given)
        broken = await actions.break_(resource, grant=grant, reason=_reason(given))
        if not broken.grant:
            _tell(f"{resource} was to be broken and was free in Redis")
            return {
                "told": "It was free in Redis: there was no lock to break."
                f" Postgres accepts nothing below token {broken.token} for it."
            }
        _tell(f"broke {resource}, held by {broken.holder}, grant {broken.grant}")
        return {"told": f"It was broken. {printable(broken.holder)} held it."}

    return break_


def _grant(given: dict[str, str]) -> str:
    if not given["grant"]:
        raise ConfigurationError("the grant that was seen is missing")
    return given["grant"]


def _reason(given: dict[str, str]) -> str:
    reason = given["reason"].strip()
    if not reason:
        raise ConfigurationError("the reason is empty; say why, for those who read the history")
    return signed(f"{reason} (web)")


def _refused(status: int, why: str) -> web.Response:
    return web.json_response({"error": printable(why)}, status=status)


def _tell(done: str) -> None:
    """The terminal keeps a record of what was done on the page."""
    click.echo(f"lockguard: {datetime.now(UTC):%H:%M:%S} {printable(done)}", err=True)
