"""Lets a page link to any file of the repository, as it does where the repository is shown.

A link to a page that the site has leads there, also if the page stands outside ``docs`` and is only included.
Any other file or folder is shown by the repository's host. What is not there is left to MyST, which warns.
"""

# ruff: noqa: ARG002 - Sphinx gives more than each handler needs
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
HOST = "https://github.com/lockguard/lockguard"

PAGES_OUTSIDE = {
    "README.md": "project/readme",
    "ARCHITECTURE.md": "project/architecture",
    "CONTRIBUTING.md": "project/contributing",
    "SECURITY.md": "project/security",
    "CHANGELOG.md": "project/changelog",
}
"""Files outside ``docs`` that a page of the site includes."""

INDEXES = {"docs/adr": "explanation/decisions", "docs": "index"}
"""Folders that a page of the site lists."""

SERVED = {".png", ".svg"}
"""What the site has a copy of when a page links to it."""


class RepositoryLinks(SphinxTransform):
    """Resolves the links that MyST found in a page, before the site's own references are."""

    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        docname = self.env.docname
        outside = {page: file for file, page in PAGES_OUTSIDE.items()}
        place = ROOT if docname in outside else (DOCS / docname).parent
        for link in list(self.document.findall(_is_from_myst)):
            path, _, fragment = link["reftarget"].partition("#")
            target = (place / unquote(path)).resolve() if path else None
            if link.get("refdomain") == "doc":
                # Of a page outside, MyST makes its absolute path without the ending.
                target, fragment = Path(f"{path}.md"), link["reftargetid"] or ""
                if not target.is_absolute():
                    continue
            if target is None or not target.is_relative_to(ROOT):
                continue
            name = target.relative_to(ROOT).as_posix()
            page = PAGES_OUTSIDE.get(name) or INDEXES.get(name)
            if page is None and target.suffix == ".md" and target.is_relative_to(DOCS) and target.is_file():
                page = target.relative_to(DOCS).with_suffix("").as_posix()
            if page is not None:
                _lead_to_page(link, page, fragment)
            elif target.exists() and target.suffix not in SERVED:
                _lead_to_host(link, target, name)


def _is_from_myst(node: nodes.Node) -> bool:
    return isinstance(node, addnodes.pending_xref | addnodes.download_reference) and (
        node.get("reftype") == "myst"
    )


def _lead_to_page(link: nodes.Element, page: str, fragment: str) -> None:
    found = addnodes.pending_xref(
        refdomain="doc",
        reftarget=page,
        reftargetid=fragment or None,
        refdoc=link["refdoc"],
        reftype="myst",
        refexplicit=link["refexplicit"],
    )
    found.source, found.line = link.source, link.line
    found += nodes.inline("", "", *link[0].children, classes=["xref", "myst"])
    link.replace_self(found)


def _lead_to_host(link: nodes.Element, target: Path, name: str) -> None:
    kind = "tree" if target.is_dir() else "blob"
    found = nodes.reference("", "", refuri=f"{HOST}/{kind}/main/{name}", internal=False)
    found += link[0].children
    link.replace_self(found)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
