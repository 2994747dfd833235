"""Read chapters for the editions of the course: outputs of the book's run, exercises apart, plain Markdown.

A notebook program outside the book does not know MyST's roles and directives. Here they become plain Markdown: numbers
are filled in from the book's own run, citations are spelled out, equations carry their label as a tag.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from nbformat import NotebookNode
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path("_build", ".jupyter_cache")
POINTS = {"easy": 1, "medium": 2, "hard": 3}
WRITTEN = ("predict", "derive", "break", "open")  # kinds whose reasons a person reads
MARK = re.compile(r"^```+\{(exercise|solution)-(start|end)\} ?(.*)\n((?::.*\n)*)```+[ \t]*$", re.MULTILINE)
DIRECTIVE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{([\w:]+)\} *([^\n]*)\n((?::\w[^\n]*\n)*)(.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
FORM = re.compile(r"\*(?P<kind>[A-Z][a-z, -]+); (?P<difficulty>easy|medium|hard), (?P<minutes>\d+) minutes\.\* ")
MACROS = {"T": r"{^{\mathsf{T}}}", "R": r"\mathbb{R}", "E": r"\mathbb{E}"}  # as in _config.yml


@dataclass
class Exercise:
    """An exercise of a chapter: its text in plain Markdown and the cells of its solution."""

    label: str
    title: str
    kind: str
    difficulty: str
    minutes: int
    text: str
    solution: list[NotebookNode] = field(default_factory=list)

    @property
    def points(self) -> int:
        """For the answer; as many again for the reasons, where a person reads them."""
        return POINTS[self.difficulty]

    @property
    def written(self) -> bool:
        """Whether it asks for reasons."""
        return any(kind in self.kind.lower() for kind in WRITTEN)


@dataclass
class Chapter:
    """A chapter as a list of cells and exercises, with the outputs of the book's run."""

    name: str
    title: str
    seconds: float  # that its cells took when the book was built
    pieces: list[NotebookNode | Exercise]

    @property
    def exercises(self) -> list[Exercise]:
        return [piece for piece in self.pieces if isinstance(piece, Exercise)]


def names() -> list[str]:
    """The chapters in the order of the book."""
    return sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@cache
def run_of(name: str) -> tuple[NotebookNode, float]:
    """A chapter as the book ran it, and the seconds that it took; exits with the remedy when the book has not."""
    source, runs = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4), get_cache(ROOT / CACHE)
    try:
        record, run = runs.merge_match_into_notebook(source)
    except KeyError:
        sys.exit(f"course: the book has not run this version of notebooks/{name}.ipynb: `make book` first")
    return run, runs.get_cache_record(record).data["execution_seconds"]


@cache
def read(name: str) -> Chapter:
    """A chapter with its outputs and its exercises."""
    run, seconds = run_of(name)
    return Chapter(name, title_of(name), seconds, list(gather(split(run.cells, Plain(name, glued(run))))))


@cache
def title_of(name: str) -> str:
    """The heading of a chapter or of a page of the book."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    if path.exists():
        text = nbformat.read(path, as_version=4).cells[0].source
    else:
        text = (ROOT / "book" / f"{Path(name).name}.md").read_text(encoding="utf8")
    heading = re.search(r"^# (.+)", text, re.MULTILINE)
    assert heading, f"{name} has no heading"
    return heading[1]


def glued(run: NotebookNode) -> dict[str, Any]:
    """The numbers that a chapter's cells handed to its prose."""
    numbers = {}
    for output in (output for cell in run.cells for output in cell.get("outputs", ())):
        scrap = output.get("metadata", {}).get("scrapbook")
        if scrap:
            numbers[scrap["name"]] = next(v for k, v in output["data"].items() if k.endswith("text/plain"))
    return numbers


def split(cells: list[NotebookNode], plain: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    """The chapter as marks ("exercise-start", (title, label)) and cells ("cell", cell) in order."""
    for cell in cells:
        if cell.cell_type != "markdown":
            yield "cell", cell
            continue
        at = 0
        for mark in MARK.finditer(cell.source):
            if before := cell.source[at : mark.start()].strip():
                yield "cell", nbformat.v4.new_markdown_cell(plain(before))
            label = re.search(r":label: (\S+)", mark[4])
            yield f"{mark[1]}-{mark[2]}", (mark[3], label[1] if label else "")
            at = mark.end()
        if rest := cell.source[at:].strip():
            yield "cell", nbformat.v4.new_markdown_cell(plain(rest))


def gather(marks: Iterator[tuple[str, Any]]) -> Iterator[NotebookNode | Exercise]:
    """Cells as they are; an exercise with its solution as one piece."""
    waiting: dict[str, Exercise] = {}
    for mark, value in marks:
        if mark == "exercise-start":
            title, label = value
            waiting[label] = exercise(label, title, until(marks, "exercise-end"))
        elif mark == "solution-start":
            found = waiting.pop(value[0])
            found.solution = until(marks, "solution-end")
            yield found
        else:
            yield value
    assert not waiting, f"exercises without a solution: {', '.join(waiting)}"


def until(marks: Iterator[tuple[str, Any]], end: str) -> list[NotebookNode]:
    """The cells up to a mark."""
    cells = []
    for mark, value in marks:
        if mark == end:
            return cells
        cells.append(value)
    raise ValueError(f"a chapter ends before {end}")


def exercise(label: str, title: str, cells: list[NotebookNode]) -> Exercise:
    text = "\n\n".join(cell.source for cell in cells)
    form = FORM.match(text)
    if not form:
        raise ValueError(f"{label} does not begin with its kind, difficulty and minutes: {text[:60]!r}")
    return Exercise(label, title, form["kind"], form["difficulty"], int(form["minutes"]), text[form.end() :])


class Plain:
    """Turn MyST into plain Markdown, with the numbers of one chapter."""

    def __init__(self, chapter: str, numbers: dict[str, Any]) -> None:
        self.chapter, self.numbers = chapter, numbers

    def __call__(self, text: str) -> str:
        text = re.sub(r"^\([a-z-]+\)=\n", "", text, flags=re.MULTILINE)
        text = DIRECTIVE.sub(self.directive, text)
        text = re.sub(r"\s*\$\$ \(eq-([\w-]+)\)", r" \\tag{\1} $$", text)
        text = re.sub(r"\{([a-z:]+)\}`([^`]+)`", self.role, text)
        return re.sub(r"\\([TRE])(?![A-Za-z])", lambda found: MACROS[found[1]], text)

    def directive(self, found: re.Match[str]) -> str:
        _, name, argument, options, body = found.groups()
        if name == "math":
            label = re.search(r":label: (\S+)", options)
            tag = f" \\tag{{{label[1].removeprefix('eq-')}}}" if label else ""
            return f"$$\n{body.rstrip()}{tag}\n$$"
        if name in ("admonition", "prf:theorem", "prf:proof"):
            head = argument if name == "admonition" else name[4:].capitalize() + (f" ({argument})" if argument else "")
            lines = [f"**{head.rstrip('.')}.**", "", *body.rstrip().splitlines()]
            return "\n".join(f"> {line}".rstrip() for line in lines)
        raise ValueError(f"{self.chapter}: no plain form is known for the directive {{{name}}}")

    def role(self, found: re.Match[str]) -> str:
        name, text = found.groups()
        if name == "glue:text":
            key, _, form = text.partition(":")
            return format(number(self.numbers[key]), form)
        if name == "eq":
            return f"({text.removeprefix('eq-')})"
        if name == "doc":
            return link(text)
        if name.startswith("cite"):
            return citation(text.split(","), parentheses=name != "cite:t")
        if name.startswith("py:"):
            return f"`{text.removeprefix('~')}`"
        raise ValueError(f"{self.chapter}: no plain form is known for the role {{{name}}}")


def number(text: str) -> Any:
    """A glued value: a number, or the words between its quotation marks."""
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        return text.strip("'\"")


def link(text: str) -> str:
    """A link to another chapter's notebook, or the title of a page that only the book has."""
    titled = re.fullmatch(r"(.+?)\s*<(.+)>", text, re.DOTALL)
    words, target = titled.groups() if titled else (title_of(text), text)
    return f"[{words}]({target}.ipynb)" if (ROOT / "notebooks" / f"{target}.ipynb").exists() else words


@cache
def _bibliography() -> Any:
    return parse_file(ROOT / "book" / "references.bib").entries


def citation(keys: list[str], parentheses: bool) -> str:
    """Authors and year of each key: Wang et al. (2024), or (Wang et al., 2024)."""
    said = []
    for key in keys:
        entry = _bibliography()[key.strip()]
        people = [" ".join([*who.prelast_names, *who.last_names]).strip("{}") for who in entry.persons["author"]]
        who = people[0] if len(people) == 1 else " and ".join(people) if len(people) == 2 else f"{people[0]} et al."
        said.append((who, entry.fields["year"]))
    if parentheses:
        return "(" + "; ".join(f"{who}, {year}" for who, year in said) + ")"
    return ", ".join(f"{who} ({year})" for who, year in said)
