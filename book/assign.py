"""Write notebooks/assignments from book/assignments/*.md, with nbgrader.

    python book/assign.py [ASSIGNMENT ...]       write source/ and release/, and try the sources
    python book/assign.py --inputs               write only
    python book/assign.py --again                run the exemplary submissions again, too
    python book/assign.py --texts DIR --out DIR  a teacher's own copy, with tests of one's own

An assignment is MyST text, like a chapter. Its cells say what they are:

    ---                   an answer: code between ### BEGIN SOLUTION and ### END SOLUTION
    answer: q1
    ---
    ---                   its check, with ### BEGIN HIDDEN TESTS and ### END HIDDEN TESTS
    check: q1
    points: 6
    ---
    +++ {"answer": "q6", "points": 8}            an answer in words, marked by a person

The head may hold `rules` of its own, where those of `RULES` do not fit. nbgrader makes what
students get of it: without solutions, hidden tests and marking schemes.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from generate import KERNEL, ROOT, code_cell, execute, links, text_cell, write_whole
from nbformat import NotebookNode

TEXTS = ROOT / "book" / "assignments"
OUT = ROOT / "notebooks" / "assignments"
RULES = """\
**How to work.** Write where it says `# YOUR CODE HERE`, and take away the `raise` below it. \
Then run the check below your answer: it says nothing when all is well, and what is wrong \
otherwise. When your work is marked, each check also tries other shapes, other random numbers, \
and everything else that the text asks for. Questions do not build on your answers to earlier \
ones, so leave out what you cannot do. Add cells wherever you like. Cells with checks are put back \
as they were before marking."""
STATEMENT = """\
**Name:** …

**Statement.** What I hand in is my own work. People, pages and programs that helped me, and with \
what: …"""
HAND_IN = """\
## Before you hand in

1. Fill in your name and the statement at the top.
2. Run everything from a fresh start: *Runtime, Restart session and run all* on Colab, *Kernel, \
Restart and run all* elsewhere. Every check that you want points for must pass now.
3. Download the notebook (*File, Download, Download .ipynb*) and hand in this one file, under the \
name that it has."""


def texts(folder: Path = TEXTS) -> list[Path]:
    return sorted(folder.glob("*.md"))


def build(text: Path) -> NotebookNode:
    """The notebook with solutions, hidden tests and marking schemes, in nbgrader's format.

    Raises: `ValueError` when points do not add up, or cells are not what they say.
    """
    name, source = text.stem, jupytext.read(text, fmt="md:myst")
    about = source.metadata["assignment"]
    cells = [to_cell(name, cell) for cell in source.cells]
    check(name, cells, about["points"])
    title, _, rest = cells[0].source.partition("\n")
    cells[0].source = f"{title}\n\n{facts(name, about)}\n{rest}"
    make = nbformat.v4.new_markdown_cell
    cells[1:1] = [make(about.get("rules", RULES)), make(STATEMENT)]
    cells.append(make(HAND_IN))
    for i, cell in enumerate(cells):
        cell.id = f"{name}-{i:02d}"
        if cell.cell_type == "code" and not cell.metadata:
            cell.metadata = nbgrader(cell.id)
    metadata = {
        "kernelspec": KERNEL,
        "language_info": {"name": "python"},
        "vitmini": {"assignment": name},
    }
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    notebook.nbformat_minor = 5
    return notebook


def to_cell(name: str, cell: NotebookNode) -> NotebookNode:
    """A cell of the text as one of the notebook, with what nbgrader wants to know of it."""
    short, given = name.split("-")[0], dict(cell.metadata)
    answer, question = given.get("answer"), given.get("answer") or given.get("check")
    number = str(question).removeprefix("q").replace("stretch", "Stretch task")
    number = number if number.startswith("S") else f"Question {number}"
    if cell.cell_type == "code":
        source = code_cell(cell.source)
        if answer:
            source = f"# {number}: your answer\n{source}"
            metadata = nbgrader(f"{short}-{answer}", solution=True)
        elif question:
            points = f"{given['points']} point{'s' * (given['points'] != 1)}"
            source = f"# {number}: its check, {points}. Leave this cell as it is.\n{source}"
            metadata = nbgrader(f"{short}-{question}-check", grade=True, points=given["points"])
        else:
            metadata = {}
        return nbformat.v4.new_code_cell(source, metadata=metadata)
    metadata = {}
    if answer:
        metadata = nbgrader(
            f"{short}-{answer}", grade=True, solution=True, points=given.get("points", 0)
        )
    return nbformat.v4.new_markdown_cell(text_cell(cell.source), metadata=metadata)


def nbgrader(grade_id: str, grade: bool = False, solution: bool = False, points: int = 0) -> dict:
    about: dict[str, Any] = {"schema_version": 3, "grade_id": grade_id, "grade": grade}
    about |= {"solution": solution, "locked": not solution, "task": False}
    return {"nbgrader": about | ({"points": points} if grade else {})}


def facts(name: str, about: dict) -> str:
    where = f"{links()['colab']}/assignments/release/{name}/{name}.ipynb"
    after = ", ".join(str(chapter) for chapter in about["after"])
    book = f"[the book]({links()['book']})"
    return (
        f"{about['points']} points · about {about['hours']} hour{'s' * (about['hours'] != 1)} · "
        f"after chapter{'s' * (len(about['after']) > 1)} {after} of {book} · "
        f"[open in Colab]({where})"
    )


def check(name: str, cells: list[NotebookNode], points: int) -> None:
    """Refuse an assignment whose points do not add up or whose cells contradict each other."""
    found = [c.metadata["nbgrader"] for c in cells if c.metadata]
    ids = [about["grade_id"] for about in found]
    if twice := {i for i in ids if ids.count(i) > 1}:
        raise ValueError(f"{name}: {twice.pop()} stands there twice")
    total = sum(about.get("points", 0) for about in found)
    if total != points:
        raise ValueError(f"{name}: its head says {points} points, the questions add up to {total}")
    for cell in cells:
        if not cell.metadata:
            continue
        about, kind = cell.metadata["nbgrader"], cell.cell_type
        for word, wanted in (
            ("SOLUTION", kind == "code" and about["solution"]),
            ("HIDDEN TESTS", kind == "code" and about["grade"]),
            ("MARK SCHEME", kind == "markdown" and about["grade"] and about["points"]),
        ):
            ends = [cell.source.count(f"{end} {word}") for end in ("BEGIN", "END")]
            if ends[0] != ends[1] or (wanted and not ends[0]) or (ends[0] and not wanted):
                raise ValueError(f"{name}: {about['grade_id']} has {ends[0]} BEGIN {word}")
        if kind == "code" and about["solution"] and f"{about['grade_id']}-check" not in ids:
            raise ValueError(f"{name}: {about['grade_id']} has no check")


# nbgrader ------------------------------------------------------------------------------------


def config(root: Path, quiet: bool = True, **more: Any) -> Any:
    """nbgrader's settings for the folder of a course; `more` are sections with their values."""
    from traitlets.config import Config

    settings = Config()
    settings.CourseDirectory.root = str(root.resolve())
    settings.CourseDirectory.course_id = "vitmini"
    settings.CourseDirectory.db_url = f"sqlite:///{root.resolve()}/gradebook.db"
    settings.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError"}
    settings.ClearSolutions.text_stub = "*Your answer here.*"
    settings.KernelManager.transport = "ipc"  # sockets in files: no port that a neighbour reaches
    settings.IncludeHeaderFooter.header = settings.IncludeHeaderFooter.footer = ""
    for section, values in more.items():
        settings[section].update(values)
    tools = str(Path(sys.executable).parent)  # nbgrader calls alembic, by its name
    if tools not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([tools, os.environ["PATH"]])
    api: Any = importlib.import_module("nbgrader.api")
    api.get_alembic_version = alembic_head  # its own starts another Python, for each access
    if quiet:
        logging.getLogger("traitlets").setLevel(logging.ERROR)
    return settings


@functools.cache
def alembic_head() -> str:
    """The version of the gradebook's tables that this nbgrader works with."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from nbgrader.dbutil import _temp_alembic_ini

    with _temp_alembic_ini("sqlite://") as path:
        return str(ScriptDirectory.from_config(Config(path)).get_current_head())


def release(source: NotebookNode, course: Path, **more: Any) -> Path:
    """Let nbgrader make what students get, and note the cells in the gradebook of `course`.

    Raises: `ValueError` with nbgrader's words when it refuses.
    """
    from nbgrader.apps import NbGraderAPI

    name = source.metadata["vitmini"]["assignment"]
    folder = course / "source" / name
    folder.mkdir(parents=True, exist_ok=True)
    # an end between here and there leaves a source without a release, so that it is made again
    (course / "release" / name / f"{name}.ipynb").unlink(missing_ok=True)
    write(source, folder / f"{name}.ipynb")
    done = NbGraderAPI(config=config(course, **more)).generate_assignment(name, force=True)
    if not done["success"]:
        raise ValueError(f"nbgrader refuses {name}: {last_line(done)}")
    path = course / "release" / name / f"{name}.ipynb"
    write(nbformat.read(path, as_version=4), path)
    return path


def last_line(done: dict) -> str:
    """The line of nbgrader's log that names the cause; its last one only points at others."""
    told = f"{done.get('log')}\n{done.get('error')}".splitlines()
    words = [w.strip() for w in told if w.strip()]
    words = [w for w in words if "Please see the the above" not in w] or words
    words = [
        w for w in words if re.match(r"[\w.]+(Error|Exception|Invalid\w*|NotFound)\b", w)
    ] or words
    return words[-1] if words else "no reason given"


def write(notebook: NotebookNode, path: Path) -> None:
    notebook.nbformat_minor = 5
    write_whole(path, nbformat.writes(notebook) + "\n")


def make(chosen: list[Path], out: Path = OUT) -> None:
    """Write source and release of the chosen assignments; all of them are written, or none."""
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        for text in chosen:
            release(build(text), course)
        for text in chosen:
            for part in ("source", "release"):
                path = out / part / text.stem
                path.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(
                    course / part / path.name / f"{path.name}.ipynb", path / f"{path.name}.ipynb"
                )
    for text in chosen:
        print(f"{text.stem}: written")


# Exemplary submissions ---------------------------------------------------------------------------


def exemplary(text: Path, given_out: NotebookNode) -> NotebookNode:
    """The released notebook with the answers of a text, as a student would hand it in.

    Raises: `ValueError` when an answer is missing.
    """
    source = jupytext.read(text, fmt="md:myst")
    cells = [to_cell(text.stem, cell) for cell in source.cells]
    answers = {c.metadata["nbgrader"]["grade_id"]: c.source for c in cells if c.metadata}
    filled = copy.deepcopy(given_out)
    for cell in filled.cells:
        about = cell.metadata.get("nbgrader", {})
        if about.get("solution"):
            if about["grade_id"] not in answers:
                raise ValueError(f"{text.name}: no answer to {about['grade_id']}")
            cell.source = answers[about["grade_id"]]
    return filled


def write_exemplary(text: Path, out: Path, run: bool, again: bool) -> str:
    """Write an exemplary submission; run it where it changed, and keep its outputs otherwise."""
    given_out = nbformat.read(out / "release" / text.stem / f"{text.stem}.ipynb", as_version=4)
    notebook = exemplary(text, given_out)
    path = out / "exemplary" / f"{text.stem}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not again:
        old = nbformat.read(path, as_version=4)
        if [c.source for c in old.cells] == [c.source for c in notebook.cells]:
            return "unchanged"
    if not run:
        return "to be run: make assignments"
    record = execute(notebook)
    notebook.metadata["vitmini"] |= record
    write(notebook, path)
    return f"run in {record['seconds']} s"


def move_exemplary() -> None:
    """Bring the public address in exemplary submissions up to date; outputs stay."""
    for text in texts(TEXTS / "exemplary"):
        path = OUT / "exemplary" / f"{text.stem}.ipynb"
        given_out = nbformat.read(OUT / "release" / text.stem / path.name, as_version=4)
        stored = nbformat.read(path, as_version=4)
        for cell, wanted in zip(stored.cells, exemplary(text, given_out).cells, strict=True):
            cell.source, cell.metadata = wanted.source, wanted.metadata
        write(stored, path)


def validate(path: Path) -> list[str]:
    """Run a source with nbgrader's validator; say which of its checks its own solutions fail."""
    from nbgrader.validator import Validator

    os.environ.setdefault("VITMINI_PROFILE", "ci")  # as when it is marked
    settings = config(path.parent)
    settings.Execute.timeout = 300
    found = Validator(config=settings, ignore_checksums=True).validate(str(path))
    words = []
    for failed in found.get("failed", []):
        where = re.sub(r"^# |: its check.*", "", failed["source"].splitlines()[0])
        words.append(f"{where}: {failed['error'].strip().splitlines()[-1]}")
    return words


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the assignments' notebooks.")
    parser.add_argument("assignment", nargs="*", help="only these: a1-tokens")
    parser.add_argument("--inputs", action="store_true", help="write them, try nothing")
    parser.add_argument("--again", action="store_true", help="exemplary submissions, too")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="where the texts are")
    parser.add_argument("--out", type=Path, default=OUT, help="where source/ and release/ go")
    args = parser.parse_args()
    try:
        known = {text.stem: text for text in texts(args.texts)}
        if unknown := set(args.assignment) - set(known):
            raise ValueError(
                f"no assignment {unknown.pop()!r}: choose from {', '.join(known) or 'none'}"
            )
        chosen = [known[name] for name in args.assignment] or list(known.values())
        make(chosen, args.out)
        for text in texts(args.texts / "exemplary"):
            if text.stem in {one.stem for one in chosen}:
                told = write_exemplary(text, args.out, not args.inputs, args.again)
                print(f"{text.stem}, exemplary submission: {told}", flush=True)
        if not args.inputs:
            for text in chosen:
                if failed := validate(args.out / "source" / text.stem / f"{text.stem}.ipynb"):
                    raise ValueError(f"{text.stem}: the solution fails. {'; '.join(failed)}")
                print(f"{text.stem}: its solutions pass all checks", flush=True)
    except ValueError as error:
        print(f"assign: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
