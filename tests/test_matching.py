"""matching: every engine equals a second implementation of the reference, on whatever text there is."""

import doctest
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib import matching as module
from minilib.matching import ENGINES, Matcher, match_naive, pad_entry, space_punctuation

ALPHABET = "ab  ,.;:?!`\t\n\r\u00a0\u3000\x00'-(猫🐈é\ud800ก한"
TRICKY = st.text(alphabet=st.sampled_from(ALPHABET), max_size=12)
WORDS = st.lists(
    st.sampled_from(
        ["a", "", "seven77", "eight888", "fifteen_15_long", "sixteen_16_bytes", "sixteen_16_bytez", "é" * 9, ","]
    ),
    min_size=1,
    max_size=5,
).map(" ".join)


def reference_ids(text: str, entries: list[str]) -> list[int]:
    """The reference's rule written a second time, mark by mark: the independent implementation."""
    text = " " + text + " "
    for mark in (",", ".", ";", ":", "?", "!", "`"):
        text = text.replace(mark, " " + mark + " ")
    for blank in ("\t", "\n", "\r"):
        text = text.replace(blank, " ")
    return [e for e in range(len(entries)) if text.find(" " + entries[e] + " ") >= 0]


def rows(ids: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


def test_docstring_examples() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.equation("eq-curate-match")
def test_matching_by_hand() -> None:
    """Case counts; "(cat)" and "T-shirt" are single tokens; nested and overlapping entries all count, once a text."""
    assert space_punctuation("a, b.c") == " a ,  b . c "
    entries = ["cat", "black cat", "cat sat", "shirt", "T-shirt", "U.S.", "Cat", "cat "]
    captions = ["The black cat sat, a cat!", "(cat)", "my T-shirt", "the U.S. flag", "cat", "CAT", "cat's", "cat\ncat"]
    expected = [[0, 1, 2], [], [4], [], [0], [], [], [0]]
    assert [match_naive(caption, entries) for caption in captions] == expected
    assert match_naive("cat, dog", ["cat "]) == [] and match_naive("cat  dog", ["cat "]) == [0]


@pytest.mark.equation("eq-curate-run")
@given(
    texts=st.lists(st.one_of(TRICKY, WORDS), max_size=4),
    entries=st.lists(st.one_of(TRICKY, WORDS), min_size=1, max_size=8),
)
@settings(max_examples=1500, deadline=None)
def test_engines_equal_the_reference(texts: list[str], entries: list[str]) -> None:
    """Short words of 7, 8, 15 and 16 bytes stand at the edges of the compiled table's packed keys."""
    expected = [reference_ids(text, entries) for text in texts]
    for engine in ENGINES:
        ids, offsets = Matcher(entries, engine=engine, n_threads=1).match(texts)
        assert rows(ids, offsets) == expected, engine
        assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)


@given(text=TRICKY, cuts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6))
@settings(max_examples=500, deadline=None)
def test_engines_find_what_was_cut_from_the_caption(text: str, cuts: list[tuple[int, int]]) -> None:
    """Entries that are pieces of the spaced caption match often, with empty tokens at either end and in between."""
    spaced = space_punctuation(text)
    entries = [spaced[a : a + b] for a, b in cuts]
    expected = reference_ids(text, entries)
    assert all(rows(*Matcher(entries, engine=engine, n_threads=1).match([text])) == [expected] for engine in ENGINES)


def test_fast_engines_equal_each_other_at_size(rng: np.random.Generator) -> None:
    """Thousands of entries with repeats and long words, 40,000 captions: several batches and threads."""
    words = np.array([f"{'longer-than-15-bytes-' * (k % 11 == 0)}w{k}" for k in range(3000)])
    ranks = np.minimum(rng.zipf(1.3, size=(60_000, 6)), 3000) - 1
    entries = list(dict.fromkeys(" ".join(words[row[: 1 + k % 4]]) for k, row in enumerate(ranks[:20_000])))
    entries += entries[:50]
    captions = [" ".join(words[row]) + "." * (k % 3) for k, row in enumerate(ranks[20_000:])]
    plain = Matcher(entries, engine="dict").match(captions)
    for matcher in (
        Matcher(entries, n_threads=1),
        Matcher(entries, n_threads=3),
        Matcher(entries, engine="aho-corasick"),
    ):
        for ours, theirs in zip(matcher.match(captions), plain, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(plain[0]) > 100_000


def test_hash_collision_of_long_tokens_cannot_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long tokens are hashed. With the hash turned into a constant, every token must still be told from every other."""
    from minilib import ngram

    def same_key(data, words, start, stop):
        n = stop - start
        return np.uint64(7), ngram._LONG | (np.uint64(n) << np.uint64(32)) | np.uint64(start)

    python = {name: getattr(getattr(ngram, name), "py_func", None) for name in vars(ngram)}
    for name, function in python.items():
        if function is not None:
            monkeypatch.setattr(ngram, name, function)
    monkeypatch.setattr(ngram, "_key", same_key)
    entries = ["sixteen_16_bytes", "sixteen_16_bytez", "sixteen_16_byte", "sixteen_16_bytes_", "a"]
    expected = [[e] for e in range(5)]
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # in plain Python, products that wrap around warn
        assert rows(*Matcher(entries, engine="ngram", n_threads=1).match(entries)) == expected


def test_run_of_spaces_is_exact() -> None:
    """ "a, b" spaced is "a ,  b", tokens a / , / empty / b: the entry ",  b" matches and ", b" does not."""
    for engine in ENGINES:
        assert rows(*Matcher([",  b", ", b", "", "a ,"], engine=engine).match(["a, b"])) == [[0, 2, 3]]
        assert rows(*Matcher([""], engine=engine).match(["", " ", "a"])) == [[0], [0], []]


def test_duplicates_are_reported_under_each_id() -> None:
    entries = ["cat", "dog", "cat", "a cat", "a cat", "cat", "a cat"]
    for engine in ENGINES:
        assert rows(*Matcher(entries, engine=engine).match(["a cat"])) == [[0, 2, 3, 4, 5, 6]]


def test_captions_of_a_megabyte_and_no_captions() -> None:
    for engine in ENGINES:
        matcher = Matcher(["b a b", "c", "x" * 100_000, "long " * 2000 + "tail"], engine=engine)
        texts = ["a b " * 250_000, "x" * 100_000, "x" * 100_001, "long " * 2000 + "tail", "long " * 1999 + "tail"]
        assert rows(*matcher.match(texts)) == [[0], [2], [], [3], []]
        ids, offsets = matcher.match([])
        assert ids.shape == (0,) and offsets.tolist() == [0] and (ids.dtype, offsets.dtype) == (np.int32, np.int64)


def test_more_matches_than_the_first_guess() -> None:
    """One caption holds 5,000 entries: the result grows, and stays sorted."""
    entries = [f"w{k}" for k in range(5000)]
    assert rows(*Matcher(entries, engine="ngram").match(["", " ".join(reversed(entries))])) == [[], list(range(5000))]


def test_arrow_arrays_are_captions_too() -> None:
    """Slices, both string types, chunks: the offsets of an array need not begin at 0."""
    texts = ["no", "a cat", "", "cat, dog"]
    for kind in (pa.string(), pa.large_string()):
        array = pa.array(texts, type=kind)
        for engine in ("ngram", "dict"):
            matcher = Matcher(["cat", "dog"], engine=engine)
            assert rows(*matcher.match(array[1:])) == [[0], [], [0, 1]]
            assert rows(*matcher.match(pa.chunked_array([array[:2], array[2:]]))) == [[], [0], [], [0, 1]]
    with pytest.raises(TypeError, match="caption 1 of an arrow array is null"):
        Matcher(["cat"]).match(pa.array(["cat", None]))
    with pytest.raises(TypeError, match="array of strings; not int64"):
        Matcher(["cat"]).match(pa.array([1]))


def test_generators_are_read_once_and_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    texts = ["cat" if k % 3 else "dog" for k in range(10)]
    assert rows(*Matcher(["cat", "dog"]).match(text for text in texts)) == [[int(k % 3 == 0)] for k in range(10)]


def test_normalising_revives_dead_entries() -> None:
    """ "U.S." becomes "U . S . ", which is what spacing makes of it in a caption; "U.S.A" has no space after "S ." """
    entries = ["U.S.", "Washington, D.C.", "cat"]
    captions = ["the U.S. flag", "in the U.S.", "the U.S.A", "Washington, D.C.!", "cat"]
    for engine in ENGINES:
        assert rows(*Matcher(entries, engine=engine).match(captions)) == [[], [], [], [], [2]]
        assert rows(*Matcher(entries, engine=engine, normalize=True).match(captions)) == [[0], [0], [], [1], [2]]


def test_scripts_without_spaces() -> None:
    """By MetaCLIP 2's rule a side in such a script needs no space: " iPhone手机 " loses the right one only."""
    entries = ["猫", "黑猫", "แมว", "iPhone手机", "한국", "cat"]
    captions = ["一只黑猫", "แมวดำ", "an iPhone手机壳", "xiPhone手机", "한국어", "catfish", "cat"]
    expected = [[0, 1], [2], [3], [], [], [], [5]]
    for engine in ("naive", "auto", "aho-corasick"):
        assert rows(*Matcher(entries, engine=engine, spaceless=True).match(captions)) == expected
    assert [match_naive(caption, entries, spaceless=True) for caption in captions] == expected
    assert rows(*Matcher(entries).match(captions)) == [[], [], [], [], [], [], [5]]
    assert pad_entry("猫", spaceless=True) == "猫" and pad_entry("한국", spaceless=True) == " 한국 "
    with pytest.raises(ValueError, match="engine='ngram' walks over tokens"):
        Matcher(entries, engine="ngram", spaceless=True)


@given(texts=st.lists(TRICKY, max_size=3), entries=st.lists(TRICKY, min_size=1, max_size=5), normalize=st.booleans())
@settings(max_examples=300, deadline=None)
def test_engines_agree_under_every_rule(texts: list[str], entries: list[str], normalize: bool) -> None:
    for spaceless, engines in ((False, ENGINES), (True, ("naive", "aho-corasick"))):
        found = [
            rows(*Matcher(entries, engine=engine, normalize=normalize, spaceless=spaceless, n_threads=1).match(texts))
            for engine in engines
        ]
        padded = [pad_entry(entry, normalize=normalize, spaceless=spaceless) for entry in entries]
        expected = [[e for e, entry in enumerate(padded) if space_punctuation(text).find(entry) >= 0] for text in texts]
        assert all(one == expected for one in found)


def test_matcher_is_immutable_and_two_lists_never_mix() -> None:
    for engine in ENGINES:
        cats, dogs = Matcher(["cat"], engine=engine), Matcher(["dog"], engine=engine)
        assert rows(*cats.match(["cat dog"])) == rows(*dogs.match(["cat dog"])) == [[0]]
        assert rows(*cats.match(["dog"])) == [[]]
        with pytest.raises(AttributeError, match="make a new one"):
            cats.entries = ("dog",)
        assert rows(*pickle.loads(pickle.dumps(cats)).match(["dog"])) == [[]]
    assert repr(Matcher(["cat"])) == "Matcher(1 entries, engine='ngram')"


def test_without_the_extra_the_plain_walk_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert Matcher(["cat"]).engine == "dict"
    with pytest.raises(ImportError, match=r"engine='ngram' needs numba and pyarrow: pip install 'minilib\[curate\]'"):
        Matcher(["cat"], engine="ngram")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["cat", None], r"caption 1 must be a string; not None \(NoneType\)"),
        (["cat", "dog", 3.5], r"caption 2 must be a string; not 3.5 \(float\)"),
        ([b"cat"], r"caption 0 must be a string; not b'cat' \(bytes\)"),
        (["cat"] * 20_000 + [7], r"caption 20000 must be a string; not 7"),
        ("cat", "not the lone string 'cat'"),
    ],
    ids=["none", "float", "bytes", "second batch", "lone"],
)
def test_captions_must_be_strings(texts, message: str, engine: str) -> None:
    with pytest.raises(TypeError, match=message):
        Matcher(["cat"], engine=engine).match(texts)


def test_entries_must_be_strings_and_some() -> None:
    with pytest.raises(ValueError, match="entries is empty"):
        Matcher([])
    with pytest.raises(TypeError, match="lone string 'cat'"):
        Matcher("cat")
    with pytest.raises(TypeError, match="entry 1 must be a string; not 7"):
        Matcher(["cat", 7])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="engine must be one of auto, naive, dict, ngram, aho-corasick; not 'fast'"):
        Matcher(["cat"], engine="fast")
    with pytest.raises(ValueError, match=r"n_threads must be None .* or at least 1; not 0"):
        Matcher(["cat"], n_threads=0)


def test_entries_beyond_the_packed_slots_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from minilib import ngram

    monkeypatch.setattr(ngram, "TOO_LONG", 100)
    with pytest.raises(ValueError, match="the longest 100: split the list, or use engine='dict'"):
        Matcher(["x" * 100], engine="ngram")
