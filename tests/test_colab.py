"""A simulated Colab: torch is there, vitmini is not, the notebook is alone in an empty folder.

The environment is a fresh one whose site-packages links what Colab brings along: PyTorch and
torchvision, matplotlib, einops, ipykernel, and what these need. Everything else has to come from
the set-up cell, which installs from a local git repository under the course's public address.
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
from conftest import NOTEBOOKS, ROOT, code_cells
from nbclient import NotebookClient
from packaging.requirements import Requirement

PREINSTALLED = ("torch", "torchvision", "matplotlib", "einops", "ipykernel")


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
    return folder / "bin" / "python"


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


def installed(python):
    """Name and version of what the environment holds."""
    code = "import importlib.metadata as m, json; "
    code += "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_every_cell_runs_where_vitmini_is_missing(colab, published, tmp_path, monkeypatch):
    before = installed(colab)
    assert not {"vitmini", "scikit-learn", "safetensors"} & set(before)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{published}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", generate.address())
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    kernel = tmp_path / "kernels" / "colab"
    kernel.mkdir(parents=True)
    start = [str(colab), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": start, "display_name": "Colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv(
        "JUPYTER_PATH", f"{tmp_path}{os.pathsep}{os.environ.get('JUPYTER_PATH', '')}"
    )

    for path in NOTEBOOKS:
        alone = tmp_path / path.stem
        alone.mkdir()
        shutil.copy(path, alone)
        notebook = nbformat.read(alone / path.name, as_version=4)
        stored = [c.outputs for c in code_cells(notebook)]
        where = {"metadata": {"path": str(alone)}}
        NotebookClient(
            notebook, kernel_name="colab", timeout=300, coalesce_streams=True, resources=where
        ).execute()
        for cell, outputs in zip(code_cells(notebook), stored, strict=True):
            if "nbval-check-output" in cell.metadata.get("tags", []):
                assert [o.get("text") for o in cell.outputs] == [o.get("text") for o in outputs]

    after = installed(colab)
    assert "vitmini" in after
    assert {name: after.get(name) for name in before} == before, "something was replaced"


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
