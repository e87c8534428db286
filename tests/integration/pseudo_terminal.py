"""A command in a real pseudo-terminal, and what it shows there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from typing import Any, Self

_PARTS = re.compile(
    r"\x1b\[(?P<args>[0-9;?<>=$]*)(?P<final>[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_=>78]"
    r"|(?P<control>[\r\n\b])|(?P<text>[^\x1b\r\n\b]+)"
)


class PseudoTerminal:
    """Starts a command in a terminal of its own and keeps the characters of its screen.

    Args:
        *arguments: of ``lockguard``.
        width: of the terminal, in columns.
        height: in lines.
        environ: added to the environment; ``None`` takes a variable away.
        encoding: of the terminal.
    """

    def __init__(
        self,
        *arguments: str,
        width: int = 80,
        height: int = 24,
        environ: Mapping[str, str | None] | None = None,
        encoding: str = "utf-8",
    ) -> None:
        self._ours, theirs = os.openpty()
        self.attributes = termios.tcgetattr(self._ours)
        self.resize(width, height, tell=False)
        variables: dict[str, str | None] = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": None}
        variables |= {"COLUMNS": None, "LINES": None, **(environ or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lockguard", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={name: value for name, value in variables.items() if value is not None},
            start_new_session=True,
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self._encoding = encoding
        self._rest = ""
        self.written = b""
        self.modes: dict[str, bool] = {}
        """The private modes that were set, by number: 1049 is the alternate screen, 25 the cursor."""

    def resize(self, width: int, height: int, *, tell: bool = True) -> None:
        """Give the terminal another size."""
        self.width, self.height = width, height
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._cells = [[" "] * width for _ in range(height)]
        self._row = self._column = 0
        if tell:
            os.killpg(self.process.pid, 28)  # SIGWINCH: it has no controlling terminal that would send it

    @property
    def screen(self) -> str:
        """The lines that are shown."""
        self._read()
        return "\n".join("".join(row).rstrip() for row in self._cells)

    def type(self, keys: str) -> None:
        """Type keys; Enter is ``\\r``."""
        os.write(self._ours, keys.encode())

    async def until(self, holds: Callable[[str], object]) -> str:
        """Wait for what is shown to be like that; returns it."""
        try:
            async with asyncio.timeout(30):
                while not holds(self.screen):
                    assert self.process.poll() is None or holds(self.screen), self.screen
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"never seen; the terminal shows:\n{self.screen}") from None
        return self.screen

    async def see(self, *words: str) -> str:
        """Wait until all of these are shown, also across the ends of lines."""
        return await self.until(
            lambda shown: all(word in shown or word in " ".join(shown.split()) for word in words)
        )

    async def end(self) -> int:
        """Wait for the command to end; returns its exit code."""
        async with asyncio.timeout(30):
            while self.process.poll() is None:
                self._read()
                await asyncio.sleep(0.02)
        self._read()
        return self.process.returncode

    def as_before(self) -> bool:
        """Whether the terminal is as the command found it: its settings, its screen and its cursor."""
        return (
            termios.tcgetattr(self._ours) == self.attributes
            and not self.modes.get("1049", False)
            and self.modes.get("25", True)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(self._ours, 65536):
                self.written += chunk
                self._rest = self._interpret(self._rest + chunk.decode(self._encoding, "replace"))

    def _interpret(self, text: str) -> str:
        """Carry out what was written; returns the beginning of what is not whole yet."""
        at = 0
        while at < len(text):
            part = _PARTS.match(text, at)
            if part is None:
                return text[at:] if len(text) - at < 100 else ""
            at = part.end()
            if part["text"]:
                self._put(part["text"])
            elif part["control"]:
                self._row += part["control"] == "\n"
                self._column = (
                    0 if part["control"] == "\r" else max(self._column - (part["control"] == "\b"), 0)
                )
            elif part["final"]:
                self._carry_out(part["args"], part["final"])
        return ""

    def _carry_out(self, args: str, final: str) -> None:
        if args.startswith("?") and final in "hl":
            for mode in args[1:].split(";"):
                self.modes[mode] = final == "h"
        numbers: list[Any] = [int(number or 0) for number in re.findall(r"\d*", args) if number] or [0]
        if final == "H":
            self._row, self._column = (max(n - 1, 0) for n in (*numbers, 1)[:2])
        elif final in "JK" and not args.startswith("?"):
            for row in self._cells if final == "J" else self._cells[self._row : self._row + 1]:
                row[:] = [" "] * self.width

    def _put(self, text: str) -> None:
        for character in text:
            if self._row < self.height and self._column < self.width:
                self._cells[self._row][self._column] = character
            self._column += 1
