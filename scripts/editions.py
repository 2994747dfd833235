"""Write a chapter for students, for instructors, and as an assignment that nbgrader grades.

The three differ in what stands where the book has a solution: a stub, the solution with notes, or a graded cell.
"""

from __future__ import annotations

import copy
import re

import nbformat
from chapters import Chapter, Exercise
from nbformat import NotebookNode
from personal import PROBLEMS, Problem

from minilib.exercises import EXERCISES
from minilib.judges import Choice, Function, Number
from minilib.quiz import Quiz

IMPORT = "from minilib.exercises import check, hint"


def markdown(text: str, **metadata: object) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(text, metadata=metadata)


def code(text: str, **metadata: object) -> NotebookNode:
    return nbformat.v4.new_code_cell(text, metadata=metadata)


def notebook(cells: list[NotebookNode]) -> NotebookNode:
    """A notebook whose cells are numbered, so that the same chapter gives the same bytes."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number:03d}"
    nbformat.validate(made)
    return made


def posed(exercise: Exercise) -> NotebookNode:
    """An exercise as a reader of a plain notebook sees it."""
    form = f"*{exercise.kind}; {exercise.difficulty}, {exercise.minutes} minutes; {exercise.label}.*"
    return markdown(f"### Exercise: {exercise.title}\n\n{form} {exercise.text}")


def stub(label: str) -> str:
    """Code with a gap where the answer goes, made of what the judge asks for."""
    judge = EXERCISES[label].judge
    if isinstance(judge, Function):
        return f'def answer({judge.takes}):\n    ...\n\n\ncheck("{label}", answer)'
    return f'answer = ...  # {judge.asks}\n\ncheck("{label}", answer)'


def student(chapter: Chapter) -> NotebookNode:
    """The chapter without outputs, with a stub for each solution."""
    cells = []
    for piece in chapter.pieces:
        if isinstance(piece, Exercise):
            cells += [posed(piece), code(stub(piece.label))]
        else:
            cells.append(cleared(piece))
    return notebook(cells)


def cleared(cell: NotebookNode) -> NotebookNode:
    """A copy without outputs."""
    cell = copy.deepcopy(cell)
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
    return cell


def instructor(chapter: Chapter) -> NotebookNode:
    """The chapter with the outputs of the book, and each exercise with its solution, hints and known mistakes."""
    cells = []
    for piece in chapter.pieces:
        if isinstance(piece, Exercise):
            cells += [posed(piece), markdown("#### Solution"), *copy.deepcopy(piece.solution), markdown(notes(piece))]
        else:
            cells.append(copy.deepcopy(piece))
    return notebook([*cells, markdown("## Quiz with answers\n\n" + quiz_key(chapter.name))])


def notes(exercise: Exercise) -> str:
    """For the instructor: points, what the check accepts, hints and known mistakes."""
    known = EXERCISES[exercise.label]
    points = f"{exercise.points} for the answer" + (f", {exercise.points} for the reasons" if exercise.written else "")
    lines = [f"**For the instructor.** Points: {points}. Accepted: {accepted(exercise.label)}.", ""]
    lines += [f"- Hint {number}: {said}" for number, said in enumerate(known.hints, 1)]
    return "\n".join([*lines, *(f"- Mistake: {said}" for said in mistakes(exercise.label))])


def accepted(label: str) -> str:
    """The right answer in words."""
    judge = EXERCISES[label].judge
    if isinstance(judge, Number):
        return f"{judge.expected:.7g}, within {judge.rel:.0e} of it"
    return f'"{judge.right}"' if isinstance(judge, Choice) else "a function that agrees with ours on five drawn cases"


def mistakes(label: str) -> list[str]:
    """What a known mistake is told, with the answer that earns it where it is short."""
    judge = EXERCISES[label].judge
    if isinstance(judge, Function):
        return list(judge.mistakes)
    return [f"{wrong:.7g}: {said}" if isinstance(wrong, float | int) else f'"{wrong}": {said}'
            for wrong, said in judge.wrong.items()]  # fmt: skip


def quiz_key(chapter: str) -> str:
    """Questions with the right letter and the misconception behind each wrong one."""
    said = []
    for number, question in enumerate(Quiz(chapter).questions, 1):
        said.append(f"{number}. {question.ask}")
        for mark, option in zip("abcdefgh", question.options, strict=False):
            said.append(f"    - {'**' + mark + '**' if option.right else mark}) {option.say} *{option.why}*")
    return "\n".join(said)


def key(chapter: Chapter) -> str:
    """The answers of a chapter as Markdown."""
    said = [f"# Answers: {chapter.title}"]
    for piece in chapter.exercises:
        shown = [cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
                 for cell in piece.solution]  # fmt: skip
        said += [f"## {piece.title} ({piece.label})", piece.text, "### Solution", *shown, notes(piece)]
    return "\n\n".join([*said, "## Quiz", quiz_key(chapter.name)]) + "\n"


def graded(name: str, points: int, *, solution: bool) -> dict[str, object]:
    """The marks by which nbgrader knows a cell."""
    return {
        "nbgrader": {
            "schema_version": 3, "grade_id": name, "grade": points > 0, "solution": solution, "locked": not solution,
            "task": False, **({"points": points} if points else {}),
        }
    }  # fmt: skip


def assignment(chapter: Chapter) -> NotebookNode:
    """The exercises of a chapter as nbgrader's source: answers between its marks, tests in locked cells."""
    head = (
        f"# Assignment: {chapter.title}\n\nRead the chapter first; (names in brackets) are its equations. Each answer "
        "is tested by the cell below it, which says in a sentence what is missing."
    )
    start = f"import numpy as np\nfrom scipy.special import softmax\n\n{IMPORT}"
    cells = [markdown(head, **graded("head", 0, solution=False)), code(start, **graded("imports", 0, solution=False))]
    for piece in chapter.exercises:
        cells += graded_exercise(piece)
    if chapter.name in PROBLEMS:
        cells += graded_problem(chapter.name, PROBLEMS[chapter.name])
    return notebook(cells)


def graded_exercise(exercise: Exercise) -> list[NotebookNode]:
    """Question, answer, test; and reasons in words where a person must read them."""
    label = exercise.label
    test = f'verdict = check("{label}", answer)\nassert verdict == "Right.", verdict'
    cells = [
        markdown(posed(exercise).source, **graded(f"{label}-text", 0, solution=False)),
        code(solved(exercise), **graded(f"{label}-answer", 0, solution=True)),
        code(test, **graded(f"{label}-test", exercise.points, solution=False)),
    ]
    if exercise.written:
        words = (
            "\n\n".join(cell.source for cell in exercise.solution if cell.cell_type == "markdown") or "See the code."
        )
        cells.append(markdown(words, **graded(f"{label}-reasons", exercise.points, solution=True)))
    return cells


def solved(exercise: Exercise) -> str:
    """The answer between nbgrader's marks. A function keeps its first line outside of them."""
    judge = EXERCISES[exercise.label].judge
    if not isinstance(judge, Function):
        value = repr(judge.expected if isinstance(judge, Number) else judge.right)
        return f"answer = ...  # {judge.asks}\n### BEGIN SOLUTION\nanswer = {value}\n### END SOLUTION"
    body, name = written_function(exercise)
    gap = f"def answer({judge.takes}):\n    ...\n"
    return f"{gap}\n\n### BEGIN SOLUTION\n{body}\n\nanswer = {name}\n### END SOLUTION"


def written_function(exercise: Exercise) -> tuple[str, str]:
    """The code of a solution up to its check, and the name of the function that the check got."""
    cell = next(cell.source for cell in exercise.solution if "assert check(" in cell.source)
    asked = re.search(rf'^assert check\("{exercise.label}", (.+)\) == "Right\."$', cell, re.MULTILINE)
    assert asked, exercise.label
    return cell[: asked.start()].strip(), asked[1]


def graded_problem(name: str, problem: Problem) -> list[NotebookNode]:
    """The problem with data of the student's own, and a hidden test that draws the same data."""
    whose = (
        '### BEGIN HIDDEN TESTS\nfrom pathlib import Path\n\nwhose = Path.cwd().parent.name\n'
        'assert whose == STUDENT, f"STUDENT is {STUDENT!r}, and the work was handed in by {whose!r}"\n'
    )  # fmt: skip
    test = f"assert np.isfinite(own), 'a finite number is expected'\n{whose}{problem.test}\n### END HIDDEN TESTS"
    student = 'STUDENT = ""  # your name in the course\'s list\n### BEGIN SOLUTION\n### END SOLUTION'
    answer = f"own = ...  # {problem.asks}\n### BEGIN SOLUTION\n{problem.solution}\n### END SOLUTION"
    return [
        markdown(f"### Data of your own\n\n{problem.text}", **graded("own-text", 0, solution=False)),
        code(student, **graded("own-name", 0, solution=True)),
        code(problem.data, **graded("own-data", 0, solution=False)),
        code(answer, **graded("own-answer", 0, solution=True)),
        code(test, **graded("own-test", problem.points, solution=False)),
    ]
