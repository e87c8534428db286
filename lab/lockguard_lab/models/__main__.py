"""``python -m lockguard_lab.models``, which ``scripts/models`` runs."""

from __future__ import annotations

from lockguard_lab.models.command import models

if __name__ == "__main__":
    models(prog_name="scripts/models")
