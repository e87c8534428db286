"""Alerts through apprise: mail, chat, SMS and a hundred other services, each given by a URL.

A notification service that hangs must not delay an open. So alerts are only put into a bounded queue; one
task, which belongs to the context manager, sends them one after another, each with a time limit. A failure
is logged. Only ``Alert`` events are sent; all others are for logs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING, Self

try:
    import apprise
except ImportError as missing:
    raise ImportError("alerts need apprise; pip install 'lockguard[alerts]'") from missing

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard.errors import ConfigurationError
from lockguard.text import printable
from lockguard_positions._events import Alert
from lockguard_positions._telling import is_over

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from lockguard_positions._events import PositionEvent

__all__ = ["AppriseAlerts"]

_SCHEME_CHARACTERS_MAX = 20
_LOG = logging.getLogger("lockguard.positions.alerts")
_WAITING_MAX = 100
_REMEMBERED_MAX = 1_000
_SEND_WITHIN = timedelta(seconds=15)
_QUIET = timedelta(minutes=5)
_AGAIN = timedelta(seconds=30)
_FLUSH_WITHIN = timedelta(seconds=5)


class AppriseAlerts:
    """An observer that sends every alert to each of the URLs; use it as an async context manager.

    ::

        async with AppriseAlerts(["tgram://bottoken/ChatID"]) as alerts:
            manager = AtomicPositionManager(guard, pool, [exchange], observers=[LogPositions(), alerts])

    Args:
        urls: in apprise's format; they contain passwords and are never shown.
        title: the title of the messages.
        send_within: how long sending one alert may take.
        quiet: for how long the same alert is not sent again, as passes see a condition every few seconds. A
            condition that begins again after its end was told is sent at once.
        send_again: the pause before an alert that was not delivered is sent again.
        flush_within: how long closing waits for alerts that are not sent yet.
        clock: measures ``quiet``.

    Raises:
        ConfigurationError: there is no URL, or apprise does not recognise one.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        title: str = "lockguard",
        send_within: timedelta = _SEND_WITHIN,
        quiet: timedelta = _QUIET,
        send_again: timedelta = _AGAIN,
        flush_within: timedelta = _FLUSH_WITHIN,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not urls:
            raise ConfigurationError("alerts need at least one URL, such as mailto://user:password@host")
        self._apprise = apprise.Apprise()
        for number, url in enumerate(urls, start=1):
            scheme, separator, _ = url.partition("://")
            if not separator or not _added(self._apprise, url):
                known = separator and scheme.isalnum() and len(scheme) <= _SCHEME_CHARACTERS_MAX
                shown = f"{scheme}://..." if known else "without a scheme"
                raise ConfigurationError(
                    f"alert URL {number} ({shown}) is none that apprise knows; its documentation lists them"
                )
        self._title = title
        self._send_within = send_within
        self._quiet_s = quiet.total_seconds()
        self._again_s = send_again.total_seconds()
        self._flush_within = flush_within
        self._clock = clock
        self._waiting: asyncio.Queue[Alert] = asyncio.Queue(_WAITING_MAX)
        self._told_at: OrderedDict[Alert, float] = OrderedDict()
        self._sender: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<AppriseAlerts to {len(self._apprise)} services>"

    async def __aenter__(self) -> Self:
        self._sender = asyncio.create_task(self._send_all(), name="lockguard alerts")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._sender is not None
        try:
            async with asyncio.timeout(self._flush_within.total_seconds()):
                await self._waiting.join()
        except TimeoutError:
            _LOG.error("%d alerts could not be sent before the end", self._waiting.qsize() + 1)
        finally:
            self._sender.cancel()
            await asyncio.wait({self._sender})

    def on(self, event: PositionEvent) -> None:
        """Queue an alert; if too many are waiting, it is dropped and that is logged."""
        if not isinstance(event, Alert):
            return
        if is_over(event):
            # After this end is told, the same condition must be told again, however soon it returns.
            for about in self._told_of(event):
                del self._told_at[about]
        elif self._told_lately(event):
            return
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._told_at.pop(event, None)
            told = printable(f"{event.resource}: {event.message}")
            _LOG.error("too many alerts wait, not sent: %s", told)

    def _told_of(self, alert: Alert) -> list[Alert]:
        """The alerts told of the same position and resource since a condition there last ended."""
        same = alert.resource, alert.position_id
        return [told for told in self._told_at if (told.resource, told.position_id) == same]

    def _told_lately(self, alert: Alert) -> bool:
        now = self._clock.now()
        told_at = self._told_at.get(alert)
        if told_at is not None and now - told_at < self._quiet_s:
            return True
        self._told_at[alert] = now
        self._told_at.move_to_end(alert)
        if len(self._told_at) > _REMEMBERED_MAX:
            self._told_at.popitem(last=False)
        return False

    def _on_again(self, alert: Alert) -> None:
        """Queue an undelivered alert again, unless it tells an end and the condition has returned since."""
        if not (is_over(alert) and self._told_of(alert)):
            self.on(alert)

    async def _send_all(self) -> None:
        while True:
            alert = await self._waiting.get()
            try:
                if not await self._send(alert):
                    # It was not delivered, and the next alert of the condition may be minutes away.
                    self._told_at.pop(alert, None)
                    asyncio.get_running_loop().call_later(self._again_s, self._on_again, alert)
            finally:
                self._waiting.task_done()

    async def _send(self, alert: Alert) -> bool:
        row = "" if alert.position_id is None else f" position {alert.position_id}"
        sent = False
        try:
            async with asyncio.timeout(self._send_within.total_seconds()):
                sent = bool(
                    await self._apprise.async_notify(
                        title=self._title,
                        body=f"{alert.resource}{row}: {alert.message}",
                        notify_type=apprise.NotifyType.FAILURE,
                    )
                )
        except TimeoutError:
            _LOG.error("an alert took longer than %s: %s", self._send_within, alert.resource)
        except Exception as exc:  # noqa: BLE001 - whatever a service's code raises must not end the sending
            # Its text may contain the URL, and with it a password.
            _LOG.error("an alert could not be sent (%s): %s", type(exc).__name__, alert.resource)
        else:
            if not sent:
                _LOG.error("an alert was not taken by every service: %s", alert.resource)
        return sent


def _added(alerts: apprise.Apprise, url: str) -> bool:
    """Add a URL with apprise's log off, which would quote parts of a URL that it cannot parse."""
    logger = logging.getLogger("apprise")
    before, logger.disabled = logger.disabled, True
    try:
        return bool(alerts.add(url))
    finally:
        logger.disabled = before
