"""The built book: all pages are there, with all that they show."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import NOTEBOOKS, ROOT

HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(c["file"] for part in TOC["parts"] for c in part["chapters"])]
each_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="session", autouse=True)
def built():
    assert (HTML / "index.html").exists(), "the book is not built: run make book first"


@each_page
def test_the_page_was_built_from_the_present_source(page):
    html = HTML / f"{page}.html"
    source = next(p for p in (ROOT / f"{page}{s}" for s in (".md", ".ipynb")) if p.exists())
    assert html.exists() and html.stat().st_mtime >= source.stat().st_mtime, "run make book"


@each_page
def test_nothing_is_fetched_from_elsewhere(page):
    html = (HTML / f"{page}.html").read_text()
    loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"', html)
    loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preload|icon)"[^>]*href="([^"]+)"', html)
    assert loaded
    outside = [url for url in loaded if re.match(r"(https?:)?//", url)]
    assert outside == []


@each_page
def test_internal_links_lead_somewhere(page):
    here = HTML / f"{page}.html"
    html = here.read_text()
    for link in re.findall(r'<a [^>]*href="([^"#:]+)(?:#[^"]*)?"', html):
        assert (here.parent / link).resolve().exists(), link


@each_page
def test_every_image_has_a_text(page):
    html = (HTML / f"{page}.html").read_text()
    article = html[html.index("<article") :]
    for image in re.findall(r"<img [^>]*>", article):
        alt = re.search(r'alt="([^"]*)"', image)
        assert alt and len(alt[1]) > 20 and not alt[1].startswith(("../", "data:")), image[:200]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_solutions_are_folded(path):
    html = (HTML / "notebooks" / f"{path.stem}.html").read_text()
    assert html.count("Show the solution") == path.read_text().count("#@title Solution") >= 3


def test_the_reference_links_every_public_name_to_its_chapter():
    import vitmini as vm

    html = (HTML / "book" / "reference.html").read_text()
    for name in vm.__all__:
        value = getattr(vm, name)
        if callable(value):
            assert f'id="{value.__module__}.{name}"' in html, name
    for path in NOTEBOOKS:
        assert f"../notebooks/{path.stem}.html" in html


def test_every_chapter_of_the_toc_is_a_notebook():
    assert sorted(p for p in PAGES if p.startswith("notebooks/")) == [
        f"notebooks/{p.stem}" for p in NOTEBOOKS
    ]


def test_terms_of_the_glossary_are_in_two_languages():
    text = (ROOT / "book" / "glossary.md").read_text()
    terms = re.findall(r"^(\S.*) · (.*)$", text, re.M)
    assert len(terms) >= 50
    assert all(re.search(r"[\u4e00-\u9fff]", chinese) for _, chinese in terms)
    assert [t.lower() for t, _ in terms] == sorted((t.lower() for t, _ in terms))
