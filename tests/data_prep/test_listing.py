"""What a source on disk holds: links, hidden files, endings, patterns; nothing is lost in silence."""

import errno
import os
import sys
import time

import pytest
from conftest import ROOT

from data_prep.sources import listing
from scaler.core.errors import ScalerError, TryAgain

COMMAND = (sys.executable, "-m", "data_prep.corpus")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def put(folder, *names, text="text\n"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files(path):
    found = listing.find(str(path))
    return [os.path.relpath(file.path, path) for file in found.files]


def left_out(path):
    return listing.find(str(path)).facts()["left_out"]


@pytest.mark.parametrize(
    "name",
    [
        *("a.txt", "a.md", "a.rst", "a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.html", "a.htm"),
        *("a.txt.gz", "a.jsonl.zst", "a.csv.gz", "A.TXT", "b.JSONL.GZ", "c.Parquet", "ä ö.txt", "a.b.txt", "1.txt"),
    ],
)
def test_a_file_is_read_by_its_ending(source, name):
    put(source, name)
    assert files(source) == [name]
    assert left_out(source) == {}


@pytest.mark.parametrize(
    ("name", "reason", "ending"),
    [
        ("a.pdf", listing.UNREAD, ".pdf"),
        ("a.PDF", listing.UNREAD, ".pdf"),
        ("README", listing.UNREAD, "without ending"),
        ("Dr. Smith's letter", listing.UNREAD, "without ending"),
        ("a.tar.gz", listing.UNREAD, ".tar.gz"),
        ("a.parquet.gz", listing.UNREAD, ".parquet.gz"),
        ("a.txt.bak", listing.UNREAD, ".bak"),
        ("a.txt~", listing.EDITOR, ".txt"),
        ("#a.txt#", listing.EDITOR, ".txt"),
        ("~$a.txt", listing.EDITOR, ".txt"),
        (".a.txt", listing.HIDDEN, ".txt"),
        (".a.txt.swp", listing.HIDDEN, ".swp"),
    ],
)
def test_a_file_that_is_not_read_is_counted_by_reason_and_ending(source, name, reason, ending):
    put(source, "z.txt", name)
    assert files(source) == ["z.txt"]
    assert left_out(source) == {reason: {ending: [1, 5]}}


def test_a_hidden_folder_is_left_out_by_its_name_and_one_that_is_named_is_read(source):
    put(source, "a.txt", ".git/b.txt", ".git/c/d.txt")
    assert files(source) == ["a.txt"]
    assert left_out(source) == {listing.HIDDEN: {".git/": [1, 0]}}
    assert files(source / ".git") == ["b.txt", "c/d.txt"]
    put(source, ".hidden.txt")
    assert [file.path.name for file in listing.find(str(source / ".hidden.txt")).files] == [".hidden.txt"]


def test_files_and_bytes_are_counted_by_ending(source):
    put(source, "a.txt", "b/c.TXT", "d.jsonl", "e.pdf", "f.pdf")
    assert listing.find(str(source)).facts() == {
        "read": {".jsonl": [1, 5], ".txt": [2, 10]},
        "left_out": {listing.UNREAD: {".pdf": [2, 10]}},
    }


def test_links_to_files_and_folders_are_followed(source, tmp_path):
    put(tmp_path / "elsewhere", "b.txt", "c/d.txt", ".e.txt")
    put(tmp_path, "f.txt")
    put(source, "a.txt")
    (source / "folder").symlink_to("../elsewhere")
    (source / "file.txt").symlink_to(tmp_path / "f.txt")
    assert files(source) == ["a.txt", "file.txt", "folder/b.txt", "folder/c/d.txt"]
    assert left_out(source) == {listing.HIDDEN: {".txt": [1, 5]}}
    (tmp_path / "link").symlink_to("source")
    assert files(tmp_path / "link") == files(source)


def test_what_a_link_leads_to_is_read_once_by_its_own_name(source):
    put(source, "z/a.txt", "b.txt")
    (source / "a-folder").symlink_to("z")
    (source / "a-file.txt").symlink_to("b.txt")
    (source / "a-file-below.txt").symlink_to("z/a.txt")
    assert files(source) == ["b.txt", "z/a.txt"]
    assert left_out(source) == {listing.AGAIN: {".txt": [2, 10], "a-folder/": [1, 0]}}


def test_two_links_to_one_folder_elsewhere_are_read_once(source, tmp_path):
    put(tmp_path / "elsewhere", "x/b.txt", "c.txt")
    for name, target in (("1", "elsewhere/x"), ("2", "elsewhere"), ("3", "elsewhere")):
        (source / name).symlink_to(tmp_path / target)
    assert files(source) == ["1/b.txt", "2/c.txt"]
    assert left_out(source) == {listing.AGAIN: {"3/": [1, 0]}}


@pytest.mark.parametrize("target", [".", "..", "/", "../source", "../../.."])
def test_a_link_to_a_folder_around_it_is_no_loop_and_nothing_outside_is_read(source, target):
    put(source, "a.txt", "b/c.txt")
    put(source.parent, "secret.txt")
    (source / "b" / "loop").symlink_to(source / target)
    assert files(source) == ["a.txt", "b/c.txt"]
    assert left_out(source) == {listing.AGAIN: {"loop/": [1, 0]}}


def test_links_that_lead_to_each_other_are_followed_once(source, tmp_path):
    for mine, other in (("one", "two"), ("two", "one")):
        put(tmp_path / mine, f"{mine}.txt")
        (tmp_path / mine / "other").symlink_to(tmp_path / other)
    (source / "link").symlink_to(tmp_path / "one")
    assert files(source) == ["link/one.txt", "link/other/two.txt"]
    assert left_out(source) == {listing.AGAIN: {"other/": [1, 0]}}


@pytest.mark.parametrize("name", ["disk2", "a.txt"])
def test_a_link_that_leads_nowhere_is_refused(source, name):
    put(source, "b.txt")
    (source / name).symlink_to("/mnt/gone")
    with pytest.raises(ScalerError) as raised:
        listing.find(str(source))
    assert str(raised.value) == (
        f"{source / name}: a link that leads nowhere (to /mnt/gone); mend it, or take it out of the source"
    )


def test_a_link_to_itself_is_refused_and_a_hidden_link_that_leads_nowhere_is_left_out(source):
    put(source, "b.txt")
    (source / ".#lock.txt").symlink_to("user@host.1234")  # of Emacs
    assert left_out(source) == {listing.HIDDEN: {".txt": [1, len("user@host.1234")]}}
    (source / "a").symlink_to("a")
    with pytest.raises(ScalerError, match=r"a: cannot be listed .Too many levels of symbolic links.; make it"):
        listing.find(str(source))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_what_cannot_be_listed_is_refused_and_named(source, monkeypatch, number, call):
    put(source, "a.txt", "b/c.txt")
    (source / "link.txt").symlink_to("../elsewhere.txt")
    put(source.parent, "elsewhere.txt")
    bad = str(source / ("b" if call == "scandir" else "link.txt"))
    real = getattr(os, call)

    def failing(path, *arguments, **named):
        if path == bad:
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **named)

    monkeypatch.setattr(listing.os, call, failing)
    with pytest.raises(ScalerError) as raised:
        listing.find(str(source))
    assert str(raised.value).startswith(f"{bad}: cannot be listed ({os.strerror(number)}); make it readable")
    assert isinstance(raised.value, TryAgain) == (number == errno.ESTALE)


def test_what_is_no_file_is_counted_and_never_opened(source):
    put(source, "a.txt")
    os.mkfifo(source / "b.txt")
    assert files(source) == ["a.txt"]
    assert left_out(source) == {listing.SPECIAL: {".txt": [1, 0]}}


def test_a_name_that_is_not_utf8_is_read(source):
    with open(os.fsencode(source) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"text")
    (found,) = listing.find(str(source)).files
    assert found.path.read_bytes() == b"text"


def test_a_source_without_text_says_what_is_there(source):
    put(source, "a.pdf", "b.pdf", ".c.txt")
    with pytest.raises(ScalerError, match=r"source: no text found .there: 1 .txt, 2 .pdf.; .txt, .* can be read"):
        listing.find(str(source))


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("[b-z].txt", ["b.txt"]),
        ("?.jsonl", ["c.jsonl"]),
        ("*/e.txt", ["d/e.txt"]),
        ("d*", ["d/e.txt", "d/f/g.txt"]),
        ("./d/*/g.txt", ["d/f/g.txt"]),
        ("*", ["a.txt", "b.txt", "c.jsonl", "d/e.txt", "d/f/g.txt"]),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_pattern_is_expanded(source, monkeypatch, pattern, expected, absolute):
    put(source, "a.txt", "b.txt", "c.jsonl", "d/e.txt", "d/f/g.txt", ".hidden.txt")
    monkeypatch.chdir(source)
    given = str(source / pattern) if absolute else pattern
    found = [os.path.relpath(file.path, source) for file in listing.find(given).files]
    assert found == expected


def test_a_pattern_counts_what_it_matches_and_is_not_read(source):
    put(source, "a.txt", "a.pdf", "b.pdf")
    assert listing.find(str(source / "a*")).facts()["left_out"] == {listing.UNREAD: {".pdf": [1, 5]}}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("*.md", "nothing matches this pattern"), ("x/*.txt", "nothing matches this"), ("**/*.txt", "name the folder in")],
)
def test_a_pattern_that_matches_nothing_and_one_that_would_hide_errors_are_refused(source, pattern, said):
    put(source, "a.txt")
    with pytest.raises(ScalerError, match=said):
        listing.find(str(source / pattern))


def test_a_file_whose_name_looks_like_a_pattern_is_read(source):
    put(source, "a[1].txt", "a1.txt")
    assert [file.path.name for file in listing.find(str(source / "a[1].txt")).files] == ["a[1].txt"]


# What is not there.


@pytest.mark.parametrize(
    "name",
    [
        *("text", "csv", "json", "parquet", "imagefolder", "webdataset"),  # readers of local files in `datasets`
        *("texts", "./texts", "../texts", "/no/such", "~/texts", "my/texts/more", "texts.jsonl", "there/texts"),
    ],
)
def test_what_is_no_data_sets_name_is_never_looked_for_on_the_hub(tmp_path, run_command, name):
    put(tmp_path, "secret/env.txt", "there/a.txt", text="TOKEN=1\n\n" * 300)
    start = time.monotonic()
    done = run_command(*COMMAND, name, "--out", "corpus", "--processes", 1, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {name!r}: no such file or folder, and no Hugging Face data set, whose names are OWNER/NAME; "
        "correct the path\n"
    )
    assert time.monotonic() - start < 60
    assert not (tmp_path / "corpus").exists()


def test_without_a_network_the_hub_is_asked_once(tmp_path, run_command):
    """A name server that is not there: what would be retried for a minute."""
    done = run_command(
        *COMMAND, "nobody/nothing", "--out", "c", cwd=tmp_path, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9", timeout=100,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'nobody/nothing': no such file or folder, and no Hugging Face data set that")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("files_there", [2_000, 20_000])
def test_listing_takes_time_in_proportion_to_the_files(tmp_path, files_there):
    from data_prep.sources import readers
    from scaler.config.data_sections import Source

    for number in range(files_there):
        folder = tmp_path / str(number // 1000)
        if number % 1000 == 0:
            folder.mkdir()
        (folder / f"{number}.txt").write_bytes(b"a document")
    start = time.process_time()
    plan = readers.plan(Source(str(tmp_path)), 1 << 20)
    took = time.process_time() - start
    assert sum(len(piece.spans) for piece in plan.pieces) == files_there
    assert took < files_there * 1e-4 + 0.2  # ten seconds for 100,000; it was 37 s for 20,000


def test_a_file_that_is_not_read_by_its_own_name_is_read_by_a_link(source):
    put(source, "blobs/1234", "real.txt")  # as in the cache of the hub
    (source / "snapshot").mkdir()
    (source / "snapshot" / "a.txt").symlink_to("../blobs/1234")
    assert files(source) == ["real.txt", "snapshot/a.txt"]
    assert left_out(source) == {listing.UNREAD: {"without ending": [1, 5]}}


def test_links_to_a_file_and_to_its_folder_read_it_once(source, tmp_path):
    put(tmp_path / "other", "f.txt", "g.txt")
    (source / "a.txt").symlink_to(tmp_path / "other" / "f.txt")
    (source / "b").symlink_to(tmp_path / "other")
    assert files(source) == ["a.txt", "b/g.txt"]
    assert left_out(source) == {listing.AGAIN: {".txt": [1, 5]}}
