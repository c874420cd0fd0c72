"""Documentation that cannot rot: links, commands and files exist, generated pages are up to date, pages are short."""

import importlib.util
import re
import sys

import pytest
from conftest import ROOT

from scaler.core.cli import parser_of
from scaler.core.commands import COMMANDS

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
CODE = re.compile(
    r"`([^`\n]+)`|^ {4,7}(.+)$|^(?:\$ )?((?:make|python|deepspeed|torchrun|tensorboard|scaler) .+)$", re.MULTILINE
)
HISTORY = "log"  # what was true then is not changed


def by_page(pages) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


BY_LIVE_PAGE = by_page([page for page in PAGES if page.parent.name != HISTORY])


def commands(page) -> list[str]:
    return [next(filter(None, groups)).strip() for groups in CODE.findall(page.read_text())]


def anchors(page) -> set[str]:
    """The anchors that GitHub and mkdocs give to the headings of a page."""
    outside_code = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside_code, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@by_page(PAGES)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


@BY_LIVE_PAGE
def test_commands_that_pages_name_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(page):
        if found := re.match(r"make ([a-z-]+)", command):
            assert found[1] in targets, command
        if found := re.search(r"(?:python -m|--module|-m) ((?:scaler|data_prep)[\w.]*)", command):
            module = ROOT.joinpath(*found[1].split("."))
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), command
        for script in re.findall(
            r"(?:^|\s)((?:scaler|benchmarks|slurm|ds_configs)/[\w./-]+\.(?:py|sh|json))\b", command
        ):
            assert (ROOT / script).exists(), command


@BY_LIVE_PAGE
def test_commands_of_scaler_and_their_options_exist(page):
    by_module = {module.removesuffix(".__main__"): name for name, module in COMMANDS.items()}
    for command in commands(page):
        called = re.search(
            r"(?:^|\s)(?:scaler ([a-z][\w-]*)|(?:-m|--module) ((?:scaler|data_prep)[\w.]*)) ?(.*)", command
        )
        if called is None or (called[2] in (None, "scaler") and called[1] is None):
            continue
        name = called[1] or by_module.get(called[2])
        if name is None:
            continue
        assert name in COMMANDS, command
        known = {option.replace("-", "_") for option in parser_of(name).option_names()} | {"__help"}
        for option in re.findall(r"(?:^|\s)(--[a-z][\w-]*)", called[3]):
            assert option.replace("-", "_") in known, f"{option} in {command}"


def test_readme_names_every_command():
    named = set(re.findall(r"`([a-z0-9-]+)`", (ROOT / "README.md").read_text().partition("## Commands")[2]))
    assert set(COMMANDS) <= named


@BY_LIVE_PAGE
def test_named_files_exist(page):
    for name in re.findall(r"`((?:scaler|data_prep|ds_configs|tests|docs|benchmarks)/[\w./]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


@pytest.mark.parametrize("page", sorted(DOCS.glob("guides/*.md")), ids=lambda page: page.name)
def test_guides_are_short(page):
    assert len(page.read_text().split()) <= 700  # as `wc -w` counts


def test_table_of_results_is_short_and_has_a_number_a_cell():
    text = (DOCS / "results" / "README.md").read_text()
    table = text.partition("## Today")[2].partition("\n## ")[0].strip().splitlines()[:-1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("| [")]
    assert 0 < len(rows) <= 12
    for measure, ours, peer, ratio, aim in rows:
        assert re.search(r"\]\([\w.-]+#[\w-]+\)", measure), f"{measure} does not say how it was measured"
        for cell in (ours, peer, ratio, aim):
            assert len(re.findall(r"\d[\d.,]*", cell)) <= 1, cell


@pytest.mark.parametrize("package", ["scaler", "data_prep"])
def test_architecture_names_every_package_and_no_other(package):
    text = (DOCS / "design" / "architecture.md").read_text()
    table = text.partition(f"| package of `{package}` |")[2].partition("\n\n")[0]
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == folders


def test_architecture_names_seven_files_to_read_first():
    text = (DOCS / "design" / "architecture.md").read_text()
    table = text.partition("## Read these seven files first")[2].partition("\n## ")[0]
    files = re.findall(r"^\| `([\w/.]+)`", table, re.MULTILINE)
    assert len(files) == 7
    assert all((ROOT / name).is_file() for name in files)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in DOCS.glob("**/*.md"):
        assert str(page.relative_to(DOCS)) in navigation


def test_generated_pages_are_up_to_date(run_command):  # `make reference` writes them again
    run_command(sys.executable, DOCS / "generate.py", "--check", cwd=ROOT, status=0)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install '.[docs]'")
def test_site_builds_without_a_warning(tmp_path, run_command):
    build = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site")
    run_command(*build, cwd=ROOT, status=0)
    pages = [page.relative_to(tmp_path / "site") for page in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > len(PAGES)
    for page in pages:
        fetched = re.findall(
            r'<(?:link|script|img)[^>]+(?:src|href)="(https?://[^"]+)"', (tmp_path / "site" / page).read_text()
        )
        assert not fetched, f"{page} fetches {fetched}"


def test_help_of_the_makefile_names_every_target(run_command):
    shown = run_command("make", "help", cwd=ROOT, status=0).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    for target in set(phony[1].split()) - {"help"}:
        assert f"make {target}" in shown
