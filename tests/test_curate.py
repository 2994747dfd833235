"""curate: every engine equals a second implementation of the reference, and balancing has its defining properties."""

import doctest
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest

from minilib import curate as module
from minilib import plotting
from minilib.curate import (
    curate,
    entry_counts,
    expected_entry_counts,
    expected_size,
    explain,
    find_duplicates,
    hash_uniform,
    keep_probability,
    language_thresholds,
    sample,
    sample_epoch,
    sample_per_entry,
    solve_t,
    tail_share,
    text_keep_probability,
)
from minilib.matching import Matcher


@pytest.fixture
def zipf_pool(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """20,000 captions with 0 to 4 of 200 Zipf-distributed entries each: ids, offsets, counts."""
    mass = np.arange(1, 201) ** -1.3
    texts = [np.unique(rng.choice(200, size=k, p=mass / mass.sum())) for k in rng.integers(0, 5, size=20_000)]
    ids = np.concatenate(texts).astype(np.int32)
    return ids, np.append(0, np.cumsum([len(text) for text in texts])), entry_counts(ids, 200)


def test_docstring_examples() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.equation("eq-curate-count")
def test_count_is_number_of_captions_not_of_occurrences() -> None:
    """ "cat" stands three times in two captions: its count is 2."""
    assert Matcher(["cat", "dog", "cow"]).count(["cat cat", "cat dog", ""]).tolist() == [2, 1, 0]
    assert entry_counts([], 2).tolist() == [0, 0]


# --- balance ---


@pytest.mark.equation("eq-curate-keep")
def test_keep_probability_by_hand() -> None:
    """t = 20: 20/20, 20/20, 20/40, 20/200."""
    assert keep_probability([3, 20, 40, 200], t=20).tolist() == [1, 1, 0.5, 0.1]


@pytest.mark.equation("eq-curate-text")
def test_text_keep_probability_by_hand() -> None:
    """p = 1/2 and 1/10: alone 0.5 and 0.1, together 1 - 0.5 * 0.9 = 0.55; with a tail entry 1; with none 0."""
    q = text_keep_probability(ids=[0, 1, 0, 1, 1, 2], offsets=[0, 1, 2, 4, 6, 6], p=[0.5, 0.1, 1.0])
    np.testing.assert_allclose(q, [0.5, 0.1, 0.55, 1.0, 0.0], rtol=1e-15)


def test_text_keep_probability_stays_exact_for_tiny_p() -> None:
    """Two entries of p = 1e-12: q = 2e-12 - 1e-24. Multiplying out 1 - (1 - p)^2 in float64 is off by 4 in 10,000."""
    q = text_keep_probability(ids=[0, 1], offsets=[0, 2], p=[1e-12, 1e-12])
    np.testing.assert_allclose(q, 2e-12 - 1e-24, rtol=1e-14)


@pytest.mark.equation("eq-curate-expected")
def test_expected_size_by_hand_and_t_is_no_cap() -> None:
    """90 captions hold "photo" alone and 10 hold "photo" and a rare entry of their own; t = 10.

    p_photo = 10/100, each rare p = 1. The 10 are kept for their rare entries, the 90 with chance 0.1: 10 + 9 = 19
    captions, all with "photo", where a cap would leave 10. The sum of min(c, t) is 10 + 10 * 1 = 20.
    """
    texts = ["photo"] * 90 + [f"photo rare{i}" for i in range(10)]
    matcher = Matcher(["photo", *(f"rare{i}" for i in range(10))])
    ids, offsets = matcher.match(texts)
    counts = matcher.count(texts)
    assert expected_size(ids, offsets, counts, t=10) == pytest.approx(19)
    q = text_keep_probability(ids, offsets, keep_probability(counts, t=10))
    assert expected_entry_counts(ids, offsets, q, len(counts))[0] == pytest.approx(19)
    assert np.minimum(counts, 10).sum() == 20


@pytest.mark.equation("eq-curate-floor")
def test_t_is_a_floor_for_each_entry_and_the_caps_sum_a_ceiling(zipf_pool) -> None:
    ids, offsets, counts = zipf_pool
    for t in (1, 7, 60, 500, 10**9):
        q = text_keep_probability(ids, offsets, keep_probability(counts, t))
        after = expected_entry_counts(ids, offsets, q, len(counts))
        assert (after >= np.minimum(counts, t) - 1e-9).all() and (after <= counts + 1e-9).all()
        assert expected_size(ids, offsets, counts, t) <= np.minimum(counts, t).sum()


def test_huge_t_keeps_every_matched_caption(zipf_pool) -> None:
    ids, offsets, counts = zipf_pool
    assert expected_size(ids, offsets, counts, t=counts.max()) == (np.diff(offsets) > 0).sum()


@pytest.mark.equation("eq-curate-tail")
def test_tail_share_by_hand() -> None:
    """Counts 1, 1, 2, 6, 10 sum to 20. Below 2: 2/20. Below 6: 4/20. Below 10: 10/20. Below 11: all."""
    counts = [10, 1, 2, 6, 1]
    assert [tail_share(counts, t) for t in (1, 2, 6, 10, 11)] == [0, 0.1, 0.2, 0.5, 1]
    assert [solve_t(counts, tail_share=share) for share in (0, 0.1, 0.2, 0.34, 0.5, 1)] == [1, 2, 6, 6, 10, 10]


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_solve_t_is_the_nearest_of_all_counts(counts: list[int], share: float) -> None:
    gaps = {t: abs(tail_share(counts, t) - share) for t in counts if t > 0}
    assert gaps[solve_t(counts, tail_share=share)] == pytest.approx(min(gaps.values()), abs=1e-12)


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), wanted=st.floats(0.01, 1))
@settings(max_examples=200, deadline=None)
def test_solve_t_for_a_size_is_the_smallest_that_reaches_it(counts: list[int], wanted: float) -> None:
    """Captions with one or two neighbouring entries; every t from 1 on is tried."""
    texts = [[e] if k % 2 else [e, (e + 1) % len(counts)] for e, count in enumerate(counts) for k in range(count)]
    ids = np.concatenate([np.unique(text) for text in texts])
    offsets = np.append(0, np.cumsum([len(set(text)) for text in texts]))
    held = entry_counts(ids, len(counts))
    size = wanted * len(texts)
    t = solve_t(held, size=size, matches=(ids, offsets))
    reached = [expected_size(ids, offsets, held, s) >= size - 1e-9 for s in range(1, t + 1)]
    assert reached[-1] and not any(reached[:-1])


def test_solve_t_refuses_what_no_t_can_give() -> None:
    matches = ([0, 0], [0, 1, 2, 2])
    for size in (0, 3, float("nan")):
        with pytest.raises(ValueError, match=r"size must lie in 1 \.\. 2, the captions that hold an entry"):
            solve_t([2], size=size, matches=matches)
    for options in ({}, {"size": 1}, {"size": 1, "tail_share": 0.1, "matches": matches}, {"matches": matches}):
        with pytest.raises(ValueError, match="one of the two"):
            solve_t([2], **options)


def test_language_thresholds_carry_the_tail_share_over() -> None:
    """English at t = 16 has (1 + 3) / 20 = 0.2 in its tail; German has 4 of 20 below 6; Greek has no match at all."""
    counts = {"de": [2, 2, 6, 10], "en": [1, 3, 16], "el": [0, 0]}
    thresholds = language_thresholds(counts, t=16)
    assert thresholds == {"de": 6, "en": 16, "el": 1}
    assert tail_share(counts["de"], 6) == tail_share(counts["en"], 16) == 0.2
    with pytest.raises(ValueError, match="must be one of de, el, en; not 'fr'"):
        language_thresholds(counts, t=16, reference="fr")


# --- draw ---


def test_hash_is_uniform_and_knows_no_order() -> None:
    """Kolmogorov-Smirnov on 100,000 consecutive ids; neighbours uncorrelated within 4 standard errors (1/sqrt(n))."""
    ids = np.arange(100_000)
    u = hash_uniform(ids, seed=5)
    assert kstest(u, "uniform").pvalue > 1e-3 and u.min() >= 0 and u.max() < 1
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / np.sqrt(len(u))
    assert abs(np.corrcoef(u, hash_uniform(ids, seed=6))[0, 1]) < 4 / np.sqrt(len(u))
    assert (hash_uniform(ids[::-1], seed=5)[::-1] == u).all() and hash_uniform([77], seed=5)[0] == u[77]


def test_hash_gives_the_published_splitmix64_bits() -> None:
    """The first outputs of splitmix64 from state 1234567, a widely used test vector, through the shared mixing step."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + k * golden) % 2**64 for k in range(3)], dtype=np.uint64)
    assert module._mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_outcome_does_not_depend_on_order_or_shards(zipf_pool, rng: np.random.Generator) -> None:
    ids, offsets, counts = zipf_pool
    q = text_keep_probability(ids, offsets, keep_probability(counts, t=30))
    names = rng.permutation(10**6)[: len(q)]
    kept = sample(q, names, seed=1)
    order = rng.permutation(len(q))
    assert (sample(q[order], names[order], seed=1) == kept[order]).all()
    shards = [sample(q[part], names[part], seed=1) for part in np.array_split(np.arange(len(q)), 7)]
    assert (np.concatenate(shards) == kept).all()
    assert (sample(q, names, seed=2) != kept).any()


def test_larger_t_keeps_all_that_smaller_t_kept(zipf_pool) -> None:
    ids, offsets, counts = zipf_pool
    kept = [
        sample(text_keep_probability(ids, offsets, keep_probability(counts, t)), np.arange(20_000), seed=3)
        for t in (5, 20, 80, 320)
    ]
    assert all((small <= large).all() for small, large in pairwise(kept))


def test_observed_size_is_the_expected_one(zipf_pool) -> None:
    """A sum of independent coins: standard deviation sqrt(sum q (1 - q)). All 30 seeds lie within 4 of it."""
    ids, offsets, counts = zipf_pool
    q = text_keep_probability(ids, offsets, keep_probability(counts, t=30))
    sizes = np.array([sample(q, np.arange(len(q)), seed=s).sum() for s in range(30)])
    spread = np.sqrt((q * (1 - q)).sum())
    assert abs(sizes - q.sum()).max() < 4 * spread
    assert abs(sizes.mean() - q.sum()) < 4 * spread / np.sqrt(30)


def test_both_forms_are_equal_in_distribution() -> None:
    """Six kinds of caption, 20,000 of each. Both forms must keep Binomial(20,000, q) of each kind.

    The bounds are the binomial's own 1e-6 quantiles: 24 two-sided checks fail by chance once in 20,000 such tests.
    """
    p = np.array([1.0, 0.5, 0.1, 0.02])
    kinds = [[], [0], [1], [2, 3], [1, 2, 3], [0, 2]]
    q = np.array([1 - np.prod([1 - p[e] for e in kind]) for kind in kinds])
    n = 20_000
    ids = np.concatenate([np.tile(kind, n) for kind in kinds]).astype(np.int32)
    offsets = np.append(0, np.cumsum(np.repeat([len(kind) for kind in kinds], n)))
    sample_ids = np.arange(n * len(kinds))
    for seed in (0, 1):
        once = sample(text_keep_probability(ids, offsets, p), sample_ids, seed)
        each = sample_per_entry(ids, offsets, p, sample_ids, seed)
        for kept in (once, each):
            number = kept.reshape(len(kinds), n).sum(axis=1)
            assert (number >= binom.ppf(1e-6, n, q)).all() and (number <= binom.ppf(1 - 1e-6, n, q)).all()


def test_epochs_draw_afresh_and_keep_q(zipf_pool) -> None:
    """Over 200 epochs each caption is seen 200 q times, within 6 standard deviations for all 20,000 of them."""
    ids, offsets, counts = zipf_pool
    q = text_keep_probability(ids, offsets, keep_probability(counts, t=30))
    names = np.arange(len(q)) + 17
    seen = np.zeros(len(q))
    for epoch in range(200):
        seen[sample_epoch(q, names, seed=4, epoch=epoch)] += 1
    assert (abs(seen - 200 * q) <= 6 * np.sqrt(200 * q * (1 - q)) + 1e-9).all()
    assert (np.flatnonzero(sample(q, names, seed=4)) == sample_epoch(q, names, seed=4, epoch=0)).all()


def test_one_caption_a_picture_each_epoch() -> None:
    """Three captions a picture with q = 1, 1 and 0: each is chosen a third of the time, and two thirds of them stay."""
    images, q = np.repeat(np.arange(3000)[::-1], 3), np.tile([1.0, 1.0, 0.0], 3000)
    rows = [sample_epoch(q, np.arange(9000), seed=1, epoch=epoch, images=images) for epoch in range(4)]
    for chosen in rows:
        assert len(set(images[chosen])) == len(chosen) and (np.diff(chosen) > 0).all()
        assert binom.ppf(1e-6, 3000, 2 / 3) <= len(chosen) <= binom.ppf(1 - 1e-6, 3000, 2 / 3)
        assert binom.ppf(1e-6, 3000, 1 / 3) <= (chosen % 3 == 0).sum() <= binom.ppf(1 - 1e-6, 3000, 1 / 3)
    assert (rows[0][:100] != rows[1][:100]).any()


def test_duplicates_by_text_and_url() -> None:
    texts, urls = ["a", "b", "a", "a"], ["u", "u", "v", "u"]
    assert find_duplicates(texts).tolist() == [False, False, True, True]
    assert find_duplicates(texts, urls).tolist() == [False, False, False, True]
    with pytest.raises(TypeError, match="caption 1 must be a string; not None"):
        find_duplicates(["a", None])  # type: ignore[list-item]


# --- all at once ---


def test_curate_gives_every_caption_a_reason() -> None:
    texts = ["cat"] * 50 + ["dog"] + ["IMG_1234.jpg"] * 9
    out = curate(texts, ["cat", "dog"], t=5, seed=0)
    assert out.counts.tolist() == [50, 1] and out.p.tolist() == [0.1, 1.0]
    assert out.reasons[50] == "kept" and set(out.reasons[51:]) == {"no match"}
    assert set(out.reasons[:50]) == {"kept", "not drawn"}
    assert (out.kept == (out.reasons == "kept")).all()


def test_curate_follows_ids_not_places() -> None:
    texts = [f"cat dog{i % 3}" for i in range(300)]
    entries = ["cat", "dog0", "dog1", "dog2"]
    forward = curate(texts, entries, t=10, seed=0, sample_ids=np.arange(300))
    backward = curate(texts[::-1], entries, t=10, seed=0, sample_ids=np.arange(300)[::-1])
    assert (forward.kept == backward.kept[::-1]).all() and 0 < forward.kept.sum() < 300


def test_explain_lists_rarest_first_and_says_when_nothing_matches() -> None:
    matcher = Matcher(["cat", "dog"])
    assert explain("a cat, a dog", matcher, [100, 40], t=20).splitlines()[1].startswith("  dog: 40 captions, p = 0.500")
    assert explain("(cat)", matcher, [100, 40], t=20) == "'(cat)' is dropped: no entry matches"


def test_explain_says_what_sample_decided() -> None:
    """For 50 ids the sentence agrees with `sample`, which is told the same q, ids and seed."""
    matcher, counts = Matcher(["cat"]), [100]
    kept = sample(np.full(50, 0.2), np.arange(50), seed=9)
    for sample_id in range(50):
        said = explain("a cat", matcher, counts, t=20, sample_id=sample_id, seed=9).splitlines()[0]
        assert ("; kept, since" if kept[sample_id] else "; dropped, since") in said
    assert 0 < kept.sum() < 50
    assert explain("dog", matcher, counts, t=20, sample_id=1) == "'dog' is dropped: no entry matches"


# --- bad input ---


@pytest.mark.parametrize("t", [0, -1, float("nan"), float("inf")])
def test_t_must_be_positive(t: float) -> None:
    with pytest.raises(ValueError, match="t must be a positive number"):
        curate(["cat"], ["cat"], t=t, seed=0)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ids must lie in 0 \.\. 1; not 0 \.\. 5"):
        text_keep_probability([0, 5], [0, 2], p=[1.0, 1.0])
    for offsets in ([0, 1], [1, 2], [0, 2, 1, 2], []):
        with pytest.raises(ValueError, match="offsets must rise from 0 to 2"):
            text_keep_probability([0, 1], offsets, p=[1.0, 1.0])
    with pytest.raises(ValueError, match="counts must be whole numbers >= 0"):
        keep_probability([1, -1], t=1)
    with pytest.raises(ValueError, match="counts are all 0"):
        tail_share([0, 0], t=1)
    with pytest.raises(ValueError, match="tail_share must lie in"):
        solve_t([1], tail_share=6)
    with pytest.raises(TypeError, match="sample_ids must be whole numbers; not <U1"):
        sample([0.5], ["a"], seed=0)
    with pytest.raises(ValueError, match="one sample id for each of 2 captions"):
        sample([0.5, 0.5], [1], seed=0)


# --- charts ---


def test_charts_draw_the_numbers_they_are_given(zipf_pool) -> None:
    """The tail's step curve, read at any t, is `tail_share`; the rank curve falls; a size chart shows all its seeds."""
    counts = zipf_pool[2]
    figure, axes = plt.subplots(1, 4)
    step = plotting.plot_tail_share(axes[0], {"pool": counts}, share=0.06).lines[0]
    for t in (2, 17, 300, counts.max(), counts.max() + 1):
        right = np.searchsorted(step.get_xdata(), t)  # where="pre": the value holds up to and with its x
        assert step.get_ydata()[right] == pytest.approx(tail_share(counts, t))
    rank = plotting.plot_rank_count(axes[1], {"pool": counts}, t=30).lines[0].get_ydata()
    assert (np.diff(rank) <= 0).all() and len(rank) == (counts > 0).sum()
    plotting.plot_sizes(axes[2], [1, 2], [3, 4], [[3, 4], [2, 5]], [5, 6], matched=9)
    assert len(axes[2].lines) == 5
    plotting.plot_fates([axes[3]], np.zeros((1, 3, 4, 4), np.uint8), ["a cat"], ["kept"])
    assert axes[3].get_title() == "kept" and axes[3].get_xlabel() == "a cat"
    plt.close(figure)
