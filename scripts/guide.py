"""The instructor's guide: the book's page on teaching, and tables that are counted from the chapters."""

from __future__ import annotations

import re

from chapters import ROOT, Chapter, Plain
from editions import mistakes
from personal import PROBLEMS

from minilib.quiz import Quiz


def text(book: list[Chapter]) -> str:
    """The guide as Markdown."""
    page = (ROOT / "book" / "teaching.md").read_text(encoding="utf8")
    page = Plain("teaching", {})(re.sub(r"<\.\./notebooks/", "<", page))
    return "\n\n".join([page.rstrip(), times(book), misconceptions(book)]) + "\n"


def times(book: list[Chapter]) -> str:
    """Minutes of exercises, points (answers, reasons, data of one's own) and seconds of computing for each chapter."""
    lines = ["## Time, points and seconds", "", "| chapter | exercises | minutes | points | seconds of computing |"]
    lines += ["|---|---|---|---|---|"]
    for chapter in book:
        minutes = sum(exercise.minutes for exercise in chapter.exercises)
        points = sum(exercise.points * (1 + exercise.written) for exercise in chapter.exercises)
        points += PROBLEMS[chapter.name].points if chapter.name in PROBLEMS else 0
        lines.append(f"| {chapter.title} | {len(chapter.exercises)} | {minutes} | {points} | {chapter.seconds:.0f} |")
    return "\n".join(lines)


def misconceptions(book: list[Chapter]) -> str:
    """What students of each chapter get wrong: wrong options of its quiz, known mistakes of its checks."""
    lines = ["## Common misconceptions"]
    for chapter in book:
        lines += ["", f"### {chapter.title}", ""]
        for question in Quiz(chapter.name).questions:
            lines.append(f"- {question.ask}")
            lines += [f"    - “{option.say}” {option.why}" for option in question.options if not option.right]
        lines += [f"- In {e.title}: {said.rstrip('.?')}." for e in chapter.exercises for said in mistakes(e.label)]
    return "\n".join(lines)
