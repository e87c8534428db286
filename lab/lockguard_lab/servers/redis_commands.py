"""Says a few commands to a Redis server on this machine: for setting servers up, not for locking."""

from __future__ import annotations

import contextlib
import socket
from typing import BinaryIO, TypeAlias
from urllib.parse import quote

from lockguard.errors import ConfigurationError, NodeRefused, NodeUnknown
from lockguard_lab.servers.ports import LOOPBACK

__all__ = ["Answer", "command", "credentials"]

Answer: TypeAlias = "str | int | list[Answer] | None"

_PATIENCE_S = 10.0


def command(port: int, *words: str | int, password: str | None = None) -> Answer:
    """Say one command on a connection of its own.

    Args:
        port: of the server on 127.0.0.1.
        *words: the command.
        password: of the default user.

    Raises:
        NodeRefused: the server answered with an error.
        NodeUnknown: it did not answer.
        ConfigurationError: the password was refused.
    """
    name = f"{LOOPBACK}:{port}"
    try:
        with contextlib.closing(socket.create_connection((LOOPBACK, port), _PATIENCE_S)) as connection:
            stream = connection.makefile("rb")
            with contextlib.closing(stream):
                if password is not None:
                    connection.sendall(_packed("AUTH", password))
                    if isinstance(_read(stream), _Refusal):
                        raise ConfigurationError(f"the server at {name} refused the password")
                connection.sendall(_packed(*words))
                answer = _read(stream)
    except OSError as error:
        raise NodeUnknown(f"{name} did not answer {words[0]}: {error}", node=name) from error
    if isinstance(answer, _Refusal):
        raise NodeRefused(f"{name} refused {' '.join(map(str, words))}: {answer}", node=name)
    return answer


class _Refusal(str):
    __slots__ = ()


def _packed(*words: str | int) -> bytes:
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _read(stream: BinaryIO) -> Answer:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[:1], line[1:-2].decode(errors="replace")
    match kind:
        case b"+":
            return rest
        case b"-":
            return _Refusal(rest)
        case b":":
            return int(rest)
        case b"$":
            size = int(rest)
            if size < 0:
                return None
            return stream.read(size + 2)[:-2].decode(errors="replace")
        case b"*":
            return [_read(stream) for _ in range(int(rest))]
        case _:
            raise ConnectionError(f"not the Redis protocol: {line!r:.80}")


def credentials(password: str) -> str:
    """The part of a URL before its host, for the default user; empty without a password.

    The user is named: redis-cli takes an empty name for a name, and is refused.
    """
    return f"default:{quote(password, safe='')}@" if password else ""
