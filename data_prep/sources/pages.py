"""Take the main text out of a page of HTML, without menus and footers, by trafilatura."""

from __future__ import annotations

from importlib import metadata

from scaler.core.errors import ScalerError


def version() -> str:
    """Return the version of trafilatura. Raises ScalerError where it is not installed."""
    try:
        return metadata.version("trafilatura")
    except metadata.PackageNotFoundError as error:
        raise ScalerError(
            "files of HTML need the package trafilatura; install it with `pip install '.[html]'`, or name other files "
            "as the source, such as my/*.txt"
        ) from error


def main_text(page: str) -> str:
    """Return the main text of a page, "" where there is none."""
    import trafilatura

    # without deduplicate, which remembers the pages before and so depends on how the work is shared
    return trafilatura.extract(page, include_comments=False, deduplicate=False) or ""
