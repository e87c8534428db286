"""The ``lockguard`` command. Integrations add to it by entry points in the group ``lockguard.commands``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command and leave with its exit code."""
    try:
        from lockguard.cli.app import run  # noqa: PLC0415 - it needs an extra, and says so
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in {"click", "rich"}:
            raise
        sys.stderr.write(
            f"lockguard: the command needs {package}, which is not installed; pip install 'lockguard[cli]'\n"
        )
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
