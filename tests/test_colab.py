"""A simulated Colab: torch is there, vitmini is not, the notebook is alone in an empty folder.

The environment is a fresh one whose site-packages links what Colab brings along: PyTorch and
torchvision, matplotlib, einops, the kernel and its client, and what these need. Everything else has
to come from the set-up cell, which installs from a local git repository under the course's public
address: tests/run_as_colab.py runs the first notebook so, as it runs all of them every week in
Colab's own image. Then they all run with what was installed, each alone in an empty folder, on a
device that is a CPU underneath, as for a reader with a T4. Those that ask for no device print what
is stored.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import generate
import nbformat
import pytest
import run_as_colab
from conftest import NOTEBOOKS, ROOT, code_cells, each_notebook
from packaging.requirements import Requirement

PREINSTALLED = ("torch", "torchvision", "matplotlib", "einops", "ipykernel", "nbclient", "nbformat")


def closure(names):
    """The distributions, and all that they require here, extras included."""
    todo, found = [Requirement(name) for name in names], {}
    while todo:
        requirement = todo.pop()
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        seen, wanted = found.get(key, set()), {"", *requirement.extras}
        if wanted <= seen:
            continue
        found[key] = seen | wanted
        for text in importlib.metadata.distribution(key).requires or []:
            needed = Requirement(text)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in found[key]):
                todo.append(needed)
    return [importlib.metadata.distribution(key) for key in found]


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """The python of such an environment."""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in closure(PREINSTALLED):
        for file in distribution.files or []:
            top = Path(file.parts[0])
            source = Path(str(distribution.locate_file(top)))
            if file.parts[0] not in ("..", "__pycache__") and source.exists():
                target = site / top
                if not target.exists():
                    target.symlink_to(source)
    python = folder / "bin" / "python"
    kernel = [python, "-m", "ipykernel", "install", "--sys-prefix"]
    subprocess.run(kernel, check=True, capture_output=True)
    return python


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A git repository with the files of this checkout, changed ones included, as if published."""
    folder = tmp_path_factory.mktemp("published")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(folder)]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "published"], check=True)
    return folder


@pytest.fixture(scope="session")
def environment(published):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return env | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{published}.insteadOf",
        "GIT_CONFIG_VALUE_0": generate.address(),
        "VITMINI_PROFILE": "ci",
        "OMP_NUM_THREADS": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",  # its own kernel before one of the user or the machine
    }


@pytest.fixture(scope="session")
def set_up(colab, environment, tmp_path_factory):
    """What came of the first notebook, in the environment's own kernel: its first cell installs."""
    code = "import run_as_colab, json; print(json.dumps(run_as_colab.installed()))"
    ask = [colab, "-c", code]
    done = subprocess.run(ask, cwd=ROOT / "tests", env=environment, capture_output=True, text=True)
    assert not {"vitmini", "scikit-learn", "safetensors"} & set(json.loads(done.stdout))
    return subprocess.run(
        [colab, ROOT / "tests" / "run_as_colab.py", NOTEBOOKS[0]],
        cwd=tmp_path_factory.mktemp("empty"),
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_first_cell_installs_what_is_missing_and_the_others_run(set_up):
    assert set_up.returncode == 0, set_up.stdout + set_up.stderr
    assert set_up.stdout.count(" passed in ") == 1


def run_on_device(python, *notebooks, **more):
    script = ROOT / "tests" / "pretended_cuda.py"
    return subprocess.run([python, script, *notebooks], capture_output=True, text=True, **more)


@pytest.fixture(scope="session")
def on_device(set_up, colab, environment, tmp_path_factory):
    """What each notebook says that runs alone in an empty folder, on a device."""
    assert set_up.returncode == 0
    folders = {path.stem: tmp_path_factory.mktemp(path.stem) for path in NOTEBOOKS}
    copies = [shutil.copy(path, folders[path.stem]) for path in NOTEBOOKS]
    done = run_on_device(colab, *copies, env=environment, timeout=1800)
    logs = {name: folder / f"{name}.log" for name, folder in folders.items()}
    return {n: log.read_text("utf-8") if log.exists() else done.stderr for n, log in logs.items()}


@each_notebook
def test_a_chapter_runs_on_a_device(path, on_device):
    said = on_device[path.stem]
    assert said.endswith("cells failed: 0\n"), said[-3000:]


def test_a_cell_that_mixes_devices_is_found(tmp_path):
    cells = (
        "import torch, vitmini as vm\nprofile = vm.choose_profile()",
        "torch.ones(2, device=profile.device) + torch.ones(2)",
        "torch.ones(2, device=profile.device).numpy()",
    )
    notebook = notebook_of(tmp_path / "mixed.ipynb", *[(source, "") for source in cells])
    assert run_on_device(sys.executable, notebook).returncode == 1
    said = (tmp_path / "mixed.log").read_text("utf-8")
    assert said.endswith("cells failed: 2\n"), said
    assert "expected all tensors" in said and "to numpy" in said


def test_a_notebook_that_ends_its_process_or_prints_something_else_is_found(tmp_path):
    ends = notebook_of(tmp_path / "ends.ipynb", ("__import__('os')._exit(0)", ""))
    wrong = notebook_of(tmp_path / "wrong.ipynb", ("print(6 * 7)", "43\n"), ("6 * 7", "43\n"))
    right = notebook_of(tmp_path / "right.ipynb", ("print(6)\n6 * 7", "6\n42\n"))
    assert run_on_device(sys.executable, ends, wrong, right).returncode == 1
    said = [(tmp_path / f"{name}.log").read_text("utf-8") for name in ("ends", "wrong", "right")]
    assert said[0] == "" and "42" in said[1] and "43" in said[1]
    assert [words[-16:] for words in said[1:]] == [f"cells failed: {n}\n" for n in (2, 0)]


def notebook_of(path, *cells):
    """A notebook of (source, stored output) whose cells are all compared."""
    made = nbformat.v4.new_notebook()
    for source, stored in cells:
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["nbval-check-output"]})
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
        made.cells.append(cell)
    nbformat.write(made, path)
    return path


def test_what_differs_from_the_stored_output_is_reported(tmp_path):
    source = "print(1)\nprint(2)\n__import__('os').listdir() == ['n.ipynb']"
    alone = notebook_of(tmp_path / "n.ipynb", (source, "1\n2\nTrue\n"))
    assert run_as_colab.problems(alone) == []
    wrong = notebook_of(tmp_path / "n.ipynb", (source, "1\n2\nTrue\n"), ("print(6 * 7)", "43\n"))
    assert [p for p in run_as_colab.problems(wrong) if "43" in p and "42" in p]


def test_a_cell_that_fails_or_takes_too_long_is_reported(tmp_path):
    failing = notebook_of(tmp_path / "n.ipynb", ("1 / 0", ""))
    assert "ZeroDivisionError" in run_as_colab.problems(failing)[0]
    slow = notebook_of(tmp_path / "n.ipynb", ("import time; time.sleep(60)", ""))
    assert "timed out" in run_as_colab.problems(slow, timeout=1)[0]


def test_a_replaced_package_and_a_missing_vitmini_are_reported(monkeypatch, capsys):
    answers = iter([{"torch": "2.8.0"}, {"torch": "2.15.0"}])
    monkeypatch.setattr(run_as_colab, "installed", lambda: next(answers))
    monkeypatch.setattr(run_as_colab, "problems", lambda path: [])
    assert run_as_colab.main([NOTEBOOKS[0]]) == 1
    said = capsys.readouterr().out
    assert "replaced packages (before, after): {'torch': ('2.8.0', '2.15.0')}" in said
    assert "did not install vitmini" in said and "FAILED" in said


def test_a_place_that_has_vitmini_is_refused(capsys):
    assert run_as_colab.main([NOTEBOOKS[0]]) == 2
    assert "vitmini is installed here" in capsys.readouterr().err


def test_the_set_up_does_nothing_where_vitmini_is_installed(tmp_path):
    source = code_cells(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source
    code = "import subprocess; subprocess.run = None\n" + source  # a call would be a TypeError
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("vitmini profile: ")


def test_the_set_up_stops_at_once_when_the_installation_fails(colab, tmp_path):
    source = code_cells(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source
    source = source.replace(generate.address(), f"file://{tmp_path}/nothing")
    code = "import sys; sys.modules.pop('vitmini', None)\n" + source
    empty = subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    assert empty.returncode == 0
    done = subprocess.run(
        [tmp_path / "empty/bin/python", "-I", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 1 and "nothing" in done.stderr
    assert "CalledProcessError" in done.stderr and "choose_profile" not in done.stderr
