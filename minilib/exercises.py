"""Check answers to the book's exercises offline: right or not yet, what a mistake looks like, and hints in stages.

No sentence tells the answer. A new exercise is one entry of a table ``EXERCISES`` in the module of its part: two or
more hints, and a judge from :mod:`minilib.judges`. The book's sources say in ``tests/test_exercises.py`` what an entry
must have.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from minilib import exercises_adapt, exercises_beyond, exercises_clip, exercises_feed, exercises_see
from minilib.judges import Exercise

EXERCISES: dict[str, Exercise] = {
    **exercises_clip.EXERCISES,
    **exercises_adapt.EXERCISES,
    **exercises_beyond.EXERCISES,
    **exercises_feed.EXERCISES,
    **exercises_see.EXERCISES,
}


class Sentence(str):
    """A string that a notebook shows without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def check(exercise_id: str, answer: Any) -> Sentence:
    """One sentence on an answer: "Right." or "Not yet:" and what kind of mistake it looks like.

    The answer is a number, a word or a function, as the exercise asks. ValueError for an exercise that does not exist.

    >>> check("ex-gda-numbers", 128 * 128)
    Not yet: that counts both triangles of a symmetric matrix.

    Used in: the exercises of every chapter
    """
    return Sentence(find(exercise_id).judge(answer)[1])


def hint(exercise_id: str, level: int = 1) -> Sentence:
    """A hint for an exercise; a higher level says more, none says the answer.

    ValueError for an exercise or a level that does not exist.

    >>> hint("ex-gda-numbers")
    Hint 1 of 2: A covariance is symmetric: which of its entries repeat others?

    Used in: the exercises of every chapter
    """
    hints = find(exercise_id).hints
    if level not in range(1, len(hints) + 1):
        raise ValueError(f"{exercise_id} has hints 1 to {len(hints)}; not {level}.")
    return Sentence(f"Hint {level} of {len(hints)}: {hints[level - 1]}")


def find(exercise_id: str) -> Exercise:
    """The hints and the judge of an exercise; ValueError for one that does not exist."""
    if exercise_id not in EXERCISES:
        raise ValueError(f"exercise_id must be one of {', '.join(EXERCISES)}; not {exercise_id!r}.")
    return EXERCISES[exercise_id]


def student_rng(student: str, task: str) -> np.random.Generator:
    """Random numbers of one student's own for one task: the same on every machine, others for every other student.

    ValueError without a name. Neither case nor blanks around the name count.

    >>> student_rng("Ada", "02_gda").integers(10**6) == student_rng(" ada", "02_gda").integers(10**6)
    np.True_

    Used in: the assignments of the course
    """
    name = student.strip().casefold() if isinstance(student, str) else ""
    if not name:
        raise ValueError(f"STUDENT must be a name, as in the course's list; not {student!r}.")
    digest = hashlib.sha256(f"{name}/{task}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
