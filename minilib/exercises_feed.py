"""The exercises of the part "Feed it": hints, right answers and known mistakes.

Used in: notebooks/05_metadata.ipynb, notebooks/06_balance.ipynb, notebooks/07_does_it_matter.ipynb
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minilib.judges import Choice, Exercise, Function, Number


def _draw_caps(rng: np.random.Generator) -> tuple[Any, ...]:
    t = int(rng.integers(5, 50))
    return t, int(t * rng.uniform(1.2, 20))


def _draw_shares(rng: np.random.Generator) -> tuple[Any, ...]:
    return rng.dirichlet(np.full(int(rng.integers(5, 30)), 0.5)), int(rng.integers(4, 64))


EXERCISES: dict[str, Exercise] = {
    "ex-meta-case": Exercise(
        hints=(
            "Two things happen: pairs of spellings become one word, and some rare spellings reach ten together.",
            "Count both lists in the cell; nearly every frequent word also begins sentences.",
        ),
        judge=Choice(
            "falls",
            wrong={
                "rises": "some spellings do reach ten together, but more words were on the list twice",
                "stays": "two things pull on the number, and they are not equally strong",
            },
        ),
    ),
    "ex-meta-rare": Exercise(
        hints=(
            "A pair is seen at most as often as its rarer word. Put that into the ratio, and leave the other word.",
            "PMI of at least m then needs the more frequent word's count to be at most N over 2 to the m.",
        ),
        judge=Number(
            5e9 / 2**30,
            rel=2e-3,
            wrong={
                4: "give the bound itself, before it is rounded to whole mentions",
                100: "that is the threshold of the word list, which the bound is to be compared with",
                2**30 / 5e9: "the bound has been turned upside down",
                math.sqrt(5e9 / 2**30): "one inequality is enough, and it leaves one count below the line",
            },
        ),
    ),
    "ex-meta-npmi": Exercise(
        hints=(
            "First PMI: the logarithm to base 2 of c12 N over c1 c2.",
            "Then the ceiling: the logarithm to base 2 of N over c12. Divide the first by the second.",
        ),
        judge=Number(
            12 / 16,
            wrong={
                12: "that is PMI itself, not yet divided by its ceiling",
                16: "that is the ceiling, by which PMI is divided",
                16 / 12: "PMI and its ceiling have changed places",
            },
        ),
    ),
    "ex-meta-prune": Exercise(
        hints=(
            "Which pairs does prune(2) drop in one shard, and how many mentions of a pair go with that?",
            "Work out what one shard can lose at most. Every shard can do that to the same pair.",
        ),
        judge=Number(
            8 * (2 - 1),
            wrong={
                1: "that is what one shard can lose, and there are several",
                2: "a pair seen twice in a shard is kept",
                16: "a shard drops a pair only if it saw it once",
            },
        ),
    ),
    "ex-meta-break": Exercise(
        hints=(
            "Two invented words that only occur together have the highest PMI there is. What is the other threshold?",
            "The score is at its top from the first mention on, so only the other threshold costs text. Count words.",
        ),
        judge=Number(
            2 * 5,
            wrong={
                2: "that passes the score alone, and there is a threshold on mentions as well",
                5: "each mention of the pair is two words",
                20: "invented words need no mentions of their own beside those of the pair",
            },
        ),
    ),
    "ex-meta-own": Exercise(
        hints=(
            "PMI is at most the logarithm of N over the pair's own count.",
            "The smallest count that you admit has the highest ceiling. A bit is a doubling.",
        ),
        judge=Number(
            math.log2(2e6 / 5),
            rel=2e-3,
            wrong={
                math.log2(2e6): "that is the ceiling of pairs seen once",
                math.log(2e6 / 5): "that is in nats, and bits were asked for",
                math.log2(2e6 * 5): "more mentions lower the ceiling; they do not raise it",
                30: "that is the threshold for Wikipedia, and this corpus is thousands of times smaller",
            },
        ),
    ),
    "ex-curate-dead": Exercise(
        hints=(
            "Seven marks get a space on both sides in captions. Is one of them inside the entry, touching a letter?",
            "Apostrophe and hyphen are not among the seven, and a mark that stands alone has its spaces.",
        ),
        judge=Number(
            3,
            wrong={
                4: "a hyphen, an apostrophe or a mark that stands alone does not kill an entry",
                5: "only the seven marks are spaced off; a hyphen and an apostrophe are not among them",
                6: "some of these live: which marks are spaced off in captions?",
                2: "a comma between digits is spaced off like any other",
            },
        ),
    ),
    "ex-curate-budget": Exercise(
        hints=(
            "A caption with two entries is counted once in the size. How often in the sum of caps?",
            "The larger of two growing curves reaches 5,000 first, that is at a smaller t.",
        ),
        judge=Choice(
            "too small",
            wrong={
                "too large": "the sum of caps counts captions twice, so it reaches 5,000 earlier",
                "right": "that would need every caption to hold one entry only",
            },
        ),
    ),
    "ex-curate-twice": Exercise(
        hints=(
            "Both copies have the same matches, so each has the same p. What is the chance that both draws fail?",
            "A caption stays if one of two independent draws with p = t / c succeeds.",
        ),
        judge=Function(
            lambda t, c: 1 - (1 - t / c) ** 2,
            _draw_caps,
            takes="t, c",
            mistakes={
                "two chances do not simply add: both draws may succeed": lambda t, c: 2 * t / c,
                "that is the chance with the entry on the list once": lambda t, c: t / c,
                "that is the chance that both draws succeed": lambda t, c: (t / c) ** 2,
                "that is the chance that both draws fail": lambda t, c: (1 - t / c) ** 2,
            },
        ),
    ),
    "ex-curate-shout": Exercise(
        hints=(
            "Matching looks for the very characters of an entry. Does it know that A and a are one letter?",
            "One entry has capitals of its own. Can it match, with its full stops?",
        ),
        judge=Number(
            0,
            wrong={
                20_000: "matching is exact: a capital is another character",
                1: "the one entry with capitals holds full stops, and captions have theirs spaced off",
            },
        ),
    ),
    "ex-curate-own": Exercise(
        hints=(
            "Each entry keeps min(c, t) of its matches on the average. Which of the two lies above t?",
            "Write down what each of the two keeps, and only then divide.",
        ),
        judge=Number(
            min(1_000_000, 20_000) / min(10_000, 20_000),
            wrong={
                100: "that is the ratio before balancing",
                1: "both would have to lie above t for that",
                50: "that is how hard the frequent entry is cut, not what is left of the ratio",
                1 / 2: "that is the rare entry over the frequent one",
            },
        ),
    ),
    "ex-feed-epochs": Exercise(
        hints=(
            "How many pairs does training see in all, steps times batch?",
            "Divide by the pairs in the pool. The section on the design names all three numbers.",
        ),
        judge=Number(
            600 * 128 / 60_000,
            rel=1e-3,
            wrong={
                60_000 / (600 * 128): "the pool and what is seen of it have changed places",
                600 / 60_000: "a step sees a batch of pairs, not one",
                128 / 60_000: "that is one step, and there are many",
            },
        ),
    ),
    "ex-feed-paired": Exercise(
        hints=(
            "The variance of a difference holds the correlation of the arms over seeds. What if it is zero?",
            "Pairing costs degrees of freedom and pays by the correlation. Does it always pay?",
        ),
        judge=Choice(
            "sometimes",
            wrong={
                "always": "with uncorrelated arms only the loss of degrees of freedom is left",
                "never": "arms that rise and fall together over seeds have a calmer difference",
            },
        ),
    ),
    "ex-feed-batch": Exercise(
        hints=(
            "A concept is missing from a batch when all B draws miss it. What is the chance of that?",
            "Add up, over the concepts, the chances that each is not missing.",
        ),
        judge=Function(
            lambda w, B: float((1 - (1 - w) ** B).sum()),
            _draw_shares,
            takes="w, B",
            mistakes={
                "that counts the concepts that are missing": lambda w, B: float(((1 - w) ** B).sum()),
                "the concepts are not equally frequent": lambda w, B: float(len(w) * (1 - (1 - 1 / len(w)) ** B)),
                "that is the chance that two pairs collide": lambda w, B: float((w**2).sum()),
                "a concept that comes twice in a batch is one concept": lambda w, B: float(B * w.sum()),
                "frequent concepts crowd a batch, and leave less room": lambda w, B: float(min(len(w), B)),
            },
        ),
    ),
    "ex-feed-arm": Exercise(
        hints=(
            "The new arm has no spam and the pool's own imbalance. What has it in common with matched random?",
            "Only the spam sets these two arms apart. What did it cost, if both come out alike?",
        ),
        judge=Choice(
            "balance",
            wrong={
                "spam": "the arm has no spam, and in this outcome that did not help it",
                "both": "if spam had a part in it, taking the spam out would have helped",
            },
        ),
    ),
    "ex-feed-break": Exercise(
        hints=(
            "What would you have to repeat to see how much training itself varies?",
            "One seed has one pool, one set of first weights and one order of batches, with however many pictures.",
        ),
        judge=Choice(
            "pictures",
            wrong={
                "seeds": "there is one seed in it, so it cannot know how seeds differ",
                "both": "the test pictures vary in it, and nothing else does",
            },
        ),
    ),
}
