"""A Chromium for the browser tests, a server like the real host, and a page that is open.

python tests/browser.py --install finds a Chromium or installs one.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = [
    "--no-sandbox",  # root in a container has no user namespace to put it in
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # the network is cut: only the book's own server answers
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
LOOK = Path(__file__).with_suffix(".js")
# what GitHub Pages compresses
COMPRESSED = {".html", ".css", ".js", ".svg", ".json"}
# a slow line: bytes a second, and seconds until an answer comes
RATE, LATENCY = 10e6 / 8, 0.04
# the moments at which the page's first words and the article's first paragraph are painted
PAINTS = """
window.paints = {};
const note = list => list.getEntries().forEach(e =>
  paints[e.identifier || e.name] = e.renderTime || e.startTime);
new PerformanceObserver(note).observe({type: 'paint', buffered: true});
new PerformanceObserver(note).observe({type: 'element', buffered: true});
new MutationObserver((_, watch) => {
  const first = document.querySelector('article p');
  if (first) { first.setAttribute('elementtiming', 'paragraph'); watch.disconnect(); }
}).observe(document, {subtree: true, childList: true});
"""


def find() -> str | None:
    """The path of a browser: $CHROMIUM, one on the PATH, or the one that Playwright downloaded."""
    given = os.environ.get("CHROMIUM")
    if given:
        return given
    for name in NAMES:
        # Ubuntu's chromium-browser may be a stub that only says to install the snap
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def install() -> str:
    """Install Chromium, with apt as root, otherwise through Playwright; return its path."""
    path = find()
    if path:
        return path
    if shutil.which("apt-get") and os.geteuid() == 0:
        print("Installing Chromium with apt", flush=True)
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "chromium"], env=quiet, stdout=subprocess.DEVNULL
        )
        path = find()
    if not path:
        print("Installing Chromium through Playwright", flush=True)
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"])
        path = find()
    if not path:
        sys.exit("browser: no Chromium found and none could be installed; set CHROMIUM=/path/to/it")
    return path


COLOURS = ["color-contrast", "link-in-text-block"]
PATIENCE = 120_000  # milliseconds; on a busy machine a page that opens in one second took thirty


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve files as GitHub Pages does: compressed, many over one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small file waits 40 ms for an acknowledgement
    wbufsize = -1

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.server.wait(2)  # TCP and TLS shake hands

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        body = content(path, path.stat().st_mtime_ns)
        self.server.wait(1)
        if self.path.endswith("?slow"):
            time.sleep(1.5)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Length", str(len(body)))
        if path.suffix in COMPRESSED:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        for start in range(0, len(body), 8192):
            self.server.wait_for_line(8192)
            self.wfile.write(body[start : start + 8192])
            self.wfile.flush()


@functools.cache
def content(path: Path, changed: int) -> bytes:
    body = path.read_bytes()
    return gzip.compress(body) if path.suffix in COMPRESSED else body


class Server(http.server.ThreadingHTTPServer):
    """A folder on the web. A slow one makes all its connections share a line of RATE.

    (Chromium can act as if its network were slow, but then one visit in twenty never ends.)
    """

    def __init__(self, folder: Path, slow: bool):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.slow, self.lock, self.free_at = slow, threading.Lock(), 0.0

    def wait(self, times: int) -> None:
        if self.slow:
            time.sleep(times * LATENCY)

    def wait_for_line(self, size: int) -> None:
        if self.slow:
            with self.lock:
                self.free_at = max(self.free_at, time.monotonic()) + size / RATE
                wait = self.free_at - time.monotonic()
            time.sleep(max(0.0, wait))

    def handle_error(self, request, client):
        # a browser may hang up in the middle of an answer
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client)


@contextlib.contextmanager
def served(folder: Path, slow: bool = False) -> Iterator[str]:
    server = Server(folder, slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Visit:
    """A page that is open, and what went wrong while it opened or since."""

    def __init__(self, chromium, address: str, width=1280, **options):
        self.width = width
        self.context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda e: self.problems.append(f"error: {e}"))
        self.page.on("requestfailed", lambda r: self.problems.append(f"failed: {r.url}"))
        self.page.on("response", self._response)
        self.page.add_init_script(path=LOOK)
        self._open(address)

    def _open(self, address):
        self.page.goto(address, wait_until="networkidle")

    def close(self):
        self.context.close()

    def _console(self, message):
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _response(self, response):
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")

    def prefer(self, scheme: str) -> None:
        """Switch the system's colours to "light" or "dark": the page follows at once."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_function("t => document.documentElement.dataset.theme == t", arg=scheme)

    def fold(self, opened: bool) -> None:
        self.page.evaluate("opened => look.fold(opened)", opened)

    def axe(self, colours: bool | None = None) -> list[str]:
        """What axe finds that is serious or critical: by rules on colours only, or by the others.

        Those on colours are among the slowest.
        """
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(_axe())
            # for thousands of words, half a minute a page: one word of each look is enough
            rule = {"id": "color-contrast", "selector": "[data-look]"}
            self.page.evaluate("rule => axe.configure({rules: [rule]})", rule)
        self.page.evaluate("look.markLooks()")
        # the size of what a finger must hit is not on by default
        rules = {"target-size": {"enabled": True}}
        # axe would load the style sheets again, and look for what they import in the wrong place
        options = {"resultTypes": ["violations"], "rules": rules, "preload": False}
        if colours:
            options |= {"rules": {}, "runOnly": COLOURS}
        elif colours is False:
            options["rules"] = rules | {name: {"enabled": False} for name in COLOURS}
        found = self.page.evaluate("options => axe.run(document, options)", options)["violations"]
        return [
            f"{v['id']} ({v['impact']}): {node['target']} {node['html'][:100]}"
            for v in found
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"]
        ]


@functools.cache
def _axe() -> str:
    from importlib.resources import files

    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


class FirstVisit(Visit):
    """A visit with an empty cache: the bytes of each file, and when the text was there."""

    def _open(self, address):
        network = self.context.new_cdp_session(self.page)
        names: dict[str, str] = {}
        sizes: dict[str, int] = {}
        network.on("Network.responseReceived", lambda e: names.update({e["requestId"]: _url(e)}))
        network.on(
            "Network.loadingFinished",
            lambda e: sizes.update({e["requestId"]: int(e["encodedDataLength"])}),
        )
        network.send("Network.enable")
        self.page.add_init_script(PAINTS)
        before = crowd()
        super()._open(address)
        self.page.wait_for_function("'paragraph' in paints && 'first-contentful-paint' in paints")
        self.painted = max(self.page.evaluate("paints").values())  # milliseconds
        self.crowd = (before + crowd()) / 2
        # a picture inside the HTML is no file of its own
        self.sizes = {names[k]: n for k, n in sizes.items() if names[k].startswith("http")}


def _url(event) -> str:
    return event["response"]["url"]


def crowd() -> float:
    """How much longer work takes here because others work too: 1 where nobody does."""
    wall, own = time.perf_counter(), time.process_time()
    while time.process_time() < own + 0.05:
        pass
    return max(1.0, (time.perf_counter() - wall) / (time.process_time() - own))


if __name__ == "__main__":
    if "--install" in sys.argv:
        print(f"Chromium: {install()}")
    else:
        print(find() or "none")
