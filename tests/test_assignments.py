"""Assignments are fair: solutions earn all points, blanks none, each wrong answer loses its own."""

from __future__ import annotations

import ast
import contextlib
import csv
import importlib
import io
import re
import shutil
import subprocess
import symtable
import sys

import confine
import nbformat
import pytest
from assign import OUT, exemplary, make, texts
from collect import fill, question
from conftest import ROOT

import vitmini as vm

HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS\n?", re.S)
TEXTS = {path.stem: path for path in texts()}
each_assignment = pytest.mark.parametrize("name", TEXTS)


def source(name):
    return nbformat.read(OUT / "source" / name / f"{name}.ipynb", as_version=4)


def release(name):
    return nbformat.read(OUT / "release" / name / f"{name}.ipynb", as_version=4)


def about(cell):
    return cell.metadata.get("nbgrader", {})


def code(notebook):
    """The code cells behind the set-up: what a student runs."""
    return [c for c in notebook.cells if c.cell_type == "code" and "find_spec" not in c.source]


def checks(notebook):
    return {about(c)["grade_id"]: c for c in code(notebook) if about(c).get("grade")}


def wrong_answers(name):
    return importlib.import_module(f"wrong_answers.{name.replace('-', '_')}").WRONG


def play(cells, names=None):
    """Run cells as a kernel would; give the names, and what each check that failed said."""
    names = {"vm": vm, "profile": vm.profiles.Profile("ci", "cpu")} if names is None else names
    failed = {}
    for cell in cells:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                exec(compile(cell.source, about(cell).get("grade_id", "cell"), "exec"), names)
            except Exception as error:
                failed[about(cell).get("grade_id", cell.source[:40])] = error
    return names, failed


@pytest.fixture(scope="module")
def solved():
    """The names that an assignment's own solution leaves, worked out once."""
    known = {}

    def names_of(name):
        if name not in known:
            known[name] = play(code(source(name)))
        return known[name]

    return names_of


def test_the_notebooks_are_made_from_the_texts(tmp_path):
    make(list(TEXTS.values()), tmp_path)
    for path in sorted(tmp_path.rglob("*.ipynb")):
        stored = OUT / path.relative_to(tmp_path)
        assert stored.read_text() == path.read_text(), f"{stored.name}: run make assignments"
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.ipynb")}
    kept = {p.relative_to(OUT) for part in ("source", "release") for p in (OUT / part).rglob("*")}
    assert made == {path for path in kept if path.suffix == ".ipynb"}


@each_assignment
def test_what_students_get_has_no_solutions_no_hidden_tests_and_no_marking_scheme(name):
    text = "\n".join(cell.source for cell in release(name).cells)
    for word in ("SOLUTION", "HIDDEN TESTS", "MARK SCHEME"):
        assert f"BEGIN {word}" not in text and f"END {word}" not in text
    for cell in release(name).cells:
        if about(cell).get("solution") and cell.cell_type == "code":
            assert "# YOUR CODE HERE" in cell.source and "raise NotImplementedError" in cell.source
        assert "outputs" not in cell or not cell.outputs


@each_assignment
def test_an_assignment_has_points_hours_an_open_question_and_a_stretch_task(name):
    notebook = release(name)
    facts = re.search(
        r"(\d+) points · about (\d+) hours? · after chapters? ", notebook.cells[0].source
    )
    by_hand = [c for c in notebook.cells if c.cell_type == "markdown" and about(c).get("points")]
    assert facts and by_hand
    total = sum(about(cell).get("points", 0) for cell in notebook.cells)
    assert int(facts[1]) == total
    if name != "capstone":
        assert 3 <= int(facts[2]) <= 6
        assert any(key.endswith("stretch-check") for key in checks(notebook))
    headings = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for cell in notebook.cells:
        if about(cell).get("points"):
            title = f"## {question(about(cell)['grade_id'])}. "
            points = about(cell)["points"]
            line = next(line for line in headings.splitlines() if line.startswith(title))
            assert line.endswith(f"({points} point{'s' * (points != 1)})"), line


@each_assignment
def test_checks_say_what_is_wrong_and_hold_more_than_they_show(name):
    for key, cell in checks(source(name)).items():
        hidden = "".join(HIDDEN.findall(cell.source))
        shown = HIDDEN.sub("", cell.source)
        asserts = [n for n in ast.walk(ast.parse(shown)) if isinstance(n, ast.Assert)]
        assert asserts and all(n.msg is not None for n in asserts), f"{key} asserts without a word"
        assert "assert" in hidden or "raise" in hidden, f"{key} hides nothing"
        assert not isinstance(ast.parse(cell.source).body[-1], ast.Expr), f"{key} shows a value"


@each_assignment
def test_the_solution_earns_all_points(name, solved):
    _, failed = solved(name)
    assert not failed, failed


@each_assignment
def test_the_blank_earns_nothing_and_goes_through(name):
    official = checks(source(name))
    blank = [official.get(about(c).get("grade_id"), c) for c in code(release(name))]
    _, failed = play(blank)
    assert set(official) <= set(failed), "a check passes without an answer"
    for key in set(failed) - set(official):  # a stub that is no function stops where it stands
        assert isinstance(failed[key], NotImplementedError), f"{key} crashes without answers"


def global_names(text):
    """Which global names a cell reads, and which it makes."""
    read, made, todo = set(), set(), [symtable.symtable(text, "cell", "exec")]
    while todo:
        table = todo.pop()
        todo += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() == "module":
                binds = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
                made |= {symbol.get_name()} if binds else set()
                read |= {symbol.get_name()} if symbol.is_referenced() else set()
            elif symbol.is_global() and symbol.is_referenced():
                read.add(symbol.get_name())
    return read, made


@each_assignment
def test_no_question_uses_the_answer_to_another(name):
    """So a wrong answer cannot lose the points of another question."""
    cells = {about(c)["grade_id"]: global_names(c.source) for c in code(source(name))}
    for key in [key for key in cells if f"{key}-check" in cells]:
        for other, (read, made) in cells.items():
            if other not in (key, f"{key}-check"):
                answered = cells.get(other.removesuffix("-check"), (set(), set()))[1]
                shared = (cells[key][1] & read) - made - answered
                assert not shared, f"{other} uses {shared} of {key}"


@each_assignment
def test_each_wrong_answer_loses_its_question(name, solved):
    names, _ = solved(name)
    found, official = wrong_answers(name), checks(source(name))
    short = name.split("-")[0]
    assert {f"{short}-{key}-check" for key in found} == set(official)
    for key, ideas in found.items():
        assert len(ideas) >= 3, f"{key} has {len(ideas)} wrong answers"
        check = official[f"{short}-{key}-check"]
        shown = nbformat.v4.new_code_cell(HIDDEN.sub("", check.source))
        tried = ([nbformat.v4.new_code_cell(text), shown] for text in ideas.values())
        assert not all(play(cells, dict(names))[1] for cells in tried), (
            f"{key}: what its hidden tests find, the visible ones find as well"
        )
        for idea, text in ideas.items():
            cells = [nbformat.v4.new_code_cell(text), official[f"{short}-{key}-check"]]
            _, failed = play(cells, dict(names))
            assert list(failed) == [f"{short}-{key}-check"], f"{name} {key}: {idea}: {failed}"
            error = failed[f"{short}-{key}-check"]
            assert str(error) and not isinstance(error, (NotImplementedError, SyntaxError)), idea


@pytest.mark.parametrize("text", texts(ROOT / "book/assignments/exemplary"), ids=lambda p: p.stem)
def test_an_exemplary_submission_is_its_text_in_the_released_notebook_run_to_the_end(text):
    stored = nbformat.read(OUT / "exemplary" / f"{text.stem}.ipynb", as_version=4)
    wanted = exemplary(text, release(text.stem))
    assert [c.source for c in stored.cells] == [c.source for c in wanted.cells]
    counts = [c.execution_count for c in stored.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for c in code(stored) for output in c.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)


# By nbgrader itself -----------------------------------------------------------------------------


BLANK = "a1-tokens"  # that others give nothing either, test_the_blank_earns_nothing has tried


def partly_right(name):
    """A source with a wrong answer; every second other one and all words are missing.

    And the points that this costs of those that a machine gives.
    """
    notebook, short = source(name), name.split("-")[0]
    found = wrong_answers(name)
    wrong = list(found)[len(found) // 2 - 1]
    missing = {f"{short}-{key}" for key in [key for key in found if key != wrong][::2]}
    blanks = {about(c).get("grade_id"): c.source for c in release(name).cells}
    for cell in notebook.cells:
        key = about(cell).get("grade_id")
        if key == f"{short}-{wrong}":
            cell.source = next(iter(found[wrong].values()))
        elif key in missing or (cell.cell_type == "markdown" and about(cell).get("solution")):
            cell.source = blanks[key]
    lost = [f"{key}-check" for key in {f"{short}-{wrong}", *missing}]
    return notebook, sum(about(checks(notebook)[key])["points"] for key in lost)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """All sources, a blank, and of each assignment one that is partly right, marked in one call."""
    folder = tmp_path_factory.mktemp("marked")
    lost = {}

    def hand_in(student, name, notebook):
        path = folder / "submissions" / student / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)

    hand_in("blank", BLANK, release(BLANK))
    for name in TEXTS:
        hand_in("solution", name, source(name))
        notebook, lost[name] = partly_right(name)
        hand_in("partly", name, notebook)
    for path in (OUT / "exemplary").glob("*.ipynb"):
        handed_in = folder / "submissions/exemplary" / path.name
        handed_in.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, handed_in)
    command = [sys.executable, ROOT / "book/grade.py", folder / "submissions", "--jobs", "2"]
    command += ["--out", folder / "grading", "--seconds", "240"]
    command += [] if confine.version() else ["--trust"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    with (folder / "grading/grades.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = {(r["student"], r["assignment"]): r for r in csv.DictReader(file)}
    yield rows, lost
    shutil.rmtree(folder)


def by_machine(name):
    return sum(about(cell)["points"] for cell in checks(release(name)).values())


@each_assignment
def test_nbgrader_gives_the_source_full_marks(marked, name):
    solution = marked[0]["solution", name]
    assert float(solution["points"]) == by_machine(name), solution
    assert int(solution["to mark by hand"]) >= 1


def test_nbgrader_gives_the_blank_none(marked):
    blank = marked[0]["blank", BLANK]
    assert float(blank["points"]) == 0 and blank["to mark by hand"] == "0", blank


def test_nbgrader_gives_the_exemplary_capstone_what_a_machine_can_give(marked):
    row = marked[0]["exemplary", "capstone"]
    assert float(row["points"]) == by_machine("capstone") and row["to mark by hand"] == "5", row


@each_assignment
def test_nbgrader_takes_the_points_of_wrong_and_missing_answers_and_no_others(marked, name):
    rows, lost = marked
    row = rows["partly", name]
    assert float(row["points"]) == by_machine(name) - lost[name] < by_machine(name), row
    assert row["to mark by hand"] == "0", row


@each_assignment
def test_a_source_handed_in_is_filled_into_the_release_without_loss(name):
    cells = [
        {"kind": c.cell_type, "source": c.source, "id": "", "key": about(c).get("grade_id", "")}
        for c in source(name).cells
    ]
    filled, _ = fill(release(name), cells)
    mine = {about(c)["grade_id"]: c.source for c in filled.cells if about(c).get("solution")}
    wanted = {
        about(c)["grade_id"]: c.source for c in source(name).cells if about(c).get("solution")
    }
    assert mine == wanted
