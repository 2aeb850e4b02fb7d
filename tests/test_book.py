"""The built book: all pages are there, with all that they show."""

from __future__ import annotations

import html as html_module
import re
from pathlib import Path

import generate
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


def test_the_pages_wear_the_present_style():
    for path in (ROOT / "book" / "static").glob("course.*"):
        assert (HTML / "_static" / path.name).read_bytes() == path.read_bytes(), "run make book"


@each_page
def test_nothing_is_fetched_from_elsewhere(page):
    html = (HTML / f"{page}.html").read_text()
    loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"', html)
    loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preload|icon)"[^>]*href="([^"]+)"', html)
    assert loaded
    outside = [url for url in loaded if re.match(r"(https?:)?//", url)]
    assert outside == []


def links_of(html):
    return [html_module.unescape(link) for link in re.findall(r'<a\b[^>]*\shref="([^"]*)"', html)]


def ids_of(html):
    return set(re.findall(r'\s(?:id|name)="([^"]+)"', html))


def dead_links(here: Path, html: str) -> list[str]:
    """Links to pages of the book that are not there, or to places that are not on them."""
    dead = []
    for link in links_of(html):
        path, _, place = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        if not re.match(r"[a-z]+:", link) and not has_place(target, place, html, here):
            dead.append(link)
    return dead


def has_place(target: Path, place: str, html: str, here: Path) -> bool:
    if not target.is_file():
        return False
    # an empty place is the top of the page
    return not place or place in ids_of(html if target == here else target.read_text())


@each_page
def test_internal_links_lead_to_a_place_that_is_there(page):
    here = HTML / f"{page}.html"
    html = here.read_text()
    assert len(links_of(html)) > len(PAGES)
    assert dead_links(here, html) == []


def test_dead_links_are_found():
    here, page = HTML / "book" / "index.html", 'href="how-to-use.html'
    html = f'<a {page}">1</a><a {page}#none">2</a><a href="none.html">3</a><a href="#x">4</a>'
    assert dead_links(here, html) == ["how-to-use.html#none", "none.html", "#x"]


def outward(html: str) -> list[str]:
    """Links to the repository or to Colab that do not lead to a file of this checkout."""
    where, wrong = generate.links(), []
    for link in links_of(html):
        owner = re.escape(where["repository"].rsplit("/", 1)[0])
        host = re.match(rf"({owner}|https://colab\.research\.google\.com)/", link)
        ours = re.fullmatch(rf"{where['source']}/([\w./-]+?)(?:#L\d+)?", link)
        colab = re.fullmatch(rf"{where['colab']}/([\w/-]+\.ipynb)", link)
        file = ROOT / ours[1] if ours else ROOT / "notebooks" / colab[1] if colab else None
        elsewhere = (where["repository"], f"{where['repository']}/issues")
        if host and not (file.exists() if file else link.startswith(elsewhere)):
            wrong.append(link)
    return wrong


@each_page
def test_links_to_the_repository_and_to_colab_lead_to_files_that_are_there(page):
    assert outward((HTML / f"{page}.html").read_text()) == []


def test_wrong_links_to_the_repository_are_found():
    where = generate.links()
    good = [f"{where['source']}/vitmini/patches.py", f"{where['colab']}/00-start.ipynb"]
    bad = [
        f"{where['source']}/vitmini/nothing.py",
        f"{where['colab']}/99-nothing.ipynb",
        "https://colab.research.google.com/github/someone/else/blob/main/notebooks/00-start.ipynb",
    ]
    assert outward("".join(f'<a href="{link}">x</a>' for link in good + bad)) == bad


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_links_its_notebook_on_colab_and_its_modules(path):
    html = (HTML / "notebooks" / f"{path.stem}.html").read_text()
    head, _, article = html.partition("<article")
    where = generate.links()
    assert f"{where['colab']}/{path.stem}.ipynb" in links_of(head), "the button at the top"
    facts = links_of(article.partition("<h2")[0])
    assert f"{where['colab']}/{path.stem}.ipynb" in facts
    chapter = (ROOT / "book" / "chapters" / f"{path.stem}.md").read_text()
    modules = yaml.safe_load(chapter.split("---")[1])["course"].get("modules", [])
    assert [f"{where['source']}/{m}" for m in modules] == [x for x in facts if "/vitmini/" in x]


def poor_texts(html: str) -> list[str]:
    """Images whose text is missing, short, a file name, or that of another image."""
    article = html[html.index("<article") :]
    poor, seen = [], set()
    for image in re.findall(r"<img\b[^>]*>", article):
        text = re.search(r'\salt="([^"]*)"', image)
        words = text[1].split() if text else []
        if (
            len(words) < 6
            or re.search(r"[\w-]\.(png|svg|jpe?g|webp)\b", text[1])
            or text[1] in seen
        ):
            poor.append(image[:200])
        seen.add(text and text[1])
    return poor


@each_page
def test_every_image_has_a_text_that_says_what_it_shows(page):
    assert poor_texts((HTML / f"{page}.html").read_text()) == []


def test_poor_texts_of_images_are_found():
    good = '<img src="a.png" alt="Two curves that fall, the left one faster.">'
    poor = [
        '<img src="b.png">',
        '<img src="b.png" alt="">',
        '<img src="b.png" alt="A figure.">',
        '<img src="b.png" alt="see the picture in ../_images/b.png here">',
        good,  # again
    ]
    assert poor_texts(f"<article>{good}{''.join(poor)}") == poor


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


def test_the_figures_of_others_stand_beside_ours_as_they_are_stored():
    import vitmini as vm

    page = (HTML / "book" / "results.html").read_text(encoding="utf-8")
    table = page[page.index("<h2>Beside the figures of others") :].split("</table>")[0]
    cells = [re.findall(r"<p>(.*?)</p>", row, re.S) for row in table.split("<tr")[1:]]
    rows = {row[0]: row[1:] for row in cells}
    for name in ("vit_cifar_mini", "vit_cifar_mini_distilled"):
        card = vm.load_card(name)
        told = f"{card['test_accuracy']:.1%} ({card['device']})"
        assert rows[f"our {name}, JPEG copy"][0] == told
    if "train-cifar10" not in vm.list_results():
        assert rows["our recipe cifar10, JPEG copy"][0] == "not yet"
    assert all(len(row) == 4 for row in rows.values()) and len(rows) > 10
