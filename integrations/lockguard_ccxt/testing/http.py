"""The wire: HTTP requests in, answers and faults out.

What happens to a request, in order: it is read and its signature checked; half the latency passes; the desk
carries it out; the other half passes; it is answered. A fault takes the answer's place, and says whether
and when the desk is asked. The desk runs without awaiting, so requests are carried out one at a time, as a
matching engine does, however many are on their way.

A client that has gone away does not undo its request: a handler is not cancelled when its connection drops.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never
from urllib.parse import parse_qsl

from aiohttp import web

from lockguard_ccxt.testing.faults import Execution, Fault, FaultKind
from lockguard_ccxt.testing.params import Params
from lockguard_ccxt.testing.rejections import Rejection
from lockguard_ccxt.testing.signature import Credentials, verify

if TYPE_CHECKING:
    from lockguard_ccxt.testing.desk import Desk
    from lockguard_ccxt.testing.render import Json
    from lockguard_ccxt.testing.surface import Route

__all__ = ["Wire", "json_response"]


@dataclass(frozen=True, slots=True)
class _Reply:
    body: Json
    status: int = 200


def json_response(body: Json, status: int = 200) -> web.Response:
    """An answer with a JSON body."""
    return web.Response(
        text=json.dumps(body, separators=(",", ":")), status=status, content_type="application/json"
    )


def _error(code: int, message: str, status: int) -> _Reply:
    return _Reply({"code": code, "msg": message}, status)


class Wire:
    """Answers the REST API for one desk."""

    def __init__(self, desk: Desk, credentials: Credentials) -> None:
        self._desk = desk
        self._credentials = credentials
        self._closing = asyncio.Event()
        self._late: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End every request that hangs and drop every request that was to be carried out late."""
        self._closing.set()
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def handle(self, route: Route, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await request.text()
        payload = request.rel_url.raw_query_string + body
        values = dict(parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
        values.update(parse_qsl(body, keep_blank_values=True))
        params = Params(values)
        try:
            if route.private:
                api_key = request.headers.get("X-MBX-APIKEY")
                verify(
                    self._credentials,
                    api_key=api_key,
                    payload=payload,
                    params=values,
                    now_ms=self._desk.now_ms,
                )
        except Rejection as no:
            self._log(route, params, str(no.code))
            return json_response({"code": no.code, "msg": no.message}, no.status)
        fault = self._desk.faults.take(route.operation, params.optional("symbol"))
        if fault is not None:
            return await self._fail(fault, route, params, request)
        reply = await self._slowly(route, params)
        return json_response(reply.body, reply.status)

    async def _slowly(self, route: Route, params: Params) -> _Reply:
        half_s = self._desk.latency_ms(route.operation) / 2000
        await self._pause(half_s)
        reply = self._carry_out(route, params)
        await self._pause(half_s)
        return reply

    def _carry_out(self, route: Route, params: Params, note: str = "") -> _Reply:
        try:
            body = route.answer(self._desk, params)
        except Rejection as no:
            self._log(route, params, str(no.code) + note)
            return _error(no.code, no.message, no.status)
        self._log(route, params, "ok" + note)
        return _Reply(body)

    def _log(self, route: Route, params: Params, outcome: str) -> None:
        client_id = None
        for name in ("newClientOrderId", "clientAlgoId", "origClientOrderId"):
            client_id = client_id or params.optional(name)
        self._desk.log(route.operation, params.optional("symbol"), client_id, outcome)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than the server lives."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._closing.wait(), seconds)
            except TimeoutError:
                return

    # --- faults ---

    async def _fail(
        self, fault: Fault, route: Route, params: Params, request: web.Request
    ) -> web.StreamResponse:
        await self._pause(self._desk.latency_ms(route.operation) / 2000)
        note = f" {fault.kind}/{fault.execution}"
        reply = _Reply({})
        match fault.execution:
            case Execution.NEVER:
                self._log(route, params, note.strip())
            case Execution.FIRST:
                reply = self._carry_out(route, params, note)
            case Execution.LATE:
                task = asyncio.create_task(self._carry_out_late(fault, route, params, note))
                self._late.add(task)
                task.add_done_callback(self._late.discard)
            case _:
                assert_never(fault.execution)
        return await self._answer(fault, reply, route, params, request)

    async def _carry_out_late(self, fault: Fault, route: Route, params: Params, note: str) -> None:
        await asyncio.sleep(fault.hold_ms / 1000)
        self._carry_out(route, params, note)

    async def _answer(
        self, fault: Fault, reply: _Reply, route: Route, params: Params, request: web.Request
    ) -> web.StreamResponse:
        match fault.kind:
            case FaultKind.HANG:
                await self._pause(fault.hold_ms / 1000)
                return _cut(request)
            case FaultKind.DISCONNECT:
                return _cut(request)
            case FaultKind.TRUNCATED:
                return await _truncate(reply, request)
            case FaultKind.DELAY:
                await self._pause(fault.hold_ms / 1000)
                if fault.execution is Execution.NEVER:
                    reply = self._carry_out(route, params)
                return json_response(reply.body, reply.status)
            case _:
                return _said(fault)


_OVERLOADED = "Server is currently overloaded with other requests. Please try again in a few minutes."
_TIMEOUT = "Timeout waiting for response from backend server. Send status unknown; execution status unknown."


def _said(fault: Fault) -> web.Response:
    match fault.kind:
        case FaultKind.UNAVAILABLE:
            return web.Response(text="Service Unavailable", status=503, content_type="text/html")
        case FaultKind.OVERLOADED:
            no = _error(-1008, _OVERLOADED, 503)
        case FaultKind.RATE_LIMITED:
            no = _error(-1003, "Too many requests; current limit is 2400 requests per minute.", 429)
        case FaultKind.TIMEOUT:
            no = _error(-1007, _TIMEOUT, 408)
        case FaultKind.CLOCK:
            no = _error(-1021, "Timestamp for this request is outside of the recvWindow.", 400)
        case _:
            no = _error(fault.code, fault.message, 400)
    return json_response(no.body, no.status)


def _cut(request: web.Request) -> web.Response:
    """End the connection without an answer; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _truncate(reply: _Reply, request: web.Request) -> web.StreamResponse:
    """Half the body, under a header that promises all of it."""
    body = json.dumps(reply.body, separators=(",", ":")).encode()
    response = web.StreamResponse(status=200, headers={"Content-Type": "application/json"})
    response.content_length = max(len(body), 2)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
