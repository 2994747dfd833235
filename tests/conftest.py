"""What every test can count on: one thread, no network, a seed of its own."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
SUBPATH = "/some/where/"


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that gives the same numbers in every run."""
    return np.random.default_rng(0)


# A browser and the built site --


def unavailable(reason: str):
    """Skip where a reader may lack something; fail where nobody should."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture(scope="session")
def browser():
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable:
        unavailable("no Chromium: install Debian's package chromium or name one in CHROMIUM")
    api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with api.sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    """The site served from a sub-path, as a project page is."""
    if not (SITE / "index.html").exists():
        unavailable("no built book in _build/html: run make book")
    folder = tmp_path_factory.mktemp("server")
    mount = folder / SUBPATH.strip("/")
    mount.parent.mkdir(parents=True)
    mount.symlink_to(SITE, target_is_directory=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def visit(browser, origin):
    """Open a page and give (page, what went wrong on the way)."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    trouble: list[str] = []

    def guard(route):
        if route.request.url.startswith((origin, "data:", "blob:")):
            route.continue_()
        else:
            trouble.append(f"request to another origin: {route.request.url}")
            route.abort()

    context.route("**/*", guard)
    tab = context.new_page()
    tab.on("console", lambda message: trouble.append(f"console: {message.text}") if message.type == "error" else None)
    tab.on("pageerror", lambda error: trouble.append(f"script error: {error}"))
    tab.on("response", lambda answer: trouble.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)

    def go(name: str):
        tab.goto(origin + SUBPATH + name, wait_until="networkidle")
        return tab, trouble

    yield go
    context.close()
