"""Print the built book, page by page in the order of its contents, into _build/book.pdf. Needs Chromium."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
MARGIN = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
PLAIN = """.bd-header, .bd-sidebar, .bd-footer, .prev-next-footer, .bd-header-article, .headerlink, .copybtn, .toc-h1,
.bd-sidebar-primary, .bd-sidebar-secondary, #pst-back-to-top, .skip-link { display: none !important; }
details > summary { list-style: none; } img, pre, table { break-inside: avoid; }"""


def pages() -> list[str]:
    """The pages in the order of the table of contents."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf8"))
    entries = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    return [entry.removesuffix(".ipynb") + ".html" for entry in entries]


def main(out: Path = ROOT / "_build" / "book.pdf") -> int:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        print("minilib: no Chromium: install Debian's package chromium or name one in CHROMIUM", file=sys.stderr)
        return 1
    writer = PdfWriter()
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme="light")
        for name in pages():
            page.goto((SITE / name).as_uri())
            page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
            page.evaluate("window.MathJax ? MathJax.startup.promise : null")
            page.add_style_tag(content=PLAIN)
            printed = PdfReader(io.BytesIO(page.pdf(format="A4", margin=MARGIN, print_background=True)))
            writer.append(printed, outline_item=page.title().split(" — ")[0])
        browser.close()
    writer.add_metadata({"/Title": "CLIP: adapt it, feed it, make it see"})
    writer.write(out)
    print(f"minilib: {len(writer.pages)} pages in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
