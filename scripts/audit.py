"""Asks OSV, by pip-audit, whether a version that is pinned here has a known vulnerability.

Exit codes: 0, none has; 1, one has; 2, a mistake of the caller's; 3, the database could not be asked about
all of them, which is never a pass; 130, interrupted, which is none either. Nothing is installed or built: the
files name each version with digests.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PINNED = ("requirements/dev.txt", "requirements/demo.txt")
"""What is installed here. lowest.txt has the oldest versions that work, which only a test installs."""

OSV = "https://api.osv.dev/v1/query"
VULNERABLE, OUT_OF_REACH, INTERRUPTED = 1, 3, 130
_INVALID = re.compile(r"requirement file \S+ contains (.+)")


def main() -> int:
    """Audit each file; returns the exit code, the worst of theirs."""
    parser = argparse.ArgumentParser(
        prog="scripts/audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help=f"by default {' and '.join(PINNED)}"
    )
    parser.add_argument("--url", default=OSV, help="of another OSV, such as a mirror of your own")
    parser.add_argument(
        "--timeout", type=int, default=15, metavar="SECONDS", help="of one question; by default 15"
    )
    arguments = parser.parse_args()
    files = arguments.files or [ROOT / name for name in PINNED]
    if missing := [file for file in files if not file.is_file()]:
        parser.error(f"{missing[0]} is no file")
    if arguments.timeout < 1:
        parser.error(f"--timeout {arguments.timeout}: at least a second")
    if not arguments.url.startswith(("http://", "https://")):
        parser.error(f"--url {arguments.url!r} begins neither with https:// nor with http://")
    try:
        ends = [audit(file, arguments.url, arguments.timeout) for file in files]
    except KeyboardInterrupt:
        print("scripts/audit: NOT AUDITED: interrupted", file=sys.stderr)
        return INTERRUPTED
    return VULNERABLE if VULNERABLE in ends else max(ends)


def audit(file: Path, url: str, timeout_s: int) -> int:
    """Audit one file, and say what came of it; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="lockguard-audit.") as folder:
        told = Path(folder) / "told.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip_audit", "--requirement", file, "--disable-pip", "--no-deps"),
                *("--vulnerability-service", "osv", "--osv-url", url, "--timeout", str(timeout_s)),
                *("--format", "json", "--output", told, "--progress-spinner", "off"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        answer = _json(told)
    if answer is None:
        if invalid := _INVALID.search(done.stdout):
            print(f"{file.name}: NOT AUDITED: it names no versions: {invalid[1][:200]}", file=sys.stderr)
            return OUT_OF_REACH
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        print(f"{file.name}: NOT AUDITED: {url} could not be asked: {last[:200]}", file=sys.stderr)
        return OUT_OF_REACH
    found = [(one, vulnerability) for one in answer for vulnerability in one.get("vulns", [])]
    skipped = [one["name"] for one in answer if "skip_reason" in one]
    for one, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{file.name}: {one['name']} {one['version']}: {vulnerability['id']}, mended in {mended}")
    if skipped or not answer:
        what = ", ".join(skipped) or "the file names no version"
        print(f"{file.name}: NOT AUDITED: {what}", file=sys.stderr)
    if found:
        return VULNERABLE
    if skipped or not answer:
        return OUT_OF_REACH
    print(f"{file.name}: {len(answer)} versions, no known vulnerability")
    return 0


def _json(file: Path) -> list[dict[str, Any]] | None:
    """What pip-audit wrote, if it came to an end: it also exits with 1 when it could not ask."""
    try:
        dependencies: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["dependencies"]
    except (OSError, ValueError, KeyError):
        return None
    return dependencies


if __name__ == "__main__":
    sys.exit(main())
