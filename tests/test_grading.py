"""Marking survives what students hand in: one call marks thirty files, of which many are bad."""

from __future__ import annotations

import base64
import contextlib
import copy
import csv
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import confine
import grade as grading
import nbformat
import pytest
from assign import build, make
from collect import Submission, collect
from conftest import ROOT
from grade import safe_html, unpack
from nbgrader.api import Gradebook

needs_walls = pytest.mark.skipif(not confine.version(), reason="this system has no Landlock")
TEXT = """---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
assignment: {hours: 1, points: 10, after: [1]}
---

# Assignment 9. Small

Three questions.

```{code-cell} ipython3
import math
```

## Question 1. Double (2 points)

```{code-cell} ipython3
---
answer: q1
---
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION
```

```{code-cell} ipython3
---
check: q1
points: 2
---
assert double(2) == 4, f"double(2) must be 4, got {double(2)}"
### BEGIN HIDDEN TESTS
assert [double(x) for x in (-3, 0, 10**6)] == [-6, 0, 2 * 10**6]
### END HIDDEN TESTS
```

## Question 2. Root (3 points)

```{code-cell} ipython3
---
answer: q2
---
def root(x):
    ### BEGIN SOLUTION
    return math.sqrt(x)
    ### END SOLUTION
```

```{code-cell} ipython3
---
check: q2
points: 3
---
assert root(9) == 3, f"root(9) must be 3, got {root(9)}"
### BEGIN HIDDEN TESTS
assert root(2) == math.sqrt(2)
### END HIDDEN TESTS
```

## Question 3. In words (5 points)

Why?

+++ {"answer": "q3", "points": 5}

Because 2 is even.

=== BEGIN MARK SCHEME ===
All or nothing.
=== END MARK SCHEME ===

+++
"""
DOUBLE = "def double(x):\n    return 2 * x\n"
SQUARE_ROOT = "def root(x):\n    return math.sqrt(x)\n"
SHOWS = (
    "![my image.png](attachment:my%20image.png) ![gone](attachment:gone.png) "
    "<script>alert(1)</script><img src=x onerror=alert(2)> $a<b$\n\n| n |\n|---|\n| 2 |\n"
)
MARKUP = """\
from IPython.display import HTML, Javascript, display
display(HTML("<script>alert(3)</script><b onclick='alert(4)'>bold</b>"), Javascript("alert(5)"))
display({"image/png": ""}, raw=True, metadata={"image/png": {"width": "1 onerror=alert(6)"}})
"""
NO_ASSERTS = """\
import ast
class NoAsserts(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
get_ipython().ast_transformers.append(NoAsserts())
"""
ESCAPES = "import os, sys, subprocess\nfrom pathlib import Path\n"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Source and release of a small assignment, made as `make assignments` makes them."""
    folder = tmp_path_factory.mktemp("course")
    (folder / "a9-small.md").write_text(TEXT, encoding="utf-8")
    make([folder / "a9-small.md"], folder)
    return folder


def released(course):
    return nbformat.read(course / "release/a9-small/a9-small.ipynb", as_version=4)


def answered(course, q1=DOUBLE, q2=SQUARE_ROOT, q3="An even number."):
    """The release with these answers, each with the first line that the cell came with."""
    notebook = released(course)
    given = {"a9-q1": q1, "a9-q2": q2, "a9-q3": q3}
    for cell in notebook.cells:
        key = cell.metadata.get("nbgrader", {}).get("grade_id")
        if given.get(key) is not None:
            first = cell.source.split("\n")[0] + "\n" if cell.cell_type == "code" else ""
            cell.source = first + given[key]
    return notebook


def at(notebook, key):
    return next(
        i
        for i, c in enumerate(notebook.cells)
        if c.metadata.get("nbgrader", {}).get("grade_id") == key
    )


def as_colab(notebook):
    data = json.loads(nbformat.writes(notebook))
    data["nbformat_minor"] = 0
    data["metadata"] = {
        "colab": {"provenance": [], "name": "a9-small.ipynb"},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "widgets": {"application/vnd.jupyter.widget-state+json": {"1": {}}},  # without its state
    }
    for i, cell in enumerate(data["cells"]):
        cell["metadata"]["id"] = cell.pop("id")
        cell["metadata"]["outputId"] = f"out-{i}"
        cell["source"] = cell["source"] if isinstance(cell["source"], list) else [cell["source"]]
    data["cells"].insert(3, {"cell_type": "code", "metadata": {"id": "xYz"}, "source": ["!nvidia"]})
    data["cells"][3] |= {"execution_count": 1, "outputs": []}
    return json.dumps(data)


def hand_in(folder, course):
    """More than forty files, of which a fourth are as they should be."""

    def put(path, notebook):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = notebook if isinstance(notebook, str) else nbformat.writes(notebook)
        file.write_text(text, encoding="utf-8")
        return file

    def student(name, **given):
        put(f"{name}/a9-small.ipynb", answered(course, **given))

    for i in range(3):
        student(f"right-{i}")
    put("blank/a9-small.ipynb", released(course))
    student("wrong", q1="def double(x):\n    return x + 2\n")
    student("syntax", q1="def double(x)\n    return 2 x\n")
    student("loop", q1="def double(x):\n    while True:\n        pass\n")
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    deaf += "while True:\n    time.sleep(1)\n"
    student("deaf", q1=deaf)
    student("quits", q1="import os\nos._exit(0)\n")
    student("greedy", q1=f"hoard = [bytearray(2**28) for _ in range(40)]\n{DOUBLE}")
    student("prints", q1=f"for _ in range(50):\n    print('x' * 10**6)\n{DOUBLE}")
    source = course / "source/a9-small/a9-small.ipynb"
    peek = f"told = Path({str(source)!r}).read_text()\n"
    student("peeks", q1=ESCAPES + peek + DOUBLE)
    student("writes", q2=f"{ESCAPES}Path({str(course)!r}, 'mark').write_text('A')\n{SQUARE_ROOT}")

    notebook = answered(course)
    del notebook.cells[at(notebook, "a9-q1-check")]
    put("deleted/a9-small.ipynb", notebook)
    notebook = answered(course, q1="def double(x):\n    return 3\n")
    notebook.cells[at(notebook, "a9-q1-check")].source = "assert True"
    put("edited/a9-small.ipynb", notebook)
    notebook = answered(course)
    for key in ("a9-q1", "a9-q1-check"):
        twin = copy.deepcopy(notebook.cells[at(notebook, key)])
        twin.id += "-again"
        notebook.cells.append(twin)
    put("doubled/a9-small.ipynb", notebook)
    notebook = answered(course)
    for cell in notebook.cells:
        cell.metadata, cell.id = {}, nbformat.v4.new_raw_cell("").id
    notebook.metadata = {}
    put("stripped/a9-small.ipynb", notebook)
    put("colab/a9-small.ipynb", as_colab(answered(course)))
    notebook = answered(course)
    output = nbformat.v4.new_output("stream", text="x" * (50 * 2**20))
    notebook.cells[at(notebook, "a9-q1")].outputs = [output]
    put("heavy/a9-small.ipynb", notebook)

    notebook = answered(course)
    cell = notebook.cells[at(notebook, "a9-q1")]
    half = copy.deepcopy(cell)
    half.source, half.id = "    return 2 * x\n", "half"
    cell.source = cell.source.replace("    return 2 * x\n", "")
    notebook.cells.insert(at(notebook, "a9-q1") + 1, half)
    put("split/a9-small.ipynb", notebook)
    notebook = answered(course, q1="")
    notebook.cells[at(notebook, "a9-q1")].source = ""
    notebook.cells.insert(at(notebook, "a9-q1"), nbformat.v4.new_code_cell(DOUBLE))
    put("above/a9-small.ipynb", notebook)
    notebook = answered(course, q1="double = lambda x: 2 * x\n")
    cell = notebook.cells[at(notebook, "a9-q1")]
    cell.source, cell.metadata, cell.id = "double = lambda x: 2 * x", {}, "other"
    put("lambda/a9-small.ipynb", notebook)
    notebook = answered(course, q3="*Your answer here.*")
    place = next(i for i, c in enumerate(notebook.cells) if "## Question 3" in c.source)
    notebook.cells[place].source += "\n\nBecause it is even, and so on."
    put("under/a9-small.ipynb", notebook)
    notebook = answered(course)
    given = next(c for c in notebook.cells if c.source == "import math")
    given.source = "import math, cmath"
    put("more/a9-small.ipynb", notebook)
    warns = "import warnings\ndef double(x):\n    warnings.warn('slow')\n    return 2 * x\n"
    student("warns", q1=warns)
    student("pid", q1=f"open('pid', 'w').write('0')\n{DOUBLE}")
    notebook = answered(course)
    notebook.cells.append(nbformat.v4.new_code_cell("import os\nos._exit(0)"))
    put("exits/a9-small.ipynb", notebook)
    notebook = released(course)
    trick = "get_ipython().input_transformers_cleanup.append(lambda lines: [])"
    notebook.cells.insert(3, nbformat.v4.new_code_cell(trick))
    put("tricks/a9-small.ipynb", notebook)
    leaves = "if not os.fork():\n    os.setsid()\n    os.fork() or os.execv('/bin/sleep', NAP)\n"
    student("leaves", q1=f"import os\nNAP = ['nap', '876']\n{leaves}{DOUBLE}")
    notebook = answered(course, q3=SHOWS)
    picture = base64.b64encode((ROOT / "book/static/00-build.png").read_bytes()).decode()
    notebook.cells[at(notebook, "a9-q3")].attachments = {"my image.png": {"image/png": picture}}
    put("picture/a9-small.ipynb", notebook)
    student("markup", q1=f"{MARKUP}{DOUBLE}")
    notebook = answered(course, q3=f"![image.png](data:image/png;base64,{picture * 40}) Two.")
    put("inline/a9-small.ipynb", notebook)
    student("shell", q1=f"!echo hello\n{DOUBLE}")
    notebook = answered(course)
    scratch = copy.deepcopy(notebook.cells[at(notebook, "a9-q1")])
    scratch.source, scratch.id = "print(double(21))", "scratch"
    notebook.cells.insert(at(notebook, "a9-q1-check") + 1, scratch)
    put("scratch/a9-small.ipynb", notebook)
    closes = "import sys\nsys.stdout.close()\nsys.stderr = None\n"
    student("closes", q1=f"{closes}def double(x):\n    return x\n")
    root = "def root(x):\n    return x\n"
    student("both", q1="import os\nos._exit(0)\n", q2=f"{NO_ASSERTS}{root}")
    student("allclose", q1=f"import torch\ntorch.allclose = lambda *a, **k: True\n{DOUBLE}")
    student("hook", q1="import sys\nsys.displayhook(2)\ndef double(x):\n    return x\n")
    student("asserts", q1=f"{NO_ASSERTS}def double(x):\n    return x\n")
    student("environment", q1=f"import os\nassert 'A_SECRET' not in os.environ\n{DOUBLE}")
    student("secret", q1=f"open('/etc/shadow').read()\n{DOUBLE}")
    student("interrupts", q1="raise KeyboardInterrupt\n")
    fills = "import time\nfor i in range(9):\n    open(f'{i}', 'wb').write(bytes(2**25))\n"
    student("fills", q1=f"{fills}time.sleep(2.5)\n{DOUBLE}")
    put("half/a9-small.ipynb", nbformat.writes(answered(course)).replace("An even", "\\ud83d"))
    notebook = answered(course)
    for cell in answered(course, q1="raise NotImplementedError", q3="Foreign words.").cells:
        if "nbgrader" in cell.metadata:
            about = cell.metadata["nbgrader"]
            about["grade_id"], cell.id = about["grade_id"].replace("a9", "a8"), f"{cell.id}-8"
            notebook.cells.append(cell)
    put("foreign/a9-small.ipynb", notebook)
    put("deep/a9-small.ipynb", "[" * 10**5)
    put("Tom Ott_5_assignsubmission_onlinetext_/onlinetext.html", "<p>Hello.")
    put("Tom Ott_5_assignsubmission_file_/a9-small.ipynb", answered(course))
    put("a9-small_kim.ipynb", answered(course))
    put("a9-small-lee.ipynb", answered(course))
    (folder / "link").mkdir()
    (folder / "link/a9-small.ipynb").symlink_to("/etc/passwd")
    put("Anna Maier_11_assignsubmission_file_/x.ipynb", answered(course))
    put("Anna Maier_22_assignsubmission_file_/x.ipynb", answered(course, q2=DOUBLE))
    put("anna1-a9-small.ipynb", answered(course))
    put(f"{'long' * 55}/a9-small.ipynb", answered(course))
    put(os.fsdecode(b"jos\xe9.ipynb"), answered(course))
    put("doejane_LATE_123_456_a9-small.ipynb", answered(course))
    put("John Doe_77_assignsubmission_file_/a9-small.ipynb", answered(course))
    first = put("twice/a9-small.ipynb", answered(course, q1="def double(x):\n    return 0\n"))
    os.utime(first, (1, 1))
    put("twice/a9-small (1).ipynb", answered(course))
    put("essay/a9-small.pdf", "%PDF-1.7")
    put("torn/a9-small.ipynb", nbformat.writes(answered(course))[:2000])
    put("other/homework.ipynb", nbformat.writes(nbformat.v4.new_notebook()))


def grade(submissions, course, *options, expect=0):
    command = [sys.executable, ROOT / "book/grade.py", submissions, "--out", course / "grading"]
    options = ("--sources", course / "source", *options)
    walls = () if confine.version() else ("--trust",)
    done = subprocess.run(
        [*map(str, command), *map(str, options), *walls],
        env=os.environ | {"A_SECRET": "of the teacher"},
        capture_output=True,
        text=True,
        cwd=course,
    )
    assert done.returncode == expect, done.stderr[-2000:]
    return done.stdout if not expect else done.stderr


def table(course, name):
    with (course / "grading" / name).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def marked(course):
    hand_in(course / "submissions", course)
    limits = ("--seconds", 10, "--memory", 3, "--disk", 0.2)
    words = grade(course / "submissions", course, "--jobs", 2, *limits, "--again")
    return words, {row["student"]: row for row in table(course, "grades.csv")}


RIGHT = ("split", "above", "lambda", "under", "more", "warns", "pid", "exits", "leaves")
RIGHT += ("environment", "inline", "shell", "scratch", "allclose")
RIGHT += ("picture", "markup", "half", "foreign", "Tom-Ott", "kim", "lee")
RIGHT += (
    "anna1",
    "Anna-Maier_11",
    "right-0",
    "right-1",
    "heavy",
    "doubled",
    "deleted",
    "stripped",
    "colab",
    "prints",
)


@pytest.mark.parametrize("name", [*RIGHT, "doejane", "John-Doe", "twice"])
def test_right_answers_get_their_points_however_the_file_was_maltreated(marked, name):
    row = marked[1][name]
    assert (row["points"], row["of"], row["to mark by hand"]) == ("5", "10", "1"), row


@pytest.mark.parametrize(
    ("name", "points", "words"),
    [
        ("blank", "0", ""),
        ("wrong", "3", ""),
        ("syntax", "3", "Question 1: SyntaxError"),
        ("loop", "3", "Question 1: took too long"),
        ("deaf", "3", "Question 1: "),
        ("quits", "3", "Question 1: ended the process that it ran in"),
        ("edited", "3", "Question 1: its check was not as it was given out, and is put back"),
        ("Anna-Maier_22", "2", "another Anna-Maier handed in as well"),
        ("hook", "3", ""),
        ("closes", "3", ""),
        ("both", "3", "checks no longer fail in this notebook: look at it"),
        ("interrupts", "3", "Question 1: KeyboardInterrupt"),
        ("fills", "3", "Question 1: wrote more than 0.2 GB"),
    ],
)
def test_a_bad_answer_costs_its_own_points_and_the_table_says_what_it_was(
    marked, name, points, words
):
    row = marked[1][name]
    assert row["points"] == points and words in row["notes"], row


@needs_walls
@pytest.mark.parametrize(
    ("name", "points", "words"),
    [
        ("peeks", "3", "Question 1: PermissionError"),
        ("writes", "2", "Question 2: PermissionError"),
        ("greedy", "3", "Question 1: "),
        ("secret", "3", "Question 1: PermissionError: [Errno 13] Permission denied: '/etc/shadow'"),
    ],
)
def test_code_reads_and_writes_in_its_own_folder_only_and_takes_so_much_memory(
    marked, course, name, points, words
):
    row = marked[1][name]
    assert row["points"] == points and words in row["notes"], row
    assert not (course / "mark").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("essay", "a9-small.pdf is not a Jupyter notebook"),
        ("torn", "a9-small.ipynb is not a Jupyter notebook"),
        ("other", "homework.ipynb is none of a9-small"),
        ("deep", "a9-small.ipynb is not a Jupyter notebook"),
        ("link", "holds no file"),
    ],
)
def test_a_file_that_cannot_be_read_is_in_the_table_with_the_reason(marked, name, words):
    row = marked[1][name]
    assert row["points"] == "" and words in row["notes"]
    assert f"{name}: {words}" in marked[0]


def test_one_call_marks_them_all_with_progress_and_sums_up(marked):
    lines = marked[0].splitlines()
    assert len(marked[1]) >= 50
    assert sum(line.startswith("[") for line in lines) == len(marked[1]) - 5
    assert f"{len(marked[1])} submissions: {len(marked[1]) - 5} marked, 5 not" in lines[-1]
    told = dict(line.split("] ")[1].split(" a9-small: ") for line in lines if line[0] == "[")
    assert told["quits"].startswith("3 points, 1 to mark by hand (")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stripped", "without nbgrader's metadata"),
        ("deleted", "Question 1: its check was missing, and is put back"),
        ("doubled", "the cell is there 2 times, the last one counts"),
        ("doejane", "late, says its name"),
        ("twice", "handed in more than once: a9-small.ipynb was left out"),
        ("more", "a given cell was edited"),
        ("exits", "own cells left out: with them it ended the process"),
        ("tricks", "checks no longer fail in this notebook: look at it"),
        ("tricks", "Question 1: passes without an answer of its own"),
        ("allclose", "checks no longer fail in this notebook: look at it"),
        ("asserts", "checks no longer fail in this notebook: look at it"),
        ("foreign", "cells of another assignment left out: 6"),
        ("Tom-Ott", "onlinetext.html was left out"),
    ],
)
def test_what_was_put_right_stands_in_the_notes(marked, name, words):
    assert words in marked[1][name]["notes"]


def test_long_and_strange_names_are_marked_as_well(marked):
    assert sum(name.startswith("longlong") and len(name) < 60 for name in marked[1]) == 1
    assert any(name.startswith("jos") for name in marked[1])


def test_nothing_goes_on_running(marked):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert path.read_bytes() != b"nap\x00876\x00"


def test_each_marked_submission_has_a_page_of_feedback_of_bearable_size(marked, course):
    for name, row in marked[1].items():
        page = course / "grading/feedback" / name / "a9-small/a9-small.html"
        assert page.exists() == bool(row["points"])
        assert not row["points"] or page.stat().st_size < 2 * 2**20


def test_a_page_names_questions_what_is_open_and_what_was_put_right(marked, course):
    text = (course / "grading/feedback/edited/a9-small/a9-small.html").read_text(encoding="utf-8")
    assert "<h1>edited, a9-small: 3 of 10 points, 1 answer still to be marked</h1>" in text
    assert '<a href="#a9-q1-check">Question 1</a>: 0 of 2 points' in text
    assert '<a href="#a9-q3">Question 3</a>: still to be marked, 5 points' in text
    assert "<li>Question 1: its check was not as it was given out, and is put back</li>" in text
    text = (course / "grading/feedback/tricks/a9-small/a9-small.html").read_text(encoding="utf-8")
    assert "look at it" not in text  # that is for the teacher


def test_a_page_shows_pictures_and_runs_nothing_of_a_students(marked, course, chromium):
    for name, wanted in (("picture", "my image.png"), ("inline", "Two."), ("markup", "bold")):
        page, said = chromium.new_page(), []
        page.on("dialog", lambda dialog, said=said: (said.append(dialog), dialog.dismiss()))
        page.route("http*://**", lambda route: route.abort())
        page.goto((course / f"grading/feedback/{name}/a9-small/a9-small.html").as_uri())
        for element in page.query_selector_all("b"):
            element.click()
        assert not said and wanted in page.content()
        shown = "i => i.src.startsWith('data:') && i.naturalWidth > 50"
        pictures = page.evaluate(f"[...document.images].filter({shown}).length")
        assert pictures == (name != "markup")
        if name == "picture":
            assert page.query_selector("td").inner_text() == "2" and "$a&lt;b$" in page.content()
        page.close()


def test_marks_by_hand_are_taken_over_and_nothing_is_run_again(marked, course):
    path = course / "grading/by-hand.csv"
    rows = table(course, "by-hand.csv")
    assert {row["question"] for row in rows} == {"Question 3"} and len(rows) > 20
    for row in rows:
        if row["student"] == "right-0":
            row["points"], row["comment"] = "4,5", "Nearly all."
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = grade(course / "submissions", course)
    assert "unchanged since the last call" in words and "[1/" not in words
    row = next(row for row in table(course, "grades.csv") if row["student"] == "right-0")
    assert (row["points"], row["to mark by hand"]) == ("9.5", "0")
    page = course / "grading/feedback/right-0/a9-small/a9-small.html"
    assert "Nearly all." in page.read_text(encoding="utf-8")


def test_a_table_from_a_german_spreadsheet_is_read_and_kept(marked, course):
    path = course / "grading/by-hand.csv"
    rows = table(course, "by-hand.csv")
    for row in rows:
        if row["student"] == "right-1":
            row["points"], row["comment"] = "3,5", "schön"
    with path.open("w", newline="", encoding="cp1252") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    grade(course / "submissions", course)
    row = next(row for row in table(course, "grades.csv") if row["student"] == "right-1")
    assert row["points"] == "8.5"
    assert "schön".encode("cp1252") in path.with_suffix(".csv.bak").read_bytes()


def test_a_mark_by_hand_is_for_the_answer_that_was_read(marked, course):
    path = course / "submissions/right-2/a9-small.ipynb"
    rows = table(course, "by-hand.csv")
    for row in rows:
        row["points"] = "5" if row["student"] == "right-2" else row["points"]
    with (course / "grading/by-hand.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    grade(course / "submissions", course)
    path.write_text(nbformat.writes(answered(course, q3="Something else.")), encoding="utf-8")
    words = grade(course / "submissions", course)
    row = next(row for row in table(course, "grades.csv") if row["student"] == "right-2")
    assert "[1/1] right-2" in words
    assert (row["points"], row["to mark by hand"]) == ("5", "1"), row


def save_by_hand(course, rows):
    path = course / "grading/by-hand.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_table_saved_over_a_newer_one_marks_no_answer_that_was_not_read(marked, course):
    rows = table(course, "by-hand.csv")
    [row] = [row for row in rows if row["student"] == "more"]
    row["points"], row["comment"] = "5", "All of it."
    save_by_hand(course, rows)
    grade(course / "submissions", course)
    old = (course / "grading/by-hand.csv").read_bytes()
    path = course / "submissions/more/a9-small.ipynb"
    path.write_text(nbformat.writes(answered(course, q3="No idea.")), encoding="utf-8")
    grade(course / "submissions", course)
    (course / "grading/by-hand.csv").write_bytes(old)  # as it stood in the spreadsheet
    words = grade(course / "submissions", course)
    assert "the answer is another one now, mark it again" in words
    [row] = [row for row in table(course, "grades.csv") if row["student"] == "more"]
    assert (row["points"], row["to mark by hand"]) == ("5", "1"), row


def test_a_mark_of_the_formgrader_is_not_overwritten_by_a_table_of_before(marked, course):
    grade(course / "submissions", course)
    with Gradebook(f"sqlite:///{course}/grading/gradebook.db", "vitmini") as book:
        entry = book.find_grade("a9-q3", "a9-small", "a9-small", "shell")
        entry.manual_score, entry.needs_manual_grade = 2, False
        book.db.commit()
    for _ in range(2):
        grade(course / "submissions", course)
        [row] = [row for row in table(course, "grades.csv") if row["student"] == "shell"]
        assert (row["points"], row["to mark by hand"]) == ("7", "0"), row


def test_a_mark_can_be_taken_back_and_a_comment_stand_alone(marked, course):
    def marks(points, comment, student="warns"):
        rows = table(course, "by-hand.csv")
        [row] = [row for row in rows if row["answer"].startswith("feedback/warns/")]
        row["student"], row["points"], row["comment"] = student, points, comment
        save_by_hand(course, rows)
        grade(course / "submissions", course)
        [row] = [row for row in table(course, "grades.csv") if row["student"] == "warns"]
        page = course / "grading/feedback/warns/a9-small/a9-small.html"
        return row["points"], row["to mark by hand"], page.read_text(encoding="utf-8")

    points, still, page = marks("4", "Good.", student="12")  # what a spreadsheet made of the name
    assert (points, still) == ("9", "0") and "Good." in page and ": 9 of 10 points" in page
    points, still, page = marks("", "Think again.")
    assert (points, still) == ("5", "1") and "Think again." in page and "Good." not in page


@pytest.mark.parametrize(("points", "words"), [("six", "must be a number"), ("6", "from 0 to 5")])
def test_an_impossible_mark_by_hand_is_refused_with_its_line(marked, course, points, words):
    path = course / "grading/by-hand.csv"
    before = path.read_text(encoding="utf-8")
    rows = table(course, "by-hand.csv")
    rows[0]["points"] = points
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    told = grade(course / "submissions", course, expect=2)
    path.write_text(before, encoding="utf-8")
    assert told.startswith("grade: by-hand.csv, line 2: points ") and words in told
    assert told.count("\n") == 1


def test_bad_calls_get_one_line(course, tmp_path):
    for folder, words in ((tmp_path / "none", "no folder"), (tmp_path, "holds no files")):
        told = grade(folder, course, expect=2)
        assert told.startswith("grade: ") and words in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("points: 10", "points: 11", "says 11 points, the questions add up to 10"),
        ("check: q2", "check: q1", "a9-q1-check stands there twice"),
        ("### END HIDDEN TESTS\n```\n\n## Question 2", "```\n\n## Question 2", "1 BEGIN HIDDEN"),
        ("    ### BEGIN SOLUTION\n    return 2", "    return 2", "0 BEGIN SOLUTION"),
    ],
)
def test_a_text_that_contradicts_itself_is_refused(tmp_path, old, new, words):
    path = Path(tmp_path, "a9-small.md")
    assert old in TEXT
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        build(path)


@needs_walls
def test_walls_hold_for_files_processes_and_the_network(tmp_path):
    attempts = {
        "read": f"open({str(ROOT / 'README.md')!r}).read()",
        "list": f"os.listdir({str(ROOT)!r})",
        "write": f"open({str(tmp_path / 'x')!r}, 'w')",
        "look": "open(f'/proc/{os.getppid()}/environ').read()",
        "shell": f"subprocess.run(['ls', {str(ROOT)!r}], check=True, stderr=-3)",
        "call": "socket.create_connection(('127.0.0.1', 9), 1)",
        "end": "os.kill(os.getppid(), 0)",
    }
    code = f"""
import os, socket, subprocess
for name, attempt in {attempts!r}.items():
    try:
        eval(attempt)
        print(name, 'done')
    except PermissionError:
        print(name, 'refused')
    except subprocess.CalledProcessError:
        print(name, 'refused')
    except Exception as error:
        print(name, type(error).__name__)
"""
    own = tmp_path / "own"
    own.mkdir()
    command = [sys.executable, ROOT / "book/confine.py", "--write", own]
    command += [f"--read={p}" for p in {sys.prefix, sys.base_prefix}]
    done = subprocess.run(
        [*map(str, command), "--", sys.executable, "-c", code], capture_output=True, text=True
    )
    told = dict(line.split() for line in done.stdout.splitlines())
    known = confine.version()
    wanted = set(attempts) - ({"call"} if known < 4 else set()) - ({"end"} if known < 6 else set())
    assert {name for name, word in told.items() if word == "refused"} >= wanted, done


# Who is who, and what a .zip holds ----------------------------------------------------------------


def people(folder, course, *files, known=None, lost=None):
    """Collect files with these names; who handed in what."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = nbformat.writes(answered(course)) if path.suffix == ".ipynb" else "x"
        path.write_text(text, encoding="utf-8")
    found = collect(folder, {"a9-small": released(course)}, lost, known)
    return {one.student: one for one in found}


MOODLE = "assignsubmission_file_/a9-small.ipynb"


def test_people_of_one_name_stay_apart_and_keep_their_names(course, tmp_path):
    known = {}
    files = [f"Eva Li_1_{MOODLE}", f"Eva Li_2_{MOODLE}", f"Eva-Li-2_3_{MOODLE}"]
    found = people(tmp_path / "one", course, *files, known=known)
    wanted = {"Eva-Li_1": "1", "Eva-Li_2": "2", "Eva-Li-2": "3"}
    assert {name: one.id for name, one in found.items()} == wanted
    found = people(tmp_path / "two", course, *reversed(files), f"Eva Li_4_{MOODLE}", known=known)
    assert {name: one.id for name, one in found.items()} == wanted | {"Eva-Li_4": "4"}
    found = people(tmp_path / "three", course, f"Bo_5_{MOODLE}", known=known)
    found = people(tmp_path / "four", course, f"Bo_5_{MOODLE}", f"Bo_6_{MOODLE}", known=known)
    assert {name: one.id for name, one in found.items()} == {"Bo": "5", "Bo_6": "6"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["Li Wu/a9-small.ipynb", "Li-Wu/a9-small.ipynb"], {"Li-Wu", "Li-Wu-2"}),
        (["wu_12_34_a9-small.ipynb", "wu_56_78_a9-small.ipynb"], {"wu_12", "wu_56"}),
        (["wu_LATE_12_34_a9-small.ipynb", "wu_12_35_a9-small-1.ipynb"], {"wu"}),
        (["a9-small_jane.ipynb", "a9-small-bob.ipynb"], {"jane", "bob"}),
        (["a9-small.ipynb", "a9-small (1).ipynb"], {"nobody", "nobody-2"}),
        (["jane a9-small (1).ipynb", "jane-a9-small.ipynb"], {"jane"}),
        (["Jane Doe_1_assignsubmission_file_a9-small.ipynb"], {"Jane-Doe"}),
        (["jane/a9-small.ipynb", "jane/a9-small (1).ipynb"], {"jane"}),
        (["all/jane.ipynb", "all/bob.ipynb"], {"jane", "bob"}),
        (["all/jane/x.ipynb", "all/bob/x.ipynb", "__MACOSX/x"], {"jane", "bob"}),
        ([f"Jane Doe_1_{MOODLE}"], {"Jane-Doe"}),
    ],
)
def test_whose_a_file_is(course, tmp_path, files, wanted):
    assert set(people(tmp_path, course, *files)) == wanted


def test_one_bad_member_of_an_archive_costs_nobody_elses_work(course, tmp_path):
    good = nbformat.writes(answered(course))
    damaged, locked = f"Cy_3_{MOODLE}", f"Di_4_{MOODLE}"
    far = f"Fa_6_assignsubmission_file_/{'deep/' * 900}a9-small.ipynb"
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as file:
        victims = [str(tmp_path / "victim"), "../victim"]
        for name in victims:
            file.writestr(name, good)
        for name in (f"Al_1_{MOODLE}", damaged, locked, f"Ed_5_{MOODLE}", far, "Bo", "Bo/x.ipynb"):
            file.writestr(name, good)
        file.writestr(f"Gi_7_{MOODLE}", bytes(201 * 2**20))
        starts = {info.filename: info.header_offset for info in file.infolist()}
    data = bytearray((tmp_path / "all.zip").read_bytes())
    data[starts[damaged] + 200 : starts[damaged] + 300] = bytes(100)
    for name in (locked, *victims):
        data[data.rindex(name.encode()) - 38] |= 1  # its flags in the list at the end
    (tmp_path / "victim").write_text("a file of the teacher's")
    (tmp_path / "all.zip").write_bytes(data)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    lost = unpack(tmp_path / "all.zip", folder)
    assert (tmp_path / "victim").exists()
    assert set(lost) == {*victims, damaged, locked, far, "Bo/x.ipynb", f"Gi_7_{MOODLE}"}
    found = people(folder, course, lost=lost)
    assert {name for name, one in found.items() if one.notebook} == {"Al", "Bo", "Ed"}
    for name, words in (
        ("Cy", "cannot be unpacked: "),
        ("Di", "is encrypted"),
        ("Fa", "File name too long"),
        ("Gi", "201 MB is more than can be read"),
    ):
        assert words in found[name].notes[-1] and found[name].id, found[name]


# A second call, and one that is ended -------------------------------------------------------------


@pytest.fixture
def two(course, tmp_path):
    """A course of its own, with two submissions."""
    for part in ("source", "release"):
        shutil.copytree(course / part, tmp_path / part)
    for name, q1 in (("right", DOUBLE), ("near", "def double(x):\n    return 2 * x if x else 1\n")):
        path = tmp_path / "submissions" / name / "a9-small.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(nbformat.writes(answered(course, q1=q1)), encoding="utf-8")
    return tmp_path


def words_of(page):
    return html.unescape(re.sub("<[^>]+>", "", page))


def points(course):
    return {row["student"]: row["points"] for row in table(course, "grades.csv")}


def test_other_tests_are_asked_again_and_can_be_kept_from_the_pages(two):
    grade(two / "submissions", two)
    assert points(two) == {"right": "5", "near": "3"}
    text = TEXT.replace("(-3, 0, 10**6)", "(-3, 7, 10**6)").replace("[-6, 0,", "[-6, 14,")
    (two / "a9-small.md").write_text(text, encoding="utf-8")
    make([two / "a9-small.md"], two)
    words = grade(two / "submissions", two, "--hide-tests")
    assert "[2/2]" in words and points(two) == {"right": "5", "near": "5"}
    (two / "a9-small.md").write_text(TEXT, encoding="utf-8")
    make([two / "a9-small.md"], two)
    words = grade(two / "submissions", two, "--hide-tests")
    assert "[2/2]" in words and points(two) == {"right": "5", "near": "3"}
    page = (two / "grading/feedback/near/a9-small/a9-small.html").read_text(encoding="utf-8")
    assert "AssertionError" in page and "10**6" not in words_of(page) and "HIDDEN" not in page
    shutil.copytree(two / "submissions", two / "fewer")
    shutil.rmtree(two / "fewer/near")
    grade(two / "fewer", two)  # another page is of the other kind now
    assert "10**6" in words_of((two / "grading/feedback/right/a9-small/a9-small.html").read_text())
    grade(two / "submissions", two, "--hide-tests")
    for name in ("right", "near"):
        page = (two / f"grading/feedback/{name}/a9-small/a9-small.html").read_text("utf-8")
        assert "10**6" not in words_of(page)
    assert "2 unchanged" in grade(two / "submissions", two)  # and the pages have the tests again
    page = (two / "grading/feedback/near/a9-small/a9-small.html").read_text(encoding="utf-8")
    assert "10**6" in words_of(page) and "BEGIN HIDDEN TESTS" in page


def test_a_call_that_is_ended_while_it_takes_in_other_tests_marks_with_them_in_the_end(two):
    grade(two / "submissions", two)
    text = TEXT.replace("(-3, 0, 10**6)", "(-3, 7, 10**6)").replace("[-6, 0,", "[-6, 14,")
    (two / "a9-small.md").write_text(text, encoding="utf-8")
    make([two / "a9-small.md"], two)
    told = two / "grading/source/a9-small/a9-small.ipynb"
    before = told.read_bytes()
    command = [sys.executable, ROOT / "book/grade.py", two / "submissions"]
    command += ["--out", two / "grading", "--sources", two / "source"]
    command += [] if confine.version() else ["--trust"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE) as process:
        while told.read_bytes() == before and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    grade(two / "submissions", two)
    assert points(two) == {"right": "5", "near": "5"}


def test_a_call_that_is_ended_keeps_what_it_has_and_leaves_nothing_running(course, two):
    path = two / "submissions/sleeps/a9-small.ipynb"
    path.parent.mkdir()
    sleeps = f"import time\ntime.sleep(987)\n{DOUBLE}"
    path.write_text(nbformat.writes(answered(course, q1=sleeps)), encoding="utf-8")
    command = [sys.executable, ROOT / "book/grade.py", two / "submissions", "--jobs", 2]
    command += ["--out", two / "grading", "--sources", two / "source"]
    command += [] if confine.version() else ["--trust"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("[2/3]"):
                break
        assert "another call is marking" in grade(two / "submissions", two, expect=2)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "grade: stopped: 2 of 3 marked, the same call goes on from there\n"
    mine = str(two).encode()
    for running in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = running.read_bytes()
            assert mine not in words and not (b"mark-" in words and b"confine" in words)
    words = grade(two / "submissions", two, "--seconds", 3)
    assert "2 unchanged since the last call" in words and "[1/1] sleeps" in words
    assert points(two) == {"right": "5", "near": "3", "sleeps": "3"}


def test_who_asks_a_process_that_was_ended_is_told_so(tmp_path):
    with grading.Loaded() as loaded:
        copied = loaded.start(tmp_path, "ann", "a9-small", 1)
        assert copied.pid not in (os.getpid(), loaded.process.pid)
        loaded.process.kill()
        assert copied.ended(within=60)  # nothing goes on marking
        copied.end()
        shutil.rmtree(tmp_path / "own")
        with pytest.raises(RuntimeError, match="could not be loaded, or was ended"):
            loaded.start(tmp_path, "ann", "a9-small", 1)


def test_an_interrupt_that_python_swallows_ends_the_call_all_the_same(monkeypatch, capsys):
    """One that comes while it cleans up is reported and forgotten; the event is not."""

    def interrupted(*_):
        with pytest.raises(KeyboardInterrupt):
            grading.stop(signal.SIGINT, None)
        raise grading.Stopped

    blank = nbformat.v4.new_notebook()
    one = Submission("ann", Path("x"), assignment="a9-small", notebook=blank)
    monkeypatch.setattr(grading, "mark", interrupted)
    monkeypatch.setattr(grading, "STOP", threading.Event())
    swept = []  # the real one would end what other tests started, a browser among it
    monkeypatch.setattr(grading, "sweep", lambda: swept.append(1))
    settings = grading.Settings(Path("x"))
    with pytest.raises(KeyboardInterrupt, match="0 of 1 marked"):
        grading.mark_all([one], [one], {"a9-small": None}, {}, settings, 1)
    assert grading.STOP.is_set() and swept


def test_a_page_of_very_many_tags_is_shown_as_text_and_no_address_holds_a_page():
    assert safe_html("<div>" * 6000).startswith("<pre>&lt;div&gt;")
    assert "data:" not in safe_html('<a href="data:text/html,<script>">x</a>')
    assert 'src="data:image/png;base64,AA"' in safe_html('<img src="data:image/png;base64,AA">')
