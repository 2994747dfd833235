"""metadata: the paper's exact number of WordNet names, provenance, and a linter that is right both ways."""

import doctest
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib import metadata
from minilib.matching import match_naive
from minilib.metadata import (
    NUMBERS,
    PUBLISHED,
    build_metadata,
    find_wordnet,
    git_blob_id,
    lint_entries,
    load_entries,
    load_metadata,
    published_entries,
    save_metadata,
    wordnet_entries,
    wordnet_glosses,
    wordnet_sentences,
)

FEW = st.text(alphabet="ab ,.\t\u00a0", max_size=6)


@pytest.fixture(scope="module")
def wordnet() -> Path:
    """The real files. The project's own checks must have them; elsewhere the test is skipped and says why."""
    try:
        return find_wordnet()
    except FileNotFoundError as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


def test_docstring_examples() -> None:
    assert doctest.testmod(metadata).failed == 0


def test_wordnet_gives_the_papers_number(wordnet: Path) -> None:
    """The paper's row for WordNet says 86,654: 86,554 names and the numbers 0-99, none of which is a name."""
    names = wordnet_entries(wordnet)
    assert len(names) == len(set(names)) == 86_554
    assert len(build_metadata({"wordnet": names, "numbers": NUMBERS})) == 86_654


def test_wordnet_rule_on_real_lines(wordnet: Path) -> None:
    """Underscores become spaces, "a.d." is cut at its dot to "a", markers such as "(p)" go, and all is lower case."""
    names = set(wordnet_entries(wordnet))
    assert {"entity", "living thing", "a", "paris"} <= names
    assert not any(set("._(") & set(name) or name != name.lower() for name in names)


def test_wordnet_rule_by_hand(tmp_path: Path) -> None:
    """Six synsets: two that become one name, one that becomes empty, a marker, a name cut at its dot, two words."""
    lemmas = ["Paris", "paris", ".22", "galore(ip)", "A.D.", "living_thing"]
    lines = [f'{i:08d} 03 n 01 {lemma} 0 000 | gloss; "a {i}"; "; "  ' for i, lemma in enumerate(lemmas)]
    for name in metadata.WORDNET_FILES:
        (tmp_path / name).write_text("\n".join(["  1 licence", *(lines if name == "data.noun" else [])]))
    assert wordnet_entries(tmp_path) == ["paris", "galore", "a", "living thing"]
    assert wordnet_sentences(tmp_path) == [f"a {i}" for i in range(6)]


def test_damaged_wordnet_names_the_line(tmp_path: Path) -> None:
    for name in metadata.WORDNET_FILES:
        (tmp_path / name).write_text("  1 licence\n<html>\n")
    with pytest.raises(ValueError, match=r"data\.noun, line 2, is no synset: '<html>"):
        wordnet_entries(tmp_path)


def test_wordnet_sentences_are_its_examples(wordnet: Path) -> None:
    sentences = wordnet_sentences(wordnet)
    assert len(sentences) > 48_000 and wordnet_sentences(wordnet, limit=3) == sentences[:3]
    assert "the team is a unit" in sentences and not any('"' in sentence for sentence in sentences)


def test_wordnet_has_a_gloss_for_each_synset(wordnet: Path) -> None:
    """117,659 is the number of synsets that WordNet 3.0's own statistics give."""
    glosses = wordnet_glosses(wordnet)
    assert len(glosses) == 117_659 and all(gloss and gloss == gloss.strip() for gloss in glosses)
    assert glosses[0].startswith("that which is perceived or known or inferred to have its own distinct existence")


def test_wordnet_is_found_by_variable_and_in_nltk_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path / "dict", tmp_path / "corpora" / "wordnet"):
        folder.mkdir(parents=True)
        for name in metadata.WORDNET_FILES:
            (folder / name).touch()
    assert find_wordnet(tmp_path / "dict") == find_wordnet(tmp_path) == tmp_path / "dict"
    monkeypatch.setenv("MINILIB_WORDNET", str(tmp_path))
    assert find_wordnet() == tmp_path / "dict"
    monkeypatch.delenv("MINILIB_WORDNET")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert find_wordnet().parts[-2:] in (("share", "wordnet"), ("corpora", "wordnet"))


def test_missing_wordnet_says_what_and_how(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"data\.noun.*{tmp_path.name}.*wordnet-base.*MINILIB_WORDNET"):
        wordnet_entries(tmp_path)
    with pytest.raises(ValueError, match="limit must be None or at least 0; not -1"):
        wordnet_sentences(limit=-1)


def test_build_metadata_keeps_sources_order_and_case() -> None:
    merged = build_metadata({"b": ["Cat", "cat", "Cat", ";", ""], "a": ["7", "cat", "; "]})
    assert merged == {"Cat": ("b",), "cat": ("b", "a"), "7": ("a",), "; ": ("a",)}
    assert list(merged) == ["Cat", "cat", "7", "; "]


def test_build_metadata_refuses_what_is_no_list_of_strings() -> None:
    with pytest.raises(TypeError, match=r"entry of source 'x'.*not the lone string 'cat'"):
        build_metadata({"x": "cat"})
    with pytest.raises(TypeError, match=r"entry of source 'x' 1 must be a string; not None"):
        build_metadata({"x": ["cat", None]})  # type: ignore[list-item]


# --- files ---


def test_metadata_comes_back_as_it_was(tmp_path: Path) -> None:
    """Order, sources, quotes, line breaks, other scripts: nothing is lost, and each entry has a line."""
    metadata = build_metadata({"b": ["猫", 'say "hi"', "a\nb", "z"], "numbers": ["7", "z"]})
    save_metadata(tmp_path / "m.json", metadata)
    assert list(load_metadata(tmp_path / "m.json").items()) == list(metadata.items())
    assert load_entries(tmp_path / "m.json") == list(metadata)
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(metadata) + 2 and '"猫": ["b"]' in text
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_writing_fails_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    save_metadata(path, {"old": ("x",)})
    with pytest.raises(ValueError, match=r"at least one entry; not none.*m\.json was not written"):
        save_metadata(path, {})
    with pytest.raises(UnicodeEncodeError, match="surrogates"):
        save_metadata(path, {"\ud800": ("x",)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_metadata(path, {"new": ("x",)})
    assert load_metadata(path) == {"old": ("x",)} and [found.name for found in tmp_path.iterdir()] == ["m.json"]


def test_plain_lists_load_too(tmp_path: Path) -> None:
    """The reference's layout, and one entry a line with a byte order mark, Windows line ends and blank lines."""
    (tmp_path / "m.json").write_text(json.dumps(["black cat", "猫", "!"]))
    (tmp_path / "m.txt").write_bytes("\ufeffblack cat\r\n\r\n猫\n!\n \n".encode())
    for name in ("m.json", "m.txt"):
        assert load_entries(tmp_path / name) == ["black cat", "猫", "!"]
        assert load_metadata(tmp_path / name) == {"black cat": (), "猫": (), "!": ()}


def test_repeated_entries_are_kept_for_the_linter_and_reported(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("cat\ndog\ncat\n")
    assert [(lint.id, lint.kind) for lint in lint_entries(load_entries(tmp_path / "m.txt"))] == [(2, "duplicate")]
    with pytest.warns(UserWarning, match="1 of 3 entries repeat an earlier one"):
        assert list(load_metadata(tmp_path / "m.txt")) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", b"", "is not JSON"),
        ("m.json", b"[]", "holds no entry"),
        ("m.json", b"{}", "holds no entry"),
        ("m.txt", b"\n \n", "holds no entry"),
        ("m.json", b'"cat"', "must hold a list of entries.*not str"),
        ("m.json", b"7", "must hold a list of entries.*not int"),
        ("m.json", b'["cat", null]', "item 1 must be a string; not None"),
        ("m.json", b'["cat", 7]', "item 1 must be a string; not 7"),
        ("m.json", b'{"cat": "wordnet"}', "sources of 'cat' must be a list of strings; not 'wordnet'"),
        ("m.json", b'{"cat": [1]}', "sources of 'cat' must be a list of strings"),
        ("m.json", b"cat\ndog", "is not JSON.*name it .txt"),
        ("m.json", b'["\xff"]', "is not UTF-8"),
        ("m.txt.gz", b"\x1f\x8b", "is not UTF-8.*uncompressed"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    for load in (load_metadata, load_entries):
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            load(tmp_path / name)


def test_blob_id_by_hand_and_by_git(tmp_path: Path) -> None:
    """The empty file's id is known to everyone who has used git; the others are compared with git itself."""
    (tmp_path / "empty").touch()
    assert git_blob_id(tmp_path / "empty") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    if not shutil.which("git"):
        pytest.skip("no git to compare with")
    for content in (b"[]\n", b"a\r\nb\0\xff", b"x" * 100_000):
        (tmp_path / "file").write_bytes(content)
        told = subprocess.run(["git", "hash-object", "--no-filters", str(tmp_path / "file")], capture_output=True)
        assert git_blob_id(tmp_path / "file") == told.stdout.decode().strip()


def test_published_entries_are_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in whose id is put in the place of the true one; a byte more, and it is refused."""
    copy = tmp_path / "metadata.json"
    copy.write_text('["cat", "U.S."]')
    with pytest.raises(ValueError, match=rf"not the published metadata: its git blob id is .*not {PUBLISHED}"):
        published_entries(copy)
    monkeypatch.setattr(metadata, "PUBLISHED", git_blob_id(copy))
    assert published_entries(copy) == ["cat", "U.S."]
    monkeypatch.setenv("MINILIB_METADATA", str(copy))
    assert published_entries() == ["cat", "U.S."]
    copy.write_text('["cat", "U.S."] ')
    with pytest.raises(ValueError, match="not the published metadata"):
        published_entries()


def test_missing_published_metadata_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINILIB_METADATA", raising=False)
    for path in (None, tmp_path / "gone.json", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"no published metadata.*facebookresearch/MetaCLIP.*MINILIB_METADATA"
        ):
            published_entries(path)


def test_lint_by_hand() -> None:
    entries = ["cat", "Washington, D.C.", "U.S.", "a\tb", ", ,", ",", "a , b", "a  b", "", "cat", "T-shirt", "(cat)"]
    kinds = {(lint.id, lint.kind) for lint in lint_entries(entries)}
    assert kinds == {(1, "dead"), (2, "dead"), (3, "dead"), (4, "dead"), (7, "spaces"), (8, "spaces"), (9, "duplicate")}
    assert "entry 0" in lint_entries(entries)[-1].reason


@given(text=FEW, entry=FEW)
@settings(max_examples=500, deadline=None)
def test_what_is_linted_dead_never_matches(text: str, entry: str) -> None:
    if match_naive(text, [entry]):
        assert not [lint for lint in lint_entries([entry]) if lint.kind == "dead"]


@given(entry=FEW)
@settings(max_examples=500, deadline=None)
def test_what_is_not_linted_dead_matches_some_caption(entry: str) -> None:
    """The caption is made backwards: the spaces that spacing will put around each mark are taken away."""
    caption = f" {entry} "
    for mark in ",.":
        caption = caption.replace(f" {mark} ", mark)
    dead = any(lint.kind == "dead" for lint in lint_entries([entry]))
    assert dead or match_naive(caption, [entry])
