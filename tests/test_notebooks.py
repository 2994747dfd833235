"""The chapters' sources: stripped, complete, alike where they should be alike."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SETUP = """\
# Setup: in Colab this installs minilib; in a clone it changes nothing.
TIER = "toy"  # @param ["toy", "real"]
ADDRESS = ""  # the repository's address; `make address` writes it
import importlib.util

if importlib.util.find_spec("minilib") is None:
    if not ADDRESS:
        raise ModuleNotFoundError("minilib has no public address yet: clone the repository, then `make lab`")
    %pip install -q "minilib[chapters] @ git+{ADDRESS}"
"""
DRAWS = re.compile(r"\bplt\.(subplots|figure|subplot_mosaic)\(|\bsns\.\w+plot\(")

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code(path: Path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def test_format(path):
    book = read(path)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) >= (4, 5)
    assert book.metadata.kernelspec.name == "python3"
    assert "jupytext" not in book.metadata


def test_outputs_are_stripped(path):
    dirty = [cell.id for cell in code(path) if cell.outputs or cell.execution_count is not None]
    assert not dirty, f"cells {dirty} hold outputs: python -m nbstripout {path.name}"


def test_setup_cell_is_the_same_everywhere(path):
    first = code(path)[0]
    source = re.sub(r'ADDRESS = ".*?"', 'ADDRESS = ""', first.source)  # tests/test_address.py reads the address
    assert source.strip() == SETUP.strip()
    assert first.metadata.get("tags") == ["hide-input"]


def test_imports_stand_in_the_second_cell(path):
    _, second, *others = code(path)
    assert "use_theme()" in second.source
    late = [cell.id for cell in others if re.search(r"^(import|from) ", cell.source, re.MULTILINE)]
    # The library's version of an idea is imported where the ten-line version has just been written.
    late = [cell for cell in others if cell.id in late and not re.search(r"^from minilib", cell.source, re.MULTILINE)]
    assert not late, [cell.source for cell in late]


def test_cells_are_short(path):
    long = [cell.source for cell in code(path) if len(cell.source.splitlines()) > 20]
    assert not long, long


def test_every_drawing_cell_has_alternative_text(path):
    for cell in code(path):
        if DRAWS.search(cell.source):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 20, f"say in words what this cell draws:\n{cell.source}"


def test_every_exercise_has_a_solution(path):
    text = prose(path)
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)\n((?::.*\n)*)", text)
    assert len(exercises) >= 5
    assert sorted(exercises) == sorted(name for name, _ in solutions)
    assert all(":class: dropdown" in options for _, options in solutions), "fold every solution"


def test_exercises_state_kind_difficulty_and_minutes(path):
    """One form everywhere, which the editions of the course read: *Predict, then code; easy, 10 minutes.*"""
    for label, body in re.findall(r":label: (\S+)\n`+\n(.*?)\{exercise-end", prose(path), re.DOTALL):
        assert re.match(r"\*[A-Z][a-z, -]+; (easy|medium|hard), \d+ minutes\.\* ", body), f"{label}: {body[:80]}"


def test_every_solution_passes_its_check_in_the_build(path):
    """A cell between the marks of a solution asserts that its answer is right: else the chapter does not run."""
    inside, proven, solutions = None, [], []
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for start, name in re.findall(r"\{solution-(start|end)\} ?(\S*)", cell.source):
                inside = name if start == "start" else None
                solutions += [name] if inside else []
        elif inside:
            proven += re.findall(rf'assert check\("({inside})", .+\) == "Right\."', cell.source)
            assert "check(" not in cell.source or inside in proven
        else:
            assert "check(" not in cell.source, "an answer outside of a solution"
    assert sorted(set(proven)) == sorted(solutions)


def test_exercises_say_how_to_check_an_answer(path):
    bodies = re.findall(r":label: (\S+)\n`+\n(.*?)\{exercise-end", prose(path), re.DOTALL)
    assert not [label for label, body in bodies if f'check("{label}", ' not in body]
    kinds = " ".join(body.split(";")[0].lower() for _, body in bodies)
    assert all(kind in kinds for kind in ("predict", "derive", "code", "break it", "open")), kinds


def test_page_skeleton(path):
    text = prose(path)
    first = read(path).cells[0]
    opening = re.match(r"(\([\w-]+\)=\n)?# ", first.source)
    assert first.cell_type == "markdown" and opening, "a chapter opens with its title, above all code"
    for part in (r"you (can|will be able to)", r"\*\*you need|prerequisite", "minutes", "predict first", "## summary"):
        assert re.search(part, text.lower()), f"{path.name} lacks: {part}"
    ends = ("## exercises", "## quiz", "## summary", "**where to go next.**", "## further reading")
    places = [text.lower().find(mark) for mark in ends]
    assert min(places) > 0 and places == sorted(places), dict(zip(ends, places, strict=True))


def test_in_the_table_of_contents(path):
    assert f"notebooks/{path.name}" in (ROOT / "book" / "_toc.yml").read_text()
