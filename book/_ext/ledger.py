"""The equation ledger: label -> page -> public function -> test, read from the sources; a gap is a build warning.

A labelled equation of a chapter or page needs a public function whose docstring names the label and a test marked
``@pytest.mark.equation("label")``. The directive ``{ledger}`` prints the table; ``collect`` is also used by the tests.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LABEL = re.compile(r"\$\$\s*\((eq-[\w-]+)\)|^:label:\s*(eq-[\w-]+)|\\label\{(eq-[\w-]+)\}", re.MULTILINE)


@dataclass
class Entry:
    """One labelled equation and what stands for it."""

    label: str
    page: str = ""
    functions: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)

    def gaps(self) -> list[str]:
        """What is missing, each in a few words."""
        found = {"no page shows it": self.page, "no function names it": self.functions, "no test": self.tests}
        return [gap for gap, value in found.items() if not value]


def page_text(path: Path) -> str:
    """The prose of a page: all of a Markdown file, the Markdown cells of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf8")
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def documented(path: Path) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of each public function, class and method of a module."""
    for node in ast.parse(path.read_text(encoding="utf8")).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield f"minilib.{path.stem}.{node.name}", ast.get_docstring(node) or ""
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                yield f"minilib.{path.stem}.{node.name}.{inner.name}", ast.get_docstring(inner) or ""


def marked(path: Path) -> Iterator[tuple[str, str]]:
    """(test, label) of each test marked with an equation, methods of test classes included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        for mark in getattr(node, "decorator_list", []):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.equation":
                for label in mark.args:
                    yield f"{path.name}::{node.name}", ast.literal_eval(label)  # type: ignore[attr-defined]


def sources(root: Path) -> dict[str, list[Path]]:
    """The files that the ledger reads."""
    pages = [*sorted((root / "notebooks").glob("*.ipynb")), *sorted((root / "book").glob("*.md"))]
    tests = sorted((root / "tests").glob("test_*.py"))
    return {"pages": pages, "modules": sorted((root / "minilib").glob("*.py")), "tests": tests}


def collect(root: Path) -> list[Entry]:
    """All equations that a page labels or a test marks, in reading order."""
    files, entries = sources(root), dict[str, Entry]()
    for path in files["pages"]:
        for match in LABEL.finditer(page_text(path)):
            label = next(filter(None, match.groups()))
            entries.setdefault(label, Entry(label)).page = path.relative_to(root).with_suffix("").as_posix()
    for path in files["tests"]:
        for test, label in marked(path):
            entries.setdefault(label, Entry(label)).tests.append(test)
    for path in files["modules"]:
        for name, docstring in documented(path):
            for label in set(re.findall(r"eq-[\w-]*\w", docstring)) & set(entries):
                entries[label].functions.append(name)
    return list(entries.values())


def in_words(test: str) -> str:
    """``test_gda.py::test_ks_by_hand`` as it is read: ks by hand (`test_gda.py`)."""
    file, name = test.split("::")
    return f"{name.removeprefix('test_').replace('_', ' ')} (`{file}`)"


def setup(app: Any) -> dict[str, bool]:
    from sphinx.util import logging
    from sphinx.util.docutils import SphinxDirective

    class Ledger(SphinxDirective):
        """Prints the table."""

        def run(self) -> list[Any]:
            root = Path(self.env.srcdir)
            for path in [file for group in sources(root).values() for file in group]:
                self.env.note_dependency(str(path))
            rows = ["| Equation | Function | Test |", "|---|---|---|"]
            for entry in collect(root):
                if entry.gaps():
                    message = f"equation {entry.label}: {', '.join(entry.gaps())}"
                    logging.getLogger(__name__).warning(message, location=self.get_location())
                functions = " ".join(f"{{py:obj}}`~{name}`" for name in entry.functions)
                where = f"{{eq}}`{entry.label}` in {{doc}}`/{entry.page}`" if entry.page else entry.label
                rows.append(f"| {where} | {functions} | {'; '.join(map(in_words, entry.tests))} |")
            return self.parse_text_to_nodes("\n".join(rows))

    app.add_directive("ledger", Ledger)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
