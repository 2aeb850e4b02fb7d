"""The package as others meet it: what an import costs, what it says, what it wants."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import vitmini as vm
from vitmini.__main__ import main

HEAVY = ("torchvision", "matplotlib", "sklearn", "scipy", "PIL", "tqdm", "timm", "transformers")
HEAVY += ("IPython", "google.colab", "torch._dynamo", "torch._inductor")


def test_importing_vitmini_imports_nothing_heavy():
    code = "import sys, torch; before = set(sys.modules); import vitmini; "
    code += f"print([m for m in {HEAVY} if m in set(sys.modules) - before])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_everything_public_exists_and_is_documented():
    for name in vm.__all__:
        value = getattr(vm, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert re.search(r"Chapter: \d+", value.__doc__ or ""), f"{name} names no chapter"


@pytest.mark.parametrize("path", sorted((ROOT / "vitmini").glob("*.py")), ids=lambda p: p.stem)
def test_modules_import_only_modules_above_them(path):
    order = ["patches", "positions", "attention", "encoder", "initialisation", "model"]
    order += ["convert", "summary", "baselines", "distill", "inspection"]
    order += ["pictures", "folders", "data", "augment"]
    order += ["recipes", "live", "optim", "runs"]
    order += ["train", "colab", "pretrained", "benchmark", "throughput"]
    order += ["profiles", "records", "speedrun", "hunger", "students", "inside"]
    order += ["siblings", "experiments"]
    if path.stem not in order:
        return
    text = path.read_text()
    imported = re.findall(r"^from vitmini\.(\w+) import", text, re.M)
    assert all(order.index(m) < order.index(path.stem) for m in imported), imported


def test_an_old_pytorch_is_named_when_vitmini_is_imported():
    code = "import torch; torch.__version__ = '2.5.1+cu121'; import vitmini"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "vitmini needs PyTorch 2.6 or newer, found 2.5.1" in done.stderr


def test_dependencies_are_few_and_unpinned():
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)\]", text, re.S | re.M)[1]
    names = re.findall(r'"([^"]+)"', block)
    assert all(re.fullmatch(r"[\w-]+", name) for name in names), "no versions: Colab has its own"
    assert len(names) <= 8


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitmini.__main__.load_data", interrupted)
    assert main(["train", "--recipe", "digits", "--out", "x"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_no_file_names_a_machine_or_a_registry():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".png", ".jpg", ".safetensors"} or not path.is_file():
            continue
        if path.parent.name == "tests":
            continue
        text = path.read_text(encoding="utf-8")
        for bad in ("/root/", "/home/", "/work/", "pypi.org/simple", "registry.npmjs"):
            assert bad not in text, f"{name} holds {bad}"
