"""``lockguard functions``: what makes redis-cli list locks by itself."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.servers import Servers, namespace_option, redis_option
from lockguard._namespace import new_inbox
from lockguard._nodes.choose import listed_urls, nodes_for_urls
from lockguard._nodes.functions import install_functions, source
from lockguard._nodes.named import require_all_named
from lockguard._nodes.reach import Reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard._namespace import Namespace

__all__ = ["functions"]


@click.group()
def functions() -> None:
    """Read-only functions in Redis, with which redis-cli lists locks by itself."""


@functions.command()
@redis_option
@namespace_option
def install(redis_urls: tuple[str, ...], namespace: str | None) -> None:
    """Load the functions into every server, in place of older ones. They serve every namespace.

    The user needs the right to FUNCTION LOAD. Servers before Redis 7.0 have no functions.
    """
    servers = Servers.read(redis_urls, namespace=namespace)
    for name in interrupt.run(_install(servers.redis, servers.namespace)):
        click.echo(f"{name} has lockguard_ls and lockguard_show")


@functions.command()
def show() -> None:
    """Print the functions' source, as 'redis-cli -x FUNCTION LOAD REPLACE' takes it."""
    click.echo(source(), nl=False)


async def _install(urls: Sequence[str], namespace: Namespace) -> list[str]:
    await require_all_named(urls, namespace=namespace)
    async with AsyncExitStack() as stack:
        nodes = nodes_for_urls(
            listed_urls(urls, warn=True), inbox=new_inbox(namespace), reach=Reach(namespace)
        )
        for node in nodes:
            stack.push_async_callback(node.aclose)
        loaded = await asyncio.gather(*(install_functions(node) for node in nodes))
    return [name for names in loaded for name in names]
