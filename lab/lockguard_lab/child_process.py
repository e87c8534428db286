"""Python processes that a race, a load, a benchmark or the demo starts, and how both sides talk.

They speak lines: the parent over the child's standard input, the child in JSON over its standard output. What
a child is told travels there too, since everybody can read the arguments of a process.

No child outlives its parent, however that ends. Leaving the ``async with`` block ends it; should the parent
be killed, the child's input ends, and on Linux the kernel kills it even while it is stopped
(:func:`begin_as_child`). Ctrl-C in the terminal reaches the parent alone, which then ends its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import psutil

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Child", "begin_as_child", "open_input", "say"]

_PARENT = "LOCKGUARD_LAB_PARENT"
_PR_SET_PDEATHSIG = 1
_LINE_BYTES_MAX = 1 << 28
_END_S = 5.0
_SUSPEND_S = 5.0
_POLL_S = 0.002
_LAST_WORDS = 30


class Child:
    """A child, as its parent sees it; an async context manager that leaves none behind, stopped or not.

    Args:
        module: what it runs, as ``python -m`` does.
        *arguments: of the module.
        name: what it is called in errors; by default its module.
        patience_s: for how many seconds an answer may be waited for; ``None`` for ever.
        end_s: how many seconds it has to end by itself when its input ends, before it is killed.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        name: str | None = None,
        patience_s: float | None = None,
        end_s: float = _END_S,
    ) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        self._name = name or module
        self._patience_s = patience_s
        self._end_s = end_s
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._started: tuple[asyncio.subprocess.Process, asyncio.Task[None]] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def __aenter__(self) -> Self:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, _PARENT: str(os.getpid())},
            limit=_LINE_BYTES_MAX,
        )
        self._started = process, asyncio.create_task(self._hear_last_words(process))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.close()
            if exc is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._end_s):
                        await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()  # works on a stopped one too
            await asyncio.shield(process.wait())
            self._hearing.cancel()

    async def write(self, line: str) -> None:
        """Give it one line.

        Raises:
            ConfigurationError: it has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise await self._failure() from None

    async def tell(self, message: object) -> None:
        """Give it one line of JSON.

        Raises:
            ConfigurationError: it has ended.
        """
        await self.write(json.dumps(message))

    async def hear(self) -> Any:
        """What it says next.

        Raises:
            ConfigurationError: it ended, or said nothing for as long as it may.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._patience_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ConfigurationError(
                f"{self._name} said nothing for {self._patience_s:g} s; is the machine very busy? Try again"
            ) from None
        if not line:
            raise await self._failure()
        return json.loads(line)

    async def expect(self, word: str) -> Any:
        """The fact of this name, which is what it says next.

        Raises:
            ConfigurationError: it said something else, or as for :meth:`hear`.
        """
        facts = await self.hear()
        if word not in facts:
            raise ConfigurationError(f"{self._name} said {', '.join(facts)} instead of {word}")
        return facts[word]

    async def ended(self) -> tuple[int, str]:
        """Wait for its end: the exit code, and the last line of its error output."""
        async with asyncio.timeout(self._patience_s):
            code = await self._process.wait()
        await asyncio.wait({self._hearing}, timeout=1)
        return code, next((line for line in reversed(self._last_words) if line.strip()), "")

    async def suspend(self) -> None:
        """SIGSTOP; returns when the kernel shows it as stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        process = psutil.Process(self.pid)
        async with asyncio.timeout(_SUSPEND_S):
            while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_S)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def _process(self) -> asyncio.subprocess.Process:
        assert self._started is not None
        return self._started[0]

    @property
    def _hearing(self) -> asyncio.Task[None]:
        assert self._started is not None
        return self._started[1]

    async def _failure(self) -> ConfigurationError:
        code, last = await self.ended()
        return ConfigurationError(f"{self._name} ended with {code}: {last or 'it said nothing'}")

    async def _hear_last_words(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self._last_words.append(line.decode(errors="replace").rstrip())


def begin_as_child() -> None:
    """In a child, first of all: leave Ctrl-C to the parent, and die with it, even while stopped.

    Elsewhere than on Linux the kernel resumes a stopped process whose group was orphaned, and it then reads
    the end of its standard input.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(os.environ.get(_PARENT, os.getppid())):
        os._exit(1)  # it died before it could be watched


async def open_input() -> asyncio.StreamReader:
    """In a child: its standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


def say(what: object) -> None:
    """In a child: tell the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
