"""``lockguard doctor``.

Exit codes: 0 nothing is wrong; 1 something is; 2 the call is wrong; 3 something could not be read, so that
it is not known to be right. Warnings count as wrong with ``--strict`` only.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta

try:
    import click
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

from lockguard import _interrupt as interrupt
from lockguard._cli.durations import Duration
from lockguard._cli.servers import Servers, with_servers
from lockguard._nodes.address_map import AddressMap
from lockguard_ops._doctor._examine import Asked, examine
from lockguard_ops._doctor._findings import Report, Severity
from lockguard_ops._doctor._show import as_json as json_of
from lockguard_ops._doctor._show import lines

__all__ = ["doctor"]

_WRONG = 1
_UNREADABLE = 3
_TTL = timedelta(seconds=10)


@click.command()
@with_servers
@click.option(
    "--ttl",
    type=Duration(
        "ttl", "sm", "give the guard's in whole seconds or minutes, such as 10s", least=timedelta(seconds=1)
    ),
    metavar="LENGTH",
    help="The ttl of the bot's leases, with which round trips and timeouts are compared."
    "  [default: that of lockguard.toml, else 10s]",
)
@click.option(
    "--tables",
    multiple=True,
    metavar="TABLE",
    help="A further table that the bot writes, with its schema; may be repeated.",
)
@click.option(
    "--exchange",
    envvar="LOCKGUARD_EXCHANGE_URL",
    metavar="URL|NAME",
    help="The exchange, as for 'lockguard positions diagnose', with its keys in the same variables;"
    " nothing is ever ordered or changed there.  [env: LOCKGUARD_EXCHANGE_URL]",
)
@click.option(
    "--account",
    envvar="LOCKGUARD_ACCOUNT",
    metavar="LABEL",
    help="The account's label, where there are several at the exchange.  [env: LOCKGUARD_ACCOUNT]",
)
@click.option(
    "--option",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of ccxt, its value as JSON, such as recvWindow=5000; may be repeated."
    "  [env: LOCKGUARD_EXCHANGE_OPTIONS, a JSON object]",
)
@click.option(
    "--watch",
    "watched",
    type=Duration("length of time", "s", "give whole seconds, such as 3s", least=timedelta()),
    default="2s",
    show_default=True,
    metavar="LENGTH",
    help="For how long clocks and round trips are watched.",
)
@click.option("--strict", is_flag=True, help="A warning makes the exit code 1 too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    servers: Servers,
    ttl: timedelta | None,
    tables: tuple[str, ...],
    exchange: str | None,
    account: str | None,
    option: tuple[str, ...],
    watched: timedelta,
    *,
    strict: bool,
    as_json: bool,
) -> None:
    """Look at every server that a bot uses, and say what is wrong and how to mend it.

    Redis, Postgres, the exchange and the open positions, each as far as it is named and its packages are
    installed. What is tried is tried on scratch names and taken back; nothing is changed at the exchange.

    Exit code 1: something is wrong. 3: something could not be read.
    """
    asked = Asked(
        redis=servers.redis,
        namespace=servers.namespace,
        address_map=AddressMap(servers.address_map),
        database=servers.database,
        exchange=exchange,
        account=account,
        options=option,
        ttl=ttl or servers.ttl or _TTL,
        min_replicas=servers.min_replicas,
        tables=tables,
        watched=watched,
    )
    report = interrupt.run(examine(asked))
    if as_json:
        click.echo(json.dumps(json_of(report), indent=2))
    else:
        for line in lines(report):
            click.echo(_encodable(line))
    _leave(report, strict=strict)


def _encodable(line: str) -> str:
    """The line, with what the output's encoding lacks escaped: a table's name may be any text."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _leave(report: Report, *, strict: bool) -> None:
    if report.worst is Severity.ERROR or (strict and report.worst is Severity.WARNING):
        raise SystemExit(_WRONG)
    if report.unread:
        raise SystemExit(_UNREADABLE)
