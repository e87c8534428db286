"""A Redis server whose own wall clock a test can set while the server runs.

Redis measures the life of a key by the wall clock: set forward, it drops leases early; set back, it keeps
them for longer. libfaketime does not work with the allocator that Redis is built with, so a library of a few
lines is compiled and preloaded. The monotonic clock runs on, as on a machine whose time is set.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError
from lockguard_lab.servers.redis_server import RedisServer

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from lockguard_lab.servers.supervision import Spawn

__all__ = ["ClockJumpRedis"]

_COMPILERS = ("cc", "gcc", "clang")
_COMPILING_S_MAX = 30.0


class ClockJumpRedis(RedisServer):
    """A :class:`RedisServer` with a wall clock of its own.

    Needs Linux and a C compiler, see :meth:`missing`. Takes the same arguments.
    """

    @staticmethod
    def missing() -> str | None:
        """What this machine lacks to run it, as the reason for skipping a test; ``None`` if nothing."""
        if sys.platform != "linux":
            return "a server's clock can be set on Linux only"
        if _compiler() is None:
            return (
                f"setting a server's clock needs a C compiler ({', '.join(_COMPILERS)}) with libc's headers"
            )
        return None

    def jump(self, to: timedelta) -> None:
        """Set the clock this far from the true time (negative: behind), at once and through restarts.

        Raises:
            ConfigurationError: the server was never started.
        """
        with self._offset(self._started_directory()).open("r+b") as file:
            file.write(struct.pack("=q", round(to.total_seconds())))

    def _prepare(self, directory: Path) -> None:
        super()._prepare(directory)
        if self._library(directory).exists():
            return
        if (missing := self.missing()) is not None:
            raise ConfigurationError(missing)
        self._offset(directory).write_bytes(struct.pack("=q", 0))
        compiler = _compiler()
        assert compiler is not None
        source = directory / "clock_jump.c"
        source.write_bytes((files("lockguard_lab.servers") / "clock_jump.c").read_bytes())
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", str(self._library(directory)), str(source)],
            capture_output=True,
            text=True,
            timeout=_COMPILING_S_MAX,
            check=False,
        )
        if done.returncode:
            raise ConfigurationError(f"{compiler} cannot compile for a server's clock: {done.stderr.strip()}")

    def _command(self, directory: Path) -> Spawn:
        spawn = super()._command(directory)
        env = {
            "LD_PRELOAD": str(self._library(directory)),
            "LOCKGUARD_CLOCK_JUMP": str(self._offset(directory)),
        }
        return replace(spawn, env=spawn.env | env)

    @staticmethod
    def _library(directory: Path) -> Path:
        return directory / "clock_jump.so"

    @staticmethod
    def _offset(directory: Path) -> Path:
        return directory / "clock_jump"


def _compiler() -> str | None:
    return next((found for name in _COMPILERS if (found := shutil.which(name)) is not None), None)
