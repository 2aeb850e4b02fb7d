"""The course has one public address, and one command moves it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import generate
import pytest
from conftest import ROOT, code_cells, read


@pytest.fixture
def course(tmp_path):
    """A copy of all that the course is made from and of all that is made from it."""
    for name in ("_config.yml", "README.md", "book", "notebooks", "vitmini"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def run(course, *arguments):
    command = [sys.executable, "book/generate.py", *arguments]
    return subprocess.run(command, cwd=course, capture_output=True, text=True, timeout=120)


def contents(course):
    return {p: p.read_bytes() for p in course.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def test_the_address_stands_in_one_place_by_hand():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    owner_and_repo = "/".join(generate.address().split("/")[-2:])
    holders = set()
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".png", ".jpg", ".safetensors"} or not path.is_file():
            continue
        if owner_and_repo in path.read_text(encoding="utf-8"):
            holders.add(name)
    made = {f"notebooks/{c.stem}.ipynb" for c in generate.chapters()}
    made |= {name for name in holders if name.startswith("notebooks/assignments/")}
    assert holders - made == {"_config.yml", "README.md"}
    by_hand, made_block = (ROOT / "README.md").read_text().split("<!-- links: ")
    assert owner_and_repo not in by_hand + made_block.split("<!-- end of links -->")[1]


def test_writing_again_changes_no_byte(course):
    before = contents(course)
    done = run(course, "--inputs")
    assert done.returncode == 0, done.stderr
    assert contents(course) == before


def test_one_command_moves_the_course_and_keeps_the_outputs(course):
    old = generate.address()
    new = "https://github.com/someone-else/another.name"
    done = run(course, "--inputs", "--move", new)
    assert done.returncode == 0 and "unchanged" in done.stdout, done.stderr
    for path, content in contents(course).items():
        assert old.encode() not in content, path
    for path in sorted((course / "notebooks").glob("*.ipynb")):
        moved, stored = read(path), read(ROOT / "notebooks" / path.name)
        assert f"git+{new}" in code_cells(moved)[0].source
        assert [c.outputs for c in code_cells(moved)] == [c.outputs for c in code_cells(stored)]
    name = "notebooks/assignments/exemplary/capstone.ipynb"
    moved, stored = read(course / name), read(ROOT / name)
    assert [c.outputs for c in code_cells(moved)] == [c.outputs for c in code_cells(stored)]
    assert run(course, "--inputs", "--move", old).returncode == 0
    assert contents(course) == {
        course / p.relative_to(ROOT): p.read_bytes()
        for p in (ROOT / q.relative_to(course) for q in contents(course))
    }


@pytest.mark.parametrize(
    "address", ["github.com/a/b", "https://example.org/a/b", "https://github.com/a"]
)
def test_an_address_that_would_not_work_is_refused(course, address):
    before = contents(course)
    done = run(course, "--inputs", "--move", address)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "ADDRESS" in done.stderr
    assert contents(course) == before


def test_an_unknown_chapter_is_refused(course):
    done = run(course, "99-nothing")
    assert done.returncode == 2 and "00-start" in done.stderr


def test_changed_text_asks_for_a_new_execution(course):
    chapter = course / "book" / "chapters" / "01-patches.md"
    chapter.write_text(chapter.read_text().replace("pixels = 224 * 224", "pixels = 224 * 225"))
    done = run(course, "--inputs")
    assert "01-patches: outputs are of an older version" in done.stdout


def test_outputs_that_stand_are_kept_for_the_same_code_only(course):
    """A module that changed in what a chapter does not use need not cost its execution."""
    module = course / "vitmini" / "patches.py"
    module.write_text(module.read_text() + "\n\ndef unused() -> None:\n    pass\n")
    path = course / "notebooks" / "01-patches.ipynb"
    before = path.read_bytes()
    assert "01-patches: outputs are of an older version" in run(course, "--inputs").stdout
    done = run(course, "--stand", "01-patches")
    assert done.returncode == 0 and "01-patches: unchanged" in done.stdout
    assert "02-positions: outputs are of an older version" in done.stdout
    assert "01-patches: unchanged" in run(course, "--inputs").stdout
    old, new = (read_outputs(content) for content in (before, path.read_bytes()))
    assert old == new
    text = course / "book" / "chapters" / "01-patches.md"
    text.write_text(text.read_text().replace("torch.manual_seed(0)", "torch.manual_seed(1)", 1))
    done = run(course, "--stand", "01-patches")
    assert done.returncode == 2 and "01-patches has other code than was executed" in done.stderr
    assert run(course, "--stand", "99-none").returncode == 2


def read_outputs(content):
    return [cell.get("outputs") for cell in json.loads(content)["cells"]]
