"""A quiz for each chapter, without a kernel: questions whose wrong options name the misconception behind them.

Each option opens on a click and says what is right or wrong with it; no script is needed, so a printed or offline page
has it too. The questions of a chapter are in ``data/quiz/<chapter>.json``.

Used in: the quiz of every chapter
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Option:
    """One answer: what it says, whether it is right, and why it is or which misconception it comes from."""

    say: str
    right: bool
    why: str


@dataclass(frozen=True)
class Question:
    """A question and its options, of which one is right."""

    ask: str
    options: tuple[Option, ...]


class Quiz:
    """The questions of a chapter; a notebook shows them by itself.

    ValueError for a chapter without a quiz.

    >>> len(Quiz("02_gda").questions) >= 4
    True

    Used in: the quiz of every chapter
    """

    def __init__(self, chapter: str) -> None:
        if chapter not in quizzes():
            raise ValueError(f"chapter must be one of {', '.join(quizzes())}; not {chapter!r}.")
        self.chapter, self.questions = chapter, quizzes()[chapter]

    def __repr__(self) -> str:
        lines = []
        for number, question in enumerate(self.questions, 1):
            lines += [f"{number}. {question.ask}", *(f"   {mark}) {o.say}" for mark, o in _marked(question))]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li><p>{html.escape(question.ask)}</p>"
            + "".join(_fold(mark, o) for mark, o in _marked(question))
            + "</li>"
            for question in self.questions
        )
        return f'<div class="quiz"><ol>{items}</ol></div>'


@cache
def quizzes() -> dict[str, tuple[Question, ...]]:
    """The questions of each chapter, read from the package's data."""
    folder = files("minilib") / "data" / "quiz"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {file.name.removesuffix(".json"): _read(file.read_text(encoding="utf8")) for file in found}


def _read(text: str) -> tuple[Question, ...]:
    return tuple(Question(q["ask"], tuple(Option(**option) for option in q["options"])) for q in json.loads(text))


def _marked(question: Question) -> list[tuple[str, Option]]:
    return list(zip("abcdefgh", question.options, strict=False))


def _fold(mark: str, option: Option) -> str:
    verdict = "Right. " if option.right else "Not this one. "
    said = f"<summary>{mark}) {html.escape(option.say)}</summary>"
    return f"<details>{said}<p><strong>{verdict}</strong>{html.escape(option.why)}</p></details>"
