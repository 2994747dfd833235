"""The built book in a real browser, page by page: it renders, it is complete, and it asks no other origin for anything.

Chromium is Debian's ``chromium`` or the one that CHROMIUM names. Without it or without a built book these tests are
skipped on a reader's machine and fail in CI.
"""

import functools
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)

pytestmark = pytest.mark.book


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


def test_every_chapter_was_built(origin):
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


@pytest.mark.parametrize("name", PAGES)
def test_phone_width_does_not_scroll_sideways(name, visit):
    tab, _ = visit(name)
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.wait_for_timeout(100)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("name", ["book/preface.html", "notebooks/02_gda.html"])
def test_a_page_opens_from_disk(name, browser):
    """By double click, without a server: mathematics, pictures and sliders are there, all from files."""
    tab, trouble = browser.new_page(), []
    tab.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda r: trouble.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    tab.goto((SITE / name).as_uri(), wait_until="load")
    assert [*trouble, *tab.evaluate(MATHS), *tab.evaluate(IMAGES)] == []
    tab.close()


@pytest.mark.parametrize("name", ["02_gda", "06_balance", "08_diffusion"])
def test_a_slider_shows_another_frame_without_a_kernel(name, visit):
    tab, _ = visit(f"notebooks/{name}.html")
    dial = tab.locator(".frames input[type=range]").first
    shown = tab.locator(".frames").first.locator("figcaption:visible")
    before = shown.all_inner_texts()
    dial.focus()
    tab.keyboard.press("End")
    after = shown.all_inner_texts()
    assert len(before) == len(after) == 1 and before != after
    assert dial.get_attribute("aria-valuetext").split() == after[0].split()
    assert tab.locator(".frames details table").first.locator("tbody tr").count() == int(dial.get_attribute("max")) + 1


def test_code_copies_as_it_runs(visit):
    """The button puts a cell's code, and nothing else, on the clipboard."""
    tab, _ = visit("notebooks/02_gda.html")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    cell = tab.locator("div.cell_input:visible").first
    wanted = cell.locator("pre").inner_text()
    cell.hover()
    cell.locator("button.copybtn").click()
    tab.wait_for_timeout(300)
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == wanted.strip() and "\n" in copied
    compile(copied, "copied", "exec")


def test_pages_print_without_the_frame_around_them(visit):
    tab, _ = visit("notebooks/02_gda.html")
    tab.emulate_media(media="print")
    shown = "selector => [...document.querySelectorAll(selector)].filter(e => e.offsetParent !== null).length"
    assert tab.evaluate(shown, ".bd-sidebar-primary, .bd-header-article .article-header-buttons") == 0
    assert tab.evaluate(shown, "main h1") == 1, "the theme prints a heading of its own"
