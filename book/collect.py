"""Find what students handed in, and put their answers into a clean copy of the assignment.

A notebook comes back from Colab without ids, from an editor without metadata, with checks edited,
doubled or deleted, or with fifty megabytes of output. So nothing is mended: the released notebook
is taken as it was given out, and only the answers, and cells that a student added, go into it.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode

LARGEST = 200 * 2**20
LARGEST_PICTURE = 5 * 2**20
MOST_CELLS = 2000
PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
STUB = "*Your answer here.*"
FIRST_LINE = re.compile(r"# (Question \d+|Stretch task): (your answer|its check)")


@dataclass
class Submission:
    """One file: whose, of which assignment; the clean notebook, or why there is none."""

    student: str
    path: Path
    owner: str = ""
    id: str = ""
    assignment: str = ""
    notebook: NotebookNode | None = None
    notes: list[str] = field(default_factory=list)


def collect(
    folder: Path,
    releases: dict[str, NotebookNode],
    lost: dict[str, str] | None = None,
    known: dict[str, dict[str, str]] | None = None,
) -> list[Submission]:
    """Read every file of a folder; the last one counts where a student handed in several.

    Whose a file is: the folder that it lies in (`jane/a1-tokens.ipynb`, also Moodle's
    `Jane Doe_123_assignsubmission_file_/`), or its name (`jane-a1-tokens.ipynb`,
    `a1-tokens_jane.ipynb`, Canvas's `doejane_123_456_a1-tokens.ipynb`).
    `lost` are files of an archive that could not be unpacked, with the reasons. `known` says by
    assignment what people were called in earlier calls; it gets the new ones.
    Raises: `ValueError` when there is no such folder or nothing in it.
    """
    lost = lost or {}
    there(folder, bool(lost))
    names = [name for name in releases if name]
    root = below(folder, names)
    files = sorted(there(root, True), key=lambda p: (p.stat().st_mtime, _natural(str(p))))
    found = [read(path, root, releases) for path in files]
    for name, reason in lost.items():
        path = folder / name
        path = path if path.is_relative_to(root) else root / path.name
        found.append(Submission(*whose(path, root, names), _named(path, names), notes=[reason]))
    for path in sorted(p for p in root.iterdir() if p.is_dir() and not _system(p.name)):
        if not any(one.path.is_relative_to(path) for one in found):
            student, _, owner, number = whose(path / "-", root, names)
            found.append(Submission(student, path, owner, number, notes=["holds no file"]))
    found = _beside(found)
    call_by_name(found, {} if known is None else known)
    last: dict[tuple[str, str], Submission] = {}
    for one in found:
        before = last.get((one.student, one.assignment))
        if before and one.notebook is None and before.notebook is not None:
            before.notes.append(f"{shown(one.path)} was left out: {one.notes[-1]}")
            continue
        if before:
            one.notes.append(f"handed in more than once: {shown(before.path)} was left out")
            one.notes += [n for n in before.notes if "was left out" in n]
        last[one.student, one.assignment] = one
    return sorted(last.values(), key=lambda one: (one.assignment, one.student))


def _beside(found: list[Submission]) -> list[Submission]:
    """Without what is no notebook and lies beside somebody's notebook: noted there."""
    read_ = {one.owner: one for one in found if one.notebook is not None}
    kept = []
    for one in found:
        if one.assignment or one.path.suffix == ".ipynb" or one.owner not in read_:
            kept.append(one)
        else:
            read_[one.owner].notes.append(f"{shown(one.path)} was left out: {one.notes[-1]}")
    return kept


def call_by_name(found: list[Submission], known: dict[str, dict[str, str]]) -> None:
    """Give different people different names, and everybody the name of the last call.

    By assignment: Moodle's numbers are others in each.
    """
    people = {(one.assignment, one.owner): one for one in found}
    plain = Counter((one.assignment, one.student) for one in people.values())
    for (assignment, owner), one in people.items():
        names = known.setdefault(assignment, {})
        if owner in names:
            continue
        taken, shared = set(names.values()), plain[assignment, one.student] > 1
        name = one.student
        if one.id and (shared or name in taken):
            name = f"{one.student}_{one.id}"
        number = 1
        while name in taken or (name != one.student and plain[assignment, name]):
            number += 1
            name = f"{one.student}-{number}"
        names[owner] = name
    for one in found:
        if plain[one.assignment, one.student] > 1:
            one.notes.insert(0, f"another {one.student} handed in as well")
        one.student = known[one.assignment][one.owner]


def there(folder: Path, empty: bool = False) -> list[Path]:
    """All files of a folder but hidden ones, and what a Mac puts beside.

    Raises: `ValueError` when there is no such folder or, unless it may be `empty`, nothing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    plain = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    files = [p for p in plain if not any(map(_system, p.relative_to(folder).parts))]
    if not files and not empty:
        raise ValueError(f"{folder} holds no files")
    return files


def _system(name: str) -> bool:
    return name in ("__MACOSX", ".DS_Store", ".ipynb_checkpoints", "Thumbs.db") or name[:2] == "._"


def below(folder: Path, assignments: list[str]) -> Path:
    """The folder with the submissions, where an archive has put another one around it."""
    while folder.is_dir():
        inside = [p for p in folder.iterdir() if not _system(p.name)]
        if len(inside) != 1 or not inside[0].is_dir() or "_assignsubmission_" in inside[0].name:
            break
        next_ = [p for p in inside[0].iterdir() if not _system(p.name)]
        if len(next_) < 2 or any(p.is_file() and not who(p.stem, assignments) for p in next_):
            break  # one student's folder, with one file or with several assignments
        folder = inside[0]
    return folder


def shown(path: Path) -> str:
    """A file's name that can be written anywhere."""
    return path.name.encode("utf-8", "replace").decode()


def read(path: Path, root: Path, releases: dict[str, NotebookNode]) -> Submission:
    """Read one file, whatever it is; what is wrong with it stands in the notes."""
    names = [name for name in releases if name]
    one = Submission(*whose(path, root, names))
    if "LATE" in path.name.split("_"):
        one.notes.append("late, says its name")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size / 2**20:.0f} MB is more than can be read")
        cells, told = _cells(path)
        if len(cells) > MOST_CELLS:
            raise ValueError(f"{len(cells):,} cells are more than can be read")
        one.assignment = _which(path, cells, told, releases)
        one.notebook, notes = fill(releases[one.assignment], cells)
        one.notes += notes
    except (ValueError, OSError, RecursionError, MemoryError) as error:
        one.notes.append(str(error) or type(error).__name__)
        one.assignment = one.assignment or _named(path, names)
    return one


def _named(path: Path, assignments: list[str]) -> str:
    """The assignment that a file's name tells."""
    return next((name for name in assignments if name in path.name), "")


def whose(path: Path, root: Path, assignments: list[str]) -> tuple[str, Path, str, str]:
    """The student's name for tables and folders, the file, who it is exactly, and the LMS's id."""
    parts = path.relative_to(root).parts
    name = parts[0] if len(parts) > 1 else path.stem
    owner, number = name, ""
    if moodle := re.match(r"(.+?)_(\d+)_assignsubmission_", name):
        name, number = moodle[1], moodle[2]
    elif len(parts) == 1 and (canvas := re.match(r"(.+?)(?:_LATE)?_(\d+)_\d+_", name)):
        name, number = canvas[1], canvas[2]
    elif len(parts) == 1:
        name = who(name, assignments)
        owner = name or path.name  # nobody's files are not of one person
    owner = unicodedata.normalize("NFC", f"{name}_{number}" if number else owner)
    name = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    name = re.sub(r"[^\w.-]+", "-", name).strip("-._") or "nobody"
    if len(name.encode()) > 100:
        name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name, path, owner.encode("utf-8", "replace").decode(), number


def who(stem: str, assignments: list[str]) -> str:
    """The person in a file's name: what stands before the assignment, else what stands behind."""
    stem = re.sub(r"[ _-]*\(\d+\)$", "", stem)
    known = "|".join(map(re.escape, assignments))
    told = re.fullmatch(rf"(?:(.*?)[ _-]+)?(?:{known})(?:[ _-]+(.*))?", stem, re.S)
    return (told[1] or told[2] or "") if told else stem


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _cells(path: Path) -> tuple[list[dict], str]:
    """The cells of a notebook, as plain as they can be, and the assignment that it names."""
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{shown(path)} is not a Jupyter notebook") from None
    cells = data.get("cells") if isinstance(data, dict) else None
    if not isinstance(cells, list):
        raise ValueError(f"{shown(path)} is not a Jupyter notebook of version 4")
    plain = []
    for cell in cells:
        if not isinstance(cell, dict):
            continue
        source, metadata = cell.get("source", ""), cell.get("metadata")
        source = "".join(map(str, source)) if isinstance(source, list) else str(source)
        source = source.encode("utf-8", "replace").decode()  # half of an emoji cannot be written
        pictures: dict = {}
        if cell.get("cell_type") != "code":
            source, pictures = _pictures(source, cell.get("attachments"))
        metadata = metadata if isinstance(metadata, dict) else {}
        about = metadata.get("nbgrader")
        plain.append(
            {
                "kind": "markdown"
                if cell.get("cell_type") == "raw"
                else str(cell.get("cell_type")),
                "source": source.replace("\r\n", "\n"),
                "id": str(cell.get("id") or metadata.get("id") or ""),
                "key": str(about.get("grade_id", "")) if isinstance(about, dict) else "",
                "pictures": pictures,
            }
        )
    told = data.get("metadata", {})
    told = told.get("vitmini", {}) if isinstance(told, dict) else {}
    return plain, str(told.get("assignment", "")) if isinstance(told, dict) else ""


def _pictures(source: str, attached: object) -> tuple[str, dict]:
    """A cell's text and the pictures pasted into it, under names that no other cell has."""
    kept: dict[str, dict] = {}
    pasted = dict(attached) if isinstance(attached, dict) else {}

    def attach(found: re.Match) -> str:  # Colab pastes pictures into the text itself
        name = f"inline-{len(pasted)}"
        pasted[name] = {found[1]: found[2]}
        return f"](attachment:{name}"

    source = re.sub(
        rf"\]\(<?data:({'|'.join(PICTURES)});base64,([A-Za-z0-9+/=]+)>?", attach, source
    )
    for name, kinds in pasted.items():
        for kind, data in kinds.items() if isinstance(kinds, dict) else ():
            text = "".join(map(str, data)) if isinstance(data, list) else str(data)
            try:
                base64.b64decode(text := "".join(text.split()), validate=True)
            except ValueError:
                continue
            if kind in PICTURES and len(text) < LARGEST_PICTURE * 4 / 3:
                own = f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.{kind.split('/')[1]}"
                kept[own] = {kind: text}
                for written in (name, quote(name)):
                    source = source.replace(f"attachment:{written}", f"attachment:{own}")
                break
    names = "|".join(map(re.escape, kept)) or "(?!)"
    return re.sub(rf"\battachment:(?!{names})(?=\S)", "not-attached:", source), kept


def _which(path: Path, cells: list[dict], told: str, releases: dict[str, NotebookNode]) -> str:
    if told in releases:
        return told
    keys = {cell["key"] for cell in cells}
    by_cells = {
        name: sum(key_of(cell) in keys for cell in notebook.cells if key_of(cell))
        + sum(cell.source == other["source"] for cell in notebook.cells for other in cells)
        for name, notebook in releases.items()
    }
    best = max(by_cells, key=lambda name: by_cells[name], default="")
    if best and by_cells[best] > 1:
        return best
    if name := _named(path, list(releases)):
        return name
    raise ValueError(f"{shown(path)} is none of {', '.join(sorted(releases))}")


# Answers into the released notebook ------------------------------------------------------------


def fill(release: NotebookNode, cells: list[dict]) -> tuple[NotebookNode, list[str]]:
    """The released notebook with a student's answers and own cells; what was put right, in words.

    Answers are known by nbgrader's metadata, else by their first line, their id, or the names that
    they define; those in words also by the heading above them.
    """
    notes: list[str] = []
    official = [_plain(cell) for cell in release.cells]
    keys = {o["key"] for o in official}
    if foreign := sum(bool(cell["key"]) and cell["key"] not in keys for cell in cells):
        notes.append(f"cells of another assignment left out: {foreign}")
        cells = [cell for cell in cells if not cell["key"] or cell["key"] in keys]
    cells = _apart(_joined(cells), official)
    place = [_find(cell, official) for cell in cells]
    taken = {p for p in place if p is not None}
    for i, cell in enumerate(cells):  # what only the names tell
        if place[i] is None and cell["kind"] == "code":
            found = place[i] = _by_names(cell, official, taken)
            taken |= set() if found is None else {found}
    if any(o["key"] for o in official) and not any(cell["key"] for cell in cells):
        notes.append("without nbgrader's metadata: answers found by their first line")
    filled = copy.deepcopy(release)
    extra: dict[int, list[NotebookNode]] = {}
    at = -1
    for i, cell in enumerate(cells):
        if place[i] is not None:
            at = int(place[i] or 0)
        elif cell["source"].strip() and cell["kind"] in ("code", "markdown"):
            extra.setdefault(at, []).append(_own_cell(cell))
    for at, o in enumerate(official):
        given = [cells[i] for i in range(len(cells)) if place[i] == at]
        texts = [cell["source"] for cell in given]
        written = [cell for cell in given if cell["source"].strip() != o["source"].strip()]
        if o["answer"] and o["kind"] == "code" and not given:
            filled.cells[at].source = "# no answer cell"  # no stub over an answer elsewhere
        if o["answer"] and o["kind"] == "code":  # a copy of the cell may have become a scratch pad
            names = _names(o["source"])
            real = [
                c for c in written if FIRST_LINE.match(c["source"]) or names & _names(c["source"])
            ]
            written = real or written
        if o["answer"] and written:
            empty = "# empty" if o["kind"] == "code" else STUB
            filled.cells[at].source = written[-1]["source"] or empty
            _attach(filled.cells[at], written[-1].get("pictures", {}))
        if written and o["kind"] == "code" and o["key"] and not o["answer"] and not o["graded"]:
            extra.setdefault(at, []).insert(0, _own_cell(written[-1]))
        own = []
        if o["answer"] and o["kind"] == "markdown":  # an answer in cells of its own counts as well
            near = [extra.get(at - 1, []) if at else [], extra.get(at, [])]
            own = [c for cells_ in near for c in cells_ if c.cell_type == "markdown"]
            if own:
                parts = [c["source"] for c in written[-1:]] + [c.source for c in own]
                filled.cells[at].source = "\n\n".join(parts)
                for j in (at - 1, at):
                    extra[j] = [c for c in extra.get(j, []) if c.cell_type != "markdown"]
                for c in own:
                    _attach(filled.cells[at], c.get("attachments", {}))
        if o["graded"] and not o["answer"] and (not given or texts[-1] != o["source"]):
            what = "missing" if not given else "not as it was given out"
            notes.append(f"{o['name']}: its check was {what}, and is put back")
        elif len(given) > 1 and (o["answer"] or o["graded"]):
            notes.append(f"{o['name']}: the cell is there {len(given)} times, the last one counts")
        elif not given and o["answer"] and not own:
            notes.append(f"{o['name']}: no answer cell")
        elif given and o["key"] and not o["answer"] and texts[-1].strip() != o["source"].strip():
            notes.append("a given cell was edited: it is put back, the edited one stands below it")
    result = extra.get(-1, [])
    for at, cell in enumerate(filled.cells):
        result += [cell, *extra.get(at, [])]
    for number, cell in enumerate(result):
        cell.id = f"cell-{number:03d}"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    filled.cells = result
    return filled, notes


def _own_cell(cell: dict) -> NotebookNode:
    made = getattr(nbformat.v4, f"new_{cell['kind']}_cell")(cell["source"])
    _attach(made, cell.get("pictures", {}))
    return made


def _attach(cell: NotebookNode, pictures: dict) -> None:
    if pictures:
        cell.attachments = cell.get("attachments", {}) | pictures


def _joined(cells: list[dict]) -> list[dict]:
    """Put together what an editor's "split cell" made two of: neighbours with one key."""
    whole: list[dict] = []
    for cell in cells:
        last = whole[-1] if whole else {}
        half = bool(cell["key"]) and cell["key"] == last.get("key") and cell["kind"] == last["kind"]
        if half and not FIRST_LINE.match(cell["source"]):
            whole[-1] = last | {"source": f"{last['source']}\n{cell['source']}"}
        else:
            whole.append(cell)
    return whole


def _apart(cells: list[dict], official: list[dict]) -> list[dict]:
    """Part an answer that was written into the cell of its question from the question."""
    result = []
    for cell in cells:
        for o in official:
            text, asked = cell["source"], o["source"].strip()
            longer = asked.startswith("#") and text.startswith(asked) and text.strip() != asked
            if cell["kind"] == "markdown" == o["kind"] and longer and not o["answer"]:
                result.append(cell | {"source": o["source"]})
                cell = cell | {"source": text[len(asked) :].strip(), "id": "", "key": ""}
                break
        result.append(cell)
    return result


def blank(notebook: NotebookNode, release: NotebookNode, keep: str) -> NotebookNode:
    """A copy in which only one question is answered; the student's own cells stay."""
    stubs = {key_of(cell): cell.source for cell in release.cells if key_of(cell)}
    copied = copy.deepcopy(notebook)
    for cell in copied.cells:
        about = cell.metadata.get("nbgrader", {})
        if about.get("solution") and about["grade_id"] != keep:
            cell.source = stubs[about["grade_id"]]
    return copied


def key_of(cell: NotebookNode) -> str:
    """By which nbgrader knows a cell, nothing for a cell that it does not know."""
    return str(cell.metadata.get("nbgrader", {}).get("grade_id", ""))


def question(key: str) -> str:
    """`a1-q3-check` is what people call Question 3."""
    short = key.removesuffix("-check").split("-", 1)[-1]
    return f"Question {short[1:]}" if re.fullmatch(r"q\d+", short) else short.capitalize()


def _plain(cell: NotebookNode) -> dict:
    about = cell.metadata.get("nbgrader", {})
    return {
        "kind": cell.cell_type,
        "source": cell.source,
        "id": cell.id,
        "key": key_of(cell),
        "name": question(key_of(cell)),
        "answer": bool(about.get("solution")),
        "graded": bool(about.get("grade")),
        "first": FIRST_LINE.match(cell.source),
        "heading": cell.source.split("\n")[0] if cell.cell_type == "markdown" else "",
    }


def _find(cell: dict, official: list[dict]) -> int | None:
    first = FIRST_LINE.match(cell["source"])
    tests = (
        lambda o: o["key"] and o["key"] == cell["key"],
        lambda o: first and o["first"] and o["first"][0] == first[0],
        lambda o: cell["id"] and o["id"] == cell["id"],
        lambda o: o["source"].strip() == cell["source"].strip() and o["source"] != STUB,
        lambda o: o["heading"].startswith("#") and cell["source"].startswith(o["heading"] + "\n"),
    )
    for test in tests:
        for at, o in enumerate(official):
            if test(o) and (o["kind"] == cell["kind"] or o["key"]):
                return at
    return None


def _names(source: str) -> set[str]:
    """The names that a cell defines, as far as a line's begin tells."""
    made = re.findall(r"^(?:def|class) (\w+)|^(\w+)(?: *:[^=\n]+)? *=(?!=)", source, re.M)
    return {either or other for either, other in made}


def _by_names(cell: dict, official: list[dict], taken: set[int]) -> int | None:
    for at, o in enumerate(official):
        wanted = _names(o["source"])
        if o["answer"] and at not in taken and wanted and wanted <= _names(cell["source"]):
            return at
    return None
