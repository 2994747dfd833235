"""Quizzes: one right option a question, a misconception named for each wrong one, readable without a script."""

import doctest
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minilib import quiz
from minilib.quiz import Quiz, quizzes

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_docstring_examples():
    assert doctest.testmod(quiz).failed == 0


def test_every_chapter_has_a_quiz_and_shows_it():
    assert sorted(quizzes()) == CHAPTERS
    for chapter in CHAPTERS:
        cells = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text())["cells"]
        shown = [
            cell for cell in cells if cell["cell_type"] == "code" and f'Quiz("{chapter}")' in "".join(cell["source"])
        ]
        assert len(shown) == 1, f"{chapter} shows its quiz {len(shown)} times"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_questions_have_one_right_option_and_a_reason_for_each(chapter):
    questions = Quiz(chapter).questions
    assert len(questions) >= 4 and len({question.ask for question in questions}) == len(questions)
    for question in questions:
        assert [option.right for option in question.options].count(True) == 1 and len(question.options) >= 3
        says, whys = {o.say for o in question.options}, {o.why for o in question.options}
        assert len(says) == len(whys) == len(question.options), question.ask
        assert all(len(why.split()) >= 6 and why.endswith(".") for why in whys), question.ask


def test_the_right_option_is_not_always_the_same_letter_nor_always_the_longest():
    questions = [question for each in quizzes().values() for question in each]
    places = [[o.right for o in question.options].index(True) for question in questions]
    longest = [max(q.options, key=lambda o: len(o.say)).right for q in questions]
    assert max(map(places.count, set(places))) <= 0.5 * len(places)
    assert sum(longest) <= 0.6 * len(longest)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_page_folds_each_reason_and_needs_no_script(chapter):
    text = Quiz(chapter)._repr_html_()
    tags = Tags(text)
    options = sum(len(question.options) for question in Quiz(chapter).questions)
    assert tags.open == [] and "script" not in tags.seen and not re.search(r"\son\w+=", text)
    assert tags.seen.count("details") == tags.seen.count("summary") == options


def test_the_text_form_gives_no_answer_away():
    said = repr(Quiz("02_gda"))
    assert all(question.ask in said for question in Quiz("02_gda").questions)
    assert not [o.why for q in Quiz("02_gda").questions for o in q.options if o.why in said]


def test_unknown_chapter_is_named():
    with pytest.raises(ValueError, match=r"chapter must be one of .*02_gda.*; not '12'"):
        Quiz("12")
