"""Find numbers that were typed into a chapter's prose although a cell computes them: they would go stale unseen.

A number is suspicious when the same digits, three or more, stand in the text that some cell handed to the prose. Code,
mathematics and headings of exercises are not searched. The build of the book ends with this check.
"""

from __future__ import annotations

import re
import sys

import chapters

NOT_PROSE = re.compile(r"`{3,}.*?`{3,}|\$\$.*?\$\$|\$[^$]+\$|`[^`]*`|\]\([^)]*\)|<[^>]+>", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.,])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)")
YEARS = range(1950, 2100)
FACTS = {  # numbers that a paper prints, or a setting that the text states, and that a cell arrives at as well
    "05_metadata": {"86,654", "86,554"},  # the paper's table
    "06_balance": {"86,654", "20,000", "500,000"},  # the paper's table; CLIP's own threshold and number of entries
    "09_diva": {"150"},  # the default of diva.Config.steps
    "10_gpu": {"2.94"},  # the paper's millions of pictures
}


def typed(prose: str, numbers: dict[str, str]) -> dict[str, str]:
    """The numbers in the prose that a cell computed, each with the name under which it is glued."""
    glued = {}
    for role in re.findall(r"\{glue:text\}`([^`]+)`", prose):
        key, _, form = role.partition(":")
        if key in numbers:
            glued[format(chapters.number(numbers[key]), form).strip("+-")] = key
    text = NOT_PROSE.sub(" ", re.sub(r"\{[a-z:]+\}`[^`]+`", " ", prose))
    found = (hit.strip("+-") for hit in NUMBER.findall(text))
    digits = {hit: len(re.sub(r"\D", "", hit).lstrip("0")) for hit in found}
    return {hit: glued[hit] for hit, n in digits.items() if hit in glued and n >= 3 and not _year(hit)}


def _year(text: str) -> bool:
    return text.isdigit() and int(text) in YEARS


def main() -> int:
    faults = 0
    for name in chapters.names():
        run, _ = chapters.run_of(name)
        prose = "\n\n".join(cell.source for cell in run.cells if cell.cell_type == "markdown")
        for hit, key in typed(prose, chapters.glued(run)).items():
            if hit in FACTS.get(name, ()):
                continue
            fault = f"{hit} is typed, and a cell computes it: write {{glue:text}}`{key}`"
            print(f"notebooks/{name}.ipynb: {fault}", file=sys.stderr)
            faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
