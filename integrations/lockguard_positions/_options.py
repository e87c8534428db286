"""Options that commands about positions share: the database, the account at the exchange, and times."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

try:
    import click

    from lockguard._cli.servers import database_option
except ImportError as missing:
    raise ImportError("the commands need click and rich; pip install 'lockguard[cli]'") from missing

from lockguard._cli.numbers import DecimalNumber
from lockguard._settings import Settings
from lockguard_positions._connecting import Urls
from lockguard_positions._exchange_options import read_options

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["exchange_options", "older_than_option", "with_urls"]


def exchange_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the account at the exchange: ``exchange``, ``account`` and ``option``."""
    for option in (
        click.option(
            "--option",
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of ccxt, its value as JSON, such as recvWindow=5000, demo=true or leverage=5;"
            " may be repeated.  [env: LOCKGUARD_EXCHANGE_OPTIONS, a JSON object]",
        ),
        click.option(
            "--account",
            envvar="LOCKGUARD_ACCOUNT",
            metavar="LABEL",
            help="The account's label, where there are several at the exchange: part of every lock and row."
            "  [env: LOCKGUARD_ACCOUNT]",
        ),
        click.option(
            "--exchange",
            envvar="LOCKGUARD_EXCHANGE_URL",
            metavar="URL|NAME",
            help="A local exchange's URL, or ccxt's name of a real one; its keys come from"
            " LOCKGUARD_EXCHANGE_API_KEY, LOCKGUARD_EXCHANGE_SECRET and, where it has one,"
            " LOCKGUARD_EXCHANGE_PASSWORD.  [env: LOCKGUARD_EXCHANGE_URL]",
        ),
    ):
        command = option(command)
    return command


def with_urls(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the database and the exchange; the command gets them as ``urls``."""

    @database_option
    @exchange_options
    @wraps(command)
    def with_urls(
        database_url: str | None,
        exchange: str | None,
        account: str | None,
        option: tuple[str, ...],
        redis_urls: tuple[str, ...] = (),
        namespace: str | None = None,
        **rest: Any,
    ) -> Any:
        servers = Settings.read(redis=redis_urls, database=database_url, namespace=namespace)
        return command(urls=Urls(read_options(option, name=exchange, account=account), servers), **rest)

    return with_urls


older_than_option = click.option(
    "--older-than",
    "older_than_s",
    type=DecimalNumber(0, 1e9),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="For how long a row may be on its way.",
)
