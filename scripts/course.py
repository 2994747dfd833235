"""Write the editions of the course into _build/course, from the chapters and the outputs of the book's run.

student/     chapters without solutions, a stub in the place of each
instructor/  chapters with outputs, solutions, hints, known mistakes and points; the guide
key/         the answers as Markdown, a file a chapter
slides/      reveal.js decks that need no network; open slides/index.html
nbgrader/    a course folder for nbgrader: sources, and the release made of them by `nbgrader generate_assignment`

Usage: python scripts/course.py [FOLDER]
"""

from __future__ import annotations

import html
import shutil
import sys
from pathlib import Path

import chapters
import decks
import editions
import guide
import nbformat

CONFIG = '''"""nbgrader's settings for this course. Run nbgrader's commands in this folder."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "clip"
c.ClearSolutions.code_stub = {"python": "# write your answer here"}
c.ClearSolutions.text_stub = "*Write your answer here.*"
c.Execute.timeout = 120  # seconds a cell may run
c.Execute.interrupt_on_timeout = True
said = "the cell did not end in two minutes"
c.Execute.error_on_timeout = {"ename": "Timeout", "evalue": said, "traceback": [said]}
'''


def write(folder: Path, name: str, notebook: nbformat.NotebookNode) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


def main(folder: Path = chapters.ROOT / "_build" / "course") -> int:
    book = [chapters.read(name) for name in chapters.names()]
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("key", "slides", "nbgrader"):
        (folder / part).mkdir(parents=True)
    for chapter in book:
        write(folder / "student", chapter.name, editions.student(chapter))
        write(folder / "instructor", chapter.name, editions.instructor(chapter))
        write(folder / "nbgrader" / "source" / chapter.name, chapter.name, editions.assignment(chapter))
        (folder / "key" / f"{chapter.name}.md").write_text(editions.key(chapter), encoding="utf8")
        (folder / "slides" / f"{chapter.name}.html").write_text(decks.deck(chapter), encoding="utf8")
    decks.copy_assets(folder / "slides")
    (folder / "slides" / "index.html").write_text(index(book), encoding="utf8")
    (folder / "nbgrader" / "nbgrader_config.py").write_text(CONFIG, encoding="utf8")
    (folder / "instructor" / "guide.md").write_text(guide.text(book), encoding="utf8")
    print(f"minilib: {len(book)} chapters in {len(list(folder.iterdir()))} editions under {folder}")
    return 0


def index(book: list[chapters.Chapter]) -> str:
    """A page of links to the decks."""
    items = "".join(f'<li><a href="{c.name}.html">{html.escape(c.title)}</a></li>' for c in book)
    head = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Slides</title></head>'
    return f"{head}<body><h1>Slides</h1><ol>{items}</ol><p>Speaker's notes: press S.</p></body></html>\n"


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
