"""exercises: a right answer passes, a stub is told what is expected, each known mistake is told what it looks like."""

import doctest
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from minilib import exercises, judges
from minilib.exercises import EXERCISES, check, hint, student_rng
from minilib.judges import Choice, Function, Number

# Answers as readers might give them, worked out here without the library ----------------------------------------------


def loo(means, counts, row, label):
    """The sum without the row, over one row fewer; a loop over classes."""
    answer = []
    for k, (mean, n) in enumerate(zip(means, counts, strict=True)):
        answer.append((n * mean - row) / (n - 1) if k == label else mean)
    return answer


def loo_in_place(means, counts, row, label):
    """mu - (x - mu) / (n - 1): the same, written into the array that came in."""
    means[label] -= (row - means[label]) / (counts[label] - 1)
    return means


def loo_all(means, counts, row, label):
    return np.array([(n * mean - row) / (n - 1) for mean, n in zip(means, counts, strict=True)])


def loo_divided_by_n(means, counts, row, label):
    means[label] -= row / counts[label]
    return means


def loo_one(means, counts, row, label):
    return loo(means, counts, row, label)[label]


def loo_of_the_mean(means, counts, row, label):
    means[label] = (means[label] - row) / (counts[label] - 1)
    return means


def gaps(p, labels, bins):
    """(share of rows, accuracy - confidence) of each bin ((m - 1) / M, m / M] that has rows."""
    which = np.ceil(p.max(axis=1) * bins).astype(int)
    right = (p.argmax(axis=1) == labels).astype(float)
    return [((which == m).mean(), (right - p.max(axis=1))[which == m].mean()) for m in np.unique(which)]


def ece(p, labels, bins):
    return sum(share * abs(gap) for share, gap in gaps(p, labels, bins))


def ece_unweighted(p, labels, bins):
    return np.mean([abs(gap) for _, gap in gaps(p, labels, bins)])


def ece_of_all_bins(p, labels, bins):
    return sum(abs(gap) for _, gap in gaps(p, labels, bins)) / bins


def ece_signed(p, labels, bins):
    return abs(sum(share * gap for share, gap in gaps(p, labels, bins)))


def prior_shift(z, train, test):
    """Posterior times the ratio of priors, each row then divided by its sum."""
    weights = softmax(z, axis=1) * test / train
    return weights / weights.sum(axis=1, keepdims=True)


def prior_shift_in_torch(z, train, test):
    z, train, test = (torch.tensor(v, dtype=torch.float32) for v in (z, train, test))
    return torch.softmax(z + test.log() - train.log(), dim=1)


RIGHT = {
    "ex-gda-numbers": [8256, 8256.0, np.int64(8256), np.array(8256), torch.tensor(8256)],
    "ex-gda-boundary": ["move", " Move "],
    "ex-gda-shrinkage": [1024 / 1183, 0.8656, 0.866],
    "ex-gda-loo": [loo, loo_in_place],
    "ex-gda-ece": [ece, lambda p, y, bins: torch.tensor(ece(p, y, bins))],
    "ex-gda-harmonic": [2 / (1 / 83.96 + 1 / 74.53), 78.96],
    "ex-gda-prior-shift": [prior_shift, prior_shift_in_torch],
}
WRONG = [
    ("ex-gda-numbers", 16384, "both triangles"),
    ("ex-gda-numbers", 8128, "the diagonal is forgotten"),
    ("ex-gda-numbers", 128, "the diagonal alone"),
    ("ex-gda-numbers", 8255, "close but not exact"),
    ("ex-gda-numbers", 2**20, "too large"),
    ("ex-gda-numbers", -1, "too small"),
    ("ex-gda-numbers", math.nan, "expected a finite number"),
    ("ex-gda-numbers", True, "expected a finite number, got an answer of type bool"),
    ("ex-gda-numbers", "8256", "expected a finite number, got an answer of type str"),
    ("ex-gda-numbers", [[1], [1, 2]], "expected a finite number, got an answer of type list"),
    ("ex-gda-boundary", "turn", "no prior is in it"),
    ("ex-gda-boundary", "both", "one of the two"),
    ("ex-gda-boundary", "shrink", 'expected one of "both", "move", "turn", got \'shrink\''),
    ("ex-gda-boundary", 3, "expected one of"),
    ("ex-gda-shrinkage", 0.1344, "the weight left to S / N"),
    ("ex-gda-shrinkage", 6.44, "the ridge in mean eigenvalues"),
    ("ex-gda-shrinkage", 0.8649, "N - 1, not by N"),
    ("ex-gda-shrinkage", 160 / 1183, "changed places"),
    ("ex-gda-shrinkage", 0.87, "close but not exact"),
    ("ex-gda-loo", loo_divided_by_n, "n - 1 rows are left"),
    ("ex-gda-loo", loo_all, "the means of the others stay"),
    ("ex-gda-loo", loo_one, "all K were asked for"),
    ("ex-gda-loo", loo_of_the_mean, "from the sum, not from the mean"),
    ("ex-gda-loo", lambda means, counts, row, label: means, "before the row was left out"),
    ("ex-gda-loo", lambda means, counts, row, label: means[:, :2], "should return shape"),
    ("ex-gda-loo", lambda means, counts, row, label: 2 * means, "the right shape and the wrong values"),
    ("ex-gda-loo", lambda means, counts, row, label: means + np.inf, "not finite"),
    ("ex-gda-loo", lambda means, counts, row, label: "means", "should return numbers"),
    (
        "ex-gda-loo",
        np.zeros((3, 5)),
        "expected a function of (means, counts, row, label), got an answer of type ndarray",
    ),
    ("ex-gda-ece", ece_unweighted, "some hold many more rows"),
    ("ex-gda-ece", ece_of_all_bins, "empty ones count too"),
    ("ex-gda-ece", ece_signed, "opposite sign cancel"),
    ("ex-gda-ece", lambda p, y, bins: 100 * ece(p, y, bins), "per cent"),
    ("ex-gda-harmonic", 79.245, "arithmetic"),
    ("ex-gda-harmonic", 79.10, "geometric"),
    ("ex-gda-harmonic", 39.48, "factor of 2"),
    ("ex-gda-harmonic", 0.78964, "a share"),
    ("ex-gda-prior-shift", lambda z, train, test: softmax(z + np.log(test), axis=1), "still in the logits"),
    ("ex-gda-prior-shift", lambda z, train, test: softmax(z - np.log(train), axis=1), "target priors are not in"),
    ("ex-gda-prior-shift", lambda z, train, test: prior_shift(z, test, train), "changed places"),
    ("ex-gda-prior-shift", lambda z, train, test: softmax(z, axis=1), "before the correction"),
    ("ex-gda-prior-shift", lambda z, train, test: softmax(z * test / train, axis=1), "not to logits"),
    ("ex-gda-prior-shift", lambda z, train, test: softmax(z, axis=1) * test / train, "no longer sum to one"),
    ("ex-gda-prior-shift", lambda z, train, test: np.exp(z) * test / train, "rows of exponentials"),
    ("ex-gda-prior-shift", lambda z, train, test: z + np.log(test) - np.log(train), "those are logits"),
    (
        "ex-gda-prior-shift",
        lambda z, train, test: np.exp((v := z + np.log(test / train)) - logsumexp(v, 0)),
        "over rows",
    ),
]


def test_docstring_examples() -> None:
    assert doctest.testmod(exercises).failed == doctest.testmod(judges).failed == 0


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in RIGHT.items() for answer in answers])
def test_right_answers(name: str, answer) -> None:
    assert check(name, answer) == "Right."


@pytest.mark.parametrize(("name", "answer", "part"), WRONG, ids=[f"{name}: {part}" for name, _, part in WRONG])
def test_wrong_answers_are_told_what_they_look_like(name: str, answer, part: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sentence = check(name, answer)
    assert sentence.startswith("Not yet: ") and part in sentence
    assert "\n" not in sentence and sentence[-1] in ".?"


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_hints_in_stages(name: str) -> None:
    hints = EXERCISES[name].hints
    assert len(set(hints)) == len(hints) >= 2
    assert [hint(name, level) for level in (1, 2)] == [f"Hint {i} of {len(hints)}: {hints[i - 1]}" for i in (1, 2)]


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_knows_two_mistakes_and_tells_them_apart(name: str) -> None:
    """Each mistake of the table, made as a reader would make it, hears its own sentence and never "Right."."""
    judge = EXERCISES[name].judge
    table = judge.mistakes if isinstance(judge, Function) else {why: wrong for wrong, why in judge.wrong.items()}
    assert len(table) >= 2
    for sentence, answer in table.items():
        said = check(name, answer)
        assert said.startswith("Not yet: ") and sentence in said and "\n" not in said
        assert len(sentence.split()) >= 4, "a sentence that helps"


@pytest.mark.parametrize("name", EXERCISES)
def test_stub_is_told_what_is_expected(name: str) -> None:
    assert "expected" in check(name, None) and check(name, None).startswith("Not yet")
    assert "expected" in check(name, ...)
    if isinstance(EXERCISES[name].judge, Function):
        for nothing in (None, ...):
            assert "returned None" in check(name, lambda *arguments, value=nothing: value)


def test_function_that_raises_is_named_in_one_line() -> None:
    def broken(means, counts, row, label):
        raise KeyError("no such\nrow")

    assert check("ex-gda-loo", broken) == "Not yet: the function raised KeyError: 'no such\\nrow'."
    assert "the function raised TypeError" in check("ex-gda-loo", lambda means: means)
    assert "raised ZeroDivisionError" in check("ex-gda-ece", lambda p, y, bins: 1 / 0)

    def silent(z, train, test):
        raise ValueError

    assert check("ex-gda-prior-shift", silent) == "Not yet: the function raised ValueError: no message."


def test_unknown_exercise_and_level() -> None:
    with pytest.raises(ValueError, match=r"ex-gda-numbers, .*; not 'ex-gda-number'"):
        check("ex-gda-number", 8256)
    with pytest.raises(ValueError, match="exercise_id must be one of"):
        hint("ex-gda-number")
    for level in (0, 3, -1):
        with pytest.raises(ValueError, match=f"hints 1 to 2; not {level}"):
            hint("ex-gda-numbers", level)


NUMBERS = [name for name, exercise in EXERCISES.items() if isinstance(exercise.judge, Number)]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_not_printed(name: str) -> None:
    """Neither the entry, nor its hints, nor what any wrong answer hears holds the right number, however rounded."""
    judge = EXERCISES[name].judge
    expected = {f"{judge.expected:.{digits}g}" for digits in (4, 5, 6)} | {f"{judge.expected:,.0f}"}
    expected = {text for text in expected if len(text.replace(".", "")) >= 3}  # 2 or 10 may stand in any sentence
    heard = [check(name, value) for value in [*judge.wrong, judge.expected * 1.01, 1e9, -1.0, "word"]]
    for said in [repr(EXERCISES[name]), str(judge), *EXERCISES[name].hints, *heard]:
        assert not [text for text in expected if text in said]


@pytest.mark.parametrize("name", [name for name, exercise in EXERCISES.items() if isinstance(exercise.judge, Choice)])
def test_a_word_of_a_choice_is_not_given_away(name: str) -> None:
    """All options are named alike, in the order of the alphabet; the entry shows none of them."""
    judge = EXERCISES[name].judge
    assert f'"{judge.right}"' in judge.asks and len(judge.wrong) >= 2 and judge.right not in judge.wrong
    assert repr(judge) == "Choice()" and judge.right == judge.right.lower().strip()


def test_sentences_show_without_quotation_marks() -> None:
    assert repr(check("ex-gda-boundary", "move")) == str(check("ex-gda-boundary", "move")) == "Right."


def test_judges_can_be_made_for_a_new_exercise() -> None:
    assert Number(10, rel=0.1, wrong={})(10.5) == (True, "Right.")
    assert Number(10, wrong={5: "half"})(5.0) == (False, "Not yet: half.")
    assert Choice("b", wrong={"a": "no"})("c") == (False, 'Not yet: expected one of "a", "b", got \'c\'.')
    judge = Function(
        np.sort, lambda rng: (rng.normal(size=3),), takes="x", mistakes={"reversed": lambda x: -np.sort(-x)}
    )
    assert judge(sorted) == (True, "Right.")
    assert judge(lambda x: sorted(x, reverse=True)) == (False, "Not yet: reversed.")


def test_random_numbers_of_a_student_are_their_own_and_stay():
    draw = student_rng("Ada Lovelace", "02_gda").normal(size=3)
    assert np.array_equal(draw, student_rng("  ada lovelace ", "02_gda").normal(size=3))
    others = [student_rng("Ada Lovelace", "04_beyond"), student_rng("Alan Turing", "02_gda")]
    assert all(not np.array_equal(draw, other.normal(size=3)) for other in others)
    for nobody in ("", "  ", None, 7):
        with pytest.raises(ValueError, match="STUDENT must be a name"):
            student_rng(nobody, "02_gda")


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_an_answer_that_a_test_finds(name: str) -> None:
    """In one of the modules test_exercises*.py, by a computation or by hand."""
    tests = Path(__file__).parent.glob("test_exercises*.py")
    assert any(f'"{name}"' in file.read_text(encoding="utf8") for file in tests)
