"""Documentation that cannot rot: links lead somewhere, named commands and files exist."""

import re
import subprocess

import pytest
from conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CODE = re.compile(r"`([^`\n]+)`|^ {4}(.+)$|^(?:\$ )?((?:make|python|deepspeed|tensorboard) .+)$", re.MULTILINE)


def commands(page) -> list[str]:
    return [next(filter(None, groups)).strip() for groups in CODE.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_and_modules_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(page):
        if found := re.match(r"make ([a-z-]+)", command):
            assert found[1] in targets, command
        if found := re.search(r"python -m ((?:scaler|data_prep)[\w.]*)", command):
            module = ROOT.joinpath(*found[1].split("."))
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), command
        if found := re.match(r"(?:deepspeed|python) ((?:scaler|benchmarks)/\S+)", command):
            assert (ROOT / found[1]).exists(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    for name in re.findall(r"`((?:scaler|data_prep|ds_configs|tests|docs|benchmarks)/[\w./]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_help_of_the_makefile_names_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    for target in set(phony[1].split()) - {"help"}:
        assert f"make {target}" in shown
