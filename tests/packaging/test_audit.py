"""scripts/audit tells what is vulnerable, and never passes what it could not ask about."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[2] / "scripts/audit.py"
PINNED = "".join(
    f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n"
    for name, version in (("sound", "1.0"), ("faulty", "2.0"))
)
FAULT = {
    "id": "PYSEC-2026-1",
    "summary": "It shows a password.",
    "published": "2026-01-01T00:00:00Z",
    "aliases": [],
    "affected": [
        {
            "package": {"name": "faulty", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1"}]}],
        }
    ],
}


class Osv(BaseHTTPRequestHandler):
    """Answers as OSV does; of one package it knows a fault, and to another name it gives an error."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        self.send_response(500 if name == "broken" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"vulns": [FAULT]} if name == "faulty" else {}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def osv():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Osv)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def audited(file: Path, text: str, url: str) -> subprocess.CompletedProcess[str]:
    file.write_text(text, "utf-8")
    return subprocess.run(
        [sys.executable, AUDIT, "--url", url, "--timeout", "5", file],
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_version_with_a_known_fault_is_named_with_what_mends_it(osv, tmp_path):
    done = audited(tmp_path / "pinned.txt", PINNED, osv)
    assert (done.returncode, done.stdout) == (1, "pinned.txt: faulty 2.0: PYSEC-2026-1, mended in 2.1\n")


def test_versions_without_a_known_fault_pass(osv, tmp_path):
    done = audited(tmp_path / "pinned.txt", PINNED.replace("faulty", "other"), osv)
    assert (done.returncode, done.stdout) == (0, "pinned.txt: 2 versions, no known vulnerability\n")


@pytest.mark.parametrize("failure", ["nobody listens", "an error", "a file without versions"])
def test_what_could_not_be_asked_is_said_in_one_line_and_is_no_pass(osv, tmp_path, failure):
    url, text = osv, PINNED.replace("faulty", "broken")
    if failure == "nobody listens":
        url = "http://127.0.0.1:9/v1/query"
    elif failure == "a file without versions":
        text = "# nothing\n"
    done = audited(tmp_path / "pinned.txt", text, url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert done.stderr.startswith("pinned.txt: NOT AUDITED")


def test_a_question_that_nobody_can_answer_is_a_mistake_and_not_an_audit(tmp_path, osv):
    told = audited(tmp_path / "page.md", "# A page\n\n**No versions.**\n", osv)
    assert (told.returncode, told.stdout) == (3, "")
    assert "page.md: NOT AUDITED: it names no versions: invalid specifier at line 3" in told.stderr
    for options, says in ((("--timeout", "0"), "at least a second"), (("--url", "osv"), "begins neither")):
        done = subprocess.run([sys.executable, AUDIT, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert says in done.stderr


def test_an_interrupted_audit_says_that_it_is_none(tmp_path):
    (file := tmp_path / "pinned.txt").write_text(PINNED, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        asked = [sys.executable, AUDIT, "--url", url, "--timeout", "60", file]
        with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True) as audit:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                os.killpg(audit.pid, signal.SIGINT)
                assert audit.communicate(timeout=60)[1] == "scripts/audit: NOT AUDITED: interrupted\n"
                assert audit.returncode == 130
