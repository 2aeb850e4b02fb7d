"""Mark what students handed in: points, feedback pages and tables, with nbgrader.

    make grade SUBMISSIONS=folder                the same, with the course's environment
    python book/grade.py FOLDER [--out grading]  a folder or a .zip, as Canvas and Moodle give it

Each submission is put into a clean copy of the assignment and run in a process of its own, which
reads and writes nothing but a folder of its own. One that kills its process is run again, question
by question. A second call marks what is new; marks written by hand into by-hand.csv are taken over.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import ctypes
import io
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import confine
import nbformat
from assign import OUT, config, last_line, release, write
from collect import Submission, blank, collect, question, shown, there
from generate import ROOT
from nbformat import NotebookNode

KERNEL = "vitmini-marking"
LONGEST_OUTPUT = 20_000
GRADES = ("student", "assignment", "points", "of", "to mark by hand", "file", "notes")
BY_HAND = ("student", "assignment", "question", "of", "points", "comment", "answer")


@dataclass
class Settings:
    """How one submission is run."""

    out: Path
    seconds: float = 60
    memory: float = 6
    trust: bool = False


@dataclass
class Marked:
    """What came of one submission: points by question (None: a person has to look), and notes."""

    points: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    notebook: NotebookNode | None = None
    seconds: float = 0


# One submission ----------------------------------------------------------------------------------


def mark(one: Submission, blank_release: NotebookNode, settings: Settings) -> Marked:
    """Run one submission; where its code ends the process, run it again question by question."""
    assert one.notebook is not None
    start = time.monotonic()
    marked = run(one, one.notebook, settings)
    if marked.notebook is None:
        plain = without_own_cells(one.notebook)
        if len(plain.cells) < len(one.notebook.cells):
            again = run(one, plain, settings)
            if again.notebook is not None:
                again.notes.append(f"own cells left out: with them it {marked.notes[-1]}")
                marked = again
    if marked.notebook is None:
        keys = [c.metadata["nbgrader"]["grade_id"] for c in answers(blank_release)]
        whole, marked = marked.notes, Marked()
        for key in keys:
            part = run(one, blank(plain, blank_release, key), settings)
            mine = {k: v for k, v in part.points.items() if k.removesuffix("-check") == key}
            if part.notebook is None:
                mine = {f"{key}-check": 0.0, key: None}  # an answer in words waits for a person
                marked.notes.append(f"{question(key)}: {part.notes[-1]}")
            else:
                marked.notes += [n for n in part.notes if n.startswith(f"{question(key)}:")]
                marked.notebook = merged(marked.notebook, part.notebook, key)
            marked.points |= mine
        if marked.notebook is None:
            marked = Marked(notes=whole)
    marked.seconds = time.monotonic() - start
    return marked


def without_own_cells(notebook: NotebookNode) -> NotebookNode:
    """A copy with the assignment's cells only."""
    copied = copy.deepcopy(notebook)
    copied.cells = [
        c for c in copied.cells if c.cell_type == "markdown" or c.metadata.get("nbgrader")
    ]
    return copied


def answers(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")]


def merged(whole: NotebookNode | None, part: NotebookNode, key: str) -> NotebookNode:
    """Take a question's cells over from the run in which it was the only one answered."""
    if whole is None:
        return part
    mine = {c.metadata.get("nbgrader", {}).get("grade_id"): c for c in part.cells}
    for i, cell in enumerate(whole.cells):
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id in (key, f"{key}-check"):
            whole.cells[i] = mine[grade_id]
    return whole


def run(one: Submission, notebook: NotebookNode, settings: Settings) -> Marked:
    """Let nbgrader mark a notebook, in a process that is ended when it takes too long."""
    with tempfile.TemporaryDirectory(prefix="mark-", ignore_cleanup_errors=True) as folder:
        place, name = Path(folder), one.assignment
        shutil.copyfile(settings.out / "gradebook.db", place / "gradebook.db")
        path = place / "submitted" / one.student / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        write(with_canary(notebook), path)
        (place / "source" / name).mkdir(parents=True)
        install_kernel(place, settings)
        command = [sys.executable, __file__, "--run", folder, one.student, name]
        with open(place / "log", "w+b") as log:
            process = subprocess.Popen(
                [*command, "--seconds", str(settings.seconds)],
                env=environment(place),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                process.wait(timeout=limit(settings))
            except subprocess.TimeoutExpired:
                pass
            finally:  # whatever it started
                for group in (process.pid, *kernels(place)):
                    kill(group)
                process.wait()
        told = place / "told.json"
        if not told.exists():
            return Marked(notes=[f"did not end within {limit(settings):.0f} seconds"])
        found = json.loads(told.read_text(encoding="utf-8"))
        if found["failed"]:
            return Marked(notes=[found["failed"]])
        autograded = place / "autograded" / one.student / name / f"{name}.ipynb"
        executed = shorten(nbformat.read(autograded, as_version=4))
        notes = suspicions(executed, found["points"])
        return Marked(found["points"], complaints(executed) + notes, executed)


def limit(settings: Settings) -> float:
    """The seconds for a whole notebook: the rest of it may take as long as a few endless loops."""
    return 120 + 5 * settings.seconds


CANARY = "raise AssertionError('a check that must fail')  # the last cell, taken away again"


def with_canary(notebook: NotebookNode) -> NotebookNode:
    """Add a check that must fail, to see whether checks still can."""
    notebook = copy.deepcopy(notebook)
    cell = nbformat.v4.new_code_cell(CANARY)
    cell.id = "canary"
    notebook.cells.append(cell)
    return notebook


def suspicions(executed: NotebookNode, points: dict[str, float | None]) -> list[str]:
    """Take the canary away; say where points were given that nobody can have earned."""
    notes = []
    canary = executed.cells.pop()
    if not any(o.output_type == "error" for o in canary.get("outputs", [])):
        notes.append("checks no longer fail in this notebook: look at it")
    for cell in answers(executed):
        key = cell.metadata["nbgrader"]["grade_id"]
        if "raise NotImplementedError" in cell.source and points.get(f"{key}-check"):
            notes.append(f"{question(key)}: passes without an answer of its own, look at it")
    return notes


def kernels(place: Path) -> list[int]:
    """The process groups of the kernels that ran here: each is the leader of its own."""
    path = place / "pid"  # beside the folder that the student's code can write in
    told = path.read_text(encoding="ascii") if path.exists() else ""
    return [int(told)] if told.isdigit() else []


def kill(group: int) -> None:
    if group <= 1 or group == os.getpgrp():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def environment(place: Path) -> dict[str, str]:
    """What the marking process, and so the student's code, gets to know of this machine."""
    own = place / "own"
    own.mkdir()
    kept = {k: v for k, v in os.environ.items() if k in ("LANG", "LC_ALL", "TZ", "VITMINI_PROFILE")}
    return (
        {"VITMINI_PROFILE": "ci"}
        | kept
        | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "HOME": str(own),
            "TMPDIR": str(own),
            "VITMINI_DATA": str(own),
            "JUPYTER_PATH": str(place / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(own),
            "MPLCONFIGDIR": font_cache(),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    )


def font_cache() -> str:
    import matplotlib

    return matplotlib.get_cachedir()


def install_kernel(place: Path, settings: Settings) -> None:
    """A kernel that starts behind walls: nbgrader stays outside, the student's code is inside."""
    own, prefixes = place / "own", {sys.prefix, sys.base_prefix, *site.getsitepackages()}
    library = Path(sysconfig.get_paths()["stdlib"])
    reads = [*prefixes, str(library), str(ROOT / "vitmini"), str(ROOT / "book/results")]
    reads += [str(Path(sys.executable).resolve().parent), font_cache()]
    command = [sys.executable, str(ROOT / "book" / "confine.py"), "--write", str(own)]
    command += [f"--read={path}" for path in dict.fromkeys(reads)]
    command += [f"--seconds={limit(settings):.0f}", f"--pid={place / 'pid'}"]
    command += ["--unconfined"] if settings.trust else []
    command += [f"--memory={settings.memory}", "--", sys.executable]
    command += ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": command, "display_name": KERNEL, "language": "python"}
    folder = place / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(about), encoding="utf-8")


def shorten(notebook: NotebookNode) -> NotebookNode:
    """Cut outputs that would make a page of feedback unreadable."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = _short(output.text)
            for kind, value in output.get("data", {}).items():
                if isinstance(value, str) and len(value) > 100 * LONGEST_OUTPUT:
                    output.data[kind] = "... output left out, it is too large ..."
                elif isinstance(value, str) and kind.startswith("text/"):
                    output.data[kind] = _short(value)
            if "traceback" in output:
                output.traceback = [_short(line) for line in output.traceback]
                output.evalue = _short(output.evalue)
    return notebook


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_OUTPUT else f"{text[:LONGEST_OUTPUT]}\n... cut off here ..."


def complaints(executed: NotebookNode) -> list[str]:
    """What went wrong otherwise than by a failing check, for whoever reads the table."""
    notes: list[str] = []
    for cell in executed.cells:
        key = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        where = question(key) if key else "own cell"
        for output in cell.get("outputs", []):
            if output.output_type != "error" or output.ename in (
                *("AssertionError", "NotImplementedError", "WrongAnswer"),
            ):
                continue
            what = {"CellTimeoutError": "took too long", "KeyboardInterrupt": "took too long"}
            words = " ".join(f"{output.ename}: {output.evalue}".split())[:120]
            words = what.get(output.ename, words)
            if output.ename == "PermissionError":
                words += " (code may read and write in its own folder only)"
            if f"{where}: {words}" not in notes:
                notes.append(f"{where}: {words}")
    return notes


def run_nbgrader(place: Path, student: str, assignment: str, seconds: float) -> None:
    """Inside the process of its own: mark, and write down what came of it."""
    from nbconvert.preprocessors import ClearMetadataPreprocessor
    from nbgrader import preprocessors as steps
    from nbgrader.api import Gradebook
    from nbgrader.apps import NbGraderAPI

    class Quiet(steps.NbGraderPreprocessor):
        """A warning is no mistake: for nbgrader, all that a check writes to stderr is one."""

        def preprocess_cell(self, cell: Any, resources: Any, index: int) -> Any:
            for output in cell.get("outputs", []):
                if output.output_type == "stream":
                    output.name = "stdout"
            return cell, resources

    order = [steps.Execute, Quiet, steps.IgnorePattern, ClearMetadataPreprocessor]
    order += [steps.LimitOutput, steps.SaveAutoGrades, steps.AssignLatePenalties]
    execute = {"kernel_name": KERNEL, "timeout": int(seconds), "iopub_timeout": 60}
    more = {"autograde_preprocessors": [*order, steps.CheckCellMetadata]}
    sockets = {"ip": str(place / "own" / "kernel")}  # the kernel has another working folder
    settings = config(place, Execute=execute, KernelManager=sockets, Autograde=more)
    done = NbGraderAPI(config=settings).autograde(assignment, student, force=True)
    found: dict[str, Any] = {"failed": "" if done["success"] else why(done), "points": {}}
    if done["success"]:
        with Gradebook(settings.CourseDirectory.db_url, "vitmini") as book:
            notebook = book.find_submission_notebook(assignment, assignment, student)
            found["points"] = {g.name: g.auto_score for g in notebook.grades}
    (place / "told.json").write_text(json.dumps(found), encoding="utf-8")


def why(done: dict) -> str:
    log = str(done.get("log"))
    if "DeadKernelError" in log or "Kernel died" in log:
        return "ended the process that it ran in, or took too much memory"
    if "became unresponsive" in log or "UnresponsiveKernelError" in log:
        return "took too long and could not be interrupted"
    return last_line(done)[:200]


# All of them -------------------------------------------------------------------------------------


def prepare(sources: Path, out: Path) -> dict[str, NotebookNode]:
    """Let nbgrader know the assignments; give the notebooks that students got.

    Raises: `ValueError` when there are none.
    """
    found = sorted(sources.glob("*/*.ipynb"))
    if not found:
        raise ValueError(f"{sources} holds no assignments: make assignments writes them")
    releases = {}
    for path in found:
        source = nbformat.read(path, as_version=4)
        source.metadata["vitmini"] = {"assignment": path.stem}
        mine = out / "source" / path.stem / path.name
        made = out / "release" / path.stem / path.name
        if not (mine.exists() and made.exists() and nbformat.read(mine, as_version=4) == source):
            made = release(source, out)
        releases[path.stem] = nbformat.read(made, as_version=4)
    return releases


def grade(submissions: Path, sources: Path, settings: Settings, jobs: int, again: bool) -> str:
    """Mark a folder of submissions; give the line that sums it up.

    Raises: `ValueError` when there is nothing to mark, or nothing to mark it with.
    """
    out = settings.out
    there(submissions)
    out.mkdir(parents=True, exist_ok=True)
    releases = prepare(sources, out)
    changed = take_marks(out)  # before anything is run: what is wrong there is told at once
    found = collect(submissions, releases)
    todo = [one for one in found if one.notebook is not None]
    results: dict[int, Marked] = {}
    known = stored(out)
    fresh = []
    for one in todo:
        kept = out / "submitted" / one.student / one.assignment / f"{one.assignment}.ipynb"
        same = kept.exists() and nbformat.read(kept, as_version=4) == one.notebook
        if again or not same or (one.student, one.assignment) not in known:
            fresh.append(one)
    for one in found:
        if one.notebook is None:
            print(f"{one.student}: {one.notes[-1]}", flush=True)
    if len(fresh) < len(todo):
        print(f"{len(todo) - len(fresh)} unchanged since the last call", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(mark, one, releases[one.assignment], settings): one for one in fresh}
        for count, future in enumerate(as_completed(started), 1):
            one = started[future]
            try:
                marked = future.result()
                keep(one, marked, out)
            except Exception as error:  # the others go on
                marked = Marked(notes=[f"could not be marked: {type(error).__name__}: {error}"])
            results[id(one)] = marked
            told = told_points(marked) if marked.points else marked.notes[-1]
            print(
                f"[{count}/{len(fresh)}] {one.student} {one.assignment}: {told} "
                f"({marked.seconds:.0f} s)",
                flush=True,
            )
            if not marked.points and (one.student, one.assignment) in known:
                marked.notes.append("the points are of what was handed in before")
    sweep()
    changed |= {(one.student, one.assignment) for one in fresh}
    feedback(
        [one for one in found if no_page(one, out) or (one.student, one.assignment) in changed], out
    )
    write_tables(found, results, out)
    unread = [one for one in found if one.notebook is None]
    failed = [one for one in fresh if not results[id(one)].points]
    words = f"{len(found)} submissions: {len(todo) - len(failed)} marked"
    if unread or failed:
        words += f", {len(unread) + len(failed)} not, see the notes"
    return f"{words} in {out / 'grades.csv'}, pages in {out / 'feedback'}"


def sweep() -> None:
    """End what students' code left behind, with what that left behind in its turn."""
    for _ in range(100):
        found = "".join(p.read_text() for p in Path("/proc/self/task").glob("*/children")).split()
        for pid in map(int, found):
            with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if not found:
            return


def adopt_orphans() -> None:
    """Let Linux hand us what students' processes leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def no_page(one: Submission, out: Path) -> bool:
    return not list((out / "feedback" / one.student / one.assignment).glob("*.html"))


def told_points(marked: Marked) -> str:
    got = sum(points or 0 for points in marked.points.values())
    by_hand = sum(points is None for points in marked.points.values())
    return f"{got:g} points" + (f", {by_hand} to mark by hand" if by_hand else "")


def _gradebook(out: Path) -> Any:
    from nbgrader.api import Gradebook

    return Gradebook(config(out).CourseDirectory.db_url, "vitmini")


def stored(out: Path) -> set[tuple[str, str]]:
    """Which submissions have been marked before."""
    with _gradebook(out) as book:
        return {
            (one.student.id, one.assignment.name)
            for assignment in book.assignments
            for one in book.assignment_submissions(assignment.name)
        }


def keep(one: Submission, marked: Marked, out: Path) -> None:
    """Put what came of a submission into the gradebook and beside it; marks by hand stay."""
    if marked.notebook is None or one.notebook is None:
        return
    name = one.assignment
    before = out / "autograded" / one.student / name / f"{name}.ipynb"
    old = texts_of(nbformat.read(before, as_version=4)) if before.exists() else {}
    new = texts_of(marked.notebook)
    with _gradebook(out) as book:
        book.update_or_create_student(one.student)
        book.update_or_create_submission(name, one.student)
        notebook = book.find_submission_notebook(name, name, one.student)
        for entry in notebook.grades:
            words = entry.name in new and not entry.name.endswith("-check")
            entry.auto_score = marked.points.get(entry.name, None if words else 0.0)
            if entry.auto_score is not None or old.get(entry.name) != new.get(entry.name):
                entry.manual_score = None  # another answer, or none: the mark was for the old one
                if entry.auto_score is None:
                    book.find_comment(entry.name, name, name, one.student).manual_comment = None
            entry.needs_manual_grade = entry.auto_score is None and entry.manual_score is None
        book.db.commit()
    for part, cells in (("autograded", marked.notebook), ("submitted", one.notebook)):
        path = out / part / one.student / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(cells, path)
    (out / "notes").mkdir(exist_ok=True)
    told = json.dumps(marked.notes)
    (out / "notes" / f"{one.student}-{name}.json").write_text(told, encoding="utf-8")


def texts_of(notebook: NotebookNode) -> dict[str, str]:
    return {c.metadata["nbgrader"]["grade_id"]: c.source for c in answers(notebook)}


def take_marks(out: Path) -> set[tuple[str, str]]:
    """Take over what a person wrote into by-hand.csv; say whose submissions it changed.

    Raises: `ValueError` naming the line, when points are no number or too many.
    """
    path = out / "by-hand.csv"
    changed: set[tuple[str, str]] = set()
    if not path.exists():
        return changed
    rows = read_table(path)
    with _gradebook(out) as book:
        for number, row in enumerate(rows, 2):
            if not (row.get("points") or "").strip():
                continue
            where = f"{path.name}, line {number}"
            try:
                points = float(row["points"].replace(",", "."))
                short = row["assignment"].split("-")[0]
                key = f"{short}-{row['question'].lower().replace('question ', 'q')}"
                entry = book.find_grade(key, row["assignment"], row["assignment"], row["student"])
            except ValueError:
                raise ValueError(
                    f"{where}: points must be a number, got {row['points']!r}"
                ) from None
            except Exception:
                raise ValueError(f"{where}: nothing to mark for these names") from None
            if not 0 <= points <= entry.max_score:
                raise ValueError(f"{where}: points must be from 0 to {entry.max_score:g}")
            comment = book.find_comment(key, row["assignment"], row["assignment"], row["student"])
            words = (row.get("comment") or "").removeprefix("'") or None
            if (entry.manual_score, comment.manual_comment) != (points, words):
                changed.add((row["student"], row["assignment"]))
            entry.manual_score, entry.needs_manual_grade = points, False
            comment.manual_comment = words
        book.db.commit()
    return changed


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a person filled in, whatever their spreadsheet made of it.

    Raises: `ValueError` when it is no such table any more.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    head = text.partition("\n")[0]
    table = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count))
    if missing := set(BY_HAND[:5]) - set(table.fieldnames or ()):
        raise ValueError(f"{path.name} has no column {', '.join(sorted(missing))}")
    path.with_suffix(".csv.bak").write_bytes(data)
    return list(table)


def feedback(found: list[Submission], out: Path) -> None:
    """Let nbgrader write a page for each of these submissions."""
    from nbgrader.apps import NbGraderAPI

    api = NbGraderAPI(config=config(out))
    for one in found:
        name = one.assignment
        if name and (out / "autograded" / one.student / name).exists():
            done = api.generate_feedback(name, one.student, force=True)
            if not done["success"]:
                one.notes.append(f"no feedback page: {last_line(done)}")


def write_tables(found: list[Submission], results: dict[int, Marked], out: Path) -> None:
    """grades.csv (a line a submission), questions.csv (a question), by-hand.csv (what is open)."""
    grades, questions, by_hand = [], [], []
    with _gradebook(out) as book:
        for one in found:
            name = one.assignment
            notes = [*one.notes, *_notes(one, results.get(id(one)), out)]
            row: dict[str, Any] = {"student": one.student, "assignment": name, "points": ""}
            row |= {"file": shown(one.path), "notes": "; ".join(notes)}
            try:
                notebook = book.find_submission_notebook(name, name, one.student)
            except Exception:  # not marked
                grades.append(row)
                continue
            row |= {"points": f"{notebook.score:g}", "of": f"{notebook.max_score:g}"}
            row["to mark by hand"] = sum(g.needs_manual_grade for g in notebook.grades)
            grades.append(row)
            for entry in sorted(notebook.grades, key=lambda g: in_order(g.name)):
                line = {
                    "student": one.student,
                    "assignment": name,
                    "question": question(entry.name),
                }
                line["of"] = f"{entry.max_score:g}"
                scored = "" if entry.needs_manual_grade else f"{entry.score:g}"
                questions.append(line | {"points": scored})
                if entry.auto_score is None:
                    comment = book.find_comment(entry.name, name, name, one.student)
                    page = f"feedback/{one.student}/{name}/{name}.html"
                    line |= {"points": scored, "comment": comment.manual_comment or ""}
                    by_hand.append(line | {"answer": page})
    for path, columns, rows in (
        ("grades.csv", GRADES, grades),
        ("questions.csv", ("student", "assignment", "question", "points", "of"), questions),
        ("by-hand.csv", BY_HAND, by_hand),
    ):
        temporary = out / f"{path}.part"
        kind = {"newline": "", "encoding": "utf-8-sig", "errors": "backslashreplace"}
        with temporary.open("w", **kind) as file:  # type: ignore[call-overload]
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows({key: safe(value) for key, value in row.items()} for row in rows)
        temporary.replace(out / path)


def in_order(name: str) -> tuple[int, str]:
    """Questions by their number, what has none behind them."""
    digits = "".join(filter(str.isdigit, question(name)))
    return int(digits or 1000), name


def safe(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _notes(one: Submission, marked: Marked | None, out: Path) -> list[str]:
    if marked is not None:
        return marked.notes
    path = out / "notes" / f"{one.student}-{one.assignment}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip with the dates of its files, which say what was handed in last."""
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir():
                continue
            if any(len(part.encode()) > 250 for part in info.filename.split("/")):
                print(f"{info.filename[:60]}...: left out, its name is too long", flush=True)
                continue
            target = file.extract(info, folder)
            date = time.mktime((*info.date_time, 0, 0, -1))
            os.utime(target, (date, date))


def main() -> int:
    parser = argparse.ArgumentParser(description="Mark a folder of submissions.")
    parser.add_argument("submissions", type=Path, nargs="?", help="a folder or a .zip")
    parser.add_argument("--out", type=Path, default=Path("grading"), help="where marks go")
    parser.add_argument("--sources", type=Path, default=OUT / "source", help="assignments to use")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--seconds", type=float, default=60, help="that a cell may take")
    parser.add_argument("--memory", type=float, default=6, help="gigabytes for one submission")
    parser.add_argument("--again", action="store_true", help="mark unchanged ones, too")
    parser.add_argument("--trust", action="store_true", help="run students' code without walls")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_nbgrader(Path(args.run[0]), args.run[1], args.run[2], args.seconds)
        return 0
    warnings.filterwarnings("ignore", module="nbgrader")  # of its database, to its authors
    settings = Settings(args.out.resolve(), args.seconds, args.memory, args.trust)
    try:
        if args.submissions is None:
            raise ValueError("say where the submissions are: make grade SUBMISSIONS=folder")
        if not args.trust and not confine.version():
            raise ValueError(
                "this system cannot keep students' code from reading your files: use Linux 5.13 "
                "or newer, or a machine with nothing on it and --trust"
            )
        adopt_orphans()
        with tempfile.TemporaryDirectory() as folder:
            place = args.submissions
            if place.suffix == ".zip" and place.is_file():
                unpack(place, Path(folder))
                place = Path(folder)
            print(grade(place, args.sources, settings, args.jobs, args.again))
    except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"grade: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
