"""Chapters as a reader with a GPU runs them: each cell on a device that is a CPU underneath."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import NOTEBOOKS, ROOT

USING = [path for path in NOTEBOOKS if "profile.device" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", USING, ids=lambda p: p.stem)
def test_a_chapter_runs_on_a_device(path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "pretended_cuda.py"), str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_chapters_that_train_are_among_them():
    assert {"07-training", "08-data-hunger", "10-distillation"} <= {p.stem for p in USING}


def test_a_cell_that_mixes_devices_is_found(tmp_path):
    import nbformat

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("import torch, vitmini as vm\nprofile = vm.choose_profile()"),
        nbformat.v4.new_code_cell("torch.ones(2, device=profile.device) + torch.ones(2)"),
        nbformat.v4.new_code_cell("torch.ones(2, device=profile.device).numpy()"),
    ]
    nbformat.write(notebook, tmp_path / "mixed.ipynb")
    script = str(ROOT / "tests" / "pretended_cuda.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path / "mixed.ipynb")], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "expected all tensors" in done.stdout and "to numpy" in done.stdout
