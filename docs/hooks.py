"""Hooks of mkdocs: the pages at the top of the repository become pages of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

TOP = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top; their links lead into docs/, which is the site's own top."""
    for name, page in PAGES.items():
        content = re.sub(r"\]\(docs/", "](", (TOP / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=content))
    return files
