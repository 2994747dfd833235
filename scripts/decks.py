"""Write a chapter as slides for reveal.js that need no network: reveal.js and MathJax lie beside them.

A slide for each section, with its equations; one below it for each "predict first", figure and short piece of code. The
section's prose goes to the speaker's notes (press S).
"""

from __future__ import annotations

import html
import re
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chapters import Chapter, Exercise
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

SKIP = ("Exercises", "Quiz", "Further reading")
MATH = re.compile(r"^\$\$\n?(.*?)\$\$", re.MULTILINE | re.DOTALL)
ASIDE = re.compile(r"^(?:> ?.*\n?)+", re.MULTILINE)
SHOWN_LINES = 14  # longer code is not read from the back row

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: slides</title>
<link rel="stylesheet" href="reveal/dist/reset.css"><link rel="stylesheet" href="reveal/dist/reveal.css">
<link rel="stylesheet" href="reveal/dist/theme/white.css"><link rel="stylesheet" href="deck.css"></head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script>window.MathJax = {{startup: {{typeset: true}}, tex: {{inlineMath: [["\\\\(", "\\\\)"]]}}}};</script>
<script src="mathjax/tex-chtml.js"></script>
<script src="reveal/dist/reveal.js"></script><script src="reveal/plugin/notes/notes.js"></script>
<script>
const fit = () => {{  // a long slide gets smaller letters, not a scroll bar
  const slide = Reveal.getCurrentSlide();
  for (let size = 95; slide.scrollHeight > 700 && size >= 50; size -= 5) slide.style.fontSize = size + "%";
}};
Reveal.on("slidechanged", fit);
Reveal.initialize({{hash: true, slideNumber: "c/t", plugins: [RevealNotes], width: 1280, height: 720}});
MathJax.startup.promise.then(fit);
</script>
</body></html>
"""
STYLE = """.reveal { font-size: 30px; font-family: system-ui, sans-serif; }
.reveal h1, .reveal h2 { font-family: inherit; text-transform: none; letter-spacing: 0; font-size: 1.6em; }
.reveal section { text-align: left; }
.reveal img { max-height: 560px; max-width: 100%; display: block; margin: 0 auto; }
.reveal pre { font-size: 0.56em; width: 100%; box-shadow: none; background: #f5f5f5; }
.reveal pre code { max-height: none; padding: 0.8em; color: #222; }
.reveal blockquote { width: 95%; box-shadow: none; background: #eef4fb; border-left: 6px solid #0072b2; }
.reveal blockquote { font-style: normal; font-size: 0.9em; padding: 0.2em 1em; }
.reveal h3 { font-family: inherit; text-transform: none; letter-spacing: 0; font-size: 0.9em; color: #666; }
.reveal mjx-container[display] { font-size: 78% !important; }
.reveal table { font-size: 0.7em; }
"""

_markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
dollarmath_plugin(_markdown, allow_labels=False)
_markdown.add_render_rule("math_inline", lambda self, tokens, i, *_: rf"\({html.escape(tokens[i].content)}\)")
_markdown.add_render_rule("math_block", lambda self, tokens, i, *_: rf"\[{html.escape(tokens[i].content)}\]")


def render(text: str) -> str:
    """Markdown with dollar mathematics as HTML that MathJax reads; links to notebooks become plain words."""
    return _markdown.render(re.sub(r"\[([^\]]+)\]\([^)]*\.ipynb\)", r"\1", text))


def slide(body: str, said: str = "") -> str:
    notes = f'<aside class="notes">{render(said)}</aside>' if said else ""
    return f"<section>{body}{notes}</section>"


def sections(chapter: Chapter) -> list[tuple[str, list[Any]]]:
    """The heading of each section with its prose and cells; the title with what stands before the first."""
    found: list[tuple[str, list[Any]]] = [("", [])]
    for piece in chapter.pieces:
        if isinstance(piece, Exercise):
            continue
        if piece.cell_type != "markdown":
            found[-1][1].append(piece)
            continue
        before, *rest = re.split(r"^##? (.+)$", piece.source, flags=re.MULTILINE)
        found[-1][1].append(before)
        for heading, text in zip(rest[::2], rest[1::2], strict=True):
            found.append((heading, [text]))
    return [(heading, parts) for heading, parts in found if heading and heading not in SKIP]


def deck(chapter: Chapter) -> str:
    """The page of a chapter's slides."""
    slides = []
    for heading, parts in sections(chapter):
        prose = "\n\n".join(part for part in parts if isinstance(part, str)).strip()
        title = html.escape(heading)
        first = slide(f"<h2>{title}</h2>{lead(heading, prose)}", ASIDE.sub("", MATH.sub("", prose)))
        below = [slide(f"<h3>{title}</h3>{render(shown)}") for shown in [*equations(prose), *ASIDE.findall(prose)]]
        below += [slide(body) for part in parts if not isinstance(part, str) for body in pictures(part)]
        slides.append(f"<section>{first}{''.join(below)}</section>")
    listed = "\n".join(
        f"- **{e.title}**: {e.kind.lower()}; {e.difficulty}, {e.minutes} minutes" for e in chapter.exercises
    )
    slides.append(slide("<h2>Exercises</h2>" + render(listed)))
    return PAGE.format(title=html.escape(chapter.title), slides="\n".join(slides))


def lead(heading: str, prose: str) -> str:
    """What the audience reads: a summary whole; what one will be able to do; else two sentences and a list."""
    bare = ASIDE.sub("", MATH.sub("", prose)).strip()
    if heading == "Summary":
        return render(bare.split("\n\n")[0])
    paragraphs = bare.split("\n\n")
    sentences = re.findall(r"(?:[^.!?]|[.!?](?!\s|$))+[.!?]", paragraphs[0].replace("\n", " "))
    aims = [text for text in paragraphs if text.startswith("**You will be able to**") and len(text) > 30]
    bullets = re.findall(r"(?:^[-*] .*\n(?:  .*\n)*)+", bare + "\n", re.MULTILINE)
    first = "".join(sentences[:2]).strip() or paragraphs[0]  # a lone clause leads to an equation or a list
    return render("\n\n".join([first, *aims, *bullets[:1]]))


def equations(prose: str) -> list[str]:
    """The displayed equations, each with the words that lead to it."""
    found = []
    for match in MATH.finditer(prose):
        before = MATH.sub("", prose[: match.start()]).strip().split("\n\n")[-1].replace("\n", " ")
        sentence = re.split(r"(?<=[.!?]) ", before)[-1] if not before.startswith((">", "#", "|", "- ")) else ""
        found.append(f"{sentence}\n\n$$\n{match[1].strip()}\n$$")
    return found


def pictures(cell: Any) -> list[str]:
    """The slides of a cell: its code where that is short and shown in the book, short printed tables, its figures."""
    tags, bodies = cell.metadata.get("tags", []), []
    if not tags and len(cell.source.splitlines()) <= SHOWN_LINES and "import " not in cell.source:
        bodies.append(f"<pre><code>{html.escape(cell.source)}</code></pre>")
    if "remove-cell" in tags:
        return []
    alt = html.escape(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", ""))
    for output in cell.outputs:
        if output.output_type == "stream" and "|" not in output.text and 1 < output.text.count("\n") <= SHOWN_LINES:
            bodies.append(f"<pre><code>{html.escape(output.text.rstrip())}</code></pre>")
        image = output.get("data", {}).get("image/png")
        if image and "scrapbook" not in output.get("metadata", {}):
            bodies.append(f'<img alt="{alt}" src="data:image/png;base64,{image.strip()}">')
    return bodies


def copy_assets(folder: Path) -> None:
    """reveal.js and MathJax from the packages that carry them, and our style."""
    reveal = Path(str(files("sphinx_revealjs"))) / "_static" / "revealjs"
    spec = find_spec("sphinx-mathjax-offline")
    assert spec and spec.origin, "the packages of the extra `book` are missing"
    shutil.copytree(reveal, folder / "reveal", ignore=shutil.ignore_patterns("*.map", "*.scss", "*.esm.js"))
    shutil.copytree(Path(spec.origin).parent / "static" / "mathjax", folder / "mathjax")
    (folder / "deck.css").write_text(STYLE, encoding="utf8")
