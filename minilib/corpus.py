"""Count words and pairs of words in a corpus, and turn counts, and views of articles, into entries for metadata.

Symbols: ``c1, c2`` are the counts of two words, ``c12`` the count of the pair, ``n`` the number of all words counted.

References
----------
- Xu et al. (2024), "Demystifying CLIP Data", section 3 (the thresholds), and the code of its authors.
- Church and Hanks (1990), "Word Association Norms, Mutual Information, and Lexicography" (the score of a pair).

Taught in: notebooks/05_metadata.ipynb
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minilib.metadata import check_strings

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
_BREAK = re.compile(r"[^\w\s'’-]|[\n\r]|(?<!\w)['’-]|['’-](?!\w)")
_TABLE = re.compile(r"(?P<title>[^\t]+)\t(?P<views>\d+)")
_DUMP = re.compile(r"\S+ (?P<title>\S+) (?:\S+ \S+ )?(?P<views>\d+) \S+")


def word_runs(text: str) -> Iterator[list[str]]:
    """The words of a text, in runs with nothing but blanks between neighbours; case is kept.

    A word is letters, digits and underscores, and the apostrophes and hyphens between two of them. Every other mark,
    and the end of a line, ends the run. The rule is for scripts that put blanks between words and vowels in letters.

    >>> list(word_runs("The dog's T-shirt (red). It fits"))
    [['The', "dog's", 'T-shirt'], ['red'], ['It', 'fits']]

    Taught in: notebooks/05_metadata.ipynb
    """
    return filter(None, (part.split() for part in _BREAK.split(text)))


@dataclass(frozen=True)
class NgramCounts:
    """Counts of words and of neighbouring pairs, ``"two words"``, and of all words and all pairs that were counted.

    ``a + b`` counts two corpora together. Sums are the same in any order, so shards can be counted apart:
    ``sum(map(count_ngrams, shards), NgramCounts())``. Taught in: notebooks/05_metadata.ipynb
    """

    unigrams: Counter[str] = field(default_factory=Counter)
    bigrams: Counter[str] = field(default_factory=Counter)
    n_unigrams: int = 0
    n_bigrams: int = 0

    def __add__(self, other: NgramCounts) -> NgramCounts:
        words, pairs = self.unigrams.copy(), self.bigrams.copy()
        words.update(other.unigrams)
        pairs.update(other.bigrams)
        return NgramCounts(words, pairs, self.n_unigrams + other.n_unigrams, self.n_bigrams + other.n_bigrams)

    def prune(self, min_count: int) -> NgramCounts:
        """Without what was counted fewer than ``min_count`` times; the totals stay. It bounds memory, and costs counts.

        In a sum of k pruned shards a count is too small by at most ``k * (min_count - 1)``.
        """
        words, pairs = (Counter(dict(_frequent(table, min_count))) for table in (self.unigrams, self.bigrams))
        return NgramCounts(words, pairs, self.n_unigrams, self.n_bigrams)


def count_ngrams(texts: Iterable[str]) -> NgramCounts:
    """Count the words of all texts, and the pairs of neighbours in the runs of `word_runs`.

    Texts are read one by one. Memory holds a text at a time, and grows with the number of distinct words and pairs:
    roughly 100 bytes each. Where that is too much, count shards apart and `NgramCounts.prune` each.

    >>> count_ngrams(["a red dog, a red cat"]).bigrams.most_common(1)
    [('a red', 2)]

    Taught in: notebooks/05_metadata.ipynb
    """
    words, pairs = Counter[str](), Counter[str]()
    for text in check_strings(texts, "text"):
        for run in word_runs(text):
            words.update(run)
            pairs.update(map(" ".join, pairwise(run)))
    return NgramCounts(words, pairs, words.total(), pairs.total())


def pmi(c12: ArrayLike, c1: ArrayLike, c2: ArrayLike, n: int) -> Floats:
    """Pointwise mutual information of pairs in bits, ``log2(c12 n / (c1 c2))``, equation ``eq-curate-pmi``.

    0 where a pair is as frequent as two unrelated words would make it. A pair occurs no more often than either word, so
    its score is at most ``log2(n / c12)``, equation ``eq-curate-pmi-ceiling``. ``n`` is the number of *words*, also as
    the total of pairs, as in the reference (NLTK); the pairs that marks cut off lower all scores alike.

    >>> pmi(c12=[1, 4], c1=[1, 8], c2=[1, 8], n=16).tolist()
    [4.0, 0.0]

    Source: Church and Hanks (1990). Taught in: notebooks/05_metadata.ipynb
    """
    c12, c1, c2 = (np.asarray(c, dtype=np.float64) for c in (c12, c1, c2))
    if n <= 0 or (np.concatenate([c12.ravel(), c1.ravel(), c2.ravel()]) <= 0).any():
        raise ValueError(f"counts and n must be positive; not {n=}, or one of c12, c1, c2: leave out what never occurs")
    return np.log2(c12 / c1 * (n / c2))  # in this order, rounding never lifts a score above the ceiling


def bigram_scores(counts: NgramCounts, min_count: int = 1) -> tuple[list[str], Ints, Floats]:
    """Pairs seen at least ``min_count`` times, most frequent first, then by text; their counts (k,) and PMI (k,).

    Taught in: notebooks/05_metadata.ipynb
    """
    ranked = _ranked(counts.bigrams, min_count)
    sides = ([counts.unigrams[pair.partition(" ")[side]] for pair, _ in ranked] for side in (0, 2))
    c1, c2 = (np.array(side, dtype=np.int64) for side in sides)
    c12 = np.array([count for _, count in ranked], dtype=np.int64)
    scores = pmi(c12, c1, c2, counts.n_unigrams) if ranked else np.empty(0)
    return [pair for pair, _ in ranked], c12, scores


def unigram_entries(counts: NgramCounts, min_count: int = 100) -> list[str]:
    """Words seen at least ``min_count`` times, most frequent first, then by text. The default is the paper's.

    >>> unigram_entries(count_ngrams(["b a", "a c b"]), min_count=2)
    ['a', 'b']

    Source: Xu et al. (2024), section 3. Taught in: notebooks/05_metadata.ipynb
    """
    return [word for word, _ in _ranked(counts.unigrams, min_count)]


def bigram_entries(counts: NgramCounts, min_pmi: float = 30, min_count: int = 1) -> list[str]:
    """Pairs with a PMI of at least ``min_pmi`` bits, seen at least ``min_count`` times, most frequent first.

    The defaults are the paper's, whose code asks for no count. No pair seen more than ``n / 2 ** min_pmi`` times can
    reach ``min_pmi``: at 30 bits that is once in each 1,073,741,824 words, so lower it for a smaller corpus.

    >>> bigram_entries(count_ngrams(["New York is a city", "a city is a town"]), min_pmi=3)
    ['New York']

    Source: Xu et al. (2024), section 3 and code. Taught in: notebooks/05_metadata.ipynb
    """
    pairs, _, scores = bigram_scores(counts, min_count)
    return [pair for pair, score in zip(pairs, scores, strict=True) if score >= min_pmi]


def title_entries(rows: Iterable[tuple[str, int]], min_views: int = 70) -> list[str]:
    """Titles with at least ``min_views`` views over all their rows and no ":", most viewed first; ``_`` to space.

    A colon marks pages about pages, "Talk:Cat". The default is the paper's. Its code also leaves out hours with
    fewer than 50 views, before it adds up: filter the rows to do the same.

    >>> title_entries([("Eiffel_Tower", 60), ("Talk:Cat", 99), ("Eiffel_Tower", 10), ("Oslo", 69)])
    ['Eiffel Tower']

    Source: Xu et al. (2024), section 3 and code. Taught in: notebooks/05_metadata.ipynb
    """
    views = Counter[str]()
    for title, count in rows:
        if ":" not in title:
            views[title.replace("_", " ")] += count
    return [title for title, _ in _ranked(views, min_views)]


def read_texts(paths: Iterable[str | Path], field: str = "text") -> Iterator[str]:
    """Stream texts from files: each line of a ``.txt``, and ``field`` of each line of a ``.jsonl``; both also packed.

    Packed means ``.gz`` or ``.bz2``. Lines that are empty in a ``.jsonl`` are skipped.

    Raises ``ValueError`` naming file and line for another ending, a damaged file, what is no UTF-8 or no JSON, and a
    missing ``field``. Taught in: notebooks/05_metadata.ipynb
    """
    for path in map(Path, paths):
        kind = Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix
        if kind not in (".txt", ".jsonl"):
            raise ValueError(f"{path} must end in .txt or .jsonl, with .gz or .bz2 behind it if packed; not {kind!r}")
        for number, line in _lines(path):
            if kind == ".txt":
                yield line
            elif line.strip():
                yield _text(line, field, f"{path}, line {number}")


def read_views(path: str | Path, projects: Iterable[str] = ("en", "en.m", "en.wikipedia")) -> Iterator[tuple[str, int]]:
    """Stream (title, views) from a table, or from Wikimedia's dumps of page views; also packed, ``.gz`` or ``.bz2``.

    A line of a table is title, tab, views. A line of a dump starts with the project and the title, and has 4 columns
    (hours: views are the third) or 6 (days: views are the fifth). Lines of other projects are skipped.

    Raises ``ValueError`` naming file and line for a line that is neither, and where no line counts.
    Taught in: notebooks/05_metadata.ipynb
    """
    wanted, found = frozenset(projects), None
    for number, line in _lines(Path(path)):
        if "\t" not in line and line.split(" ", 1)[0] not in wanted:
            continue
        found = (_TABLE if "\t" in line else _DUMP).fullmatch(line)
        if not found:
            raise ValueError(f"{path}, line {number} is neither title, tab, views nor a dump's: {line[:60]!r}: mend it")
        yield found["title"], int(found["views"])
    if not found:
        raise ValueError(f"{path} holds no line of {', '.join(sorted(wanted))}: is it a dump? Name others in projects=")


def _frequent(counts: Counter[str], min_count: int) -> Iterator[tuple[str, int]]:
    if min_count < 1:
        raise ValueError(f"the least count must be at least 1; not {min_count}")
    return ((text, count) for text, count in counts.items() if count >= min_count)


def _ranked(counts: Counter[str], min_count: int) -> list[tuple[str, int]]:
    by_text = sorted(_frequent(counts, min_count))
    return sorted(by_text, key=itemgetter(1), reverse=True)  # stable: equal counts stay in order of their texts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, without their ends."""
    number = 0
    with _OPENERS.get(path.suffix, open)(path, "rb") as raw:
        try:
            for number, line in enumerate(raw, 1):
                yield number, line.decode().rstrip("\r\n")
        except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
            where = f"{path}, line {number + (not isinstance(error, UnicodeDecodeError))}"
            raise ValueError(f"{where} cannot be read ({error}): fetch the file again, or save it as UTF-8") from error


def _text(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}): mend it or leave it out") from error
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise ValueError(f"{where} must be an object with a string {field!r}; not {line[:60]!r}: name another field=")
    return record[field]
