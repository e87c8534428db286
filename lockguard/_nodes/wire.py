"""Sends commands on one Redis connection and matches the replies to their callers.

One connection carries all commands from a process to a node. Commands sent in one iteration of the event loop
leave in one write: a hundred coroutines that lock at once would otherwise pay for a hundred system calls.
Replies come in the order of the commands, so each command puts its caller in a queue and each reply goes to
the first caller there. A cancelled caller keeps its place: without it, every later reply would go to the
wrong caller.

While a command is in flight, its outcome is unknown. When the connection ends, callers whose command was sent
get :class:`Cut` (it may have been executed, or may still be); callers whose command was still in our buffer
get :class:`NotSent` (it was certainly not executed).
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import hiredis

from lockguard._clock import SYSTEM_CLOCK
from lockguard._nodes.dial import close_abandoned
from lockguard.text import printable

__all__ = ["Cut", "NotSent", "OnReply", "Reply", "Wire"]

Reply: TypeAlias = Any
"""A reply parsed by hiredis: bytes, int, None, list, dict, or an exception object for an error reply."""

OnReply: TypeAlias = Callable[[Reply], None]
"""Called once with the reply, or with an exception object. It must not raise."""

PENDING_MAX = 100_000
_NO_MORE = object()
_LAST_LOOK_S = 0.01
_PATIENT_S = 30.0
REPLY_BYTES_MAX = 64 * 1024 * 1024
"""The longest reply; what is longer comes from no server of locks."""
_ERROR_CHARACTERS_MAX = 400
_HEADER_BYTES_MAX = 12
_TOO_MANY = re.compile(rb"\n[*~>%|][0-9]{7}")
"""The header of a collection with a million members or more, for which hiredis takes memory at once."""


class Cut(Exception):
    """The connection ended after the command had been sent."""


class NotSent(Exception):
    """The command never left this process."""


def _error_reply(text: str) -> hiredis.ReplyError:
    """An error reply. Any server can send any, and none may control a terminal or fill a log."""
    return hiredis.ReplyError(printable(text[:_ERROR_CHARACTERS_MAX]))


@dataclass(eq=False, slots=True)
class _Listening:
    """A command that is confirmed by a message, until the reply behind it comes."""

    command: bytes
    channel: bytes
    confirmed: bool = False


class Wire(asyncio.Protocol):
    """One connection; created by ``loop.create_connection``.

    Args:
        on_push: called with each out-of-band message.
        on_end: called once with the wire and the cause when the connection has ended.
        on_doubt: called with the wire when replies are outstanding and no byte arrived for ``doubt_s``.
        on_trust: called with the wire if a byte arrives after that.
        reply_timeout_s: a connection with outstanding replies is ended when no byte arrives for this long;
            otherwise a hung server would keep its callers waiting for ever.
        listens: whether messages arrive as plain replies, as in RESP2 after SUBSCRIBE.
    """

    def __init__(
        self,
        *,
        on_push: Callable[[list[Any]], None],
        on_end: Callable[[Wire, str], None],
        reply_timeout_s: float,
        on_doubt: Callable[[Wire], None] = lambda _: None,
        on_trust: Callable[[Wire], None] = lambda _: None,
        listens: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_push = on_push
        self._on_end = on_end
        self._on_doubt = on_doubt
        self._on_trust = on_trust
        self._listens = listens
        self._reply_timeout_s = reply_timeout_s
        self._doubt_s = math.inf
        self._patience_s, self._patient_until = 0.0, 0.0
        self._reader = hiredis.Reader(notEnoughData=_NO_MORE, replyError=_error_reply)
        self._begun_bytes = 0  # of a reply that is not complete
        self._tail = b"\n"  # the last bytes that came, as a header may be cut anywhere
        self._transport: asyncio.Transport | None = None
        self.open = False
        """Whether commands can be sent."""
        self._waiting: deque[OnReply] = deque()
        self._listening: deque[_Listening] = deque()
        self._unsent: list[bytes] = []
        self._unsent_commands = 0
        self._flush_due = False
        self._asked = False
        self._watch: asyncio.TimerHandle | None = None
        self._silent_since = 0.0  # not the loop's time, which uvloop does not advance during a callback
        self._allowed_until = 0.0
        self._doubted = False
        self._last_look = False
        self._ended: str | None = None
        self.gone = asyncio.Event()
        """Set when the socket is closed, one iteration of the loop after :meth:`end`."""

    @property
    def owed(self) -> int:
        """The number of outstanding replies."""
        return len(self._waiting)

    @property
    def doubted(self) -> bool:
        """Whether replies have been outstanding for too long, and no byte has arrived since."""
        return self._doubted

    @property
    def doubt_s(self) -> float:
        """How long, in seconds, an outstanding reply may stay away before the connection is doubted."""
        if SYSTEM_CLOCK.now() < self._patient_until:
            return max(self._doubt_s, self._patience_s)
        return self._doubt_s

    @doubt_s.setter
    def doubt_s(self, seconds: float) -> None:
        sooner, self._doubt_s = seconds < self._doubt_s, seconds
        self._patient_until = 0.0
        if sooner and self._watch is not None:
            self._look_in(seconds)

    def be_patient(self) -> None:
        """Double :attr:`doubt_s` for 30 s, up to the time limit for replies: the server is only slow.

        No longer than that: a few slow replies would otherwise delay the detection of a dead connection for
        the rest of its life.
        """
        self._patience_s = min(2 * self.doubt_s, self._reply_timeout_s)
        self._patient_until = SYSTEM_CLOCK.now() + _PATIENT_S
        if self._watch is not None:  # set for when a doubted connection is ended
            self._last_look = False
            self._look_in(self._patience_s)

    def allow_silence(self, seconds: float) -> None:
        """Do not doubt or end the connection for ``seconds``: the last command makes the server wait."""
        self._allowed_until = max(self._allowed_until, SYSTEM_CLOCK.now() + seconds)

    def send(self, on_reply: OnReply, *command: str | bytes | int, lone: bool = False) -> None:
        """Queue a command; it is written at the end of this iteration of the event loop.

        Args:
            on_reply: called with the reply.
            *command: the command's words.
            lone: as for :meth:`send_packed`.
        """
        self.send_packed(on_reply, hiredis.pack_command(command), lone=lone)  # type: ignore[arg-type]  # its stub forgot bytes

    def send_packed(self, on_reply: OnReply, command: bytes, *, lone: bool = False) -> None:
        """Queue a command that is already encoded; see :meth:`send`.

        Args:
            on_reply: called with the reply.
            command: one command in the bytes of the protocol.
            lone: write at once if no reply is outstanding. A single caller saves an iteration of the loop; of
                many callers only the first does not share a write.
        """
        if not self.open:
            on_reply(NotSent(self._ended or "not connected"))
            return
        if len(self._waiting) >= PENDING_MAX:
            on_reply(NotSent(f"{PENDING_MAX} commands are unanswered already"))
            return
        if not self._waiting:
            self._silent_since = SYSTEM_CLOCK.now()
        lone = lone and not self._waiting
        self._waiting.append(on_reply)
        self._unsent_commands += 1
        self._unsent.append(command)
        if lone:
            self.flush()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)
        if self._watch is None:
            self._look_in(min(self._doubt_s, self._reply_timeout_s))

    def send_unanswered(self, *command: str | bytes | int) -> None:
        """Queue a command that has no reply, such as SUBSCRIBE in RESP3."""
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def send_listening(self, refused: OnReply, command: str, channel: str) -> None:
        """Queue a command that is confirmed by a message and refused by a reply, such as SSUBSCRIBE.

        It is left out where no more replies may be outstanding.

        Args:
            refused: called with the refusal; on a wire that only listens, it arrives as a message instead.
            command: the command.
            channel: the channel that it is about.
        """
        if self._listens:
            self.send_unanswered(command, channel)
            return
        if not self.open or len(self._waiting) >= PENDING_MAX:
            return  # without the PING, the reply of a refusal would go to another caller
        asked = _Listening(command.lower().encode(), channel.encode())
        self._listening.append(asked)
        self.send_unanswered(command, channel)
        self.send(partial(self._listened, asked, refused), "PING")

    def _listened(self, asked: _Listening, refused: OnReply, reply: Reply) -> None:
        """Take the first reply behind a command that is confirmed by a message: its refusal, or the PING's.

        A server may refuse the PING alone, as Redis does while it cannot save (MISCONF). If that were taken
        for the refusal of the command, each later reply would go to the caller before the one whose it is.
        The confirmation comes before any reply to the PING, so it tells the two apart.
        """
        self._listening.remove(asked)
        if not isinstance(reply, hiredis.ReplyError):
            return
        if not asked.confirmed:
            self._waiting.appendleft(lambda _: None)
            refused(reply)
        elif asked.command == b"sunsubscribe":
            # The server may have ended the subscription itself, as the slot moved, with the same message.
            self.end("a reply that may be that to either of two commands")

    def _confirm(self, message: list[Any]) -> None:
        for asked in self._listening:
            if not asked.confirmed and message[:2] == [asked.command, asked.channel]:
                asked.confirmed = True
                return

    def flush(self) -> None:
        """Write all queued commands now."""
        self._flush_due = False
        if self._unsent and self.open:
            assert self._transport is not None
            data = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
            self._unsent.clear()
            self._unsent_commands = 0
            self._asked = True
            self._transport.write(data)

    def end(self, cause: str) -> None:
        """Close at once, and give each waiting caller :class:`Cut` or :class:`NotSent`.

        If the event loop was closed around it, only the socket is closed.
        """
        if self._ended is not None:
            return
        self._ended, self.open = cause, False
        if self._loop.is_closed():  # around it: nobody is left to be told
            self._waiting.clear()
            close_abandoned(self._transport)
            return
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        sent = len(waiting) - self._unsent_commands
        self._unsent.clear()
        for index, on_reply in enumerate(waiting):
            on_reply(Cut(cause) if index < sent else NotSent(cause))
        self._on_end(self, cause)

    def _check_progress(self) -> None:
        """Doubt or end the connection if replies are outstanding and no byte has arrived for too long."""
        self._watch = None
        if not self._waiting:
            return
        silent_s = SYSTEM_CLOCK.now() - max(self._silent_since, self._allowed_until)
        doubt_s = math.inf if self._doubted else self.doubt_s
        left_s = min(doubt_s, self._reply_timeout_s) - silent_s
        if left_s > 0:
            self._last_look = False
        elif not self._last_look:
            # When a suspended process resumes, the timer may fire before the bytes that arrived meanwhile
            # are read. So the sockets are checked once more.
            self._last_look, left_s = True, _LAST_LOOK_S
        elif silent_s >= self._reply_timeout_s:
            self.end(f"no reply for {self._reply_timeout_s:g} s")
            return
        else:
            self._doubted, self._last_look = True, False
            left_s = self._reply_timeout_s - silent_s
            self._on_doubt(self)
        self._look_in(left_s)

    def _look_in(self, seconds: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_later(seconds, self._check_progress)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to use the transport, or TLS over the one of before."""
        # A cast, not a check: other loops' transports, such as uvloop's, have no common base class.
        self._transport = cast("asyncio.Transport", transport)
        self.open = self._ended is None
        if not self.open:  # ended while it was still connecting
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass each complete reply to the caller that has waited longest."""
        if self._doubted:
            self._doubted = False
            self._on_trust(self)
        reader = self._reader
        # Before any memory is taken for it; not by a call of its own, as each reply comes this way.
        seen = self._tail + data
        self._begun_bytes += len(data)
        self._tail = seen[-_HEADER_BYTES_MAX:]
        if self._begun_bytes > REPLY_BYTES_MAX or _TOO_MANY.search(seen):
            self.end("a reply that is too long: this is no server of locks")
            return
        try:
            reader.feed(data)
            while self.open and (reply := reader.gets()) is not _NO_MORE:
                self._begun_bytes = 0
                if isinstance(reply, hiredis.PushNotification):
                    self._confirm(reply)
                    self._on_push(reply)
                elif self._waiting:
                    self._waiting.popleft()(reply)
                elif self._listens:
                    self._on_push(reply)
                else:
                    self.end(self._of_unasked(reply))
                    return
        except hiredis.ProtocolError as exc:
            self.end(f"not the Redis protocol: {exc}")
        except Exception as exc:  # noqa: BLE001 - of a message of no known form: the event loop would log it
            self.end(f"a message that cannot be read: {type(exc).__name__}")
        if self._waiting:  # otherwise the silence is measured from the next command
            self._silent_since = SYSTEM_CLOCK.now()

    def _of_unasked(self, reply: Reply) -> str:
        if isinstance(reply, hiredis.ReplyError) and not self._asked:
            return f"the server refuses it: {reply}"  # one with too many clients says so first, and closes
        return "a reply came that nobody asked for"

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wire: the peer or the network closed the connection."""
        self.end(str(exc) if exc is not None else "the server closed the connection")
        self.gone.set()
