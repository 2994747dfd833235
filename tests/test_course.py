"""Editions of the course: nothing leaks, stubs say what is expected, nbgrader marks what it should."""

import functools
import json
import os
import re
import sqlite3
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import chapters
import check_numbers
import course
import decks
import editions
import nbformat
import personal
import pytest
from nbclient import NotebookClient

from minilib.exercises import EXERCISES, check
from minilib.judges import Function
from minilib.quiz import Quiz

ROOT = Path(__file__).resolve().parent.parent
NAMES = chapters.names()
needs_book = pytest.mark.book


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The course, written from the book that was built."""
    if not (ROOT / "_build" / ".jupyter_cache").exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no built book: run make book")
    out = tmp_path_factory.mktemp("course") / "course"
    assert course.main(out) == 0
    return out


def text_of(path: Path) -> str:
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


# Plain Markdown ------------------------------------------------------------------------------------------------------

PLAIN = chapters.Plain("02_gda", {"share": "0.12345", "word": "'above'"})


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("{glue:text}`share:.1%` lies {glue:text}`word`", "12.3% lies above"),
        ("see {eq}`eq-gda-ks`", "see (gda-ks)"),
        ("```{math}\n:label: eq-gda-ks\nP = S\n```\n", "$$\nP = S \\tag{gda-ks}\n$$\n"),
        ("$$ a = b $$ (eq-gda-merge)", "$$ a = b \\tag{gda-merge} $$"),
        ("$x\\T \\in \\R$, $\\Tau$", "$x{^{\\mathsf{T}}} \\in \\mathbb{R}$, $\\Tau$"),
        ("{doc}`the next <03_fewshot>`", "[the next](03_fewshot.ipynb)"),
        ("{doc}`the ledger <../book/ledger>`", "the ledger"),
        (":::{admonition} Predict first\n:class: tip\nA or B?\n:::\n", "> **Predict first.**\n>\n> A or B?\n"),
        ("{cite:t}`wang2024gda` and {cite:p}`tong2024mmvp`", "Wang et al. (2024) and (Tong et al., 2024)"),
        ("{py:func}`minilib.gda.solve`", "`minilib.gda.solve`"),
    ],
)
def test_myst_becomes_plain_markdown(myst, markdown):
    assert PLAIN(myst) == markdown


def test_a_form_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"02_gda: no plain form is known for the role \{dfn\}"):
        PLAIN("{dfn}`scatter`")
    with pytest.raises(ValueError, match=r"no plain form is known for the directive \{margin\}"):
        PLAIN("```{margin}\nx\n```\n")


def test_numbers_typed_by_hand_are_found():
    prose = (
        "It gets {glue:text}`best:.1f` %, not 71.3 %, in `71.3` of $71.3$ and 12 steps of {glue:text}`few`, in 1998."
    )
    assert check_numbers.typed(prose, {"best": "71.3049", "few": "12", "other": "1998"}) == {"71.3": "best"}
    assert check_numbers.typed("1,234 and 1,234.5", {"n": "1234"}) == {}
    assert check_numbers.typed("{glue:text}`n:,d`: 1,234, and 1,234.5", {"n": "1234"}) == {"1,234": "n"}


# Stubs and problems --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", EXERCISES)
def test_stubs_run_and_are_told_what_is_expected(label):
    code = editions.stub(label)
    *body, last = code.splitlines()
    space = {"check": check}
    exec("\n".join(body), space)
    said = str(eval(last, space))
    assert said.startswith("Not yet") and ("expected" in said or "returned None" in said)


def solve(problem, student):
    space = {"STUDENT": student}
    exec(f"import numpy as np\n{problem.data}\n{problem.solution}", space)
    return space


@pytest.mark.parametrize("name", personal.PROBLEMS)
def test_own_problems_differ_and_are_graded_by_drawing_again(name):
    problem = personal.PROBLEMS[name]
    answers = []
    for student in ("ada", "grace", "emmy"):
        space = solve(problem, student)
        exec(problem.test, space)
        answers.append(float(space["own"]))
    assert len(set(answers)) == 3, "a neighbour's answer would do"
    space["own"] = answers[0]
    with pytest.raises(AssertionError, match="not the"):
        exec(problem.test, space)


# What is written -----------------------------------------------------------------------------------------------------


def secrets(chapter) -> list[str]:
    """Lines of code and sentences that stand in the chapter's solutions and nowhere else in it."""
    public = "\n".join(p.source if not isinstance(p, chapters.Exercise) else p.text for p in chapter.pieces)
    found = []
    for cell in (cell for exercise in chapter.exercises for cell in exercise.solution):
        pieces = cell.source.splitlines() if cell.cell_type == "code" else re.split(r"(?<=[.:])\s+", cell.source)
        found += [piece.strip() for piece in pieces if len(piece.strip()) > 24]
    return [piece for piece in found if piece not in public]


@needs_book
@pytest.mark.parametrize("name", NAMES)
def test_no_solution_leaks_to_students(folder, name):
    hidden = secrets(chapters.read(name))
    assert len(hidden) >= 10, "the search would find nothing"
    whole = text_of(folder / "student" / f"{name}.ipynb")
    assert not [piece for piece in hidden if piece in whole]
    assert "{solution" not in whole
    released = text_of(folder / "instructor" / f"{name}.ipynb")
    assert all(piece in released for piece in hidden), "the instructor's edition has them all"
    assert all(piece in (folder / "key" / f"{name}.md").read_text() for piece in hidden)


@needs_book
@pytest.mark.parametrize("name", NAMES)
def test_student_notebooks_are_plain_and_empty(folder, name):
    notebook = nbformat.read(folder / "student" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.findall(r"\{[a-z:]+\}`|^[`:]{3,}\{", prose, re.MULTILINE)
    stubs = [cell for cell in notebook.cells if re.search(r'^check\("ex-', cell.source, re.MULTILINE)]
    assert len(stubs) == len(chapters.read(name).exercises) >= 5


@needs_book
def test_student_chapter_runs_from_top_to_bottom(folder, tmp_path):
    notebook = nbformat.read(folder / "student" / "02_gda.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    said = [o.data.get("text/plain", "") for cell in notebook.cells for o in cell.get("outputs", ()) if "data" in o]
    assert sum(text.startswith("Not yet") for text in said) == len(chapters.read("02_gda").exercises)


@needs_book
def test_instructor_guide_counts_and_names_misconceptions(folder):
    guide = (folder / "instructor" / "guide.md").read_text()
    for name in NAMES:
        chapter = chapters.read(name)
        minutes = sum(exercise.minutes for exercise in chapter.exercises)
        assert f"| {chapter.title} | {len(chapter.exercises)} | {minutes} |" in guide
        assert all(option.why in guide for q in Quiz(name).questions for option in q.options if not option.right)
        source = nbformat.read(folder / "nbgrader" / "source" / name / f"{name}.ipynb", as_version=4)
        points = sum(cell.metadata.nbgrader.get("points", 0) for cell in source.cells)
        assert f"| {minutes} | {points} |" in guide
    assert "{doc}" not in guide and "Four weeks" in guide and "Two weeks" in guide


@needs_book
def test_the_plan_names_exercises_and_sections_that_exist():
    """Minutes in class are the sums of their exercises; the cut names sections of the chapters."""
    page = (ROOT / "book" / "teaching.md").read_text(encoding="utf8")
    minutes = {name[:2]: {e.title: e.minutes for e in chapters.read(name).exercises} for name in NAMES}
    rows = re.findall(r"^\| ([0-9]{2}(?: and [0-9]{2})?) \| (.+) \| ([0-9]+) \|$", page, re.MULTILINE)
    assert len(rows) == 8
    for session, titles, total in rows:
        known = {k: v for number in session.split(" and ") for k, v in minutes[number].items()}
        assert sum(known[title] for title in titles.split("; ")) == int(total) <= 40
    cut = page.split("## Two weeks")[1].split("## What it needs")[0]
    cells = [cell for name in NAMES for cell in chapters.read(name).pieces if not isinstance(cell, chapters.Exercise)]
    text = "\n".join(cell.source for cell in cells)
    named = re.findall(r"\*([^*]+)\*", cut)
    assert len(named) >= 6 and not [title for title in named if not re.search(rf"^##+ {title}$", text, re.MULTILINE)]


class Answers(HTMLParser):
    """Text outside and inside of folded solutions."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.depth, self.folded, self.shown, self.inside = 0, None, [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "div":
            self.depth += 1
            classes = dict(attributes).get("class") or ""
            if self.folded is None and "solution" in classes and "dropdown" in classes:
                self.folded = self.depth

    def handle_endtag(self, tag):
        if tag == "div":
            if self.depth == self.folded:
                self.folded = None
            self.depth -= 1

    def handle_data(self, data):
        (self.shown if self.folded is None else self.inside).append(data)


@needs_book
@pytest.mark.parametrize("name", NAMES)
def test_pages_show_answers_in_folded_solutions_only(name):
    page = Answers((ROOT / "_build" / "html" / "notebooks" / f"{name}.html").read_text())
    shown, inside = "".join(page.shown), "".join(page.inside)
    labels = [exercise.label for exercise in chapters.read(name).exercises]
    assert all(f'assert check("{label}"' in inside for label in labels)
    assert "assert check(" not in shown


# Slides --------------------------------------------------------------------------------------------------------------


@needs_book
@pytest.mark.parametrize("name", NAMES)
def test_slides_need_only_what_lies_beside_them(folder, name):
    page = (folder / "slides" / f"{name}.html").read_text()
    loaded = re.findall(r'<(?:link|script|img)\b[^>]*?(?:src|href)="([^"]+)"', page)  # not what <a> merely names
    wanted = [link for link in loaded if not link.startswith("data:")]
    assert wanted and not [link for link in wanted if not (folder / "slides" / link).is_file()]
    assert page.count("<section>") >= 8 and "{glue" not in page and "$$" not in page
    assert not re.findall(r'<img alt="">', page)
    assert not [piece for piece in secrets(chapters.read(name)) if piece in page]


@needs_book
@pytest.mark.parametrize("name", NAMES)
def test_slides_in_a_browser(folder, name, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    trouble = []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda r: trouble.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto((folder / "slides" / f"{name}.html").as_uri())
    page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
    page.evaluate("MathJax.startup.promise")
    tall = page.evaluate(
        """() => Reveal.getSlides().filter(slide => {
            const at = Reveal.getIndices(slide); Reveal.slide(at.h, at.v);
            return slide.scrollHeight > 720 || slide.scrollWidth > 1290; }).map(s => s.textContent.slice(0, 80))"""
    )
    page.close()
    assert not trouble and not tall


# nbgrader ------------------------------------------------------------------------------------------------------------

ASSIGNMENT = "02_gda"


def grader(folder: Path, *arguments: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader calls alembic by its name
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr[-2000:]


def hand_in(folder: Path, student: str, fill) -> None:
    """The released notebook with each answer cell filled by ``fill(cell)``, as this student's submission."""
    notebook = nbformat.read(folder / "release" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb", as_version=4)
    for cell in notebook.cells:
        mark = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code" and mark.get("solution"):
            cell.source = fill(mark["grade_id"], cell.source)
    course.write(folder / "submitted" / student / ASSIGNMENT, ASSIGNMENT, notebook)


@functools.cache
def solutions() -> dict[str, str]:
    source = editions.assignment(chapters.read(ASSIGNMENT))
    return {cell.metadata.nbgrader.grade_id: cell.source for cell in source.cells}


@pytest.fixture(scope="module")
def marked(folder):
    """Points of five submissions, as nbgrader writes them: right, wrong, empty, crashing, endless."""
    pytest.importorskip("nbgrader")
    where = folder / "nbgrader"
    config = where / "nbgrader_config.py"
    config.write_text(config.read_text().replace("timeout = 120", "timeout = 15"))
    grader(where, "generate_assignment", ASSIGNMENT, "--create")

    def right(name, stub):
        return f'STUDENT = "{student}"' if name == "own-name" else solutions()[name]

    def wrong(name, stub):
        return 'STUDENT = "ada"' if name == "own-name" else stub.split("=")[0] + "= 1" if "= ..." in stub else stub

    def crashing(name, stub):
        return "raise RuntimeError('no')" if name == "ex-gda-numbers-answer" else right(name, stub)

    def endless(name, stub):
        return "while True:\n    pass" if name == "ex-gda-numbers-answer" else right(name, stub)

    fills = {"right": right, "wrong": wrong, "empty": lambda name, stub: stub, "crashing": crashing, "endless": endless}
    for student, fill in fills.items():
        hand_in(where, student, fill)
    grader(where, "autograde", ASSIGNMENT, "--create")
    with sqlite3.connect(where / "gradebook.db") as book:
        rows = book.execute(
            """select submitted_assignment.student_id, base_cell.name, grade.auto_score, grade_cells.max_score
            from grade join base_cell on base_cell.id = grade.cell_id join grade_cells on grade_cells.id = base_cell.id
            join submitted_notebook on submitted_notebook.id = grade.notebook_id
            join submitted_assignment on submitted_assignment.id = submitted_notebook.assignment_id"""
        ).fetchall()
    scores: dict = {student: {} for student in fills}
    for student, name, score, most in rows:
        if name.endswith("-test"):
            scores[student][name] = (score or 0.0, most)
    return scores


@needs_book
def test_nbgrader_releases_no_answer(folder, marked):
    released = text_of(folder / "nbgrader" / "release" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb")
    assert "SOLUTION" not in released and "HIDDEN" not in released and "ridged" not in released
    assert not [piece for piece in secrets(chapters.read(ASSIGNMENT)) if piece in released]
    assert 'assert verdict == "Right.", verdict' in released


@needs_book
def test_nbgrader_marks_five_submissions(marked):
    full = {name: (most, most) for name, (_, most) in marked["right"].items()}
    assert marked["right"] == full and len(full) == len(chapters.read(ASSIGNMENT).exercises) + 1
    assert not any(score for score, _ in [*marked["wrong"].values(), *marked["empty"].values()])
    for student in ("crashing", "endless"):
        lost = {name for name, (score, most) in marked[student].items() if score < most}
        assert lost == {"ex-gda-numbers-test"}, "a cell that fails or hangs costs its own points"


@needs_book
@pytest.mark.parametrize("name", [name for name in NAMES if name != ASSIGNMENT])
def test_every_assignment_is_solved_by_its_own_solutions(folder, name, tmp_path):
    """The source itself, with its hidden tests, in a folder of the student's name."""
    notebook = nbformat.read(folder / "nbgrader" / "source" / name / f"{name}.ipynb", as_version=4)
    student = tmp_path / "grace" / name
    student.mkdir(parents=True)
    for cell in notebook.cells:
        if cell.metadata.nbgrader.grade_id == "own-name":
            cell.source = 'STUDENT = "grace"'
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": student}}).execute()
    assert sum(cell.metadata.nbgrader.get("points", 0) for cell in notebook.cells) >= len(chapters.read(name).exercises)


def test_grade_cells_have_distinct_names_and_the_same_judge_as_the_book():
    """Nothing is graded by a number typed here: the test asks ``check``."""
    exercise = chapters.Exercise("ex-gda-numbers", "T", "Derive", "easy", 5, "How many?")
    question, answer, test, reasons = editions.graded_exercise(exercise)
    names = [cell.metadata["nbgrader"]["grade_id"] for cell in (question, answer, test, reasons)]
    assert len(set(names)) == 4 and test.metadata["nbgrader"]["points"] == 1
    assert 'check("ex-gda-numbers", answer)' in test.source and test.metadata["nbgrader"]["locked"]
    assert isinstance(EXERCISES["ex-gda-loo"].judge, Function) and "def answer(means" in editions.stub("ex-gda-loo")
    assert json.loads(json.dumps(reasons.metadata["nbgrader"]))["solution"] is True


def test_wide_code_stays_off_the_slides():
    long = nbformat.v4.new_code_cell("\n".join(["x = 1"] * (decks.SHOWN_LINES + 1)))
    assert decks.pictures(long) == [] and decks.pictures(nbformat.v4.new_code_cell("x = 1")) != []
