"""The requests: in by HTTP, and by websocket (:mod:`lockguard_lab.exchange.wsapi`); answers and faults out.

The steps of a request, in order: bans and maintenance refuse it; its key, signature, time and permission are
checked; half the latency passes; the desk carries it out; the other half passes; it is answered. A fault
replaces the answer, and decides whether and when the desk is asked. The desk runs without awaiting, so
requests are carried out one at a time, as in a matching engine, however many are in flight.

A client that disconnects does not undo its request: a handler is not cancelled when its connection drops.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never
from urllib.parse import parse_qsl

from aiohttp import web

from lockguard_lab.exchange.desk import RequestContext
from lockguard_lab.exchange.faults import Execution, Fault, FaultKind
from lockguard_lab.exchange.model import MAIN
from lockguard_lab.exchange.params import Params
from lockguard_lab.exchange.record import Request
from lockguard_lab.exchange.rejections import Rejection
from lockguard_lab.exchange.signature import verify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockguard_lab.exchange.desk import Desk
    from lockguard_lab.exchange.render import Json
    from lockguard_lab.exchange.surface import Endpoint

__all__ = ["Reply", "RestApi", "json_response"]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request.

    Attributes:
        body: the answer itself.
        status: of HTTP.
        headers: of HTTP, besides the usual ones.
        ending: the fault that keeps the client from getting it: ``DISCONNECT``, ``TRUNCATED`` or
            ``UNAVAILABLE``.
    """

    body: Json
    status: int = 200
    headers: Mapping[str, str] | None = None
    ending: FaultKind | None = None


def json_response(body: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer with a JSON body."""
    return web.Response(
        text=json.dumps(body, separators=(",", ":")),
        status=status,
        content_type="application/json",
        headers=headers,
    )


def _error(code: int, message: str, status: int) -> Reply:
    return Reply({"code": code, "msg": message}, status)


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that has been read, and, if it is private, the account that sent it."""

    route: Endpoint
    params: Params
    context: RequestContext
    account: str | None


class RestApi:
    """Answers the REST API for one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._closing = asyncio.Event()
        self._late: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End every hanging request and drop every request that was to be carried out late."""
        self._closing.set()
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def handle(self, route: Endpoint, request: web.Request) -> web.StreamResponse:
        """Answer one request over HTTP, or act out the fault that hits it."""
        body = await request.text()
        payload = request.rel_url.raw_query_string + body
        values = dict(parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
        values.update(parse_qsl(body, keep_blank_values=True))
        reply = await self.ask(route, payload, values, request.headers.get("X-MBX-APIKEY"))
        match reply.ending:
            case FaultKind.DISCONNECT:
                return _cut(request)
            case FaultKind.TRUNCATED:
                return await _truncate(reply, request)
            case FaultKind.UNAVAILABLE:
                return web.Response(text="Service Unavailable", status=503, content_type="text/html")
            case _:
                return json_response(reply.body, reply.status, reply.headers)

    async def ask(
        self, route: Endpoint, payload: str, values: Mapping[str, str], api_key: str | None
    ) -> Reply:
        """Check a request and carry it out, as slowly and with such faults as are set.

        Args:
            route: the endpoint.
            payload: what was signed.
            values: the parsed payload.
            api_key: the key that came with the request.
        """
        params = Params(values)
        self._desk.pass_time()
        account = None
        try:
            self._desk.conditions.check_address(self._desk.now_ms)
            if route.private:
                account = self._who(api_key, route, payload, values)
        except Rejection as no:
            self._log(route, params, account, no.outcome)
            return Reply({"code": no.code, "msg": no.message}, no.status, no.headers)
        context = RequestContext(self._desk, account or MAIN, inverse=route.inverse)
        call = _Call(route, params, context, account)
        fault = self._desk.faults.take(route.operation, params.optional("symbol"), account)
        return await (self._slowly(call) if fault is None else self._fail(fault, call))

    def _who(self, api_key: str | None, route: Endpoint, payload: str, values: Mapping[str, str]) -> str:
        if not api_key:
            raise Rejection(-2014, "API-key format invalid.", 401)
        member = self._desk.member(api_key)
        if member is None:
            raise Rejection(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        account, credentials = member
        if route.signed:
            verify(credentials, payload=payload, params=values, now_ms=self._desk.now_ms)
        self._desk.conditions.check_permission(account, route.operation)
        return account

    async def _slowly(self, call: _Call) -> Reply:
        half_s = self._desk.latency_ms(call.route.operation) / 2000
        await self._pause(half_s)
        reply = self._carry_out(call)
        await self._pause(half_s)
        return reply

    def _carry_out(self, call: _Call, note: str = "") -> Reply:
        try:
            body = call.route.answer(call.context, call.params)
        except Rejection as no:
            self._log(call.route, call.params, call.account, no.outcome + note)
            return _error(no.code, no.message, no.status)
        self._log(call.route, call.params, call.account, "ok" + note)
        return Reply(body)

    def _log(self, route: Endpoint, params: Params, account: str | None, outcome: str) -> None:
        client_id = None
        for name in ("newClientOrderId", "clientAlgoId", "origClientOrderId"):
            client_id = client_id or params.optional(name)
        symbol = params.optional("symbol")
        self._desk.log(Request(self._desk.now_ms, route.operation, symbol, client_id, outcome, account))

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than the server runs."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._closing.wait(), seconds)
            except TimeoutError:
                return

    # --- faults ---

    async def _fail(self, fault: Fault, call: _Call) -> Reply:
        await self._pause(self._desk.latency_ms(call.route.operation) / 2000)
        note = f" {fault.kind}/{fault.execution}"
        reply = Reply({})
        match fault.execution:
            case Execution.NEVER:
                self._log(call.route, call.params, call.account, note.strip())
            case Execution.FIRST:
                reply = self._carry_out(call, note)
            case Execution.LATE:
                task = asyncio.create_task(self._carry_out_late(fault, call, note))
                self._late.add(task)
                task.add_done_callback(self._late.discard)
            case _:
                assert_never(fault.execution)
        return await self._answer(fault, reply, call)

    async def _carry_out_late(self, fault: Fault, call: _Call, note: str) -> None:
        await asyncio.sleep(fault.hold_ms / 1000)
        self._carry_out(call, note)

    async def _answer(self, fault: Fault, reply: Reply, call: _Call) -> Reply:
        match fault.kind:
            case FaultKind.HANG:
                await self._pause(fault.hold_ms / 1000)
                return replace(reply, ending=FaultKind.DISCONNECT)
            case FaultKind.DISCONNECT | FaultKind.TRUNCATED:
                return replace(reply, ending=fault.kind)
            case FaultKind.DELAY:
                await self._pause(fault.hold_ms / 1000)
                return self._carry_out(call) if fault.execution is Execution.NEVER else reply
            case _:
                return _said(fault)


_OVERLOADED = "Server is currently overloaded with other requests. Please try again in a few minutes."
_TIMEOUT = "Timeout waiting for response from backend server. Send status unknown; execution status unknown."


def _said(fault: Fault) -> Reply:
    match fault.kind:
        case FaultKind.UNAVAILABLE:
            return Reply({"code": -1, "msg": "Service Unavailable"}, 503, ending=fault.kind)
        case FaultKind.OVERLOADED:
            return _error(-1008, _OVERLOADED, 503)
        case FaultKind.RATE_LIMITED:
            return _error(-1003, "Too many requests; current limit is 2400 requests per minute.", 429)
        case FaultKind.TIMEOUT:
            return _error(-1007, _TIMEOUT, 408)
        case FaultKind.CLOCK:
            return _error(-1021, "Timestamp for this request is outside of the recvWindow.", 400)
        case _:
            return _error(fault.code, fault.message, 400)


def _cut(request: web.Request) -> web.Response:
    """End the connection without an answer; the returned response is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _truncate(reply: Reply, request: web.Request) -> web.StreamResponse:
    """Send half the body under a header that promises all of it."""
    body = json.dumps(reply.body, separators=(",", ":")).encode()
    response = web.StreamResponse(status=200, headers={"Content-Type": "application/json"})
    response.content_length = max(len(body), 2)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
