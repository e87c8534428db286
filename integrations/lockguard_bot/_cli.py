"""``lockguard bot``: the reference bot as a command.

Exit codes: 0 the bot was asked to stop, or every signal was decided; 1 work was left undone, or a server did
not answer at the start; 2 an error in the command line or the configuration; 130 it was told twice to stop.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

try:
    import click
except ImportError as missing:
    raise ImportError("the commands need click; pip install 'lockguard[cli]'") from missing

from lockguard import _interrupt as interrupt
from lockguard._cli.numbers import DecimalNumber, WholeNumber
from lockguard._cli.servers import database_option, namespace_option, redis_option
from lockguard._settings import Settings
from lockguard.errors import ConfigurationError, LockguardError
from lockguard_bot._logs import log_to_output
from lockguard_bot._stopping import StopRequest
from lockguard_bot._wiring import BotSettings, StreamSettings, connect_bot
from lockguard_bot._worker import Rhythm
from lockguard_positions._cli import adopt_option, exchange_options
from lockguard_positions._connecting import Urls
from lockguard_positions._exchange_options import read_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard_metrics import PrometheusObserver
    from lockguard_positions._model import Adopt

__all__ = ["bot"]

_LOG = logging.getLogger("lockguard.bot")
_LEFT = 1
_MISTAKE = 2
_GROUP = "lockguard-bots"
_CLOSING = timedelta(seconds=10)
"""Time to deliver pending alerts and close connections after the work."""


_SECONDS_MAX = 86_400.0


def _seconds(name: str, default: float | None, text: str, *, least: float = 0.1) -> Callable[..., Any]:
    """An option in seconds, read as a ``timedelta``."""

    def read(ctx: click.Context, param: click.Parameter, value: float | None) -> timedelta | None:  # noqa: ARG001
        return None if value is None else timedelta(seconds=value)

    return click.option(
        name,
        type=DecimalNumber(least, _SECONDS_MAX),
        default=default,
        callback=read,
        metavar="SECONDS",
        help=text if default is None else f"{text}  [default: {default:g}]",
    )


@click.group()
def bot() -> None:
    """Trade by signals, any number of processes on the same symbols."""


@bot.command()
@redis_option
@namespace_option
@database_option
@exchange_options
@adopt_option
@click.option(
    "--signals",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="A file of signals, a JSON object a line; - is the standard input. May be repeated.",
)
@click.option(
    "--stream",
    envvar="LOCKGUARD_STREAM",
    metavar="KEY",
    help="A Redis stream of signals.  [env: LOCKGUARD_STREAM]",
)
@click.option(
    "--group",
    metavar="NAME",
    help="The consumer group that the bots of one account form.  [default: lockguard-bots, with a label"
    " lockguard-bots@LABEL, so that every account gets every signal]",
)
@click.option(
    "--stream-redis",
    envvar="LOCKGUARD_STREAM_REDIS_URL",
    metavar="URL",
    help="Where the stream is, if not where the locks are.  [env: LOCKGUARD_STREAM_REDIS_URL]",
)
@_seconds("--claim-after", 20, "When a signal that a bot took and did not finish is another one's to take.")
@_seconds("--max-age", 300, "An open signal that is older is refused, as far as its age is known.")
@click.option(
    "--set-aside-after",
    type=WholeNumber(1, 1000),
    default=2,
    show_default=True,
    metavar="BOTS",
    help="A signal that so many bots ended at is for a person, and no further bot is let near it.",
)
@_seconds(
    "--alert-after",
    15,
    "What cannot be read or decided for so long while positions are open is an alert.",
)
@_seconds("--sync-every", 15, "Between two passes over all symbols.")
@_seconds("--recover-every", 5, "Between two looks for what dead bots left half done.")
@_seconds("--ttl", 10, "Life of the leases: a dead bot's symbols are free after that.")
@click.option(
    "--history",
    type=WholeNumber(0, 10_000),
    default=100,
    show_default=True,
    help="Of how many leases of each symbol Redis tells for a week; 0: none.",
)
@click.option(
    "--at-once", type=WholeNumber(1, 100), default=8, show_default=True, help="Signals at the same time."
)
@_seconds(
    "--receive-window",
    None,
    "How late the exchange may still take an order; the shorter, the sooner it is known that an order of a"
    " dead bot was never placed.  [default: 10, at Bybit 5]",
    least=0.5,
)
@_seconds("--reads-lag", 6, "How far the exchange's reads may lag behind what it did.")
@_seconds("--connect-within", 30, "How long to wait at the start for servers that do not answer.", least=0)
@_seconds("--stop-within", 20, "How long running opens may take when the bot is asked to stop.", least=0)
@click.option(
    "--alert",
    "alerts",
    multiple=True,
    envvar="LOCKGUARD_ALERT_URLS",
    metavar="URL",
    help="Where alerts go, as apprise has it; may be repeated. It holds a password: the environment is safer."
    "  [env: LOCKGUARD_ALERT_URLS, separated by spaces]",
)
@click.option(
    "--metrics",
    metavar="[HOST:]PORT",
    help="Where Prometheus scrapes this bot; on this machine only unless a host is named.",
)
@click.option("--once", is_flag=True, help="End when the signals are at their end.")
@click.option("--json", "as_json", is_flag=True, help="Log JSON, an object a line.")
def run(*, as_json: bool, **options: Any) -> None:
    """Carry signals out, keep table and exchange in step, and finish what other bots left.

    A signal has an id, an action (open, close) and a symbol; an open also has a side, a quantity and a stop,
    which is a price or a percentage. SIGTERM ends the bot when what is running is done; a second one ends it
    at once.
    """
    log_to_output(as_json=as_json)
    try:
        done = _run_to_the_end(_settings(**options))
    except LockguardError as exc:
        if not as_json:
            raise
        # The last line must be JSON too: a program reads the log.
        _LOG.critical("%s", exc)
        raise SystemExit(_MISTAKE if isinstance(exc, ConfigurationError) else _LEFT) from exc
    except Exception:  # noqa: BLE001 - logged with its traceback, in the log's own format
        _LOG.critical("ended by an error that nobody has thought of", exc_info=True)
        raise SystemExit(_LEFT) from None
    if not done:
        raise SystemExit(_LEFT)


def _run_to_the_end(settings: BotSettings) -> bool:
    try:
        return interrupt.run(_run(settings))
    except BaseExceptionGroup as failed:
        # Concurrent loops fail together; the operator needs only the first configuration error.
        mistakes, others = failed.split(ConfigurationError)
        if others is not None or mistakes is None:
            raise
        raise _first(mistakes) from None


async def _run(settings: BotSettings) -> bool:
    with StopRequest(at_last=settings.rhythm.stopped_after + _CLOSING) as stopping:
        async with AsyncExitStack() as stack:
            counting = None if settings.metrics is None else await _counting(stack, *settings.metrics)
            worker = await connect_bot(stack, settings, stopping, counting)
            return worker is None or await worker.run()


async def _counting(stack: AsyncExitStack, host: str, port: int) -> PrometheusObserver:
    """An observer whose metrics are served until ``stack`` is closed."""
    from prometheus_client import REGISTRY  # noqa: PLC0415 - an optional dependency

    from lockguard_metrics import PrometheusObserver  # noqa: PLC0415 - needs it
    from lockguard_metrics._serving import serving  # noqa: PLC0415 - needs it

    observer = PrometheusObserver(REGISTRY)
    url = await stack.enter_async_context(serving(REGISTRY, host, port, name="--metrics"))
    _LOG.info("metrics: %s", url)
    return observer


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    from lockguard_metrics._serving import parse_address  # noqa: PLC0415 - needs an optional dependency

    return parse_address(text, "--metrics")


def _settings(
    *,
    redis_urls: tuple[str, ...],
    namespace: str | None,
    database_url: str | None,
    exchange: str | None,
    account: str | None,
    option: tuple[str, ...],
    adopt: Adopt,
    files: tuple[str, ...],
    stream: str | None,
    stream_redis: str | None,
    group: str | None,
    claim_after: timedelta,
    max_age: timedelta,
    set_aside_after: int,
    alert_after: timedelta,
    sync_every: timedelta,
    recover_every: timedelta,
    stop_within: timedelta,
    at_once: int,
    once: bool,
    alerts: tuple[str, ...],
    ttl: timedelta,
    history: int,
    receive_window: timedelta | None,
    reads_lag: timedelta,
    connect_within: timedelta,
    metrics: str | None,
) -> BotSettings:
    servers = Settings.read(redis=redis_urls, database=database_url, namespace=namespace)
    if stream and not stream_redis and len(servers.redis) > 1:
        raise ConfigurationError(
            "several Redis servers keep the locks, and the stream is on one: name it with --stream-redis or"
            " LOCKGUARD_STREAM_REDIS_URL"
        )
    where = stream_redis or next(iter(servers.redis), None)
    group = group or (f"{_GROUP}@{account}" if account else _GROUP)
    return BotSettings(
        urls=Urls(read_options(option, name=exchange, account=account), servers),
        adopt=adopt,
        files=files,
        stream=StreamSettings(where, stream, group, claim_after) if stream and where else None,
        alerts=alerts,
        rhythm=Rhythm(sync_every, recover_every, stop_within, at_once, once),
        ttl=ttl,
        history=history,
        age_max=max_age,
        set_aside_after=set_aside_after,
        alert_after=alert_after,
        receive_window=receive_window,
        reads_lag=reads_lag,
        connect_within=connect_within,
        metrics=_address(metrics),
    )


def _first(group: BaseExceptionGroup[ConfigurationError]) -> ConfigurationError:
    found = group.exceptions[0]
    return found if isinstance(found, ConfigurationError) else _first(found)
