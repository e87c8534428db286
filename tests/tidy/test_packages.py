"""A package that is forgotten in a list of pyproject.toml is checked by nothing, or not shipped."""

from __future__ import annotations

import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TOOL = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def packages_in(*folders: str) -> set[str]:
    return {
        path.parent.name for folder in folders for path in (CHECKOUT / folder).glob("lockguard*/__init__.py")
    }


def test_mypy_and_import_linter_check_every_package() -> None:
    every = packages_in(".", "integrations", "lab")
    linter = TOOL["importlinter"]
    contracts = {contract["name"]: contract for contract in linter["contracts"]}
    assert {
        "mypy": set(TOOL["mypy"]["packages"]) ^ every,
        "import-linter": set(linter["root_packages"]) ^ every,
        "circles": set(contracts["No imports run in a circle, in any package"]["ancestors"]) ^ every,
    } == {"mypy": set(), "import-linter": set(), "circles": set()}


def test_the_layers_have_a_place_for_every_package() -> None:
    (layers,) = (
        contract["layers"]
        for contract in TOOL["importlinter"]["contracts"]
        if contract["type"] == "layers" and "containers" not in contract
    )
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    assert placed ^ packages_in(".", "integrations", "lab") == set()


def test_the_wheel_ships_every_package_but_the_lab() -> None:
    shipped = {Path(name).name for name in TOOL["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert shipped ^ packages_in(".", "integrations") == set()
