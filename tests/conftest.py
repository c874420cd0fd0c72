"""What several tests need: a small corpus of real sentences' shape, prepared data, and a way to run commands."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from limits import limit
from small_data import write_documents, write_recipe
from transformers import PreTrainedModel

from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.prepare import prepare
from scaler import plan
from scaler.config.recipe import Recipe, load
from scaler.core import log
from scaler.data import prepared
from scaler.data.batches import RowReader
from scaler.model import build, masked_lm
from scaler.planning import workload
from scaler.planning.memory import Activations

# a shell that runs the tests in the background has them ignore Ctrl-C, and all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup makes ignored, and a training respects that

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ROOT / "tests" / "workers"
# where a program finds the packages, and those of tests/workers the modules of tests/support
SEARCH = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH")]))
DESELECTED = pytest.StashKey[dict[str, int]]()


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 60 words over a small vocabulary, in which a word often decides the next."""
    chance = random.Random(seed)
    words = [f"{first}{second}" for first in ("ka", "lo", "mi", "ru", "te") for second in ("na", "po", "shi", "zu")]
    documents = []
    for _ in range(count):
        word = chance.randrange(len(words))
        sentence = []
        for _ in range(chance.choice((1, 3, 8, 20, 60))):
            sentence.append(words[word])
            word = (word + 1) % len(words) if chance.random() < 0.8 else chance.randrange(len(words))
        documents.append(" ".join(sentence) + f" {chance.randrange(1000)}.")
    return documents


def make_sentences(count: int = 3000) -> list[str]:
    """Sentences over 900 words, some of them rare, with capitals and accents."""
    chance = random.Random(1)
    made = ["".join(chance.choice("aeiou") + chance.choice("bdklmnprstz") for _ in range(4)) for _ in range(900)]
    sentences = []
    for number in range(count):
        some = [made[min(int(chance.expovariate(1 / 120)), 899)] for _ in range(12)]
        sentences.append(" ".join([some[0].title(), *some[1:]]) + (" Caf\u00e9!" if number % 10 == 0 else "."))
    return sentences


# ---- the fast lane, and what a run of the tests leaves out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-processes", action="store_true", help="skip each test where it starts a process")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-processes"):
        sys.addaudithook(_refuse_processes)


def _refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    """Skip the test that starts a process, but for git, which answers at once and which many results name."""
    started = event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn")
    in_a_test = "PYTEST_CURRENT_TEST" in os.environ
    if started and in_a_test and not (event == "subprocess.Popen" and Path(arguments[0] or "").name == "git"):
        pytest.skip("starts a process: make test")


LEFT_OUT = {"slow": "make test-slow", "gpu": "make test on a machine with a GPU"}


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, remedy in LEFT_OUT.items():
            if item.get_closest_marker(marker):
                counts = item.config.stash.setdefault(DESELECTED, {})
                counts[f"marked {marker}: {remedy}"] = counts.get(f"marked {marker}: {remedy}", 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # every worker of xdist has left out the same
        session.config.workeroutput["deselected"] = session.config.stash.get(DESELECTED, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[DESELECTED] = getattr(node, "workeroutput", {}).get("deselected", {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many tests were not run, why, and how to run them."""
    reasons = Counter(config.stash.get(DESELECTED, {}))
    for report in terminalreporter.stats.get("skipped", []):
        reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("not tested")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:>5}  {reason}")


@pytest.fixture(scope="session")
def tiny_recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over a small local text file, its data prepared."""
    folder = tmp_path_factory.mktemp("tiny")
    file = write_recipe(folder, write_documents(folder / "text.txt", make_documents(2000)))
    prepare(load(str(file)), WorkerPool())
    return file


@pytest.fixture(scope="session")
def tiny_recipe(tiny_recipe_file: Path) -> Recipe:
    return load(str(tiny_recipe_file))


def environ_with(environ: dict[str, str]) -> dict[str, str]:
    """The environment of a command of the project, as in a shell with our programs on the path."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": search, "HF_HUB_OFFLINE": "1", "PYTHONPATH": SEARCH, **environ}


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as a user would, from a folder of the test's own; `status`: what it must end with."""

    def run(
        *command: object, cwd: Path, timeout: float = 600, status: int | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        words, environ = [str(word) for word in command], environ_with(environ)
        done = subprocess.run(
            words, cwd=cwd, timeout=limit(timeout), capture_output=True, text=True, env=environ, check=False
        )
        assert status in (None, done.returncode), done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return run


@pytest.fixture
def start_command(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command of the project in the test's folder and in a session of its own, which ends with the test."""
    started = []

    def start(*command: object, environ: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "start_new_session": True, **options}
        started.append(subprocess.Popen([str(word) for word in command], env=environ_with(environ or {}), **options))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def worker_figures(run_command, tmp_path_factory) -> Callable[..., Any]:
    """Run a program of tests/workers that trains on several ranks; return the figures that it leaves as JSON."""

    def run(name: str, *arguments: object, launcher: tuple[object, ...] = (sys.executable,)) -> Any:
        folder = tmp_path_factory.mktemp("worker")
        command = (*launcher, WORKERS / f"{name}.py", *arguments, folder)
        run_command(*command, cwd=folder, timeout=1200, status=0, CUDA_VISIBLE_DEVICES="")
        return json.loads((folder / "figures.json").read_text())

    return run


def without_console() -> None:
    """Undo what a command's parser set up for its log, so that pytest sees what is logged."""
    for name in log.PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)
    logging.getLogger("DeepSpeed").filters.clear()


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """What tests leave to their process (accelerate a rank and a process group, say) is gone for the next module."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    without_console()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Call a command's `main` in this process: exit status, output, error output."""

    def run(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what was said before
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as ending:
            status = int(ending.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def planned(call, tiny_recipe_file, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Call `scaler plan` for the tiny recipe, with activations that are not measured, because that takes seconds."""

    def activations(config: Any, rows: int, *sizes: object) -> Activations:
        return Activations(rows * 100_000, rows * 200_000, rows * 150_000)

    monkeypatch.setattr(workload, "activations", activations)
    return functools.partial(call, plan.main, "--recipe", tiny_recipe_file)


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe over two sources, its data prepared."""
    folder = tmp_path_factory.mktemp("two")
    texts = [write_documents(folder / f"{name}.txt", make_documents(900, n)) for n, name in enumerate(("one", "two"))]
    recipe = load(str(write_recipe(folder, *texts)))
    prepare(recipe, WorkerPool())
    return recipe


def recipe_beside(recipe: Recipe, folder: Path, name: str = "recipe.yaml") -> str:
    """A file in `folder` of the same recipe over the data in `folder`/data."""
    text = recipe.to_yaml().replace(f"folder: {recipe.data.folder}", f"folder: {folder / 'data'}")
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def network_of(recipe: Recipe) -> PreTrainedModel:
    """The recipe's model, untrained."""
    data = prepared.open_prepared(recipe)
    config = build.configuration_of(recipe, data.vocabulary)
    return build.build(config, seed=0).eval()


def opened(recipe: Recipe, split: str = "heldout") -> tuple[masked_lm.MaskedLM, RowReader]:
    """The recipe's untrained model and the reader of a split."""
    network = network_of(recipe)
    reader = prepared.open_prepared(recipe).rows(split, recipe, build.first_position(network.config))
    return masked_lm.MaskedLM(network), reader
