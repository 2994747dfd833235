"""What a published site has besides its pages: a 404 page, a sitemap, a preview for links, and when a chapter last ran.

Absolute addresses come from pyproject.toml. While the project has none, the sitemap is left out and previews carry
no picture's address, since neither may be relative.
"""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from house import repository_address
from jupyter_cache import get_cache
from PIL import Image, ImageChops, ImageStat
from sphinx.util import logging

MEMORY_UNITS = 2**30 if sys.platform == "darwin" else 2**20  # in a gigabyte: getrusage counts bytes there, and else KiB
BUDGETS = "budgets.json"  # what a chapter may take when the book is built on two cores
MISSING = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Page not found</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 20vh auto; }}</style>
</head><body><main><h1>This page is not in the book</h1>
<p>The address may be old or mistyped. <a href="{home}">Start at the first page</a>, which lists them all.</p>
</main></body></html>
"""


def site_address(root: Path) -> str | None:
    """Where the pages of a repository's site are, or None while the repository has no address."""
    address = repository_address(root)
    if address is None:
        return None
    parts = urlsplit(address)
    owner, name = parts.path.strip("/").removesuffix(".git").split("/")[:2]
    host = parts.hostname or ""
    return f"https://{owner.lower()}.github.io/{name}/" if host == "github.com" else f"{address.rstrip('/')}/"


def describe(body: str) -> str:
    """The first sentences of a page, as a preview of some 160 characters."""
    paragraphs = re.findall(r"<p>(.*?)</p>", body or "", re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", " ".join(paragraphs[:2])))
    text = " ".join(re.sub(r"\\[()\[\]].*?\\[()\[\]]", "", text).split())
    return text if len(text) <= 160 else text[:160].rsplit(" ", 1)[0] + " …"


def add_preview(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Tags by which a messenger or a search engine shows a page."""
    if "body" not in context:
        return
    title = re.sub(r"<[^>]+>", "", context.get("title") or app.config.project)
    tags = {"og:type": "article", "og:title": html.unescape(title), "og:site_name": app.config.html_title,
            "og:description": describe(context["body"])}  # fmt: skip
    address = site_address(Path(app.srcdir))
    if address:
        tags |= {"og:url": f"{address}{page}.html", "og:image": f"{address}_static/overview.png",
                 "og:image:alt": "Three panels: adapt it, feed it, make it see"}  # fmt: skip
    lines = [f'<meta property="{name}" content="{html.escape(str(value))}">' for name, value in tags.items() if value]
    lines.append(f'<meta name="description" content="{html.escape(tags["og:description"])}">')
    context["metatags"] = context.get("metatags", "") + "\n" + "\n".join(lines)


def budgets(root: Path) -> dict[str, dict[str, float]]:
    return json.loads((root / "book" / BUDGETS).read_text(encoding="utf8"))


def used(app: Any, page: str) -> dict[str, Any]:
    """What a chapter's run took: its day, its seconds, and its gigabytes at their peak; {} if there was none.

    The peak is what the chapter's last cell told. On Linux it is at least that of the process which started the kernel,
    so that it bounds the chapter's own from above.
    """
    runs = get_cache(Path(app.outdir).parent / ".jupyter_cache")
    try:
        record = runs.match_cache_file(str(Path(app.srcdir) / f"{page}.ipynb"))
    except (KeyError, OSError):
        return {}
    outputs = [output for cell in runs.get_cache_bundle(record.pk).nb.cells for output in cell.get("outputs", ())]
    told = [
        output for output in outputs if output.get("metadata", {}).get("scrapbook", {}).get("name") == "peak_memory"
    ]
    peak = next(
        (text for output in told for kind, text in output["data"].items() if kind.endswith("text/plain")), "nan"
    )
    gigabytes = float(peak) / MEMORY_UNITS
    return {"day": record.created.date(), "seconds": record.data["execution_seconds"], "gigabytes": gigabytes}


def add_verified(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Below the title of a chapter: when it last ran, what it took, and what it may take."""
    took = used(app, page)
    if not took or "body" not in context:
        return
    most = budgets(Path(app.srcdir))[Path(page).name]
    seconds = f"{took['seconds']:.0f} of {most['seconds']} seconds allowed"
    memory = f"at most {took['gigabytes']:.1f} of {most['gigabytes']} GB of memory"
    said = f"Last verified {took['day']}: every cell ran, in {seconds}, with {memory}, and nothing downloaded."
    line = f'<p class="verified">{said}</p>'
    context["body"] = context["body"].replace("</h1>", f"</h1>\n{line}", 1)


def plain_bibliography(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Its entries have the role of a bibliography's entry already, which a list may not hold."""
    context["body"] = (context.get("body") or "").replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )


def check_budgets(app: Any, error: Exception | None) -> None:
    """Warn, and so fail the build, about a chapter that took more than it may or has no budget."""
    if error is not None:
        return
    allowed = budgets(Path(app.srcdir))
    for page in sorted(name for name in app.env.found_docs if name.startswith("notebooks/")):
        for problem in over_budget(Path(page).name, used(app, page), allowed):
            logging.getLogger(__name__).warning(problem, location=page)


def over_budget(name: str, took: dict[str, Any], allowed: dict[str, dict[str, float]]) -> list[str]:
    """What is wrong with a chapter's seconds and gigabytes; a chapter that has not told them has not kept to them."""
    if name not in allowed:
        return [f"{name} has no budget: give it one in book/{BUDGETS}"]
    return [
        f"{name} took {took.get(unit, float('nan')):.1f} {unit}, and its budget in book/{BUDGETS} is {most}"
        for unit, most in allowed[name].items()
        if not took.get(unit, float("nan")) <= most
    ]


def lighten(app: Any, error: Exception | None) -> None:
    """Leave out what readers would load for nothing: icons as SVG, which the theme has as a font as well, and colours
    that no figure shows."""
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    (out / "_static" / "scripts" / "fontawesome.js").write_text("/* the icons are a font, in the style sheet */\n")
    for path in (out / "_images").glob("*.png"):
        with Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA") or (image.mode == "RGBA" and image.getextrema()[3][0] < 255):
                continue  # in few colours already, or transparent somewhere
            figure = image.convert("RGB")
        fewer = figure.quantize(256, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(figure, fewer.convert("RGB"))).mean) < 0.5:  # of 255: not seen
            fewer.save(path, optimize=True)


def write_extras(app: Any, error: Exception | None) -> None:
    """404.html, and sitemap.xml where the site has an address."""
    if error is not None or app.builder.format != "html":
        return
    out, address = Path(app.outdir), site_address(Path(app.srcdir))
    (out / "404.html").write_text(MISSING.format(home=address or "index.html"), encoding="utf8")
    if address:
        places = "".join(f"<url><loc>{address}{page}.html</loc></url>" for page in sorted(app.env.found_docs))
        head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        (out / "sitemap.xml").write_text(f"{head}{places}</urlset>\n", encoding="utf8")


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", add_verified, priority=600)
    app.connect("html-page-context", add_preview, priority=850)
    app.connect("html-page-context", plain_bibliography, priority=860)
    app.connect("build-finished", check_budgets)
    app.connect("build-finished", write_extras)
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
