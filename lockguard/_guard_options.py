"""What a guard is made with, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, TypedDict

from lockguard._clock import Clock
from lockguard._namespace import NAMESPACE, parse_namespace
from lockguard._naming import ResourceKey
from lockguard._nodes.address_map import AddressMap, AddressMapping
from lockguard._nodes.credentials import Credentials, CredentialsSource
from lockguard._nodes.reach import Reach
from lockguard.errors import ConfigurationError
from lockguard.ports import Fence, LockNode, Observer
from lockguard.text import kind_of, one_word

__all__ = [
    "CommonOptions",
    "GuardOptions",
    "ReachOptions",
    "ServerOptions",
    "checked_history",
    "checked_name",
    "checked_nodes",
    "require_clock",
    "require_fence",
    "require_known",
    "split_options",
]

HISTORY_MAX = 10_000
NAME_CHARACTERS_MAX = 64


class CommonOptions(TypedDict, total=False):
    """The options of every guard, synchronous or not, but for its fence."""

    ttl: timedelta
    wait: timedelta
    max_hold: timedelta | None
    lock_delay: timedelta
    fence_within: timedelta
    observers: Sequence[Observer] | None
    clock: Clock
    node_timeout: timedelta
    history: int
    resource_key: ResourceKey | None
    name: str


class GuardOptions(CommonOptions, total=False):
    """The options of every guard, see :class:`LockGuard`."""

    fence: Fence | None


class ReachOptions(TypedDict, total=False):
    """How a guard that is made with URLs reaches its servers."""

    namespace: str
    credentials: CredentialsSource | None
    address_map: AddressMapping | None


class ServerOptions(GuardOptions, ReachOptions, total=False):
    """The options of a guard that is made with URLs: those of every guard, and how it reaches its servers."""


def split_options(options: ServerOptions) -> tuple[Reach, GuardOptions]:
    """How to reach the servers, and what remains for the guard itself.

    Raises:
        ConfigurationError: an option is unknown, or says how to reach servers and cannot work.
    """
    require_known(options)
    rest = dict(options)
    namespace, credentials = rest.pop("namespace", NAMESPACE), rest.pop("credentials", None)
    reach = Reach(
        namespace=parse_namespace(namespace),
        credentials=None if credentials is None else Credentials(credentials),
        address_map=AddressMap(rest.pop("address_map", None)),
    )
    return reach, rest  # type: ignore[return-value]  # what is left


def require_known(options: Mapping[str, object]) -> None:
    """Check that a guard has all of these options.

    Raises:
        ConfigurationError: it lacks one; the nearest one is named.
    """
    known = list(ServerOptions.__annotations__)
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigurationError(f"{option}= is no option of a guard; {meant}")


def checked_nodes(nodes: object) -> list[LockNode]:
    """The nodes of a guard, at least one.

    Raises:
        ConfigurationError: there is none, or something else was given.
    """
    if isinstance(nodes, str | bytes) or not isinstance(nodes, Iterable):
        raise ConfigurationError(
            f"a guard is made of nodes, not of {kind_of(nodes)}; with a URL write LockGuard.from_url(url)"
        )
    listed: list[Any] = list(nodes)
    if not listed:
        raise ConfigurationError("a guard needs at least one Redis node; got none")
    for node in listed:
        if not callable(getattr(node, "acquire", None)):
            raise ConfigurationError(
                f"a guard is made of nodes, and {kind_of(node)} is none;"
                " with URLs write LockGuard.from_url(url) or LockGuard.from_urls(urls)"
            )
    return listed


def checked_history(history: object) -> int:
    """How many grants of a resource Redis keeps in its history.

    Raises:
        ConfigurationError: it is no whole number from 0 to 10,000.
    """
    if not isinstance(history, int) or isinstance(history, bool):
        raise ConfigurationError(f"history= is {kind_of(history)}; give a number of grants, 0 for no history")
    if not 0 <= history <= HISTORY_MAX:
        raise ConfigurationError(f"history={history} cannot work; give 0 to {HISTORY_MAX} grants")
    return history


def checked_name(name: object) -> str:
    """A holder's name for display: without blanks or what controls a terminal, cut to 64 characters.

    Raises:
        ConfigurationError: it is not text.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"name= is {kind_of(name)}; write text for people, such as name='bot-1'")
    return one_word(name.strip()[:NAME_CHARACTERS_MAX])[:NAME_CHARACTERS_MAX]


def require_clock(clock: object) -> None:
    """Check that it is a clock.

    Raises:
        ConfigurationError: it is none.
    """
    # The class itself has these methods too, but calling them fails.
    if isinstance(clock, type) or not all(callable(getattr(clock, name, None)) for name in ("now", "wall")):
        raise ConfigurationError(
            f"clock= is {kind_of(clock)}, which is no clock; leave it out, or write clock=FakeClock()"
        )


def require_fence(fence: object) -> None:
    """Check the fence now: the first hold would otherwise fail after its lock was granted.

    Raises:
        ConfigurationError: it is none.
    """
    if fence is None:
        return
    if isinstance(fence, type):
        raise ConfigurationError(f"fence={fence.__name__} is a class; write fence={fence.__name__}(pool)")
    if not all(callable(getattr(fence, name, None)) for name in ("seal", "close", "break_")):
        # The value is not shown: a DSN has a password.
        raise ConfigurationError(
            f"fence= is {kind_of(fence)}, which is no fence; write fence=PostgresFence(pool)"
        )
