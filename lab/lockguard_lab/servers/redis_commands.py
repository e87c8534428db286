"""Sends a few commands to a Redis server on this machine: for setting servers up, not for locking."""

from __future__ import annotations

from typing import Any, TypeAlias
from urllib.parse import quote

import redis

from lockguard.errors import ConfigurationError, NodeRefused, NodeUnknown
from lockguard_lab.servers.ports import LOOPBACK

__all__ = ["Answer", "command", "credentials"]

Answer: TypeAlias = "str | int | list[Answer] | None"

_PATIENCE_S = 10.0


def command(port: int, *words: str | int, password: str | None = None) -> Answer:
    """Send one command on a connection of its own and return the reply.

    Args:
        port: the server's port on 127.0.0.1.
        *words: the command.
        password: the default user's password.

    Raises:
        NodeRefused: the server answered with an error.
        NodeUnknown: it did not answer.
        ConfigurationError: the password was refused.
    """
    name = f"{LOOPBACK}:{port}"
    # A connection and not a client, which would convert the replies.
    connection: Any = redis.Connection(  # type: ignore[no-untyped-call]
        host=LOOPBACK,
        port=port,
        password=password,
        socket_connect_timeout=_PATIENCE_S,
        socket_timeout=_PATIENCE_S,
        protocol=2,
        decode_responses=True,
        encoding_errors="replace",
    )
    try:
        try:
            connection.connect()
        except redis.AuthenticationError as error:
            raise ConfigurationError(f"the server at {name} refused the password") from error
        connection.send_command(*words)
        answer: Answer = connection.read_response()
        return answer
    except (redis.ResponseError, redis.AuthenticationError) as error:
        raise NodeRefused(f"{name} refused {' '.join(map(str, words))}: {error}", node=name) from error
    except (redis.RedisError, OSError) as error:
        raise NodeUnknown(f"{name} did not answer {words[0]}: {error}", node=name) from error
    finally:
        connection.disconnect()


def credentials(password: str) -> str:
    """The part of a URL before its host, for the default user; empty without a password.

    The user is named because redis-cli sends an empty name as a name, and is refused.
    """
    return f"default:{quote(password, safe='')}@" if password else ""
