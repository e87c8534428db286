"""What can be said about a block without running it."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import tempfile
import tomllib
from importlib import import_module
from pathlib import Path

from page_blocks import Block
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["Failed", "look_at", "parse"]


class Failed(Exception):
    """A block is wrong, or did not run."""


def look_at(block: Block) -> None:
    """Compile Python, and look for the names that it imports of lockguard.

    Raises:
        Failed: there is no such name.
        SyntaxError: it is no Python.
    """
    tree = ast.parse(block.text, block.place)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lockguard"):
            module = import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    raise Failed(f"{node.module} has no {name.name}")


def parse(block: Block) -> None:
    """Read a block as its language has it.

    Raises:
        Failed: it is not of its language, or promtool refuses it, where that is installed.
        ValueError: it is not of its language.
    """
    match block.language:
        case "json":
            json.loads(block.text if block.text.startswith(("{", "[")) else f"{{{block.text}}}")
        case "toml":
            tomllib.loads(block.text)
        case "yaml":
            try:
                YAML(typ="safe").load(block.text)
            except YAMLError as error:
                raise Failed(str(error)) from error
        case _:
            _check_rule(block.text.strip())


def _check_rule(expression: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.yml")
        group = {"name": "page", "rules": [{"alert": "Page", "expr": expression}]}
        rules.write_text(json.dumps({"groups": [group]}), "utf-8")
        done = subprocess.run(
            [promtool, "check", "rules", rules], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise Failed(done.stdout + done.stderr)
