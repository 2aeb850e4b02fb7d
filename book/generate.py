"""Write notebooks/*.ipynb from book/chapters/*.md and vitmini/, and execute those that changed.

    python book/generate.py [CHAPTER ...]        write all, execute what changed (or is named)
    python book/generate.py --inputs             write the cells, execute nothing
    python book/generate.py --move ADDRESS       the course moves to another public address

A chapter is MyST text. The generator replaces, in its cells:

    # set-up                                     the set-up cell, the same in every chapter
    # vitmini/patches.py: patchify, PatchEmbed   the definitions, whole, from the library
    {{NAME:KEY.KEY:FORMAT}}                      a number from book/results/NAME.json; the
                                                 format "count" gives the length of a list;
                                                 after a "|", words for as long as there is no file
    ![alt](../static/x.png)                      the picture itself, so that Colab has it too

It adds a line of facts below the title and a line of provenance at the end.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import ast
import base64
import datetime
import functools
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

# jsonschema would load a grammar of addresses, for seconds; no notebook needs it
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ROOT / "book" / "chapters"
NOTEBOOKS = ROOT / "notebooks"
CONFIG = ROOT / "_config.yml"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SETUP = """\
# Set-up: installs vitmini where it is missing (on Colab, say) and changes nothing else.
import importlib.util, subprocess, sys
if importlib.util.find_spec("vitmini") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "git+{address}"], check=True)
import vitmini as vm; profile = vm.choose_profile()"""


# The public address: `_config.yml` holds it, everything else is made from it -------------------


def address() -> str:
    return _settings(CONFIG.read_text(encoding="utf-8"))["repository"]["url"]


@functools.cache
def _settings(text: str) -> dict:
    return yaml.safe_load(text)


def move(new: str) -> None:
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", new):
        raise ValueError(f"ADDRESS must look like https://github.com/ORG/REPO, got {new!r}")
    text = CONFIG.read_text(encoding="utf-8")
    CONFIG.write_text(text.replace(f"url: {address()}\n", f"url: {new}\n"), encoding="utf-8")


def links() -> dict[str, str]:
    owner, repo = address().split("/")[-2:]
    return {
        "repository": address(),
        "source": f"{address()}/blob/main",
        "colab": f"https://colab.research.google.com/github/{owner}/{repo}/blob/main/notebooks",
        "book": f"https://{owner.lower()}.github.io/{repo}/",
    }


def write_readme() -> None:
    path, where = ROOT / "README.md", links()
    lines = [f"**Read** the course: <{where['book']}>", "", "**Run** it on Colab:"]
    for chapter in chapters():
        title = chapter.read_text(encoding="utf-8").split("\n# ", 1)[1].split("\n", 1)[0]
        lines.append(f"* [{title}]({where['colab']}/{chapter.stem}.ipynb)")
    block = "<!-- links: written by make notebooks -->\n{}\n<!-- end of links -->"
    text = re.sub(
        block.format(".*?"), lambda _: block.format("\n".join(lines)), path.read_text(), flags=re.S
    )
    path.write_text(text, encoding="utf-8")


# Cells ---------------------------------------------------------------------------------------


def chapters() -> list[Path]:
    return sorted(CHAPTERS.glob("[0-9][0-9]-*.md"))


def definition(module: str, name: str) -> str:
    """The source of a top-level class, function or constant of the library, decorators included."""
    text = (ROOT / module).read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    raise ValueError(f"{module} defines no {name}")


def code_cell(source: str) -> str:
    if source.strip() == "# set-up":
        return SETUP.format(address=address())
    shown = re.fullmatch(r"# (vitmini/\w+\.py): ([\w, ]+)", source.strip())
    if shown:
        module, names = shown.groups()
        return "\n\n\n".join([f"# {module}", *(definition(module, n) for n in names.split(", "))])
    return source


def look_up(value: Any, keys: str) -> Any:
    """Follow `metrics.accuracy_0.003.mean` into a result; a key may hold a dot itself."""
    if not keys:
        return value
    if isinstance(value, list):
        first, _, rest = keys.partition(".")
        return look_up(value[int(first)], rest)
    names = sorted(value, key=len, reverse=True) if isinstance(value, dict) else []
    for key in names:
        if keys == key or keys.startswith(f"{key}."):
            return look_up(value[key], keys[len(key) + 1 :])
    raise ValueError(f"no {keys} among {', '.join(names) or value}")


def text_cell(source: str) -> str:
    def number(match: re.Match) -> str:
        name, keys, form = match.groups()
        form, _, until = form.partition("|")
        path = ROOT / f"book/results/{name}.json"
        if until and not path.exists():
            return until
        value = look_up(json.loads(path.read_text(encoding="utf-8")), keys)
        return str(len(value)) if form == "count" else format(value, form)

    def picture(match: re.Match) -> str:
        alt, name = match.groups()
        data = (ROOT / "book" / "static" / name).read_bytes()
        return f"![{alt}](data:image/png;base64,{base64.b64encode(data).decode()})"

    source = re.sub(r"\{\{([\w-]+):([\w. -]+):([^{}]*)\}\}", number, source)
    source = re.sub(r"!\[([^]]+)\]\(\.\./static/([\w.-]+\.png)\)", picture, source)
    return re.sub(r"\{\{(\w+)\}\}", lambda m: links()[m[1]], source)


def facts(stem: str, course: dict) -> str:
    where, modules = links(), course.get("modules", [])
    parts = [
        f"Reading: {course['minutes']['read']} minutes",
        f"exercises: {course['minutes']['exercises']} minutes",
        f"running: {course['minutes']['run']}",
        f"[open in Colab]({where['colab']}/{stem}.ipynb)",
        *(f"module [{m}]({where['source']}/{m})" for m in modules),
    ]
    return " · ".join(parts)


def build(chapter: Path) -> NotebookNode:
    """The notebook of a chapter, without outputs and without provenance."""
    source = jupytext.read(chapter, fmt="md:myst")
    course = source.metadata["course"]
    cells: list[NotebookNode] = []
    for cell in source.cells:
        text = code_cell(cell.source) if cell.cell_type == "code" else text_cell(cell.source)
        if not cells:
            title, _, rest = text.partition("\n")
            text = f"{title}\n\n{facts(chapter.stem, course)}\n{rest}"
        make = (
            nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        )
        metadata = dict(cell.metadata)
        tags = metadata.get("tags", [])
        if "solution" in tags:
            metadata |= {"cellView": "form", "tags": [*tags, "hide-cell"]}
            metadata["mystnb"] = {
                "code_prompt_show": "Show the solution",
                "code_prompt_hide": "Hide",
            }
        cells.append(make(text, metadata=metadata, id=f"{chapter.stem}-{len(cells):02d}"))
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    if course["gpu"]:
        metadata |= {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    notebook.nbformat_minor = 5
    return notebook


def provenance_cell(stem: str, record: dict) -> NotebookNode:
    line = (
        f"*Executed on {record['date']} on {record['device']}, profile {record['profile']}, in "
        f"{record['seconds']} seconds; Python {record['versions']['python']}, PyTorch "
        f"{record['versions']['torch']}, vitmini {record['versions']['vitmini']}, "
        f"commit {record['commit']}.*"
    )
    return nbformat.v4.new_markdown_cell(line, id=f"{stem}-provenance")


# What a notebook depends on --------------------------------------------------------------------


def imports(module: Path) -> set[str]:
    return _imports(module.read_text(encoding="utf-8"))


@functools.cache
def _imports(text: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "vitmini":
            found |= {f"vitmini.{a.name}" for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitmini."):
            found.add(str(node.module))
    return found


def modules_of(notebook: NotebookNode) -> list[Path]:
    """The library modules that the code cells reach, through the public names and imports."""
    public: dict[str, str] = {}
    for node in ast.parse((ROOT / "vitmini/__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitmini."):
            public |= {a.asname or a.name: str(node.module) for a in node.names}
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    todo = {public.get(n, f"vitmini.{n}") for n in re.findall(r"\bvm\.(\w+)", code)}
    todo |= set(re.findall(r"from (vitmini[\w.]*) import", code))
    todo |= {f"vitmini.checks.{n}" for n in re.findall(r"\bchecks\.(ch\d\d)", code)}
    seen: set[str] = set()
    files = []
    while todo:
        name = todo.pop()
        seen.add(name)
        base = ROOT / name.replace(".", "/")
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path.exists():
            files.append(path)
            # the checks of other chapters, which the package only gathers, do not matter here
            gathered = {m for m in imports(path) if base.is_dir() and re.search(r"\.ch\d\d$", m)}
            todo |= imports(path) - seen - gathered
    return sorted(set(files))


def fingerprint(notebook: NotebookNode) -> str:
    """A hash of the cells, of the library code and the results that they reach.

    The public address is left out: a course that moves keeps its outputs.
    """
    digest = hashlib.sha256()
    for cell in notebook.cells:
        text = json.dumps([cell.cell_type, cell.source, cell.metadata], sort_keys=True)
        for link in links().values():
            text = text.replace(link, "ADDRESS")
        digest.update(text.encode())
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    results = set(re.findall(r"load_result\(\"([\w-]+)\"\)", code))
    folder = ROOT / "book" / "results"
    stored = [folder / f"{name}.json" for name in sorted(results)]
    for prefix in re.findall(r"list_results\(\"([\w-]+)\"\)", code):
        stored += sorted(folder.glob(f"{prefix}*.json"))
    names = re.findall(r"load_(?:pretrained|card)\(\"([\w-]+)\"\)", code)
    weights = [ROOT / "vitmini" / "weights" / f"{name}.json" for name in sorted(set(names))]
    for path in [*modules_of(notebook), *stored, *weights]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# Writing and executing ---------------------------------------------------------------------------


def execute(notebook: NotebookNode) -> dict:
    """Run all cells in place, as a reader would; return the provenance."""
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    env["VITMINI_STATIC"] = "1"  # nobody can press a button
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    client.execute(env=env)
    seconds = time.perf_counter() - start
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"cell {i} wrote to stderr:\n{output.text}")
    notebook.metadata["language_info"] = {"name": "python"}  # the version is in the provenance
    sys.path.insert(0, str(ROOT))
    from vitmini.profiles import choose_profile, device_name
    from vitmini.records import provenance

    profile = choose_profile()
    return {
        "device": device_name(profile.device),
        "profile": profile.name,
        "seconds": round(seconds),
        **provenance(),
        "date": datetime.date.today().isoformat(),
    }


def generate(chapter: Path, run: bool = True, force: bool = False, stands: bool = False) -> str:
    """Write one notebook; keep the stored outputs while nothing that they depend on changed.

    `stands` says of a chapter that its outputs stand, though a module that it reaches changed: in
    what the chapter does not use. CI compares the tagged cells all the same.
    Raises: `ValueError` when `stands`, but code cells are others than those that were executed.
    """
    notebook, path = build(chapter), NOTEBOOKS / f"{chapter.stem}.ipynb"
    wanted, record, outputs = fingerprint(notebook), None, {}
    if path.exists():
        old = nbformat.read(path, as_version=4)
        record = old.metadata.get("vitmini")
        outputs = {c.id: c for c in old.cells if c.cell_type == "code"}
    if stands:
        cells = [(c.id, c.source) for c in notebook.cells if c.cell_type == "code"]
        if not record or cells != [(i, c.source) for i, c in outputs.items()]:
            raise ValueError(f"{chapter.stem} has other code than was executed: execute it")
        record = {**record, "fingerprint": wanted}
    if record and not force and (record["fingerprint"] == wanted or not run):
        for cell in notebook.cells:
            if cell.cell_type == "code" and cell.id in outputs:
                cell.outputs = outputs[cell.id].outputs
                cell.execution_count = outputs[cell.id].execution_count
        fresh = record["fingerprint"] == wanted
        result = "unchanged" if fresh else "outputs are of an older version, run make notebooks"
    elif run:
        record = {**execute(notebook), "fingerprint": wanted}
        result = f"executed in {record['seconds']} s"
    else:
        return "not executed yet"
    notebook.metadata["vitmini"] = record
    notebook.cells.append(provenance_cell(chapter.stem, record))
    write_whole(path, nbformat.writes(notebook) + "\n")
    return result


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all (vitmini's own would load PyTorch first)."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write and execute the notebooks.")
    parser.add_argument("chapter", nargs="*", help="execute these, changed or not: 01-patches")
    parser.add_argument("--inputs", action="store_true", help="write cells, execute nothing")
    parser.add_argument(
        "--stand",
        nargs="+",
        default=[],
        metavar="CHAPTER",
        help="these outputs stand: see generate",
    )
    parser.add_argument("--move", metavar="ADDRESS", help="the repository's new public address")
    args = parser.parse_args()
    known = {c.stem for c in chapters()}
    try:
        if unknown := {*args.chapter, *args.stand} - known:
            raise ValueError(
                f"no chapter {unknown.pop()!r}: choose from {', '.join(sorted(known))}"
            )
        if args.move:
            move(args.move)
        for chapter in chapters():
            named, stands = chapter.stem in args.chapter, chapter.stem in args.stand
            run = not args.inputs and (named or not (args.chapter or args.stand))
            print(f"{chapter.stem}: {generate(chapter, run, named, stands)}", flush=True)
        write_readme()
        if args.move:
            import assign  # here, since it needs nbgrader, which only some have

            assign.make(assign.texts())
            assign.move_exemplary()
    except ValueError as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
