"""Child processes of a race, a load, a benchmark or the demo, and the protocol between child and parent.

Both send lines: the parent to the child's standard input, the child in JSON to its standard output. A child's
instructions are sent that way too, since every user can read the arguments of a process.

No child outlives its parent, however the parent ends. Leaving the ``async with`` block ends the child; if the
parent is killed, the child's input ends, and on Linux the kernel kills the child even while it is stopped
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
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import psutil

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

__all__ = ["Child", "begin_as_child", "open_input", "say", "signal_child", "start_program"]

_PARENT = "LOCKGUARD_LAB_PARENT"
_PR_SET_PDEATHSIG = 1
_LINE_BYTES_MAX = 1 << 28
_END_S = 5.0
_SUSPEND_S = 5.0
_POLL_S = 0.002
_LAST_WORDS = 30


class Child:
    """The parent's handle of a child; an async context manager that always ends it, even while it is stopped.

    Args:
        module: the module that it runs, as ``python -m`` does.
        *arguments: the arguments of the module.
        name: its name in errors; by default its module.
        patience_s: for how many seconds to wait for an answer; ``None`` for ever.
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
        """The child's process id."""
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
            signal_child(process, signal.SIGKILL)  # works on a stopped process too
            await asyncio.shield(process.wait())
            self._hearing.cancel()

    async def write(self, line: str) -> None:
        """Send the child one line.

        Raises:
            ConfigurationError: the child has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise await self._failure() from None

    async def tell(self, message: object) -> None:
        """Send the child one line of JSON.

        Raises:
            ConfigurationError: the child has ended.
        """
        await self.write(json.dumps(message))

    async def hear(self) -> Any:
        """Receive the child's next message.

        Raises:
            ConfigurationError: the child ended, or sent nothing within its ``patience_s``.
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
        """Receive the fact ``word``, which must be in the child's next message.

        Raises:
            ConfigurationError: the child sent something else, or as for :meth:`hear`.
        """
        facts = await self.hear()
        if word not in facts:
            raise ConfigurationError(f"{self._name} said {', '.join(facts)} instead of {word}")
        return facts[word]

    async def ended(self) -> tuple[int, str]:
        """Wait for the child's end; returns its exit code and the last line of its error output."""
        async with asyncio.timeout(self._patience_s):
            code = await self._process.wait()
        await asyncio.wait({self._hearing}, timeout=1)
        return code, next((line for line in reversed(self._last_words) if line.strip()), "")

    async def suspend(self) -> None:
        """Send SIGSTOP; returns when the kernel shows the child as stopped."""
        signal_child(self._process, signal.SIGSTOP)
        process = psutil.Process(self.pid)
        async with asyncio.timeout(_SUSPEND_S):
            while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_S)

    def resume(self) -> None:
        """Send SIGCONT."""
        signal_child(self._process, signal.SIGCONT)

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


_PROGRAM_AS_CHILD = """
import os, sys
from lockguard_lab.child_process import begin_as_child
begin_as_child()
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""What becomes the program, which the kernel goes on to end with this process."""


async def start_program(
    command: Sequence[str],
    *,
    folder: Path,
    output: BinaryIO | int,
    environment: Mapping[str, str],
    takes_input: bool = False,
) -> asyncio.subprocess.Process:
    """Start a program that speaks no protocol with its parent, and dies with it, even while it is stopped.

    Args:
        command: the program and its arguments.
        folder: in which it runs.
        output: takes all that it writes; or ``asyncio.subprocess.PIPE``.
        environment: the whole of it.
        takes_input: whether its standard input is a pipe from this process.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PROGRAM_AS_CHILD,
        *command,
        cwd=folder,
        stdin=asyncio.subprocess.PIPE if takes_input else None,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT if isinstance(output, int) else output,
        env={**environment, _PARENT: str(os.getpid())},
    )


def signal_child(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal to a child of asyncio; one that has ended is left alone, and keeps its exit code.

    The process's own ``send_signal``, ``terminate`` and ``kill`` look first whether it has ended. If it has
    just done so, they take its exit code before asyncio reads it, and asyncio reports 255.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def begin_as_child() -> None:
    """In a child, first of all: leave Ctrl-C to the parent, and die with the parent, even while stopped.

    On other systems than Linux the kernel resumes a stopped process whose group was orphaned, and the process
    then reads the end of its standard input.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(os.environ.get(_PARENT, os.getppid())):
        os._exit(1)  # the parent died before it could be watched


async def open_input() -> asyncio.StreamReader:
    """In a child: open its standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


def say(what: object) -> None:
    """In a child: send a message to the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
