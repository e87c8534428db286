"""``python -m lockguard`` is ``lockguard``."""

from __future__ import annotations

from lockguard._cli import main

if __name__ == "__main__":
    main()
