"""Sphinx extension of the book: mathematics without a network, links, results, docstrings.

* MathJax and its fonts are served by the book itself.
* The public address reaches pages as `{{ repository }}`, `{{ colab }}` and so on.
* `{stored-results}` lists book/results/*.json.
* Docstrings say `Shapes:`, `Raises:`, `Source:`, `Chapter:`; the reference shows them as fields
  and links the chapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from generate import ROOT, chapters, links
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset_file
from sphinx.util.osutil import ensuredir

from vitmini.experiments import EXPERIMENTS

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


def add_links(app: Sphinx, config: Config) -> None:
    config["myst_substitutions"] = links()


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
    """Leave out the thebe scripts, which nothing here uses, and name the colour mode."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s} {vars(s)}".lower()]
    context["default_mode"] = "auto"


class StoredResults(SphinxDirective):
    """For each stored result: what it is, on what it was measured, and a table of its metrics."""

    def run(self) -> list[nodes.Node]:
        shown: list[nodes.Node] = []
        for path in sorted((ROOT / "book" / "results").glob("*.json")):
            self.env.note_dependency(str(path))
            r = json.loads(path.read_text(encoding="utf-8"))
            purpose = (EXPERIMENTS[r["name"]].__doc__ or "").split(" Chapter:")[0].replace("`", "")
            versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
            where = (
                f"{purpose} Data: {r['data']}. Measured on {r['date']} on a {r['device']} in "
                f"{r['seconds']:.0f} seconds, {len(r['seeds'])} seeds; {versions}, "
                f"commit {r['commit']}."
            )
            rows = [("metric", "mean", "standard error")]
            for name, v in r["metrics"].items():
                rows.append((name.replace("_", " "), f"{v['mean']:.4g}", f"{v['stderr']:.2g}"))
            shown += [nodes.rubric(text=r["name"]), nodes.paragraph(text=where), _table(rows)]
        return shown


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
    app.connect("config-inited", add_links)
    app.connect("html-page-context", mend_page, priority=900)
    app.connect("autodoc-process-docstring", show_fields)
    app.connect("build-finished", copy_mathjax)
    app.add_directive("stored-results", StoredResults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
