"""What the published site has besides its pages, and the workflows that publish it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import check_links
import extras
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
ALL = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
SOURCES = [name for name in ALL if name.startswith("_modules/")]  # the library's source, page by page: all alike
PAGES = [name for name in ALL if name not in SOURCES[2:]]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SERIOUS = ("serious", "critical")
AXE = {"runOnly": ["wcag2a", "wcag2aa", "best-practice"], "resultTypes": ["violations"]}


def project(folder: Path, address: str) -> Path:
    (folder / "pyproject.toml").write_text(f'[project]\nname = "minilib"\n[project.urls]\nRepository = "{address}"\n')
    return folder


def test_address_of_the_site_follows_the_repository(tmp_path):
    assert extras.site_address(project(tmp_path, "https://nowhere.invalid/book")) is None
    assert extras.site_address(project(tmp_path, "https://github.com/Ada/book.git")) == "https://ada.github.io/book/"
    assert (
        extras.site_address(project(tmp_path, "https://git.example.org/ada/book"))
        == "https://git.example.org/ada/book/"
    )


def sphinx(folder: Path, pages=("index", "notebooks/01_clip")) -> SimpleNamespace:
    env = SimpleNamespace(found_docs=set(pages), nb_metadata={})
    config = SimpleNamespace(project="Book", html_title="Book")
    builder = SimpleNamespace(format="html")
    return SimpleNamespace(srcdir=str(folder), outdir=str(folder), env=env, config=config, builder=builder)


def test_sitemap_lists_every_page_where_there_is_an_address(tmp_path):
    app = sphinx(project(tmp_path, "https://github.com/ada/book"))
    extras.write_extras(app, None)
    places = [place.text for place in ElementTree.parse(tmp_path / "sitemap.xml").getroot().iter() if place.text]
    assert places == ["https://ada.github.io/book/index.html", "https://ada.github.io/book/notebooks/01_clip.html"]
    assert 'href="https://ada.github.io/book/"' in (tmp_path / "404.html").read_text()


def test_without_an_address_there_is_no_sitemap(tmp_path):
    extras.write_extras(sphinx(project(tmp_path, "https://nowhere.invalid/book")), None)
    assert not (tmp_path / "sitemap.xml").exists() and 'href="index.html"' in (tmp_path / "404.html").read_text()


def test_preview_has_words_and_an_absolute_picture(tmp_path):
    app = sphinx(project(tmp_path, "https://github.com/ada/book"))
    context = {
        "title": "Bayes&#39; <em>rule</em>",
        "body": "<h1>t</h1><p>A &amp; B are \\(x\\) here. " + "word " * 60 + "</p>",
    }
    extras.add_preview(app, "notebooks/02_gda", "page.html", context, None)
    tags = context["metatags"]
    assert 'property="og:title" content="Bayes&#x27; rule"' in tags and "A &amp; B are here." in tags
    assert 'content="https://ada.github.io/book/_static/overview.png"' in tags and "…" in tags


def test_figures_lose_colours_only_where_nobody_sees_it(tmp_path, rng):
    """A drawing becomes smaller and looks the same; a picture of noise needs all its colours and keeps them."""
    (tmp_path / "_images").mkdir()
    (tmp_path / "_static" / "scripts").mkdir(parents=True)
    lines = np.full((200, 300, 3), 255, np.uint8)
    lines[::10], lines[:, ::25] = (0, 114, 178), (230, 159, 0)
    for name, pixels in {"lines": lines, "noise": rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)}.items():
        Image.fromarray(pixels).save(tmp_path / "_images" / f"{name}.png")
    before = {path.stem: (path.read_bytes(), np.asarray(Image.open(path))) for path in tmp_path.rglob("*.png")}
    extras.lighten(sphinx(tmp_path), None)
    for path in tmp_path.rglob("*.png"):
        data, pixels = before[path.stem]
        assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), pixels)
        assert (path.read_bytes() == data) == (path.stem == "noise")
    assert len(before) == 2 and len((tmp_path / "_images" / "lines.png").read_bytes()) < len(before["lines"][0])


def test_a_chapter_over_its_budget_or_without_one_is_named():
    allowed = {"01_clip": {"seconds": 60, "gigabytes": 2}}
    assert extras.over_budget("01_clip", {"seconds": 59.9, "gigabytes": 2.0}, allowed) == []
    slow = extras.over_budget("01_clip", {"seconds": 61.0, "gigabytes": 1.0}, allowed)
    assert slow == ["01_clip took 61.0 seconds, and its budget in book/budgets.json is 60"]
    assert "took 2.5 gigabytes" in extras.over_budget("01_clip", {"seconds": 1.0, "gigabytes": 2.5}, allowed)[0]
    assert len(extras.over_budget("01_clip", {}, allowed)) == 2, "what was not measured was not kept to"
    assert "12_new has no budget" in extras.over_budget("12_new", {"seconds": 1.0}, allowed)[0]


def test_every_chapter_has_a_budget_and_no_other_has():
    assert sorted(extras.budgets(ROOT)) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


# Workflows and citation ----------------------------------------------------------------------------------------------


def validated(schema: str, *files: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True)


def test_workflows_fit_their_schema(tmp_path):
    done = validated("vendor.github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs_on:"))
    assert validated("vendor.github-workflows", broken).returncode == 1, "the check can fail"


def test_citation_fits_its_schema(tmp_path):
    assert validated("vendor.citation-file-format", ROOT / "CITATION.cff").returncode == 0
    broken = tmp_path / "CITATION.cff"
    broken.write_text((ROOT / "CITATION.cff").read_text().replace("authors:\n  - name", "author:\n  - name", 1))
    assert validated("vendor.citation-file-format", broken).returncode == 1, "the check can fail"


def test_what_the_project_needs_is_there():
    names = {path.stem for path in WORKFLOWS}
    assert {"test", "pages", "canary", "links", "release"} <= names


# Links ---------------------------------------------------------------------------------------------------------------


def test_links_are_found_once_and_told_apart(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.html").write_text(
        '<a href="https://arxiv.org/abs/1#x">1</a> https://arxiv.org/abs/1. http://nobody.zz/'
    )
    assert check_links.addresses([tmp_path]) == ["http://nobody.zz/", "https://arxiv.org/abs/1"]
    said = {"http://nobody.zz/": "gone: 404", "https://arxiv.org/abs/1": "unclear: 403"}
    monkeypatch.setattr(check_links, "state", lambda address: said[address])
    assert check_links.main([tmp_path]) == 1 and "gone: 404" in capsys.readouterr().out
    said["http://nobody.zz/"] = "there"
    assert check_links.main([tmp_path]) == 0


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe():
    package = pytest.importorskip("axe_playwright_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf8")


@pytest.mark.book
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(name, visit, axe):
    """All rules in the light theme; in the dark one the rule that depends on it."""
    tab, _ = visit(name)
    tab.evaluate(axe)
    serious = []
    for theme, rules in {"light": AXE, "dark": {"runOnly": {"type": "rule", "values": ["color-contrast"]}}}.items():
        tab.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        tab.wait_for_timeout(600)  # colours fade over
        found = tab.evaluate("rules => axe.run(document, rules)", rules)["violations"]
        said = [f"{theme}: {v['id']}: {v['nodes'][0]['html'][:120]}" for v in found if v["impact"] in SERIOUS]
        serious += said
    assert serious == []


@pytest.mark.book
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_small_and_paint_soon(name, visit):
    tab, _ = visit(name)
    loaded = tab.evaluate(
        "['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind))"
        ".map(entry => [entry.encodedBodySize, entry.name.split('/').pop()])"
    )
    assert (SITE / name).stat().st_size <= sum(size for size, _ in loaded) < 3_000_000, sorted(loaded)[-4:]
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1500, f"first contentful paint after {paint:.0f} ms"


@pytest.mark.book
def test_icons_are_drawn_by_the_font(visit):
    tab, _ = visit("notebooks/01_clip.html")
    look = "getComputedStyle(document.querySelector('.fa-bars'), '::before')"
    assert "Awesome" in tab.evaluate(f"{look}.fontFamily") and len(tab.evaluate(f"{look}.content")) == 3
    assert tab.evaluate("[...document.fonts].some(font => /Awesome/.test(font.family) && font.status === 'loaded')")


@pytest.mark.book
def test_missing_page_and_when_chapters_ran():
    assert "not in the book" in (SITE / "404.html").read_text()
    for name, limit in extras.budgets(ROOT).items():
        page = (SITE / "notebooks" / f"{name}.html").read_text()
        assert "Last verified 20" in page and f"of {limit['seconds']} seconds allowed, with at most " in page
        assert 'property="og:title"' in page
