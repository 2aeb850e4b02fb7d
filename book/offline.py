"""Sphinx extension: the book serves its own mathematics, so that it reads without a network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset_file
from sphinx.util.osutil import ensuredir

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


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
