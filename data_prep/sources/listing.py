"""List what a source on disk holds: the files that are read, and those that are left out, by reason and ending.

Links are followed. What cannot be listed is refused, because its files would be lost in silence.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaler.core.errors import PASSING, ScalerError, TryAgain

TEXT, LINES, JSON, TABLE, PARQUET, PAGE = "text", "lines of JSON", "JSON", "table", "Parquet", "page"
KINDS = {
    **dict.fromkeys((".txt", ".md", ".markdown", ".rst"), TEXT),
    **dict.fromkeys((".jsonl", ".ndjson"), LINES),
    ".json": JSON,
    **dict.fromkeys((".csv", ".tsv"), TABLE),
    ".parquet": PARQUET,
    **dict.fromkeys((".html", ".htm"), PAGE),
}
COMPRESSIONS = (".gz", ".zst")  # of every kind but Parquet, which has its own
ENDING = re.compile(r"\.\w{1,16}")  # of a name's last part: "Dr. Smith's letter" has none
NO_ENDING = "without ending"

# why a file or folder is left out
HIDDEN, EDITOR, UNREAD, AGAIN, SPECIAL = "hidden", "of an editor", "not read", "read by another name", "not a file"


@dataclass(frozen=True)
class File:
    """A file of text, its size in bytes and the time of its last change in nanoseconds."""

    path: Path
    size: int
    changed: int


@dataclass
class Listing:
    """What a source holds.

    Attributes:
        files: those that are read, sorted by name.
        left_out: (reason, ending) -> [files, bytes]. A hidden folder counts as one file of no bytes, by its name.
        folders: (device, inode) of each folder that was listed.
    """

    files: list[File] = field(default_factory=list)
    left_out: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    folders: set[tuple[int, int]] = field(default_factory=set)

    def leave_out(self, reason: str, ending: str, size: int) -> None:
        """Count a file that is not read."""
        counted = self.left_out.setdefault((reason, ending), [0, 0])
        counted[0] += 1
        counted[1] += size

    def facts(self) -> dict[str, Any]:
        """Return the counts for a manifest: files and bytes by ending, of what is read and of what is not, and why."""
        read: dict[str, list[int]] = {}
        for file in self.files:
            counted = read.setdefault(ending_of(file.path.name), [0, 0])
            counted[0] += 1
            counted[1] += file.size
        left_out: dict[str, dict[str, list[int]]] = {}
        for (reason, ending), counts in sorted(self.left_out.items()):
            left_out.setdefault(reason, {})[ending] = counts
        return {"read": dict(sorted(read.items())), "left_out": left_out}


def ending_of(name: str) -> str:
    """Return the ending of a file's name in lower case, with the one before where that is compressed.

    >>> ending_of("A.TXT"), ending_of("b.jsonl.gz"), ending_of("README"), ending_of(".profile")
    ('.txt', '.jsonl.gz', 'without ending', 'without ending')
    """
    stem, last = os.path.splitext(name.lower())
    if not ENDING.fullmatch(last):
        return NO_ENDING
    before = os.path.splitext(stem)[1]
    return before + last if last in COMPRESSIONS and ENDING.fullmatch(before) else last


def kind_of(name: str) -> str | None:
    """Return how a file of this name is read, or None where it is not."""
    ending = ending_of(name)
    plain = ending
    for compression in COMPRESSIONS:
        plain = plain.removesuffix(compression)
    kind = KINDS.get(plain)
    return None if kind == PARQUET and plain != ending else kind


def is_there(source: str) -> bool:
    """Return True when a source is a file, a folder or a pattern, and so no data set of the hub."""
    return os.path.lexists(source) or glob.has_magic(source)


def find(source: str) -> Listing:
    """List a file, a folder with all below it, or all that a pattern such as `my/*.jsonl` matches.

    Raises: ScalerError when there is nothing to read, or something cannot be listed, such as a link that leads nowhere.
    """
    found = Listing()
    alone = os.path.lexists(source)
    paths = [source] if alone else list(_matches(source))
    if not paths:
        raise ScalerError(f"{source}: nothing matches this pattern; name files or a folder that are there")
    walk = _Walk(found)
    for path in paths:
        if alone or not os.path.islink(path):
            walk.add(path, _status(path))
        else:
            walk.links.append(path)
    walk.follow_links()
    found.files.sort(key=lambda file: file.path.parts)
    if not found.files:
        there = found.facts()["left_out"]
        held = ", ".join(f"{count} {ending}" for why in there.values() for ending, (count, _) in why.items())
        raise ScalerError(
            f"{source}: no text found (there: {held or 'nothing'}); {', '.join(KINDS)} can be read, and all but "
            f"Parquet with {' or '.join(COMPRESSIONS)} behind"
        )
    return found


class _Walk:
    """A walk through folders. Files by their own names come first, so that a link to one of them is left out."""

    def __init__(self, found: Listing) -> None:
        self.found = found
        self.links: list[str] = []
        self.seen: set[tuple[int, int]] = set()  # device and inode of folders, and of files that are read

    def add(self, path: str, status: os.stat_result, behind_link: bool = False) -> None:
        """Add a file, or a folder with all below it; behind a link, only files that are not read already."""
        if stat.S_ISDIR(status.st_mode):
            self.add_folders(path, status, behind_link)
        else:
            self.add_file(path, status, behind_link)

    def add_folders(self, path: str, status: os.stat_result, behind_link: bool) -> None:
        """Add the files of a folder and of those below, and note the links."""
        waiting = [(path, (status.st_dev, status.st_ino))]
        while waiting:
            folder, key = waiting.pop()
            if key in self.seen:
                continue
            self.seen.add(key)
            self.found.folders.add(key)
            for entry in _entries(folder):
                if entry.name.startswith("."):
                    self.leave_out_hidden(entry)
                elif entry.is_symlink():
                    self.links.append(entry.path)
                else:
                    status = _status(entry.path, entry)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append((entry.path, (status.st_dev, status.st_ino)))
                    else:
                        self.add_file(entry.path, status, behind_link)

    def add_file(self, path: str, status: os.stat_result, behind_link: bool = False) -> None:
        """Add a file, or count it as left out."""
        name = os.path.basename(path)
        key = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode):
            self.found.leave_out(SPECIAL, ending_of(name), 0)
        elif _of_editor(name):
            self.found.leave_out(EDITOR, ending_of(name.strip("~#")), status.st_size)
        elif kind_of(name) is None:
            self.found.leave_out(UNREAD, ending_of(name), status.st_size)
        elif behind_link and key in self.seen:
            self.found.leave_out(AGAIN, ending_of(name), status.st_size)
        else:
            self.seen.add(key)
            self.found.files.append(File(Path(path), status.st_size, status.st_mtime_ns))

    def leave_out_hidden(self, entry: os.DirEntry[str]) -> None:
        """Count a hidden file by its ending, and a hidden folder, which is not listed, by its name."""
        try:
            is_folder, size = entry.is_dir(), entry.stat(follow_symlinks=False).st_size
        except OSError:  # such as a lock of Emacs, a hidden link that leads nowhere
            is_folder, size = False, 0
        if is_folder:
            self.found.leave_out(HIDDEN, entry.name + "/", 0)
        else:
            self.found.leave_out(HIDDEN, ending_of(entry.name), size)

    def follow_links(self) -> None:
        """Add what links lead to, unless it is there already, or holds the link and so would never end."""
        while self.links:
            links, self.links = sorted(self.links), []
            for path in links:
                status = _status(path)
                if (status.st_dev, status.st_ino) in self.seen or _holds(path, status):
                    is_folder = stat.S_ISDIR(status.st_mode)
                    name = os.path.basename(path) + "/" if is_folder else ending_of(path)
                    self.found.leave_out(AGAIN, name, 0 if is_folder else status.st_size)
                else:
                    self.add(path, status, behind_link=True)


def _holds(link: str, target: os.stat_result) -> bool:
    """Return True when the target of a link is a folder above it."""
    if not stat.S_ISDIR(target.st_mode):
        return False
    above = Path(os.path.realpath(os.path.dirname(link)))
    return any(os.path.samestat(target, os.stat(folder)) for folder in (above, *above.parents))


def _of_editor(name: str) -> bool:
    """Return True for backups, locks and unsaved copies of Emacs, Vim and office programs that are not hidden."""
    return name.endswith("~") or name.startswith("~$") or (name.startswith("#") and name.endswith("#"))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _unlisted(folder, error) from error


def _status(path: str, entry: os.DirEntry[str] | None = None) -> os.stat_result:
    try:
        return os.stat(path) if entry is None else entry.stat(follow_symlinks=False)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise ScalerError(
                f"{path}: a link that leads nowhere (to {os.readlink(path)}); mend it, or take it out of the source"
            ) from error
        raise ScalerError(f"{path}: has vanished while its folder was listed; run again") from error
    except OSError as error:
        raise _unlisted(path, error) from error


def _unlisted(path: str, error: OSError) -> ScalerError:
    kind = TryAgain if error.errno in PASSING else ScalerError
    return kind(f"{path}: cannot be listed ({error.strerror}); make it readable, or take it out of the source")


def _matches(pattern: str) -> Iterator[str]:
    """Yield the paths that a pattern matches. glob.glob would leave out in silence what cannot be listed."""
    if "**" in Path(pattern).parts:
        raise ScalerError(f"{pattern}: a folder is read with all below it; name the folder in place of **")
    root, *parts = Path(pattern).parts if os.path.isabs(pattern) else (os.curdir, *Path(pattern).parts)
    paths = [root]
    for part in parts:
        if glob.has_magic(part):
            paths = [
                os.path.normpath(os.path.join(path, name))
                for path in paths
                if os.path.isdir(path)
                for name in fnmatch.filter(sorted(entry.name for entry in _entries(path)), part)
                if part.startswith(".") or not name.startswith(".")  # as a shell does
            ]
        else:
            joined = (os.path.normpath(os.path.join(path, part)) for path in paths)
            paths = [path for path in joined if os.path.lexists(path)]
    yield from paths
