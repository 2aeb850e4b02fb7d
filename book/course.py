"""Sphinx extension of the book: mathematics without a network, links, results, docstrings.

* MathJax and its fonts are served by the book itself.
* The public address reaches pages as `{{ repository }}`, `{{ colab }}` and so on.
* `{assignments}` lists book/assignments/*.md, `{stored-results}` lists book/results/*.json;
  `{goals}` and `{beside}` put what they hold next to the figures of others.
* Pages show their text before any script runs, and weigh no more than they must.
* Docstrings say `Shapes:`, `Raises:`, `Source:`, `Chapter:`; the reference shows them as fields
  and links the chapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from generate import ROOT, chapters, links, look_up
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset_file
from sphinx.util.osutil import ensuredir

from vitmini.experiments import EXPERIMENTS
from vitmini.pretrained import list_pretrained, load_card

FONTS = "output/chtml/fonts/woff-v2"


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the one script and its fonts; the package holds 24 MB that are not used."""
    if error is not None or app.builder.format != "html":
        return
    package = find_spec("sphinx-mathjax-offline")
    if package is None or package.submodule_search_locations is None:
        raise RuntimeError("sphinx-mathjax-offline is missing: install requirements.txt")
    source = Path(package.submodule_search_locations[0]) / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    ensuredir(str(target / FONTS))
    copy_asset_file(str(source / "tex-chtml.js"), str(target))
    for font in sorted((source / FONTS).glob("*.woff")):
        copy_asset_file(str(font), str(target / FONTS))


def configure(app: Sphinx, config: Config) -> None:
    config["myst_substitutions"] = links()
    # torch's own words for `forward` say nothing about a module of ours
    config["autodoc_inherit_docstrings"] = False


def show_fields(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn the docstring's `Shapes:` lines into fields and its single quotes into code."""
    text = "\n".join(lines).rstrip()
    # "... of a patch. Chapter: 1." at the end of a one-line docstring
    text = re.sub(r"(?<=\S) (Chapter: \d+)\.?$", r"\n\n\1", text)
    # a field's continuation lines join its first one
    text = re.sub(
        r"^((?:Shapes|Units|Raises|Source|Chapter): .*(?:\n[ ]+\S.*)*)", _join, text, flags=re.M
    )
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", text)
    text = re.sub(r"^:Chapter: (\d+)(.*)$", _chapter, text, flags=re.M)
    lines[:] = [*text.split("\n"), ""]


def _join(match: re.Match) -> str:
    key, _, rest = " ".join(match[1].split()).partition(": ")
    return f":{key}: {rest}"


def _chapter(match: re.Match) -> str:
    for path in chapters():
        if path.stem.startswith(f"{int(match[1]):02d}-"):
            return f":Chapter: :doc:`{match[1]} </notebooks/{path.stem}>`"
    return f":Chapter: {match[1]}, being written"


def mend_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Leave out the thebe scripts and styles, which nothing here uses; name the colour mode."""
    for kind in ("script_files", "css_files"):
        files = context.get(kind, [])
        context[kind] = [f for f in files if "thebe" not in f"{f} {vars(f)}".lower()]
    context["default_mode"] = "auto"


# What the theme's and Sphinx's templates write into each page, and what is better instead.
MENDED = {
    # 1.5 MB of icons as a script; the theme's style sheet draws the same ones from a font
    r'<script defer src="[^"]*/fontawesome\.js[^"]*"></script>\s*': "",
    # scripts wait until the text is there; only the next inline scripts need the options at once
    r"<script(?=[^>]* src=)(?![^>]* defer)(?![^>]*documentation_options)": "<script defer",
    # a second bar of buttons, hidden: the theme gives their work to these, not to those in sight
    r'(?s)(<header id="pst-header"[^>]*>).*?(?=</header>)': r"\1",
    # entries of a list are its items, also for a screen reader
    'role="doc-biblioentry"': 'role="listitem"',
}


def restyle(app: Sphinx, env: object, *documents: set[str]) -> list[str]:
    """Write every page anew when its looks changed; Sphinx would not even copy the style sheet."""
    looks = [Path(__file__), *(ROOT / "book" / "static").glob("course.*")]
    built = Path(app.outdir) / "objects.inv"
    old = built.exists() and built.stat().st_mtime < max(p.stat().st_mtime for p in looks)
    return sorted(app.project.docnames) if old else []


def mend_html(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        html = mended = path.read_text(encoding="utf-8")
        for pattern, replacement in MENDED.items():
            mended = re.sub(pattern, replacement, mended)
        if mended != html:
            path.write_text(mended, encoding="utf-8")


def _purpose(name: str) -> str:
    experiment = EXPERIMENTS[name]  # a part is a partial function, whose own words say that
    told = getattr(experiment, "func", experiment).__doc__ or ""
    words = told.split("\n")[0].split(" Chapter:")[0]
    return words.replace("`", "")


def _results() -> dict[str, Path]:
    return {path.stem: path for path in sorted((ROOT / "book" / "results").glob("*.json"))}


class StoredResults(SphinxDirective):
    """For each stored result: what it is, on what it was measured, and a table of its metrics.

    Names as an argument choose some of them.
    """

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        shown: list[nodes.Node] = []
        found = _results()
        for name in self.arguments[0].split() if self.arguments else found:
            if name not in found:
                continue
            path = found[name]
            self.env.note_dependency(str(path))
            r = json.loads(path.read_text(encoding="utf-8"))
            purpose = _purpose(name)
            versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
            where = (
                f"{purpose} Data: {r['data']}. Measured on {r['date']} on a {r['device']} in "
                f"{r['seconds']:.0f} seconds, seeds: {len(r['seeds'])}; {versions}, "
                f"commit {r['commit']}."
            )
            rows = [("metric", "mean", "standard error")]
            for name, v in r["metrics"].items():
                error = f"{v['stderr']:.2g}" if len(v["values"]) > 1 else "one value"
                rows.append((name.replace("_", " "), f"{v['mean']:.4g}", error))
            shown += [nodes.rubric(text=r["name"]), nodes.paragraph(text=where), _table(rows)]
        return shown or [nodes.paragraph(text="Nothing of this is measured yet.")]


class StillToMeasure(SphinxDirective):
    """The experiments that have no stored result yet, each with the command that measures it.

    Parts of an experiment are measured on the way to the whole.
    """

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # a new file changes the list
        rows = [("experiment", "what it measures", "command")]
        whole = {name for name, run in EXPERIMENTS.items() if not isinstance(run, partial)}
        for name in sorted(whole - set(_results())):
            rows.append((name, _purpose(name), f"python -m vitmini experiment {name}"))
        if len(rows) == 1:
            return [nodes.paragraph(text="Nothing: every experiment has a stored result.")]
        return [_table(rows)]


class Goals(SphinxDirective):
    """A table of goals; its last column is looked up in a stored result, where there is one.

    Each line: what | the best elsewhere | the goal | NAME:KEY.KEY:FORMAT
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        rows = [("what", "elsewhere", "goal", "measured here")]
        for line in self.content:
            what, elsewhere, goal, where = (part.strip() for part in line.split("|"))
            rows.append((what, elsewhere, goal, _measured(self, where)))
        return [_table(rows)]


class Beside(SphinxDirective):
    """A table of published figures with ours between them, looked up where they are stored.

    The first line names the columns. A cell `NAME:KEY.KEY:FORMAT` is a stored result's or, with
    the name of an embedded model, its card's; other cells stand as they are.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        rows = []
        for line in self.content:
            cells = [part.strip() for part in line.split("|")]
            stored = re.compile(r"[\w-]+:[\w.-]+:\S+")
            rows.append(tuple(_measured(self, c) if stored.fullmatch(c) else c for c in cells))
            if len(rows[-1]) != len(rows[0]):
                raise self.error(f"{len(rows[-1])} cells, not {len(rows[0])}: {line}")
        return [_table(rows)]


def _measured(directive: SphinxDirective, where: str) -> str:
    """Look `NAME:KEY.KEY:FORMAT` up, in a stored result or in a card, and say the device."""
    name, keys, form = where.split(":", 2)
    if name in list_pretrained():
        found = load_card(name)
    elif name not in EXPERIMENTS:
        raise directive.error(f"no experiment {name}")
    elif name not in _results():
        return "not yet"
    else:
        found = json.loads(_results()[name].read_text(encoding="utf-8"))
    return f"{format(look_up(found, keys), form)} ({found['device']})"


class Assignments(SphinxDirective):
    """What there is to hand in: a line an assignment, made from book/assignments."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        rows = [("assignment", "points", "hours", "after chapters", "")]
        table = []
        for path in sorted((ROOT / "book" / "assignments").glob("*.md")):
            text = path.read_text(encoding="utf-8")
            about = yaml.safe_load(text.split("---\n")[1])["assignment"]
            title = text.split("\n# ", 1)[1].split("\n", 1)[0]
            after = ", ".join(str(chapter) for chapter in about["after"])
            table.append(f"notebooks/assignments/release/{path.stem}/{path.stem}.ipynb")
            rows.append((title, str(about["points"]), f"about {about['hours']}", after, ""))
        made = _table(rows)
        lines = list(made.findall(nodes.row))[1:]
        for line, file in zip(lines, table, strict=True):
            colab = f"{links()['colab'].removesuffix('/notebooks')}/{file}"
            words = nodes.paragraph()
            words += nodes.reference("", "open in Colab", refuri=colab)
            words += nodes.Text(" · ")
            words += nodes.reference("", "file", refuri=f"{links()['source']}/{file}")
            line[-1].clear()
            line[-1] += words
        return [made]


def _table(rows: Sequence[tuple[str, ...]]) -> nodes.table:
    table = nodes.table()
    group = nodes.tgroup(cols=len(rows[0]))
    table += group
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    for part, content in ((nodes.thead(), rows[:1]), (nodes.tbody(), rows[1:])):
        for row in content:
            line = nodes.row()
            line += [nodes.entry("", nodes.paragraph(text=text)) for text in row]
            part += line
        group += part
    return table


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", configure)
    app.connect("env-get-outdated", restyle)
    app.connect("html-page-context", mend_page, priority=900)
    app.connect("autodoc-process-docstring", show_fields)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", mend_html)
    app.add_js_file("course.js", loading_method="defer")
    app.add_directive("stored-results", StoredResults)
    app.add_directive("still-to-measure", StillToMeasure)
    app.add_directive("goals", Goals)
    app.add_directive("beside", Beside)
    app.add_directive("assignments", Assignments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
