"""Problems whose data depend on who solves them: one for each week of the course, graded by drawing the data again.

The hidden test of a problem solves it with arithmetic of its own, so no file holds an answer, and neighbours differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A question in words, cells of code that draw its data and solve it, and a hidden test of the answer ``own``."""

    text: str
    asks: str
    data: str
    solution: str
    test: str
    points: int = 3


START = "from minilib.exercises import student_rng\n\nrng = student_rng(STUDENT, {name!r})"

PROBLEMS = {
    "02_gda": Problem(
        text=(
            "Below stand 60 labelled rows of 8 features in 3 classes, drawn for you alone, and 200 rows without "
            "labels. Fit GDA with the KS estimate and equal priors. How many of the 200 does it give to class 0?"
        ),
        asks="a whole number",
        data=START.format(name="02_gda")
        + """
mu = rng.normal(size=(3, 8))
X, y = rng.normal(size=(60, 8)), np.arange(60) % 3
X += mu[y]
X_new = mu[rng.choice(3, size=200, p=rng.dirichlet([4, 4, 4]))] + rng.normal(size=(200, 8))""",
        solution="""from minilib.gda import GDA

own = (GDA(covariance="ks").fit(X, y).predict(X_new) == 0).sum()""",
        test="""means = np.stack([X[y == k].mean(axis=0) for k in range(3)])
scatter = (X - means[y]).T @ (X - means[y])
away = X_new[:, None] - means
ridged = scatter + np.trace(scatter) / 59 * np.eye(8)  # the KS estimate, up to a factor
gap = (away @ np.linalg.inv(ridged) * away).sum(axis=2)
assert own == (gap.argmin(axis=1) == 0).sum(), "not the number that GDA gives on your rows\"""",
    ),
    "04_beyond": Problem(
        text=(
            "A classifier was trained where classes turn up as in `p_train`, and is used where they turn up as in "
            "`p_test`. `logits` are its logits for 300 rows; their softmax is its posterior. How many of the 300 "
            "answers change when the priors are exchanged?"
        ),
        asks="a whole number",
        data=START.format(name="04_beyond")
        + """
p_train, p_test = rng.dirichlet([2, 2, 2, 2]), rng.dirichlet([2, 2, 2, 2])
logits = 2 * rng.normal(size=(300, 4)) + np.log(p_train)""",
        solution="own = (logits.argmax(axis=1) != (logits + np.log(p_test / p_train)).argmax(axis=1)).sum()",
        test="""posterior = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
changed = (posterior * p_test / p_train).argmax(axis=1) != posterior.argmax(axis=1)
assert own == changed.sum(), "not the number of answers that change on your rows\"""",
    ),
    "06_balance": Problem(
        text=(
            "`captions` is a pool of 2,000, drawn for you alone, and `t` is yours too. How many captions does "
            "balancing keep on the average over its draws, with the entries of the toy world? Two digits after "
            "the point."
        ),
        asks="a number with two digits after the point",
        data=START.format(name="06_balance")
        + """
from minilib.world import make_pool, toy_entries

captions = make_pool(2000, seed=int(rng.integers(2**31)), images=False).captions
t = int(rng.integers(5, 40))""",
        solution="""from minilib.curate import entry_counts, expected_size
from minilib.matching import Matcher

ids, offsets = Matcher(toy_entries()).match(captions)
own = round(expected_size(ids, offsets, entry_counts(ids, len(toy_entries())), t), 2)""",
        test="""spaced = ["".join(f" {mark} " if mark in ",.;:?!`" else mark for mark in text) for text in captions]
hits = [[entry for entry in toy_entries() if f" {entry} " in f" {text} "] for text in spaced]
counts = {entry: sum(entry in found for found in hits) for entry in toy_entries()}
kept = sum(1 - np.prod([1 - min(1, t / counts[entry]) for entry in found]) for found in hits)
assert abs(own - kept) < 0.006, "not the mean number of captions that your t keeps\"""",
    ),
    "08_diffusion": Problem(
        text=(
            r"A latent `z` of 64 numbers was mixed with noise, $z_\tau = \sqrt{\bar\alpha}\, z + \sqrt{1 - "
            r"\bar\alpha}\, \varepsilon$; `abar` is $\bar\alpha$. You see `z_tau` and `v_hat`, a network's guess "
            r"of $v$. Turn it into a guess of `z`. What is its mean squared error per number? The true `z` is "
            r"below. Three significant digits."
        ),
        asks="a number with three significant digits",
        data=START.format(name="08_diffusion")
        + """
abar = rng.uniform(0.2, 0.8)
z, noise = rng.normal(size=(2, 64))
z_tau = np.sqrt(abar) * z + np.sqrt(1 - abar) * noise
v_hat = np.sqrt(abar) * noise - np.sqrt(1 - abar) * z + 0.3 * rng.normal(size=64)""",
        solution="own = np.mean((np.sqrt(abar) * z_tau - np.sqrt(1 - abar) * v_hat - z) ** 2)",
        test="""v = np.sqrt(abar) * noise - np.sqrt(1 - abar) * z
error = (1 - abar) * np.mean((v_hat - v) ** 2)
assert abs(own / error - 1) < 0.01, "not the error of the guess of your z\"""",
    ),
}
