"""The reproduction ledger: published figures beside the runs in book/reproductions/; a row that is not sound stops the
build.

The directive ``{reproduction}`` prints what :func:`minilib.published.page` makes of the two. Nothing is typed by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROWS = Path("book") / "reproductions"


def ledger(root: Path) -> str:
    """The page's Markdown from the rows below a checkout. ValueError, by file, for a row that is not sound."""
    from minilib import published

    return published.page(published.read_published(), published.read_rows(root / ROWS))


def outdated(app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages with the directive: a new row is no change of a file that Sphinx knows."""
    return [name for name in env.metadata if "reproduction" in env.metadata[name]]


def setup(app: Any) -> dict[str, bool]:
    from sphinx.errors import ExtensionError
    from sphinx.util.docutils import SphinxDirective

    class Reproduction(SphinxDirective):
        """Prints the tables."""

        def run(self) -> list[Any]:
            self.env.metadata[self.env.docname]["reproduction"] = "yes"
            try:
                return self.parse_text_to_nodes(ledger(Path(self.env.srcdir)), allow_section_headings=True)
            except ValueError as error:
                raise ExtensionError(f"{self.env.docname}: {error}") from error

    app.add_directive("reproduction", Reproduction)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
