"""Define the options that several stages of data preparation share."""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, at_least


def add_out(parser: Parser) -> None:
    """Add `--out`, the folder that a stage writes."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def add_processes(parser: Parser) -> None:
    """Add `--processes`."""
    parser.add_argument(
        "--processes", type=at_least(1), metavar="N", help="processes that share the work (default: one for each core)"
    )


def add_settings(parser: Parser, section: str) -> None:
    """Add the settings of a section of the recipe, which are positional."""
    meaning = f"values of the keys of the recipe's section `{section}` (default: the recipe's defaults)"
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help=meaning)


def add_text(parser: Parser, name: str) -> None:
    """Add the folder of text that a stage reads."""
    parser.add_argument(name, type=Path, metavar=name.upper(), help="folder that corpus, clean or dedup wrote")


def add_shards_and_tokenizer(parser: Parser) -> None:
    """Add the folders of shards and tokenizer that a stage reads."""
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder that shards wrote")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help="tokenizer that the shards were made with")
