"""Find a Chromium for the browser tests, or install one: python tests/browser.py --install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = [
    "--no-sandbox",  # root in a container has no user namespace to put it in
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


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


if __name__ == "__main__":
    if "--install" in sys.argv:
        print(f"Chromium: {install()}")
    else:
        print(find() or "none")
