"""The built book in a real browser, page by page: it renders, it is complete, and it asks no other origin for anything.

Chromium is Debian's ``chromium`` or the one that CHROMIUM names. Without it or without a built book these tests are
skipped on a reader's machine and fail in CI.
"""

import functools
import http.server
import os
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
SUBPATH = "/some/where/"

pytestmark = pytest.mark.book


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
    if not PAGES:
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


class Page(HTMLParser):
    """Ids, links and sources of one HTML file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        self.links += [values[key] for key in ("href", "src") if values.get(key)]


@functools.cache
def parsed(path: Path) -> Page:
    return Page(path)


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


MATHS = """async () => {
  const places = [...document.querySelectorAll('.math')];
  if (!places.length) return [];
  if (!window.MathJax || !MathJax.startup) return ['MathJax did not load'];
  await MathJax.startup.promise;
  const bare = places.filter(place => !place.querySelector('mjx-container'));
  const wrong = [...document.querySelectorAll('mjx-merror, [data-mjx-error]')];
  return [...bare, ...wrong].map(place => 'maths not rendered: ' + place.textContent);
}"""

IMAGES = """async () => {
  const trouble = [];
  for (const image of document.querySelectorAll('img')) {
    image.loading = 'eager';
    try { await image.decode(); } catch { trouble.push('does not load: ' + image.src); }
    const alt = (image.alt || '').trim();
    if (!alt || /\\.(png|jpe?g|svg|gif)$/.test(alt)) trouble.push('no alternative text: ' + image.src);
  }
  return trouble;
}"""


def test_every_chapter_was_built():
    if not PAGES:
        unavailable("no built book in _build/html: run make book")
    chapters = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {f"notebooks/{name}.html" for name in chapters} <= set(PAGES)
    assert {"index.html", "book/preface.html", "book/api.html", "book/ledger.html"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page_in_a_browser(name, visit):
    tab, trouble = visit(name)
    assert tab.title()
    assert [*trouble, *tab.evaluate(MATHS), *tab.evaluate(IMAGES)] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_the_site(name):
    base, broken = "http://site/" + name, []
    for link in parsed(SITE / name).links:
        address, anchor = urldefrag(urljoin(base, link))
        if urlsplit(address).netloc != "site":
            continue
        target = SITE / unquote(urlsplit(address).path).lstrip("/")
        target = target / "index.html" if target.is_dir() else target
        named = not anchor or target.suffix != ".html" or (target.exists() and unquote(anchor) in parsed(target).ids)
        if not target.exists() or not named:
            broken.append(link)
    assert broken == []


def test_search_finds_a_page(visit):
    tab, trouble = visit("search.html?q=notation")
    tab.wait_for_selector("#search-results li a", timeout=10_000)
    assert trouble == []


def test_dark_mode_is_dark(visit):
    tab, trouble = visit("book/preface.html")
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    red, green, blue = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")[:3]
    assert max(red, green, blue) < 80
    assert trouble == []


def test_phone_width_does_not_scroll_sideways(visit):
    tab, _ = visit("book/notation.html")
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
