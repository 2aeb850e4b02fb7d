"""What several tests share: the checkout, its notebooks, small runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))
os.environ.setdefault("VITMINI_PROFILE", "ci")  # as `make test` has it

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What takes minutes comes first, so that no worker waits for another one in the end.
LONGEST = ("browser", "grading", "colab", "train", "assignments", "pretended_cuda", "throughput")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def pytest_collection_modifyitems(items):
    names = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda i: names.index(i.path.name) if i.path.name in names else len(names))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code"]


def vitmini(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    """Run the command line as a person would; stdout and stderr are no terminals."""
    return subprocess.run(
        [sys.executable, "-m", "vitmini", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests run side by side."""
    import torch  # not above: who only hands out tests does without

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Decoded pictures go to a folder that is thrown away, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITMINI_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits():
    import vitmini as vm

    return vm.load_data("digits")


@pytest.fixture(scope="session")
def chromium():
    """One for all tests of a process: Playwright does not start a second time beside the first."""
    import browser  # tests of the library alone do without
    from playwright.sync_api import sync_playwright

    path = browser.find()
    assert path, "no Chromium: make test installs one, or set CHROMIUM=/path/to/it"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=browser.ARGUMENTS)
