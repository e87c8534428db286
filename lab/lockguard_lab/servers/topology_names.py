"""Redis topologies by name, as commands take them: ``single``, ``redlock:5``, ``sentinel``, ``cluster``."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, assert_never, cast

from lockguard.errors import ConfigurationError
from lockguard_lab.servers.topologies import ClusterRedis, IndependentRedis, SentinelRedis, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TopologyKind", "TopologyName", "warnings_told"]

TopologyKind: TypeAlias = Literal["single", "redlock", "sentinel", "cluster"]

_NODES_MAX = 15
_NAME = re.compile(r"(single|sentinel|cluster)|redlock:([0-9]{1,3})")
_ALLOWED = f"use single, redlock:N with N from 1 to {_NODES_MAX}, sentinel or cluster"


@dataclass(frozen=True, slots=True)
class TopologyName:
    """The value of ``--topology``.

    Attributes:
        kind: how the servers work together.
        nodes: how many independent nodes; 1 for the other kinds, which are one node to a guard.
    """

    kind: TopologyKind = "single"
    nodes: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a topology's name.

        Raises:
            ConfigurationError: there is no topology of that name.
        """
        found = _NAME.fullmatch(text.strip().lower())
        if found is None or (found[2] is not None and not 1 <= int(found[2]) <= _NODES_MAX):
            raise ConfigurationError(f"topology {text!r} is not known; {_ALLOWED}")
        if found[2] is not None:
            return cls("redlock", int(found[2]))
        return cls(cast("TopologyKind", found[1]))

    def __str__(self) -> str:
        return f"redlock:{self.nodes}" if self.kind == "redlock" else self.kind

    def servers(self) -> Topology:
        """The servers, to be started by ``with`` or ``async with``.

        A cluster has three masters; behind Sentinel, a master has one replica and three Sentinels.
        """
        match self.kind:
            case "single" | "redlock":
                return IndependentRedis(self.nodes)
            case "sentinel":
                return SentinelRedis()
            case "cluster":
                return ClusterRedis()
            case _:
                assert_never(self.kind)

    @staticmethod
    def urls(servers: Topology) -> tuple[str, ...]:
        """The URLs of started servers, for ``LockGuard.from_urls``."""
        if isinstance(servers, IndependentRedis):
            return tuple(servers.urls)
        assert isinstance(servers, SentinelRedis | ClusterRedis)
        return (servers.url,)


@contextmanager
def warnings_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass the warnings of the body to ``tell``, each once and in one line, without a line of code."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        text = (
            f"warning: {message}" if issubclass(category, UserWarning) else f"{category.__name__}: {message}"
        )
        if text not in said:
            said.add(text)
            tell(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
