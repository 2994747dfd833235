"""Exercises of the part "Feed it": answers found by counting, drawing or matching, and what students would give."""

import itertools
import math

import numpy as np
import pytest

from minilib.corpus import NgramCounts, bigram_entries, bigram_scores, count_ngrams
from minilib.exercises import check


def spaced(caption: str) -> str:
    """The caption letter by letter, with a space around each of the seven marks and one at both ends."""
    return " " + "".join(f" {letter} " if letter in ",.;:?!`" else letter for letter in caption) + " "


def pmi(c12: int, c1: int, c2: int, n: int) -> float:
    """In bits, from three probabilities."""
    return math.log2((c12 / n) / ((c1 / n) * (c2 / n)))


# 05: metadata ---------------------------------------------------------------------------------------------------------


def test_bound_on_a_word_is_where_the_score_meets_the_threshold() -> None:
    """A pair that always contains its rarer word scores log2(N / c1): bisect for the count c1 with 30 bits."""
    n, low, high = 5 * 10**9, 1.0, 1e9
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if pmi(1, middle, 1, n) >= 30 else (low, middle)
    assert check("ex-meta-rare", low) == "Right."
    assert "before it is rounded" in check("ex-meta-rare", math.floor(low))


def test_normalised_score_of_a_written_corpus() -> None:
    """16 pairs, 48 of each word apart and fillers up to 2^20 words: the library's PMI over that of a pure pair."""
    once = ["a b"] * 16 + ["a", "b"] * 48
    mixed = count_ngrams([*once, *["z"] * (2**20 - 2 * 64)])
    pure = count_ngrams([*["a b"] * 16, *["z"] * (2**20 - 2 * 16)])
    (score,), (top,) = bigram_scores(mixed)[2], bigram_scores(pure)[2]
    assert check("ex-meta-npmi", score / top) == "Right."
    assert "not yet divided" in check("ex-meta-npmi", score)
    assert "by which PMI is divided" in check("ex-meta-npmi", top)


def test_pruned_shards_lose_one_mention_each_and_no_more() -> None:
    """One mention of a pair in each of eight shards is lost in each; two in each are all kept."""
    lost = {}
    for mentions in (1, 2, 3):
        shards = [count_ngrams(["sea bed"] * mentions) for _ in range(8)]
        kept = sum((shard.prune(2) for shard in shards), NgramCounts())
        lost[mentions] = 8 * mentions - kept.bigrams["sea bed"]
    assert lost == {1: 8, 2: 0, 3: 0}
    assert check("ex-meta-prune", max(lost.values())) == "Right."
    assert "one shard can lose" in check("ex-meta-prune", 1)


def test_words_that_push_a_pair_onto_the_list_are_found_by_trying() -> None:
    """Write the invented pair more and more often into a corpus of 6,000 words, until 10 bits and 5 mentions pass."""
    corpus = count_ngrams(["some words that stand in a line"] * 1000)
    for words in itertools.count(2, 2):
        added = count_ngrams([", ".join(["glorb snazz"] * (words // 2))])
        if "glorb snazz" in bigram_entries(corpus + added, 10, 5):
            break
    assert added.n_unigrams == words and check("ex-meta-break", words) == "Right."
    assert "threshold on mentions" in check("ex-meta-break", 2)


def test_highest_score_of_five_mentions_is_that_of_words_never_apart() -> None:
    """Over all counts of the two words from five up, the score is highest where both are five."""
    scores = [pmi(5, c1, c2, 2_000_000) for c1 in range(5, 40) for c2 in range(5, 40)]
    assert check("ex-meta-own", max(scores)) == "Right."
    assert "seen once" in check("ex-meta-own", pmi(1, 1, 1, 2_000_000))


# 06: match and balance ------------------------------------------------------------------------------------------------


def test_dead_entries_do_not_match_even_themselves() -> None:
    """An entry lives if and only if the caption equal to it, or to it with its marks spaced, holds it."""
    entries = ["Washington, D.C.", "rock 'n' roll", "Mr. Bean", "3,5", "e-mail", ","]
    dead = [entry for entry in entries if f" {entry} " not in spaced(entry)]
    assert check("ex-curate-dead", len(dead)) == "Right."
    assert "does not kill" in check("ex-curate-dead", len([*dead, "e-mail"]))


def test_budget_by_caps_stops_too_early_where_captions_hold_two_entries() -> None:
    """Ten captions hold both of two entries: the sum of caps reaches 6 at t = 3, and the size is then 5.1."""
    q = 1 - (1 - 3 / 10) ** 2
    assert 2 * min(10, 3) == 6 and 10 * q == pytest.approx(5.1)
    assert check("ex-curate-budget", "too small" if 10 * q < 6 else "too large") == "Right."


def test_caption_with_an_entry_twice_stays_as_often_as_either_of_two_draws() -> None:
    """t of c tickets win, and there are c^2 pairs of tickets: count those with a winner."""

    def counted(t: int, c: int) -> float:
        return sum(first < t or second < t for first in range(c) for second in range(c)) / c**2

    assert check("ex-curate-twice", counted) == "Right."
    assert "both draws may succeed" in check("ex-curate-twice", lambda t, c: t / c + t / c)
    assert "both draws succeed" in check("ex-curate-twice", lambda t, c: (t / c) * (t / c))


def test_shouted_captions_hold_no_entry() -> None:
    """No word of a caption in capitals is an entry in small letters; one in capitals dies of its full stops."""
    shouted = [caption.upper() for caption in ("an orange heart for sale!", "a purple heart", "made in the U.S.")]
    entries = ["orange heart", "heart", "purple", "U.S."]
    kept = sum(any(f" {entry} " in spaced(caption) for entry in entries) for caption in shouted)
    assert check("ex-curate-shout", kept) == "Right."
    assert "full stops" in check("ex-curate-shout", 1)


def test_ratio_after_balancing_is_that_of_expected_draws() -> None:
    frequent, rare = (count * (20_000 / max(count, 20_000)) for count in (1_000_000, 10_000))
    assert check("ex-curate-own", frequent / rare) == "Right."
    assert "over the frequent one" in check("ex-curate-own", rare / frequent)


# 07: does it matter? --------------------------------------------------------------------------------------------------


def test_passes_over_the_pool_are_counted_batch_by_batch() -> None:
    seen = sum(128 for _ in range(600))
    assert check("ex-feed-epochs", seen / 60_000) == "Right."
    assert "changed places" in check("ex-feed-epochs", 60_000 / seen)


def test_paired_interval_is_narrower_for_some_seeds_and_wider_for_others() -> None:
    """Two arms that rise together have a difference without spread; with opposite signs it spreads more."""
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    spread = {name: np.std(a - b, ddof=1) for name, b in {"together": a + 2, "apart": -a}.items()}
    unrelated = math.sqrt(2) * np.std(a, ddof=1)  # of a difference of two independent arms, in either case
    narrower = [name for name, each in spread.items() if each < unrelated]
    assert narrower == ["together"] and check("ex-feed-paired", "sometimes") == "Right."
    assert "rise and fall together" in check("ex-feed-paired", "never")


def test_distinct_concepts_of_a_batch_are_those_that_are_seen() -> None:
    """A batch of two: the second pair brings a new concept unless both show the same one."""

    def in_a_pool(w: np.ndarray, B: int) -> float:
        """E[distinct] by a table over how often each concept is met: P(met at least once), a draw at a time."""
        met = np.zeros_like(w)
        for _ in range(B):
            met = met + (1 - met) * w
        return met.sum()

    w = np.array([0.5, 0.3, 0.2])
    assert in_a_pool(w, 2) == pytest.approx(2 - (w**2).sum())
    assert check("ex-feed-batch", in_a_pool) == "Right."
    assert "crowd a batch" in check("ex-feed-batch", lambda w, B: min(len(w), B))
    assert "comes twice" in check("ex-feed-batch", lambda w, B: B)


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("ex-meta-case", "rises", "on the list twice"),
        ("ex-meta-case", "stays", "not equally strong"),
        ("ex-meta-rare", 100, "threshold of the word list"),
        ("ex-meta-own", math.log(4e5), "bits were asked for"),
        ("ex-meta-own", 30, "the threshold for Wikipedia"),
        ("ex-curate-budget", "too large", "counts captions twice"),
        ("ex-curate-budget", "right", "one entry only"),
        ("ex-curate-shout", 20_000, "another character"),
        ("ex-curate-own", 100, "before balancing"),
        ("ex-curate-own", 1, "both would have to lie above t"),
        ("ex-feed-epochs", 0.01, "not one"),
        ("ex-feed-paired", "always", "degrees of freedom"),
        ("ex-feed-arm", "spam", "did not help it"),
        ("ex-feed-arm", "both", "taking the spam out would have helped"),
        ("ex-feed-break", "seeds", "there is one seed in it"),
        ("ex-feed-break", "both", "nothing else does"),
    ],
)
def test_wrong_answers_hear_what_they_look_like(name: str, answer, part: str) -> None:
    assert check(name, answer).startswith("Not yet: ") and part in check(name, answer)
