"""A command that does not end: each of its three processes writes the time every few milliseconds.

The command notes TERM and goes on. A child in its group, and one in a session of its own whose parent has
ended, ignore TERM. What is last in the file tells when the last of them died.
"""

from __future__ import annotations

import os
import signal
import sys
import time

PAUSE_S = 0.005


def write(file: int, name: str, word: str) -> None:
    os.write(file, f"{name} {os.getpid()} {word} {time.time():.6f}\n".encode())


def go_on(file: int, name: str) -> None:
    while True:
        write(file, name, "lives")
        time.sleep(PAUSE_S)


def main() -> None:
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        go_on(file, "child")
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        go_on(file, "session")
    signal.signal(signal.SIGTERM, lambda *_: write(file, "command", "TERM"))
    go_on(file, "command")


if __name__ == "__main__":
    main()
