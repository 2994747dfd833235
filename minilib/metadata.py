"""Turn corpora into metadata: the list of entries that says what a pool of captions is searched for.

References
----------
- Xu et al. (2024), "Demystifying CLIP Data", section 3 (four sources, 500,000 entries), and the code of its authors.
- Fellbaum (1998), "WordNet: An Electronic Lexical Database". Its files are read as they are, without NLTK.

Taught in: notebooks/05_metadata.ipynb
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

NUMBERS = tuple(str(number) for number in range(100))
#: Git's name for the content of MetaCLIP's published metadata.json, 500,000 entries.
PUBLISHED = "2691a90d6690440916c87348d2b9548157570a2c"
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
    examples = (text for gloss in wordnet_glosses(path) for text in re.findall(_EXAMPLE, gloss))
    return [text for text in examples if re.search(r"\w", text)][:limit]


def wordnet_glosses(path: str | Path | None = None) -> list[str]:
    """WordNet's glosses, one for each synset: a definition, often with examples in quotes. 117,659 in WordNet 3.0.

    With about 1.5 million words they are a small corpus of real English to count words in (`corpus.count_ngrams`).

    Raises ``FileNotFoundError`` as `wordnet_entries` does. Taught in: notebooks/05_metadata.ipynb
    """
    return [synset.partition(" | ")[2].strip() for synset in _synsets(find_wordnet(path))]


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


def save_metadata(path: str | Path, metadata: Mapping[str, Iterable[str]]) -> None:
    """Write ``{entry: sources}`` as JSON, one entry a line, in its order; the file is there whole or not at all.

    Raises ``ValueError`` where there is nothing to write, or a lone surrogate that UTF-8 cannot hold.
    Taught in: notebooks/05_metadata.ipynb
    """
    path = Path(path)
    if not metadata:
        raise ValueError(f"metadata must hold at least one entry; not none, so {path} was not written: see its sources")
    lines = (f"{_json(entry)}: {_json(list(sources))}" for entry, sources in metadata.items())
    content = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    with TemporaryDirectory(dir=path.parent, prefix="unfinished-") as folder:
        unfinished = Path(folder, path.name)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)


def load_metadata(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read ``{entry: sources}`` back from what `save_metadata` wrote, from a JSON list, or from one entry a line.

    A JSON list of strings is the layout of MetaCLIP's ``metadata.json``; a file with another ending than ``.json``
    holds one entry a line, and its blank lines are skipped. Such lists name no source, so their entries get ``()``.
    An entry that stands twice is kept once, and a warning says so; `load_entries` keeps the list as it is.

    Raises ``ValueError`` for a file that is empty, no UTF-8, no JSON or no list, and for an item that is no string.
    Taught in: notebooks/05_metadata.ipynb
    """
    found = _read(Path(path))
    merged = {entry: tuple(found[entry]) if isinstance(found, dict) else () for entry in found}
    if len(merged) < len(found):
        more = len(found) - len(merged)
        warnings.warn(f"{path}: {more:,} of {len(found):,} entries repeat an earlier one: left out", stacklevel=2)
    return merged


def load_entries(path: str | Path) -> list[str]:
    """The entries of a file as `load_metadata` reads it, with repetitions: an entry's place in the file is its id.

    Taught in: notebooks/05_metadata.ipynb
    """
    return list(_read(Path(path)))


def published_entries(path: str | Path | None = None) -> list[str]:
    """MetaCLIP's own 500,000 entries, from a copy of its ``metadata.json`` that is proven to be the published one.

    The copy lies at ``path``, or where ``MINILIB_METADATA`` says. Nothing is fetched. The proof is `git_blob_id`.

    Raises ``FileNotFoundError`` where there is no copy, and ``ValueError`` where it is another file.
    Source: Xu et al. (2024), code. Taught in: notebooks/05_metadata.ipynb
    """
    given = path or os.environ.get("MINILIB_METADATA")
    remedy = "take metadata.json from the repository facebookresearch/MetaCLIP and name it in path= or MINILIB_METADATA"
    if not given or not Path(given).is_file():
        raise FileNotFoundError(f"no published metadata: expected a file, not {given and str(given)!r}; {remedy}")
    if (blob := git_blob_id(given)) != PUBLISHED:
        raise ValueError(f"{given} is not the published metadata: its git blob id is {blob}, not {PUBLISHED}; {remedy}")
    return load_entries(given)


def git_blob_id(path: str | Path) -> str:
    """Git's name for a file's content: SHA-1 of ``blob``, a space, the length in bytes, a zero byte, the bytes.

    Equal to ``git hash-object --no-filters``. A repository's web page shows it, so a file can be checked without git.

    Taught in: notebooks/05_metadata.ipynb
    """
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


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


def check_strings(items: Iterable[str], what: str, first: int = 0) -> Iterator[str]:
    """Pass strings on one by one; refuse a lone string, and any item that is none, by its index (from ``first``)."""
    if isinstance(items, str | bytes):
        raise TypeError(f"expected a list with one string for each {what}; not the lone string {items[:40]!r}: wrap it")
    for index, item in enumerate(items, first):
        if not isinstance(item, str):
            raise TypeError(f"{what} {index} must be a string; not {item!r} ({type(item).__name__}): drop or repair it")
        yield item


def _read(path: Path) -> list[str] | dict[str, list[str]]:
    """A file's entries, checked: a list, or a dictionary with the list of sources of each."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: Any = json.loads(text) if path.suffix == ".json" else list(filter(str.strip, text.split("\n")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8, uncompressed") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): mend it, or name it .txt with one entry a line") from error
    if not isinstance(found, list | dict):
        raise ValueError(f"{path} must hold a list of entries or {{entry: sources}}; not {type(found).__name__}")
    if not found:
        raise ValueError(f"{path} holds no entry: expected a word or phrase at least. Is it the right file?")
    for index, entry in enumerate(found):
        if not isinstance(entry, str):
            raise ValueError(f"{path}: item {index} must be a string; not {entry!r}: drop it or put it in quotes")
        if isinstance(found, dict) and not _strings(found[entry]):
            raise ValueError(f"{path}: the sources of {entry!r} must be a list of strings; not {found[entry]!r}")
    return found


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


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
