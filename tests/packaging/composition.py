"""The services of docker-compose.yml in a container engine, under a name and on ports of their own."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from pathlib import Path

from lockguard_lab.servers.ports import LOOPBACK, free_port

CHECKOUT = Path(__file__).resolve().parents[2]
PUBLISHED = ("REDIS", "POSTGRES", "EXCHANGE", "PROMETHEUS", "GRAFANA")
ASKED_S = 30
"""For a question to the engine."""
BROUGHT_UP_S = 800
"""For a command that may pull, build and race."""


class Composition:
    """The services of a copy of the checkout's file, under a name and on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"lockguard-test-{secrets.token_hex(4)}"
        self.ports = {name: free_port() for name in PUBLISHED}
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LOCKGUARD_")},
            **{f"LOCKGUARD_{name}_PORT": str(port) for name, port in self.ports.items()},
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_ANSI": "never",
            "BUILDKIT_PROGRESS": "plain",
        }

    def run(self, *command: str, within_s: float = BROUGHT_UP_S) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; what it says on either stream is in ``stdout``."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=within_s,
        )

    def __call__(self, *words: str, code: int | None = 0) -> str:
        """``docker compose ...``: what it says; its exit code has to be ``code``, if one is given."""
        done = self.run("docker", "compose", *words)
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def docker(self, *words: str) -> str:
        """``docker ...``, which has to succeed."""
        done = self.run("docker", *words, within_s=ASKED_S)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def set_passwords(self) -> dict[str, str]:
        """Run ``docker/passwords``; what ``.env`` says."""
        done = self.run("docker/passwords", within_s=ASKED_S)
        assert (done.returncode, done.stdout) == (0, "")
        lines = (self.folder / ".env").read_text().split()
        return dict(line.split("=", 1) for line in lines)

    def containers(self, *, running: bool = False) -> dict[str, str]:
        """The container of each service and number, as ``bot-1``, by its id."""
        words = ("ps", "--no-trunc", *(() if running else ("--all",)))
        mine = ("--filter", f"label=com.docker.compose.project={self.name}", "--format", "{{.Names}} {{.ID}}")
        named = (line.split() for line in self.docker(*words, *mine).splitlines())
        return {name.removeprefix(f"{self.name}-"): found for name, found in named}

    def exit_codes(self) -> dict[str, int]:
        """Of the containers that have ended."""
        ids = self.containers()
        form = "{{.State.Status}} {{.State.ExitCode}}"
        states = {name: self.docker("inspect", "--format", form, found) for name, found in ids.items()}
        return {name: int(told.split()[1]) for name, told in states.items() if told.startswith("exited")}

    def url(self, server: str, password: str) -> str:
        """The published address of a server."""
        port = self.ports[server]
        return {
            "REDIS": f"redis://:{password}@{LOOPBACK}:{port}/0",
            "POSTGRES": f"postgresql://lockguard:{password}@{LOOPBACK}:{port}/lockguard",
            "EXCHANGE": f"http://{LOOPBACK}:{port}",
        }[server]

    def remove(self) -> None:
        """Remove it all but the images."""
        self("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5", code=None)


def figures(said: str) -> dict[str, int]:
    """The counts of a race's table."""
    return {what: int(count) for what, count in re.findall(r"│ +(\S.*?) +│ +(\d+) +│", said)}
