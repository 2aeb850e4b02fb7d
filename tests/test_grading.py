"""Marking survives what students hand in: one call marks thirty files, of which many are bad."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import confine
import nbformat
import pytest
from assign import build, make
from conftest import ROOT

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

    for i in range(11):
        student(f"right-{i}")
    put("blank/a9-small.ipynb", released(course))
    student("wrong", q1="def double(x):\n    return x + 2\n")
    student("syntax", q1="def double(x)\n    return 2 x\n")
    student("loop", q1="def double(x):\n    while True:\n        pass\n")
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True:\n    pass\n"
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
        [*map(str, command), *map(str, options), *walls], capture_output=True, text=True, cwd=course
    )
    assert done.returncode == expect, done.stderr[-2000:]
    return done.stdout if not expect else done.stderr


def table(course, name):
    with (course / "grading" / name).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def marked(course):
    hand_in(course / "submissions", course)
    words = grade(
        course / "submissions", course, "--jobs", 2, "--seconds", 4, "--memory", 3, "--again"
    )
    return words, {row["student"]: row for row in table(course, "grades.csv")}


RIGHT = ("split", "above", "lambda", "under", "more", "warns", "pid", "exits", "leaves")
RIGHT += (
    "anna1",
    "Anna-Maier",
    "right-0",
    "right-10",
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
        ("edited", "3", "Question 1: its check was edited, and is put back"),
        ("Anna-Maier-2", "2", "another Anna-Maier handed in as well"),
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
    ],
)
def test_a_file_that_cannot_be_read_is_in_the_table_with_the_reason(marked, name, words):
    row = marked[1][name]
    assert row["points"] == "" and words in row["notes"]
    assert f"{name}: {words}" in marked[0]


def test_one_call_marks_them_all_with_progress_and_sums_up(marked):
    lines = marked[0].splitlines()
    assert len(marked[1]) >= 32
    assert sum(line.startswith("[") for line in lines) == len(marked[1]) - 3
    assert f"{len(marked[1])} submissions: {len(marked[1]) - 3} marked, 3 not" in lines[-1]


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
        if row["student"] == "right-10":
            row["points"], row["comment"] = "3,5", "schön"
    with path.open("w", newline="", encoding="cp1252") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    grade(course / "submissions", course)
    row = next(row for row in table(course, "grades.csv") if row["student"] == "right-10")
    assert row["points"] == "8.5"
    assert "schön".encode("cp1252") in path.with_suffix(".csv.bak").read_bytes()


def test_a_mark_by_hand_is_for_the_answer_that_was_read(marked, course):
    path = course / "submissions/right-9/a9-small.ipynb"
    rows = table(course, "by-hand.csv")
    for row in rows:
        row["points"] = "5" if row["student"] == "right-9" else row["points"]
    with (course / "grading/by-hand.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    grade(course / "submissions", course)
    path.write_text(nbformat.writes(answered(course, q3="Something else.")), encoding="utf-8")
    words = grade(course / "submissions", course)
    row = next(row for row in table(course, "grades.csv") if row["student"] == "right-9")
    assert "[1/1] right-9" in words
    assert (row["points"], row["to mark by hand"]) == ("5", "1"), row


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
