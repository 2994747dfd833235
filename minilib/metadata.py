"""Turn corpora into metadata: the list of entries that says what a pool of captions is searched for.

References
----------
- Xu et al. (2024), "Demystifying CLIP Data", section 3 (four sources, 500,000 entries), and the code of its authors.
- Fellbaum (1998), "WordNet: An Electronic Lexical Database". Its files are read as they are, without NLTK.

Taught in: notebooks/05_metadata.ipynb
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

NUMBERS = tuple(str(number) for number in range(100))
WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

_PUNCTUATION = frozenset(string.punctuation)
_EXAMPLE = r'"([^"]+)"'
_DEAD = re.compile(r"[\t\n\r]|[^ ][,.;:?!`]|[,.;:?!`][^ ]|[,.;:?!`] [,.;:?!`]")


def wordnet_entries(path: str | Path | None = None) -> list[str]:
    """Names of WordNet's synsets by MetaCLIP's rule: first lemma, lower case, up to its first dot, ``_`` to space.

    A name stands where it first occurs in the files noun, verb, adjective, adverb; the reference keeps a set, whose
    order changes from run to run. WordNet 3.0 gives exactly 86,554 names. ``path`` is the folder of the data files;
    without it ``MINILIB_WORDNET``, then the folders of Debian's ``wordnet-base`` and of NLTK's corpus are tried.

    Raises ``FileNotFoundError`` where there is no WordNet, naming every place that was tried and the remedy.
    Source: Xu et al. (2024), section 3. Taught in: notebooks/05_metadata.ipynb
    """
    return list(build_metadata({"wordnet": map(_name, _synsets(find_wordnet(path)))}))


def wordnet_sentences(path: str | Path | None = None, limit: int | None = None) -> list[str]:
    """The examples that WordNet's glosses quote: real English, about six words each; the first ``limit`` of them.

    >>> re.findall(_EXAMPLE, 'be alive; "Our great leader is no more"; "My grandfather lived until 1981"')
    ['Our great leader is no more', 'My grandfather lived until 1981']

    Raises ``FileNotFoundError`` as `wordnet_entries` does. Taught in: notebooks/05_metadata.ipynb
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be None or at least 0; not {limit}")
    glosses = (synset.partition(" | ")[2] for synset in _synsets(find_wordnet(path)))
    examples = (text for gloss in glosses for text in re.findall(_EXAMPLE, gloss))
    return [text for text in examples if re.search(r"\w", text)][:limit]


def find_wordnet(path: str | Path | None = None) -> Path:
    """The folder that holds WordNet's four data files; `wordnet_entries` says where they are looked for."""
    tried = [Path("/usr/share/wordnet")]
    homes = [*os.environ.get("NLTK_DATA", "").split(os.pathsep), "~/nltk_data", "/usr/share/nltk_data"]
    tried += [Path(home, "corpora", "wordnet").expanduser() for home in homes if home]
    if given := path or os.environ.get("MINILIB_WORDNET"):
        tried = [Path(given), Path(given, "dict")]
    for folder in tried:
        if all((folder / name).is_file() for name in WORDNET_FILES):
            return folder
    raise FileNotFoundError(
        f"no WordNet: expected {', '.join(WORDNET_FILES)} in one of {', '.join(map(str, tried))}. Install Debian's "
        "package wordnet-base, or unpack NLTK's wordnet corpus, or name the folder in path= or MINILIB_WORDNET"
    )


def build_metadata(sources: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Merge the entries of several sources: ``{entry: sources that hold it}``, in order of first appearance.

    The only filter is the paper's: an entry is not empty and not one punctuation mark. Nothing is lower-cased.

    >>> build_metadata({"wordnet": ["cat", "!", "7"], "numbers": ["7", ""]})
    {'cat': ('wordnet',), '7': ('wordnet', 'numbers')}

    Source: Xu et al. (2024), section 3. Taught in: notebooks/05_metadata.ipynb
    """
    merged: dict[str, tuple[str, ...]] = {}
    for source, entries in sources.items():
        for entry in check_strings(entries, f"entry of source {source!r}"):
            known = merged.get(entry, ())
            if entry and entry not in _PUNCTUATION and source not in known:
                merged[entry] = (*known, source)
    return merged


class Lint(NamedTuple):
    """A finding of `lint_entries`: the entry's id and text, ``"dead"``, ``"duplicate"`` or ``"spaces"``, and why."""

    id: int
    entry: str
    kind: str
    reason: str


def lint_entries(entries: Iterable[str]) -> list[Lint]:
    """Entries that can never match (dead), stand in the list before (duplicate), or need two spaces in a row (spaces).

    Captions have their marks spaced off and their tabs and line breaks turned into spaces. So an entry is dead if, and
    only if, it holds a tab, a line break, a mark that touches another character, or two marks one space apart
    (captions put at least two there).

    >>> [(lint.entry, lint.kind) for lint in lint_entries(["cat", "U.S.", "cat"])]
    [('U.S.', 'dead'), ('cat', 'duplicate')]

    Taught in: notebooks/05_metadata.ipynb
    """
    first: dict[str, int] = {}
    found = []
    for id_, entry in enumerate(check_strings(entries, "entry")):
        if fault := _DEAD.search(f" {entry} "):
            found.append(Lint(id_, entry, "dead", f"holds {fault[0]!r}, and no caption does once its marks are spaced"))
        elif "" in entry.split(" "):
            found.append(Lint(id_, entry, "spaces", "matches only where a caption holds two spaces in a row"))
        if first.setdefault(entry, id_) != id_:
            found.append(Lint(id_, entry, "duplicate", f"same as entry {first[entry]}: its captions are drawn twice"))
    return found


def check_strings(items: Iterable[str], what: str) -> Iterator[str]:
    """Pass strings on one by one; refuse a lone string, and any item that is not one, naming it and its index."""
    if isinstance(items, str | bytes):
        raise TypeError(f"expected a list with one string for each {what}; not the lone string {items[:40]!r}: wrap it")
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"{what} {index} must be a string; not {item!r} ({type(item).__name__}): drop or repair it")
        yield item


def _synsets(folder: Path) -> Iterator[str]:
    for name in WORDNET_FILES:
        with open(folder / name, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.startswith("  "):  # two spaces open a line of the licence
                    if not line[:8].isdigit() or line.count(" ") < 5:
                        raise ValueError(f"{folder / name}, line {number}, is no synset: {line[:40]!r}. Damaged?")
                    yield line


def _name(synset: str) -> str:
    lemma = synset.split(" ", 5)[4]  # offset, file, type, number of words, first word, ...
    bare = re.sub(r"\(\w+\)$", "", lemma)  # "galore(ip)": a syntactic marker
    return bare.lower().split(".", 1)[0].replace("_", " ")
