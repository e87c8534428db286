"""``python -m lockguard.cli`` is ``lockguard``."""

from __future__ import annotations

from lockguard.cli import main

main()
