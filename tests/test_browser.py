"""Every page in a real browser, with the network cut."""

from __future__ import annotations

import functools
import http.server
import threading

import browser
import pytest
from playwright.sync_api import Page, sync_playwright
from test_book import HTML, PAGES, each_page

WIDTHS = {"phone": 390, "desk": 1280}


@pytest.fixture(scope="session")
def site():
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(HTML))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    path = browser.find()
    assert path, "no Chromium: make test installs one, or set CHROMIUM=/path/to/it"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=browser.ARGUMENTS)


class Visit:
    """A page that is open, and what went wrong while it opened."""

    def __init__(self, chromium, site, page, **options):
        self.page: Page = chromium.new_page(**options)
        self.problems: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda e: self.problems.append(f"error: {e}"))
        self.page.on("requestfailed", lambda r: self.problems.append(f"failed: {r.url}"))
        self.page.on("response", self._response)
        # the network is cut: only the book's own server answers
        self.page.route(
            "**/*",
            lambda route: (
                route.continue_() if route.request.url.startswith(site) else route.abort()
            ),
        )
        self.page.goto(f"{site}/{page}.html", wait_until="networkidle")

    def _console(self, message):
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _response(self, response):
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")


@pytest.fixture
def visit(chromium, site):
    opened = []

    def open_page(page, **options):
        opened.append(Visit(chromium, site, page, **options))
        return opened[-1]

    yield open_page
    for v in opened:
        v.page.close()


@each_page
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_the_page_opens_without_error_and_without_the_network(visit, page, width):
    v = visit(page, viewport={"width": width, "height": 800})
    assert v.problems == []
    assert len(v.page.locator("article").inner_text()) > 200
    assert v.page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.alt)"
    assert v.page.evaluate(broken) == []


def test_formulas_are_set(visit):
    v = visit("notebooks/01-patches")
    v.page.wait_for_selector("mjx-container mjx-math")
    assert v.page.locator("mjx-container").count() >= 5
    assert v.page.locator("mjx-merror").count() == 0
    assert v.page.evaluate("document.fonts.check('16px MJXTEX')")


@pytest.mark.parametrize("page", [p for p in PAGES if p.startswith("notebooks/")])
def test_explorers_answer_to_the_arrow_keys(visit, page):
    v = visit(page)
    steppers = v.page.locator("figure.vm-stepper")
    assert steppers.count() >= 1
    for stepper in steppers.all():
        slider = stepper.locator("input[type=range]")
        slider.focus()
        v.page.keyboard.press("Home")
        seen = []
        for _ in range(int(slider.get_attribute("max")) + 1):
            shown = stepper.locator("img:visible")
            assert shown.count() == 1
            name = stepper.locator("output").inner_text()
            assert name == slider.get_attribute("aria-valuetext") or not seen
            seen.append((name, shown.get_attribute("alt")))
            v.page.keyboard.press("ArrowRight")
        assert len(set(seen)) == len(seen) >= 2


def test_answers_and_solutions_unfold(visit):
    v = visit("notebooks/00-start")
    answer = v.page.locator("details", has_text="Answer to 1").first
    assert not answer.locator("p").first.is_visible()
    answer.locator("summary").click()
    assert answer.locator("p").first.is_visible()
    solution = v.page.locator("details", has_text="Show the solution").first
    assert not solution.locator("pre").first.is_visible()
    solution.locator("summary").click()
    assert solution.locator("pre").first.is_visible()


def luminance(color: str) -> float:
    channels = [int(float(c)) / 255 for c in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", [PAGES[0], "notebooks/00-start", "notebooks/01-patches"])
def test_words_stand_out_from_the_page_in_both_modes(visit, page, scheme):
    v = visit(page, color_scheme=scheme)
    colors = """() => [...document.querySelectorAll('article :is(p, summary, td, h2)')]
      .filter(e => e.innerText.trim() && e.offsetParent).map(e => {
        let b = e; const see = x => getComputedStyle(x).backgroundColor;
        while (b && /rgba\\(.*, 0\\)|transparent/.test(see(b))) b = b.parentElement;
        const paper = b ? see(b) : 'rgb(255, 255, 255)';
        return [getComputedStyle(e).color, paper, e.innerText.slice(0, 40)];
      })"""
    found = v.page.evaluate(colors)
    assert len(found) > 10
    for ink, paper, words in found:
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper, words)
    assert (luminance(found[0][1]) < 0.2) == (scheme == "dark")
