"""Every file of text is opened with its encoding, so that the user's locale decides about none."""

import ast

import pytest
from conftest import ROOT

OPENERS = {"open", "fdopen", "read_text", "write_text", "NamedTemporaryFile", "TemporaryFile"}
STARTERS = {"run", "Popen", "check_output"}
SOURCES = sorted(path for folder in ("scaler", "data_prep", "docs") for path in (ROOT / folder).rglob("*.py"))


def takes_the_locale(call: ast.Call) -> bool:
    """Whether a call opens text in the encoding of the user's locale."""
    of = ast.unparse(call.func)
    name, options = of.rpartition(".")[2], {option.arg: option.value for option in call.keywords}
    if "encoding" in options or of == "os.open":
        return False
    if name in STARTERS:
        return bool({"text", "universal_newlines"} & options.keys())
    modes = [*call.args, *(options[key] for key in ("mode",) if key in options)]
    binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
    temporary = name.endswith("TemporaryFile") and not modes  # which are binary
    return name in OPENERS and not binary and not temporary


@pytest.mark.parametrize(
    "line, found",
    [
        *(("path.open()", True), ("open('x', 'w')", True), ("path.read_text()", True), ("run(a, text=True)", True)),
        *(("path.open('rb')", False), ("path.open(encoding='utf-8')", False), ("os.open(path, 0)", False)),
        ("subprocess.run(a)", False),
    ],
)
def test_the_check_itself(line, found):
    assert takes_the_locale(ast.parse(line, mode="eval").body) is found


def test_no_file_is_opened_in_the_encoding_of_the_locale():
    assert SOURCES
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and takes_the_locale(node)
    ]
    assert found == []
