"""corpus: words and pairs are counted as the rule says, in any order of shards; PMI has its defining properties."""

import bz2
import doctest
import gzip
import json
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib import corpus
from minilib.corpus import (
    NgramCounts,
    bigram_entries,
    bigram_scores,
    count_ngrams,
    pmi,
    read_texts,
    read_views,
    title_entries,
    unigram_entries,
    word_runs,
)
from minilib.matching import match_naive

TRICKY = st.text(alphabet=st.sampled_from("abé7_ '’-.,(\n\t\u00a0猫"), max_size=20)
TEXTS = st.lists(TRICKY, max_size=6)
FEW_WORDS = st.lists(st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join), min_size=1, max_size=8)


def second_count(texts: list[str]) -> tuple[Counter[str], Counter[str]]:
    """The rule written a second time, forwards: find each word; a pair needs nothing but blanks in between."""
    words, pairs = Counter(), Counter()
    for text in texts:
        found = list(re.finditer(r"\w+(?:['’-]\w+)*", text))
        words.update(word[0] for word in found)
        for a, b in pairwise(found):
            gap = text[a.end() : b.start()]
            if gap.isspace() and "\n" not in gap:
                pairs[f"{a[0]} {b[0]}"] += 1
    return words, pairs


def test_docstring_examples() -> None:
    assert doctest.testmod(corpus).failed == 0


def test_words_by_hand() -> None:
    """Inner apostrophes and hyphens stay, outer ones go; case stays; marks, brackets and lines end a run."""
    text = "The dog's 'red' T-shirt -- (size 7), isn't\nold; rock’n’roll a--b naïve_x"
    runs = [["The", "dog's"], ["red"], ["T-shirt"], ["size", "7"], ["isn't"], ["old"], ["rock’n’roll", "a"]]
    assert list(word_runs(text)) == [*runs, ["b", "naïve_x"]]
    assert list(word_runs(" \n. - '")) == []


@given(texts=TEXTS)
@settings(max_examples=500, deadline=None)
def test_counts_equal_a_second_implementation(texts: list[str]) -> None:
    counts = count_ngrams(texts)
    assert (counts.unigrams, counts.bigrams) == second_count(texts)
    assert (counts.n_unigrams, counts.n_bigrams) == (counts.unigrams.total(), counts.bigrams.total())


@given(texts=TEXTS)
@settings(max_examples=300, deadline=None)
def test_what_is_counted_can_be_matched(texts: list[str]) -> None:
    """No entry made from a corpus is dead: a caption that says it holds it."""
    counts = count_ngrams(texts)
    for entry in [*unigram_entries(counts, 1), *bigram_entries(counts, -100)]:
        assert match_naive(f"see: {entry}!", [entry]) == [0]


@given(texts=TEXTS, seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_shards_in_any_order_give_the_same(texts: list[str], seed: int) -> None:
    whole, shuffled = count_ngrams(texts), list(texts)
    random.Random(seed).shuffle(shuffled)
    parts = [count_ngrams([text]) for text in shuffled]
    assert sum(parts, NgramCounts()) == whole
    assert [len(part.unigrams) for part in parts] == [len(count_ngrams([text]).unigrams) for text in shuffled]
    assert bigram_entries(sum(parts, NgramCounts()), -100) == bigram_entries(whole, -100)


def test_texts_are_streamed() -> None:
    """A generator is read once and never held: each text is gone before the next one but one is made."""
    alive = 0

    class Text(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def texts():
        nonlocal alive
        for _ in range(50):
            alive += 1
            assert alive <= 2
            yield Text("one two")

    assert count_ngrams(texts()).bigrams == {"one two": 50}


@given(texts=FEW_WORDS, shards=st.integers(1, 3), least=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_pruned_shards_lose_at_most_what_is_promised(texts: list[str], shards: int, least: int) -> None:
    whole = count_ngrams(texts)
    pruned = sum((count_ngrams(texts[i::shards]).prune(least) for i in range(shards)), NgramCounts())
    assert (pruned.n_unigrams, pruned.n_bigrams) == (whole.n_unigrams, whole.n_bigrams)
    for name in ("unigrams", "bigrams"):
        full, less = getattr(whole, name), getattr(pruned, name)
        assert all(0 <= full[text] - less[text] <= shards * (least - 1) for text in full)
    pairs, counts, _ = bigram_scores(pruned)
    assert all(pruned.unigrams[word] >= c for pair, c in zip(pairs, counts, strict=True) for word in pair.split())


@pytest.mark.equation("eq-curate-pmi")
def test_pmi_by_hand() -> None:
    """n = 1,024: words seen 4 and 8 times, a pair twice: log2(2 * 1024 / 32) = 6 bits. Unrelated words: 0 bits."""
    assert pmi(2, 4, 8, 1024) == 6
    assert pmi([1, 8], [32, 64], [32, 128], 1024).tolist() == [0, 0]


@pytest.mark.equation("eq-curate-pmi")
def test_pmi_is_the_log_ratio_of_probabilities(rng: np.random.Generator) -> None:
    """p12 / (p1 p2) with p = c / n. A million words drawn apart from each other give scores near 0."""
    words = rng.choice(list("abcd"), size=1_000_000, p=[0.4, 0.3, 0.2, 0.1])
    pairs, counts, scores = bigram_scores(count_ngrams([" ".join(words)]))
    shares = Counter(words.tolist())
    ratios = [np.log(c / 1e6 / (shares[a] / 1e6 * shares[b] / 1e6)) for (a, _, b), c in zip(pairs, counts, strict=True)]
    assert len(pairs) == 16
    np.testing.assert_allclose(scores * np.log(2), ratios, atol=1e-12)
    assert np.abs(scores).max() < 0.05


@pytest.mark.equation("eq-curate-pmi-ceiling")
@given(texts=FEW_WORDS)
@settings(max_examples=300, deadline=None)
def test_no_pair_scores_above_its_ceiling(texts: list[str]) -> None:
    counts = count_ngrams(texts)
    _, c12, scores = bigram_scores(counts)
    assert (scores <= np.log2(counts.n_unigrams / c12)).all()


@pytest.mark.equation("eq-curate-pmi-ceiling")
@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
def test_inseparable_words_reach_the_ceiling(count: int) -> None:
    counts = count_ngrams(["yerba mansa"] * count + ["other words"] * 5000)
    pairs, c12, scores = bigram_scores(counts)
    where = pairs.index("yerba mansa")
    assert c12[where] == count and scores[where] == np.log2(counts.n_unigrams / count)


def test_pmi_refuses_what_has_no_logarithm() -> None:
    with pytest.raises(ValueError, match="counts and n must be positive"):
        pmi([1, 0], [1, 1], [1, 1], 10)
    with pytest.raises(ValueError, match="counts and n must be positive; not n=0"):
        pmi([1], [1], [1], 0)


def test_thresholds_are_inclusive_and_order_is_fixed() -> None:
    """Ten words: a, b thrice, c, d twice. "c d" twice: log2(2 * 10 / 4) = 2.32; "b a" twice: log2(20 / 9) = 1.15."""
    counts = count_ngrams(["b a", "b a", "b", "a", "c d", "c d"])
    assert unigram_entries(counts, 2) == ["a", "b", "c", "d"] and unigram_entries(counts, 3) == ["a", "b"]
    assert bigram_entries(counts, 1) == ["b a", "c d"] and bigram_entries(counts, np.log2(5)) == ["c d"]
    assert bigram_entries(counts, 0, min_count=3) == bigram_entries(counts) == []
    assert unigram_entries(counts) == []  # the paper's 100


def test_the_papers_thresholds_are_the_defaults() -> None:
    counts = NgramCounts(Counter(often=100, rare=99, x=1, y=1), Counter({"x y": 1}), 2**30, 1)
    assert unigram_entries(counts) == ["often"] and bigram_entries(counts) == ["x y"]
    assert bigram_entries(NgramCounts(counts.unigrams, counts.bigrams, 2**30 - 1, 1)) == []
    assert title_entries([("A", 70), ("B", 69)]) == ["A"]


def test_bad_thresholds_and_texts_are_refused() -> None:
    for call in (unigram_entries, lambda c, least: c.prune(least), lambda c, least: bigram_entries(c, 3, least)):
        with pytest.raises(ValueError, match="least count must be at least 1; not 0"):
            call(NgramCounts(), 0)
    with pytest.raises(TypeError, match="text 1 must be a string; not None"):
        count_ngrams(["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not the lone string 'a b'"):
        count_ngrams("a b")


def test_titles_by_hand() -> None:
    rows = [("New_York_City", 30), ("Help:Contents", 999), ("New York City", 41), ("AC/DC", 70), ("Oslo", 71)]
    assert title_entries(rows) == ["New York City", "Oslo", "AC/DC"]


def test_texts_come_from_lines_and_fields_packed_or_not(tmp_path: Path) -> None:
    lines = ["one two", "", "naïve\u2028café"]
    rows = "".join(json.dumps({"text": line, "caption": "x"}) + "\n" for line in lines) + "\n"
    for ending, pack in (("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)):
        (tmp_path / f"a.txt{ending}").write_bytes(pack("\r\n".join(lines).encode()))
        (tmp_path / f"a.jsonl{ending}").write_bytes(pack(rows.encode()))
        for kind in ("txt", "jsonl"):
            assert list(read_texts([tmp_path / f"a.{kind}{ending}"])) == lines
        assert list(read_texts([tmp_path / f"a.jsonl{ending}"] * 2, field="caption")) == ["x"] * 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", r"a\.csv must end in \.txt or \.jsonl.*not '\.csv'"),
        ("a.gz", b"x", r"a\.gz must end in \.txt or \.jsonl"),
        ("a.txt", b"good\n\xff\n", r"a\.txt, line 2 cannot be read .*UTF-8"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz, line 1 cannot be read .*fetch the file again"),
        ("a.txt.gz", gzip.compress(b"good\n" * 9999, mtime=0)[:-20], r"a\.txt\.gz, line \d+ cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"texts": "x"}\n', r"a\.jsonl, line 1 must be an object with a string 'text'.*field="),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl, line 1 must be an object with a string 'text'"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl, line 1 must be an object"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_texts([tmp_path / name]))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        list(read_texts([tmp_path / "gone.txt"]))


def test_views_come_from_tables_and_both_dumps(tmp_path: Path) -> None:
    """The same two titles in three layouts; "de" is another project, ".b" a sister project."""
    hours = "de Oslo 5 0\nen Oslo 3 0\nen.b Oslo 9 0\nen.m Eiffel_Tower 4 0\n"
    days = "en.wikipedia Oslo 22309 desktop 3 A1B2\nfr.wikipedia Oslo 7 desktop 9 A9\n"
    days += "en.wikipedia Eiffel_Tower null mobile-web 4 C4\n"
    for name, text in {"table": "Oslo\t3\nEiffel_Tower\t4\n", "hours": hours, "days": days}.items():
        (tmp_path / name).write_text(text)
        assert list(read_views(tmp_path / name)) == [("Oslo", 3), ("Eiffel_Tower", 4)]
    (tmp_path / "days.bz2").write_bytes(bz2.compress(days.encode()))
    assert list(read_views(tmp_path / "days.bz2", projects=["fr.wikipedia"])) == [("Oslo", 9)]


@pytest.mark.parametrize("line", ["title\tviews", "Oslo\t", "en Oslo", "en Oslo many 0"])
def test_bad_views_are_named_with_their_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "views").write_text(f"en Paris 3 0\n{line}\n")
    with pytest.raises(ValueError, match="views, line 2 is neither"):
        list(read_views(tmp_path / "views"))


def test_a_file_without_views_is_refused(tmp_path: Path) -> None:
    (tmp_path / "views").write_text("<html>\n")
    with pytest.raises(ValueError, match=r"holds no line of en, en\.m, en\.wikipedia.*projects="):
        list(read_views(tmp_path / "views"))
