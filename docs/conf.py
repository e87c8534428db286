"""How Sphinx makes the site of these pages: scripts/docs, offline, each warning an error.

The pages are Markdown that also reads well where the repository is shown. What only the site can do is
done here and in ``_site``: links to the repository's files, the reference from docstrings, shown files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pygments.lexers.sql import PostgresLexer
from sphinx.highlighting import lexers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs/_site"), str(ROOT / "scripts")]

PROJECT = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
assert PROJECT is not None

project = "lockguard"
author = "the authors of lockguard"
version = release = PROJECT[1]
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "repository_links",
    "shown_files",
    "public_names",
    "references",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_site", "examples"]
nitpicky = True  # what is exempt, and why: _site/references.py

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_here_doc_delimiter = "EOF"

lexers["sql"] = PostgresLexer()  # SQL here is that of Postgres, with $1

html_theme = "furo"
html_title = f"lockguard {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_search_scorer = str(ROOT / "docs/_site/scorer.js")
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "tango"
pygments_dark_style = "monokai"
