"""How a guard reaches its servers, beyond what their URLs say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.address import Address
from lockguard._nodes.address_map import AddressMap
from lockguard._nodes.credentials import Credentials
from lockguard.errors import ConfigurationError

__all__ = ["REACH", "Reach"]


@dataclass(frozen=True, slots=True)
class Reach:
    """What all nodes of a guard have in common.

    Attributes:
        namespace: the first part of every key and channel.
        credentials: fetches user and password for each log-in; ``None``: those of the URL.
        address_map: where to reach the servers that Sentinels and clusters announce.
    """

    namespace: Namespace = NAMESPACE
    credentials: Credentials | None = None
    address_map: AddressMap = field(default_factory=AddressMap)

    def to(self, address: Address) -> Address:
        """A server's address, with the credentials that are fetched for each log-in.

        Raises:
            ConfigurationError: the URL has a password too.
        """
        if self.credentials is None:
            return address
        if address.password:
            raise ConfigurationError(
                "the Redis URL has a password and credentials= is given; leave one of them out"
            )
        return replace(address, password=None, credentials=self.credentials)


REACH = Reach()
"""That of a guard that is told nothing else."""
