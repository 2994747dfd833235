"""Exercises of the chapter beyond few shots: each answer is what the library's own classifiers do."""

import math

import numpy as np
import pytest

from minilib.exercises import check
from minilib.gda import GDA, fit_unsupervised, synthesize_classes


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_the_prior_of_the_test_is_the_better_one() -> None:
    """One class eight times as frequent as the other in training, both alike in the test, clouds that overlap."""
    rng = np.random.default_rng(0)

    def draw(*counts: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat([0, 1], counts)
        return labels[:, None] + rng.normal(size=(len(labels), 2)), labels

    rows, held = draw(4000, 500), draw(5000, 5000)
    # A covariance in the data's own units: on KS's scale the prior would weigh too much as well.
    scores = {p: GDA(covariance=0.0, priors=p).fit(*rows).score(*held) for p in ("uniform", "empirical")}
    assert check("ex-gda-priors", max(scores, key=scores.__getitem__)) == "Right."


def test_mean_of_a_class_that_no_picture_belongs_to_stays_at_its_anchor() -> None:
    """Pictures of the first text only; a scale so large that zero-shot CLIP gives the second nothing."""
    rng = np.random.default_rng(0)
    T = np.eye(5)[:2]
    X = unit(T[0] + 0.1 * rng.normal(size=(40, 5)))
    found = fit_unsupervised(X, T, logit_scale=1000.0, anchor=4, max_iter=5)
    assert found.posteriors[:, 1].sum() < 1e-9
    q = found.posteriors
    told = T - T.mean(axis=0)
    stretch = (q.T @ (X - X.mean(axis=0)) * told).sum() / (q.sum(axis=0) @ (told**2).sum(axis=1))
    assert np.allclose(found.means[1], X.mean(axis=0) + stretch * told[1], atol=1e-6)
    assert check("ex-gda-anchor", "anchor") == "Right."


def test_only_without_copies_of_the_text_are_all_new_classes_alike() -> None:
    """Largest difference between the logits of two new classes in the exercise's three cases."""
    rng = np.random.default_rng(0)
    X, labels = unit(rng.normal(size=(60, 8))), np.repeat(np.arange(3), 20)
    T = unit(rng.normal(size=(4, 8)))
    cases = {"a": (20, 100_000), "b": (60, 16), "c": (60, 0)}
    spread = {}
    for name, (n, copies) in cases.items():
        coef, intercept = synthesize_classes(X, labels, T, n_neighbors=n, text_copies=copies)
        spread[name] = np.ptp(X @ coef.T + intercept, axis=1).max()
    assert spread["c"] < 1e-8 < min(spread["a"], spread["b"])
    assert check("ex-gda-borrowed", min(spread, key=spread.__getitem__)) == "Right."


def test_entropy_of_the_mean_answer_when_all_classes_are_there() -> None:
    """Pictures named with certainty, three of each class; the entropy is summed over the classes of the mean."""
    mean = np.tile(np.eye(80), (3, 1)).mean(axis=0)
    assert check("ex-gda-no-labels", -(mean * np.log(mean)).sum()) == "Right."


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("ex-gda-priors", "empirical", "the test is balanced"),
        ("ex-gda-priors", "Neither", "one of the two"),
        ("ex-gda-anchor", "origin", "pulls a mean to zero"),
        ("ex-gda-anchor", "mean of all", "no picture pulls"),
        ("ex-gda-borrowed", "a", "another metric"),
        ("ex-gda-borrowed", "b", "still differ"),
        ("ex-gda-no-labels", math.log2(80), "in bits"),
        ("ex-gda-no-labels", 0.0, "one picture's answer"),
    ],
)
def test_wrong_answers_hear_what_they_look_like(name: str, answer, part: str) -> None:
    assert check(name, answer).startswith("Not yet: ") and part in check(name, answer)
