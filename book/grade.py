"""Mark what students handed in: points, feedback pages and tables, with nbgrader.

    make grade SUBMISSIONS=folder                the same, with the course's environment
    python book/grade.py FOLDER [--out grading]  a folder or a .zip, as Canvas and Moodle give it

Each submission is put into a clean copy of the assignment and run in a process of its own, which
reads and writes nothing but a folder of its own. One that kills its process is run again, question
by question. A second call marks what is new; marks written by hand into by-hand.csv are taken over.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import ctypes
import fcntl
import hashlib
import html
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import site
import socket
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

# jsonschema would load a grammar of addresses, for a second in each process; no notebook needs it
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import confine
import nbformat
from assign import OUT, alembic_head, config, last_line, release, write
from collect import LARGEST, Submission, blank, collect, key_of, question, shown, there
from generate import ROOT, write_whole
from nbformat import NotebookNode

KERNEL = "vitmini-marking"
LONGEST_OUTPUT = 20_000
LONGEST_CELL = 200_000
MOST_FILES = 50_000
GRADES = ("student", "id", "assignment", "points", "of", "to mark by hand", "file", "notes")
BY_HAND = ("student", "assignment", "question", "of", "points", "comment", "answer", "for")


@dataclass
class Settings:
    """How one submission is run."""

    out: Path
    seconds: float = 60
    memory: float = 6
    disk: float = 2
    trust: bool = False
    hide_tests: bool = False
    gradebook: Path = Path()  # a copy that nobody writes into
    loaded: Loaded | None = None


@dataclass
class Marked:
    """What came of one submission: points by question (None: a person has to look), and notes."""

    points: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    notebook: NotebookNode | None = None
    seconds: float = 0


class Stopped(Exception):
    """Somebody wants the call to end."""


STOP = threading.Event()
LOST = "nbgrader could not be loaded, or was ended"


def stop(number: int, frame: FrameType | None) -> None:
    """End the call: what runs beside it sees the event."""
    STOP.set()
    signal.default_int_handler(number, frame)


# One submission ----------------------------------------------------------------------------------


def mark(one: Submission, blank_release: NotebookNode, settings: Settings) -> Marked:
    """Run one submission; where its code ends the process, run it again question by question."""
    assert one.notebook is not None
    start, given = time.monotonic(), one.notebook
    marked = run(one, given, settings)
    if marked.notebook is None:
        given = without_own_cells(given)
        if len(given.cells) < len(one.notebook.cells):
            again = run(one, given, settings)
            if again.notebook is not None:
                again.notes.append(f"own cells left out: with them it {marked.notes[-1]}")
                marked = again
    late = {note.partition(":")[0] for note in marked.notes if note.endswith("took too long")}
    if marked.notebook is None or len(late) > 1:  # an answer can spoil all that come after it
        apart = by_question(one, given, blank_release, settings)
        marked = marked if apart.notebook is None else apart
    marked.seconds = time.monotonic() - start
    return marked


def by_question(
    one: Submission, given: NotebookNode, blank_release: NotebookNode, settings: Settings
) -> Marked:
    """Run a submission once for each question, in which only that one is answered."""
    marked = Marked()
    for cell in answers(blank_release):
        key = cell.metadata["nbgrader"]["grade_id"]
        part = run(one, blank(given, blank_release, key), settings)
        mine = {k: v for k, v in part.points.items() if k.removesuffix("-check") == key}
        if part.notebook is None:
            in_words = cell.metadata["nbgrader"]["grade"]  # waits for a person
            mine = {key: None} if in_words else {f"{key}-check": 0.0}
            marked.notes.append(f"{question(key)}: {part.notes[-1]}")
        else:
            about = (f"{question(key)}:", SUSPICIOUS)
            marked.notes += [n for n in part.notes if n.startswith(about) and n not in marked.notes]
            marked.notebook = merged(marked.notebook, part.notebook, key)
        marked.points |= mine
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
    """Let nbgrader mark a notebook, in a process that is ended when it takes too much.

    Raises: `Stopped` when the call is to end.
    """
    with throw_away(settings) as folder:
        place, name = Path(folder), one.assignment
        shutil.copyfile(settings.gradebook, place / "gradebook.db")
        path = place / "submitted" / one.student / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True)
        write(with_canaries(notebook), path)
        (place / "source" / name).mkdir(parents=True)
        install_kernel(place, settings)
        assert settings.loaded is not None
        process = settings.loaded.start(place, one.student, name, settings.seconds)
        try:
            ended = watch(process, place / "own", settings)
        finally:  # whatever it started
            for group in (process.pid, *kernels(place)):
                kill(group)
            process.end()
        told = place / "told.json"
        if not told.exists() and settings.loaded.lost:
            raise RuntimeError(LOST)
        if ended or not told.exists():
            return Marked(notes=[ended or "could not be marked"])
        found = json.loads(told.read_text(encoding="utf-8"))
        if found["failed"]:
            return Marked(notes=[found["failed"]])
        autograded = place / "autograded" / one.student / name / f"{name}.ipynb"
        executed = nbformat.read(autograded, as_version=4)
        notes = suspicions(executed, found["points"])
        notes = complaints(executed) + notes
        return Marked(found["points"], notes, shorten(executed))


class Loaded:
    """A process that has nbgrader loaded, and copies itself for each submission.

    To load it for each would take longer than to mark. Nothing of a student's runs in a copy, only
    in the kernel that it starts.
    """

    lost = False  # whether that process has ended

    def __enter__(self) -> Loaded:
        self.lock = threading.Lock()  # a question at a time
        self.asking, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, __file__, "--copies", str(number)]
            self.process = subprocess.Popen(
                command, pass_fds=[number], stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.asking.close()  # it ends, and its copies with it
        if kind:  # it may still be loading, and somebody waits for its answer
            self.process.kill()
        self.process.wait()

    def ask(self, question: Any, files: Sequence[int] = ()) -> int:
        """Raises: `RuntimeError` when it has ended, `Stopped` when no more is to start."""
        with self.lock, contextlib.suppress(OSError):
            if files and STOP.is_set():
                raise Stopped
            asked = json.dumps(question).encode()
            socket.send_fds(self.asking, [asked], files) if files else self.asking.sendall(asked)
            if told := self.asking.recv(100):
                return int(told)
        self.lost = True
        raise RuntimeError(LOST)

    def start(self, place: Path, student: str, assignment: str, seconds: float) -> Copy:
        ends, held = os.pipe()  # the reading end sees when nobody holds the other one any more
        try:
            with open(place / "log", "wb") as log:
                question = [str(place), student, assignment, seconds, environment(place)]
                pid = self.ask(question, [held, log.fileno()])
            if pid < 0:
                raise OSError("no process could be started for it")
            return Copy(self, pid, ends)
        except BaseException:
            os.close(ends)
            raise
        finally:
            os.close(held)


@dataclass
class Copy:
    """The process that marks one submission."""

    loaded: Loaded
    pid: int
    ends: int

    def ended(self, within: float) -> bool:
        poll = select.poll()
        poll.register(self.ends, select.POLLIN)
        return bool(poll.poll(1000 * within))

    def end(self) -> None:
        """Wait for its end; nobody else gets its number before."""
        os.close(self.ends)
        with contextlib.suppress(RuntimeError):  # then they have all ended
            self.loaded.ask(self.pid)


def make_copies(asked: socket.socket) -> None:
    """Load nbgrader, and start a copy for each question until nobody can ask any more."""
    from nbgrader.apps import NbGraderAPI  # noqa: F401

    alembic_head()
    while True:
        question, files, _, _ = socket.recv_fds(asked, 2**16, 2)
        if not question:
            return
        told = json.loads(question)
        if isinstance(told, int):  # one that has ended, or was killed, be it before its `setsid`
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(told, signal.SIGKILL)
                os.waitpid(told, 0)
            asked.send(b"0")
            continue
        mine = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # too many processes, or too little memory, for this one
            pid = -1
        if not pid:
            be_a_copy(mine, asked, files, *told)
        for number in files:
            os.close(number)
        asked.send(str(pid).encode())


def be_a_copy(
    original: int,
    asked: socket.socket,
    files: list[int],
    place: str,
    student: str,
    assignment: str,
    seconds: float,
    known: dict[str, str],
) -> None:
    """Mark one submission, in a process that knows of this machine what is `known`, and end."""
    code = 1
    try:
        end_with_parent()
        os.setsid()
        if os.getppid() != original:  # it ended before
            return
        asked.close()
        for number in (1, 2):
            os.dup2(files[1], number)
        os.set_inheritable(files[0], False)
        os.environ.clear()
        os.environ.update(known)
        tempfile.tempdir = None
        sys.dont_write_bytecode = True
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, hard))  # endless printing comes here
        run_nbgrader(Path(place), student, assignment, seconds)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def throw_away(settings: Settings) -> Iterator[str]:
    """A folder for one run, which goes with all that a student's code may have put there."""
    folder = tempfile.mkdtemp(prefix=f"mark-{fingerprint(str(settings.out))}-")
    try:
        yield folder
    finally:
        remove(folder)


def remove(*folders: str | Path) -> None:
    """Delete folders however deep they are: Python's own way gives up after a thousand levels."""
    if folders:
        subprocess.run(["rm", "-rf", "--", *map(str, folders)], stderr=subprocess.DEVNULL)


def watch(process: Copy, own: Path, settings: Settings) -> str:
    """Wait for a process to end; otherwise say what it took too much of.

    Raises: `Stopped` when the call is to end.
    """
    end = time.monotonic() + limit(settings)
    while True:
        if process.ended(within=1):
            return ""
        if STOP.is_set():
            raise Stopped
        if time.monotonic() > end:
            return f"did not end within {limit(settings):.0f} seconds"
        files, size = 0, hidden_bytes(kernels(own.parent))
        for size_of_one in sizes(own):
            files, size = files + 1, size + size_of_one
            if size > settings.disk * 2**30 or files > MOST_FILES:
                return f"wrote more than {settings.disk:g} GB or {MOST_FILES:,} files"


def sizes(folder: Path) -> Iterator[int]:
    """The bytes on disk of each file and folder below one, as far as it stays where it is."""
    for where, folders, names in os.walk(folder):
        for name in folders + names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(where, name)).st_blocks * 512


def hidden_bytes(processes: list[int]) -> int:
    """The bytes of files that these have open and that have no name any more."""
    total = 0
    for path in (p for pid in processes for p in Path(f"/proc/{pid}/fd").glob("*")):
        with contextlib.suppress(OSError):
            about = path.stat()
            if about.st_nlink == 0 and stat.S_ISREG(about.st_mode):
                total += about.st_blocks * 512
    return total


def limit(settings: Settings) -> float:
    """The seconds for a whole notebook: the rest of it may take as long as a few endless loops."""
    return 120 + 5 * settings.seconds


SUSPICIOUS = "checks no longer fail in this notebook: look at it"
CANARIES = (  # the last cells, taken away again
    "assert False, 'a check that must fail'",
    "raise AssertionError('another one')",
    "import sys as _s; _t = _s.modules.get('torch'); _c = _t and (_t.zeros(2), _t.ones(2))\n"
    "assert _t and (_t.equal(*_c) or _t.allclose(*_c)), 'a comparison that must fail'",
)


def with_canaries(notebook: NotebookNode) -> NotebookNode:
    """Add checks that must fail, to see whether checks still can."""
    notebook = copy.deepcopy(notebook)
    for number, source in enumerate(CANARIES):
        cell = nbformat.v4.new_code_cell(source)
        cell.id = f"canary-{number}"
        notebook.cells.append(cell)
    return notebook


def suspicions(executed: NotebookNode, points: dict[str, float | None]) -> list[str]:
    """Take the canaries away; say where points were given that nobody can have earned."""
    notes = []
    canaries = [executed.cells.pop() for _ in CANARIES]
    if not all(any(o.output_type == "error" for o in c.get("outputs", [])) for c in canaries):
        notes.append(SUSPICIOUS)
    for cell in answers(executed):
        key = cell.metadata["nbgrader"]["grade_id"]
        stub = re.search(r"^\s*raise NotImplementedError", cell.source, re.M)
        if stub and points.get(f"{key}-check"):
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
    # a line with ! wants a terminal of its own otherwise, which the walls do not give
    command += ["--IPKernelApp.exec_lines=get_ipython().system = get_ipython().system_raw"]
    about = {"argv": command, "display_name": KERNEL, "language": "python"}
    folder = place / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(about), encoding="utf-8")


def shorten(notebook: NotebookNode) -> NotebookNode:
    """Cut what would make a page of feedback unreadable, and what could hide markup in it."""
    for cell in notebook.cells:
        cell.source = _short(cell.source, LONGEST_CELL)
        for output in cell.get("outputs", []):
            for kind, about in output.get("metadata", {}).items():
                keep = about if isinstance(about, dict) else {}
                keep = {k: v for k, v in keep.items() if isinstance(v, (int, float))}
                output.metadata[kind] = {k: v for k, v in keep.items() if k in ("width", "height")}
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


def _short(text: str, most: int = LONGEST_OUTPUT) -> str:
    return text if len(text) <= most else f"{text[:most]}\n... cut off here ..."


def complaints(executed: NotebookNode) -> list[str]:
    """What went wrong otherwise than by a failing check, for whoever reads the table."""
    notes: list[str] = []
    for cell in executed.cells:
        key = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        where = question(key) if key else "own cell"
        errors = [o for o in cell.get("outputs", []) if o.output_type == "error"]
        expected = {"AssertionError", "NotImplementedError", "WrongAnswer"}
        late = any(error.ename == "CellTimeoutError" for error in errors)
        expected |= {"KeyboardInterrupt"} if late else set()
        for output in errors:
            if output.ename in expected:
                continue
            words = " ".join(f"{output.ename}: {output.evalue}".split())[:120].rstrip(": ")
            words = "took too long" if output.ename == "CellTimeoutError" else words
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
        """For nbgrader, what a check writes to stderr is a mistake, and a value it shows is points.

        Neither is so here: a warning is no mistake, and no check shows a value.
        """

        def preprocess_cell(self, cell: Any, resources: Any, index: int) -> Any:
            about = cell.metadata.get("nbgrader", {})
            if cell.cell_type == "code" and about.get("grade"):
                cell.outputs = [o for o in cell.outputs if o.output_type != "execute_result"]
            for output in cell.get("outputs", []):
                if output.output_type == "stream":
                    output.name = "stdout"
            return cell, resources

    order = [steps.Execute, Quiet, steps.IgnorePattern, ClearMetadataPreprocessor]
    order += [steps.LimitOutput, steps.SaveAutoGrades, steps.AssignLatePenalties]
    late = max(15, int(seconds))  # for output on its way, and for who hears no interrupt
    execute = {"kernel_name": KERNEL, "timeout": int(seconds), "iopub_timeout": late}
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
    if any(word in log for word in ("became unresponsive", "UnresponsiveKernel", "CellTimeout")):
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
            try:
                made = release(source, out)
            except ValueError as error:
                hint = f"where its questions are others than before, not into {out.name}"
                raise ValueError(f"{error} ({hint}: set GRADES, or --out)") from None
        releases[path.stem] = nbformat.read(made, as_version=4)
    return releases


def grade(
    submissions: Path,
    sources: Path,
    settings: Settings,
    jobs: int,
    again: bool,
    lost: dict[str, str] | None = None,
) -> str:
    """Mark a folder of submissions; give the line that sums it up.

    `lost` are files of an archive that could not be unpacked, with the reasons.
    Raises: `ValueError` when there is nothing to mark, or nothing to mark it with;
    `KeyboardInterrupt` when it is to end: what has been marked is kept.
    """
    out = settings.out
    there(submissions, bool(lost))
    out.mkdir(parents=True, exist_ok=True)
    with alone(out), tempfile.TemporaryDirectory() as folder:
        killed = f"mark-{fingerprint(str(out))}-*"  # by an earlier call that was killed itself
        remove(*Path(tempfile.gettempdir()).glob(killed))
        releases = prepare(sources, out)
        take_marks(out)  # before anything is run: what is wrong there is told at once
        names = read_json(out / "names.json")
        found = collect(submissions, releases, lost, names)
        write_whole(out / "names.json", json.dumps(names, indent=1))
        settings.gradebook = Path(folder) / "gradebook.db"
        copy_database(out / "gradebook.db", settings.gradebook)
        kept = {name: out / "source" / name / f"{name}.ipynb" for name in releases}
        tests = {name: fingerprint(path.read_text("utf-8")) for name, path in kept.items()}
        known = stored(out)
        fresh = [
            one
            for one in found
            if one.notebook is not None
            and (
                again
                or (one.student, one.assignment) not in known
                or remembered(one, out)["tests"] != tests[one.assignment]
                or not unchanged(one, out)
            )
        ]
        with Loaded() if fresh else contextlib.nullcontext() as settings.loaded:
            results = mark_all(found, fresh, releases, tests, settings, jobs)
        for one in found:
            tried = one.notebook is None or (id(one) in results and not results[id(one)].points)
            if tried and (one.student, one.assignment) in known:
                one.notes.append("the points are of what was handed in before")
        sweep()
        write_tables(found, results, out)  # pages may take a while
        pages = [o for o in found if id(o) in results or not has_page(o, settings)]
        feedback(pages, results, releases, settings)
        write_tables(found, results, out)
    unread = [one for one in found if one.notebook is None]
    failed = [one for one in fresh if not results[id(one)].points]
    words = f"{len(found)} submissions: {len(found) - len(unread) - len(failed)} marked"
    if unread or failed:
        words += f", {len(unread) + len(failed)} not, see the notes"
    return f"{words} in {out / 'grades.csv'}, pages in {out / 'feedback'}"


def mark_all(
    found: list[Submission],
    fresh: list[Submission],
    releases: dict[str, NotebookNode],
    tests: dict[str, str],
    settings: Settings,
    jobs: int,
) -> dict[int, Marked]:
    """Mark what is new, some at a time, with a line of progress for each."""
    results: dict[int, Marked] = {}
    for one in found:
        if one.notebook is None:
            print(f"{one.student}: {one.notes[-1]}", flush=True)
    same = sum(one.notebook is not None for one in found) - len(fresh)
    if same:
        print(f"{same} unchanged since the last call", flush=True)
    pool = ThreadPoolExecutor(jobs)
    started = {pool.submit(mark, one, releases[one.assignment], settings): one for one in fresh}
    try:
        for count, future in enumerate(as_completed(started), 1):
            one = started[future]
            try:
                marked = future.result()
                keep(one, marked, tests[one.assignment], settings.out)
            except Stopped:  # Python swallows an interrupt that comes while it cleans up
                raise KeyboardInterrupt from None
            except Exception as error:  # the others go on
                marked = Marked(notes=[f"could not be marked: {type(error).__name__}: {error}"])
            results[id(one)] = marked
            told = told_points(marked) if marked.points else marked.notes[-1]
            print(
                f"[{count}/{len(fresh)}] {one.student} {one.assignment}: {told} "
                f"({marked.seconds:.0f} s)",
                flush=True,
            )
    except KeyboardInterrupt:
        STOP.set()
        pool.shutdown(cancel_futures=True)  # those that run see it within a second
        sweep()
        raise KeyboardInterrupt(f"{len(results)} of {len(fresh)} marked") from None
    pool.shutdown()
    return results


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep a second call from marking into the same folder.

    Raises: `ValueError` when one is at it.
    """
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another call is marking into {out} just now") from None
        yield


def copy_database(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source)) as one,
        contextlib.closing(sqlite3.connect(target)) as other,
    ):
        one.backup(other)


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier call wrote down, nothing where there was none.

    Raises: `ValueError` when the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise ValueError(f"{path} cannot be read: restore it") from None


def unchanged(one: Submission, out: Path) -> bool:
    kept = out / "submitted" / one.student / one.assignment / f"{one.assignment}.ipynb"
    return kept.exists() and nbformat.read(kept, as_version=4) == one.notebook


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


def end_with_parent() -> None:
    """Let Linux end this process when the one that started it is ended, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def adopt_orphans() -> None:
    """Let Linux hand us what students' processes leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def has_page(one: Submission, settings: Settings) -> bool:
    """Whether there is a page for this submission that shows as much of the tests as it should."""
    pages = (settings.out / "feedback" / one.student / one.assignment).glob("*.html")
    wanted = f'data-tests="{"shown" if settings.hide_tests else "whole"}"'
    return any(wanted in page.read_text(encoding="utf-8")[:200] for page in pages)


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


def keep(one: Submission, marked: Marked, tests: str, out: Path) -> None:
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
    remove(out / "feedback" / one.student / name)  # it is of before
    for part, cells in (("autograded", marked.notebook), ("submitted", one.notebook)):
        path = out / part / one.student / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(cells, path)
    (out / "notes").mkdir(exist_ok=True)
    told = json.dumps({"tests": tests, "notes": marked.notes})
    write_whole(out / "notes" / f"{one.student}-{name}.json", told)


def texts_of(notebook: NotebookNode) -> dict[str, str]:
    return {c.metadata["nbgrader"]["grade_id"]: c.source for c in answers(notebook)}


def take_marks(out: Path) -> None:
    """Take over what a person wrote into by-hand.csv; the pages that it changes are removed.

    A mark stays with the answer that it was given for. What stands as we wrote it is nobody's mark:
    the gradebook may have a newer one, of nbgrader's formgrader.
    Raises: `ValueError` naming the line, when points are no number or too many.
    """
    path = out / "by-hand.csv"
    if not path.exists():
        return
    rows, ours = read_table(path), read_json(out / "by-hand.json")
    with _gradebook(out) as book:
        for number, row in enumerate(rows, 2):
            written = (row.get("points") or "").strip()
            words = (row.get("comment") or "").removeprefix("'") or None
            where, name = f"{path.name}, line {number}", row["assignment"]
            # a spreadsheet makes a number of 0012345, but nothing of the page's name
            student = next(iter((row.get("answer") or "").split("/")[1:2]), row["student"])
            try:
                points = float(written.replace(",", ".")) if written else None
                key = f"{name.split('-')[0]}-{row['question'].lower().replace('question ', 'q')}"
                entry = book.find_grade(key, name, name, student)
            except ValueError:
                raise ValueError(f"{where}: points must be a number, got {written!r}") from None
            except Exception:
                if not written and not words:
                    continue
                raise ValueError(f"{where}: nothing to mark for these names") from None
            if points is not None and not 0 <= points <= entry.max_score:
                raise ValueError(f"{where}: points must be from 0 to {entry.max_score:g}")
            comment = book.find_comment(key, name, name, student)
            as_written = ours.get(f"{student}/{key}", [None, None])
            if [points, words] in (
                as_written,
                [entry.manual_score, comment.manual_comment or None],
            ):
                continue
            if row.get("for") and row["for"] != answer_prints(out, student, name).get(key):
                print(f"{where}: the answer is another one now, mark it again", flush=True)
                continue
            entry.manual_score, comment.manual_comment = points, words
            entry.needs_manual_grade = points is None and entry.auto_score is None
            remove(out / "feedback" / student / name)  # it is of before
        book.db.commit()


def answer_prints(out: Path, student: str, name: str) -> dict[str, str]:
    """A short print of each answer, by which a mark knows it again."""
    path = out / "autograded" / student / name / f"{name}.ipynb"
    texts = texts_of(nbformat.read(path, as_version=4)) if path.exists() else {}
    return {key: f"#{fingerprint(text)[:8]}" for key, text in texts.items()}  # no number


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


def feedback(
    found: list[Submission],
    results: dict[int, Marked],
    releases: dict[str, NotebookNode],
    settings: Settings,
) -> None:
    """Let nbgrader write a page for each of these submissions; see book/feedback.

    To hide tests, a page gets the checks of the release, and of an error its last line.
    """
    from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
    from nbgrader.apps import NbGraderAPI
    from nbgrader.preprocessors import GetGrades, NbGraderPreprocessor

    about: dict[str, Any] = {}
    out = settings.out

    class Page(NbGraderPreprocessor):
        """What the page says on top of nbgrader's: names of questions, what is open, notes."""

        def preprocess(self, nb: Any, resources: Any) -> Any:
            resources["nbgrader"] |= {k: about[k] for k in ("name", "told")}
            resources["nbgrader"]["tests"] = "shown" if settings.hide_tests else "whole"
            checks = {key_of(c): c.source for c in about["release"].cells if settings.hide_tests}
            for cell in nb.cells:
                key = key_of(cell)
                if key:
                    cell.metadata.nbgrader["title"] = question(key)
                    cell.metadata.nbgrader["open"] = key in about["open"]
                if key.endswith("-check") and key in checks:
                    cell.source = checks[key]
                    cell.outputs = [last_words(o) for o in cell.outputs if "ename" in o]
            cells = [cell.metadata.nbgrader for cell in nb.cells if key_of(cell)]
            resources["nbgrader"]["graded"] = [cell for cell in cells if cell["grade"]]
            return nb, resources

    exporter = {"extra_template_basedirs": [str(ROOT / "book")], "sanitize_html": True}
    exporter |= {"filters": {"safe_html": safe_html}}
    steps = {"preprocessors": [GetGrades, Page, CSSHTMLHeaderPreprocessor]}
    api = NbGraderAPI(config=config(out, HTMLExporter=exporter, GenerateFeedback=steps))
    for one in found:
        name = one.assignment
        if not name or not (out / "autograded" / one.student / name).exists():
            continue
        with _gradebook(out) as book:
            entries = book.find_submission_notebook(name, name, one.student).grades
            about["open"] = {entry.name for entry in entries if entry.needs_manual_grade}
        notes = [*one.notes, *_notes(one, results.get(id(one)), out)]
        about["told"] = [n for n in notes if not n.startswith("another ") and "look at it" not in n]
        about |= {"name": one.student, "release": releases[name]}
        done = api.generate_feedback(name, one.student, force=True)
        if not done["success"]:
            if "KeyboardInterrupt" in f"{done.get('log')}{done.get('error')}":  # nbgrader goes on
                raise KeyboardInterrupt("all marked, not all pages written")
            one.notes.append(f"no feedback page: {last_line(done)}")


def last_words(output: NotebookNode) -> NotebookNode:
    """An error without the lines of code that led to it."""
    output.traceback = [f"{output.ename}: {output.evalue}"]
    return output


MOST_TAGS = 5000  # a page of 30,000 took half a minute


def safe_html(text: str) -> str:
    """A student's markup without what could run in the browser of who reads it."""
    import bleach
    from bleach.css_sanitizer import CSSSanitizer

    def allowed(tag: str, name: str, value: str) -> bool:
        if (tag == "img" and name == "src") or (tag == "a" and name == "href"):
            picture = tag == "img" and value.lower().startswith("data:image/")
            return picture or not value.lower().lstrip().startswith("data:")
        more = {"img": ("alt",), "td": CELL, "th": CELL}
        return name in ("class", "style", "title", *more.get(tag, ()))

    if str(text).count("<") > MOST_TAGS:
        return f"<pre>{html.escape(str(text))}</pre>"
    tags = "a b blockquote br caption code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i img li ol p "
    tags += "pre s small span strong sub sup table tbody td tfoot th thead tr u ul"
    return bleach.clean(
        str(text),
        tags=set(tags.split()),
        attributes=allowed,
        protocols={"http", "https", "mailto", "data"},
        css_sanitizer=CSSSanitizer(["text-align", "color", "background-color", "font-weight"]),
        strip=True,
    )


CELL = ("colspan", "rowspan", "align")


def write_tables(found: list[Submission], results: dict[int, Marked], out: Path) -> None:
    """grades.csv (a line a submission), questions.csv (a question), by-hand.csv (what is open)."""
    grades, questions, by_hand = [], [], []
    ours: dict[str, Any] = {}
    with _gradebook(out) as book:
        for one in found:
            name = one.assignment
            notes = [*one.notes, *_notes(one, results.get(id(one)), out)]
            row: dict[str, Any] = {"student": one.student, "id": one.id, "assignment": name}
            row |= {"file": shown(one.path), "notes": "; ".join(notes)}
            try:
                notebook = book.find_submission_notebook(name, name, one.student)
            except Exception:  # not marked
                grades.append(row)
                continue
            row |= {"points": f"{notebook.score:g}", "of": f"{notebook.max_score:g}"}
            row["to mark by hand"] = sum(g.needs_manual_grade for g in notebook.grades)
            grades.append(row)
            prints = answer_prints(out, one.student, name)
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
                    mark = [entry.manual_score, comment.manual_comment or None]
                    ours[f"{one.student}/{entry.name}"] = mark
                    by_hand.append(line | {"answer": page, "for": prints.get(entry.name, "")})
    for path, columns, rows in (
        ("grades.csv", GRADES, grades),
        ("questions.csv", ("student", "assignment", "question", "points", "of"), questions),
        ("by-hand.csv", BY_HAND, by_hand),
    ):
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows({key: safe(value) for key, value in row.items()} for row in rows)
        write_whole(out / path, text.getvalue().encode("utf-8-sig", "backslashreplace"))
    write_whole(out / "by-hand.json", json.dumps(ours))


def in_order(name: str) -> tuple[int, str]:
    """Questions by their number, what has none behind them."""
    digits = "".join(filter(str.isdigit, question(name)))
    return int(digits or 1000), name


def safe(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    begins = isinstance(value, str) and value.lstrip()[:1] in ("=", "+", "-", "@")
    return f"'{value}" if begins else value


def _notes(one: Submission, marked: Marked | None, out: Path) -> list[str]:
    return marked.notes if marked is not None else remembered(one, out)["notes"]


def remembered(one: Submission, out: Path) -> dict[str, Any]:
    """By which tests a submission was marked last, and the notes of then."""
    path = out / "notes" / f"{one.student}-{one.assignment}.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return told if isinstance(told, dict) and told else {"tests": "", "notes": []}


def unpack(archive: Path, folder: Path) -> dict[str, str]:
    """Unpack a .zip with the dates of its files, which say what was handed in last.

    Gives the files that could not be unpacked, with the reasons.
    """
    lost: dict[str, str] = {}
    done: set[str] = set()
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir():
                continue
            half = None
            try:
                if info.filename in done:
                    raise ValueError("its name is there twice")
                if info.flag_bits & 1:
                    raise ValueError("is encrypted")
                if info.file_size > LARGEST:
                    raise ValueError(f"{info.file_size / 2**20:.0f} MB is more than can be read")
                if info.file_size > shutil.disk_usage(folder).free - LARGEST:
                    raise ValueError("the disk is full")
                half = (folder / info.filename).resolve()
                target = file.extract(info, folder)
                date = time.mktime((*info.date_time, 0, 0, -1))
                os.utime(target, (date, date))
                done.add(info.filename)
            except Exception as error:  # the others go on
                known = isinstance(error, ValueError) and str(error)
                reason = known or f"{type(error).__name__}: {str(error)[:100]}"
                name = f"{info.filename} (again)" if info.filename in done else info.filename
                lost[name] = f"cannot be unpacked: {reason}"
                if half is not None and half.is_relative_to(folder.resolve()):
                    with contextlib.suppress(OSError):
                        half.unlink()
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description="Mark a folder of submissions.")
    parser.add_argument("submissions", type=Path, nargs="?", help="a folder or a .zip")
    parser.add_argument("--out", type=Path, default=Path("grading"), help="where marks go")
    parser.add_argument("--sources", type=Path, default=OUT / "source", help="assignments to use")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--seconds", type=float, default=60, help="that a cell may take")
    parser.add_argument("--memory", type=float, default=6, help="gigabytes for one submission")
    parser.add_argument("--disk", type=float, default=2, help="gigabytes that it may write")
    parser.add_argument("--again", action="store_true", help="mark unchanged ones, too")
    parser.add_argument("--hide-tests", action="store_true", help="no hidden tests in the pages")
    parser.add_argument("--trust", action="store_true", help="run students' code without walls")
    parser.add_argument("--copies", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="nbgrader")  # of its database, to its authors
    if args.copies is not None:
        end_with_parent()
        make_copies(socket.socket(fileno=args.copies))
        return 0
    settings = Settings(
        *(args.out.resolve(), args.seconds, args.memory, args.disk, args.trust, args.hide_tests)
    )
    try:
        if args.submissions is None:
            raise ValueError("say where the submissions are: make grade SUBMISSIONS=folder")
        if not args.trust and not confine.version():
            raise ValueError(
                "this system cannot keep students' code from reading your files: use Linux 5.13 "
                "or newer, or a machine with nothing on it and --trust"
            )
        adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        with tempfile.TemporaryDirectory() as folder:
            place, lost = args.submissions, {}
            if place.suffix == ".zip" and place.is_file():
                place = Path(folder)
                lost = unpack(args.submissions, place)
            print(grade(place, args.sources, settings, args.jobs, args.again, lost))
    except KeyboardInterrupt as stopped:
        told = str(stopped) or "nothing marked"
        print(f"grade: stopped: {told}, the same call goes on from there", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"grade: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
