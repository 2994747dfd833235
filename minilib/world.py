"""Draw small pictures, captions and web-like pools whose truth is known.

Every scene holds one to four copies of a shape, a real handwritten digit beside them, and a floor under a sky. Ten
attributes describe it; nine of them follow the visual patterns of MMVP-VLM (Tong et al. 2024, "Eyes Wide Shut?"), and
the captions mention some often and others hardly ever, as captions on the web do. Nothing is stored: a seed is the
data set.

Scene ``i`` of a seed depends on ``(seed, i)`` alone, so a longer draw begins with the shorter one. All decisions come
from a counter-based generator and integer arithmetic, so that the same seed gives the same bytes on every machine.

Taught in: notebooks/01_clip.ipynb
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minilib.drawing import JITTERS, SHIFTS, Bytes, Floats, Ints, paint, pick

SHAPES = ("circle", "square", "diamond", "cross", "star", "triangle", "arrow", "heart", "moon", "tee")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
DIRECTIONS = ("up", "right", "down", "left")
POSITIONS = ("left of", "right of", "above", "below")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTED = (5, 6, 7, 8, 9)  # the shapes that look different from each side
CONCEPTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

LEVELS = {"shape": 10, "colour": 8, "direction": 4, "dot": 2, "hollow": 2, "count": 4, "position": 4, "striped": 2,
          "digit": 10, "viewpoint": 2}  # fmt: skip
PATTERNS = {"orientation": "direction", "presence": "dot", "state": "hollow", "count": "count", "position": "position",
            "colour": "colour", "structure": "striped", "glyph": "digit", "viewpoint": "viewpoint"}  # fmt: skip
DETAILS = tuple(name for name in LEVELS if name not in ("shape", "colour"))

_PLURALS = {"cross": "crosses"}
_TEMPLATES = ("{}", "{}", "a photo of {}", "a picture of {}", "we saw {}", "look at {}", "{} for sale", "found {}")
_JUNK = ("click here to subscribe", "IMG_{}.jpg", "page {} of 40", "free shipping on all orders", "untitled-{}",
         "all rights reserved {}", "best price today", "DSC0{} copy")  # fmt: skip
_SCENES, _CAPTIONS, _NOISE, _POOL, _CONCEPT = range(5)  # independent random streams of one seed


@dataclass(frozen=True)
class Scenes:
    """Pictures with their truth: ``images`` (n, 3, h, w) uint8, ``captions``, ``attributes[name]`` (n,) int64."""

    images: Bytes
    captions: list[str]
    attributes: dict[str, Ints]

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def concepts(self) -> Ints:
        """Index of each scene's colour and shape into ``CONCEPTS``, (n,)."""
        return self.attributes["colour"] * len(SHAPES) + self.attributes["shape"]


@dataclass(frozen=True)
class Pair:
    """Two pictures that differ in one attribute, and a statement true of each; images are (3, h, w) uint8."""

    pattern: str
    image_a: Bytes
    image_b: Bytes
    statement_a: str
    statement_b: str


@dataclass(frozen=True)
class Pool:
    """A web-like pool: captions, what each is ("clean", "junk", "spam"), the true concept of its picture, pictures."""

    images: Bytes | None
    captions: list[str]
    kinds: NDArray[np.str_]
    concepts: Ints

    def __len__(self) -> int:
        return len(self.captions)


def make_scenes(
    n: int,
    *,
    seed: int,
    size: int = 32,
    split: str = "train",
    detail: float = 0.05,
    colour: float = 0.8,
    concepts: Sequence[int] | None = None,
    fixed: Mapping[str, int | Sequence[int] | Ints] | None = None,
    shift: str | None = None,
) -> Scenes:
    """Draw ``n`` scenes, their attributes independent and uniform, except that half of the scenes hold one shape.

    Args:
        n: how many scenes.
        seed: non-negative integer; scene i depends on (seed, i) and the other arguments only.
        size: side in pixels, a multiple of 16 from 32 on.
        split: "train" or "test": which handwritten digits may appear (no digit image is in both).
        detail: probability that a caption mentions each attribute other than shape and colour.
        colour: probability that a caption mentions the colour. The shape is always mentioned.
        concepts: draw shape and colour from these indices into ``CONCEPTS`` only.
        fixed: attribute name -> one value, or n values, that replace the drawn ones.
        shift: None or one of ``SHIFTS``: another world for tests out of distribution.

    Returns:
        Scenes with images (n, 3, size, size) uint8.

    Raises:
        ValueError: a value outside its range, with the allowed ones.

    Examples:
        >>> few, more = make_scenes(2, seed=0), make_scenes(5, seed=0)
        >>> bool((few.images == more.images[:2]).all()), few.images.shape
        (True, (2, 3, 32, 32))

    Taught in: notebooks/01_clip.ipynb
    """
    _check(n, seed, size, split, shift, detail=detail, colour=colour)
    draws = _uniforms(seed, _SCENES, n, len(LEVELS) + JITTERS)
    attributes = _draw(draws)
    if concepts is not None:
        _set_concepts(attributes, _check_concepts(concepts)[pick(_uniforms(seed, _CONCEPT, n, 1)[:, 0], len(concepts))])
    for name, value in (fixed or {}).items():
        attributes[name] = _check_fixed(name, value, n)
    images = paint(attributes, draws[:, len(LEVELS) :], _stream(seed, _NOISE), size=size, split=split, shift=shift)
    return Scenes(images, make_captions(attributes, seed=seed, detail=detail, colour=colour), attributes)


def make_captions(attributes: Mapping[str, Ints], *, seed: int, detail: float = 0.05, colour: float = 0.8) -> list[str]:
    """One caption a scene; the seed decides its facts, template, case and last mark.

    ``detail`` and ``colour`` are the probabilities of ``make_scenes``, which calls this with its own seed.
    """
    captions = []
    for i, u in enumerate(_uniforms(seed, _CAPTIONS, len(attributes["shape"]), 14)):
        told = [name for name, x in zip(DETAILS, u, strict=False) if x < detail] + ["colour"] * bool(u[8] < colour)
        text = _TEMPLATES[int(u[9] * len(_TEMPLATES))].format(describe(attributes, i, told))
        text = text.upper() if u[10] < 0.03 else text[0].upper() + text[1:] if u[10] < 0.4 else text
        captions.append(text + ("", "", "", ".", "!")[int(u[11] * 5)])
    return captions


def make_pairs(n_per_pattern: int, *, seed: int, size: int = 32, split: str = "test") -> list[Pair]:
    """Draw pairs in the manner of MMVP-VLM: one attribute differs, everything else down to each jitter is shared.

    ``n_per_pattern`` pairs for each of the nine ``PATTERNS``, in their order. Statements name shape, colour and the
    differing attribute. Only shapes that have a direction appear under "orientation". Nothing here depends on any
    model.

    >>> pair = make_pairs(1, seed=0)[1]
    >>> pair.pattern, pair.statement_b.replace("without", "with") == pair.statement_a.replace("without", "with")
    ('presence', True)

    Taught in: notebooks/09_diva.ipynb
    """
    _check(n_per_pattern, seed, size, split, None)
    pairs = []
    for code, (pattern, name) in enumerate(PATTERNS.items()):
        draws = _uniforms(seed, 16 + code, n_per_pattern, len(LEVELS) + JITTERS + 1)
        a = _draw(draws)
        if pattern == "orientation":
            a["shape"] = np.array(DIRECTED)[pick(draws[:, 0], len(DIRECTED))]
        b = dict(a)
        b[name] = (a[name] + 1 + pick(draws[:, -1], LEVELS[name] - 1)) % LEVELS[name]
        jitter = draws[:, len(LEVELS) : -1]
        left, right = (paint(x, jitter, _stream(seed, 64 + code), size=size, split=split) for x in (a, b))
        told = ("colour", name)
        for i in range(n_per_pattern):
            pairs.append(Pair(pattern, left[i], right[i], describe(a, i, told), describe(b, i, told)))
    return pairs


def make_pool(
    n: int,
    *,
    seed: int,
    size: int = 32,
    zipf: float = 1.4,
    junk: float = 0.2,
    spam: float = 0.2,
    spam_on: str = "head",
    images: bool = True,
) -> Pool:
    """Draw a pool of picture-caption pairs as a crawler would find them.

    Concepts follow a Zipf law, P(rank r) proportional to r ** -zipf. A share ``junk`` of the captions holds no
    concept; a share ``spam`` names one of the three most (``spam_on="head"``) or least ("tail") frequent concepts
    beside a picture of another; the rest describe their picture. A few captions are shouted in capitals, and so match
    no entry.

    >>> make_pool(4, seed=0, images=False).images is None
    True

    Taught in: notebooks/06_balance.ipynb
    """
    _check(n, seed, size, "train", None, junk=junk, spam=spam)
    if zipf <= 0 or junk + spam > 1 or spam_on not in ("head", "tail"):
        raise ValueError(f"zipf must be positive, junk + spam at most 1 and spam_on 'head' or 'tail'; "
                         f"not zipf={zipf}, junk={junk}, spam={spam}, spam_on={spam_on!r}")  # fmt: skip
    draws = _uniforms(seed, _POOL, n, 5)
    by_rank = concept_order()
    mass = np.arange(1, len(CONCEPTS) + 1) ** -float(zipf)
    concepts = by_rank[np.minimum(np.searchsorted(np.cumsum(mass) / mass.sum(), draws[:, 0], side="right"), 79)]
    kinds = np.array(["junk", "spam", "clean"])[np.searchsorted([junk, junk + spam], draws[:, 1], side="right")]
    target = by_rank[:3] if spam_on == "head" else by_rank[-3:]
    lure = target[pick(draws[:, 2], 3)]
    clash = (kinds == "spam") & (lure == concepts)
    concepts = np.where(clash, by_rank[3 + pick(draws[:, 3], 74)], concepts)
    scenes = _pool_scenes(n, seed, size, concepts, images)
    captions = []
    for i, kind in enumerate(kinds):
        number = int(draws[i, 4] * 9000) + 1000
        if kind == "junk":
            captions.append(_JUNK[number % len(_JUNK)].format(number))
        else:
            caption = scenes.captions[i]
            captions.append(caption if kind == "clean" else f"{CONCEPTS[lure[i]]} best price {number}")
    return Pool(scenes.images if images else None, captions, kinds, concepts)


def toy_entries() -> list[str]:
    """Metadata for the toy pool: every concept, every shape and colour, and a few entries that never occur."""
    return [*CONCEPTS, *SHAPES, *COLOURS, "violin", "aurora borealis", "U.S."]


def concept_order() -> Ints:
    """Concepts from the most to the least frequent in a pool, (80,): a fixed shuffle of ``range(80)``."""
    return np.argsort((np.arange(len(CONCEPTS)) * 37 + 11) % 80).astype(np.int64)


def base_new_concepts() -> tuple[Ints, Ints]:
    """Two halves of ``CONCEPTS`` that share every shape and every colour but no concept: (40,) base, (40,) new."""
    c = np.arange(len(CONCEPTS))
    new = (c // len(SHAPES) + c % len(SHAPES)) % 2 == 1
    return c[~new], c[new]


def vocabulary() -> list[str]:
    """Every word a clean caption can hold, sorted."""
    numbers = {w for i, s in enumerate(SHAPES) for w in (s, _plural(i))} | set(COLOURS) | set(DIGITS)
    rest = (
        " ".join(_TEMPLATES) + " a an with without dot striped plain hollow solid facing beside digit seen from below"
    )
    return sorted(numbers | set(re.findall(r"[a-z]+", rest + " " + " ".join(DIRECTIONS + POSITIONS))))


def describe(attributes: Mapping[str, Ints], i: int, told: Sequence[str]) -> str:
    """Say in words what the attributes named in ``told`` are for scene ``i``; the shape is always said.

    >>> describe({k: np.zeros(1, dtype=np.int64) for k in LEVELS}, 0, ("colour", "count", "digit"))
    'one red circle beside a zero'
    """
    v = {name: int(values[i]) for name, values in attributes.items()}
    shape = SHAPES[v["shape"]] if v["count"] == 0 or "count" not in told else _plural(v["shape"])
    words = [DIGITS[1 + v["count"]]] if "count" in told else []
    words += [("plain", "striped")[v["striped"]]] if "striped" in told else []
    words += [("solid", "hollow")[v["hollow"]]] if "hollow" in told else []
    words += [COLOURS[v["colour"]]] if "colour" in told else []
    words.append(shape)
    if "count" not in told:
        words.insert(0, _article(words[0]))
    words += [f"facing {DIRECTIONS[v['direction']]}"] if "direction" in told and v["shape"] in DIRECTED else []
    words += [("without a dot", "with a dot")[v["dot"]]] if "dot" in told else []
    digit = DIGITS[v["digit"]] if "digit" in told else "digit"
    relation = POSITIONS[v["position"]] if "position" in told else "beside"
    words += [f"{relation} {_article(digit)} {digit}"] if "digit" in told or "position" in told else []
    words += [f"seen from {('above', 'below')[v['viewpoint']]}"] if "viewpoint" in told else []
    return " ".join(words)


def _pool_scenes(n: int, seed: int, size: int, concepts: Ints, images: bool) -> Scenes:
    """Scenes of given concepts; without pictures only the captions and attributes are made."""
    draws = _uniforms(seed, _SCENES, n, len(LEVELS) + JITTERS)
    attributes = _draw(draws)
    _set_concepts(attributes, concepts)
    pictures = paint(attributes, draws[:, len(LEVELS) :], _stream(seed, _NOISE), size=size) if images else _NO_PICTURES
    return Scenes(pictures, make_captions(attributes, seed=seed, colour=1.0), attributes)


_NO_PICTURES: Bytes = np.zeros((0, 3, 0, 0), dtype=np.uint8)


def _uniforms(seed: int, stream: int, n: int, columns: int) -> Floats:
    """(n, columns) uniforms in [0, 1); row i is the same whatever n is."""
    return _stream(seed, stream).random((n, columns))


def _stream(seed: int, stream: int) -> np.random.Generator:
    """One of a seed's independent generators."""
    return np.random.Generator(np.random.Philox(key=[seed, stream]))


def _draw(draws: Floats) -> dict[str, Ints]:
    """Attributes from the first ten columns: each uniform, except that half of the scenes hold one large shape."""
    attributes = {name: pick(draws[:, j], k) for j, (name, k) in enumerate(LEVELS.items())}
    attributes["count"] = np.maximum(pick(draws[:, list(LEVELS).index("count")], 6) - 2, 0)
    return attributes


def _set_concepts(attributes: dict[str, Ints], concepts: Ints) -> None:
    attributes["colour"], attributes["shape"] = concepts // len(SHAPES), concepts % len(SHAPES)


def _plural(shape: int) -> str:
    return _PLURALS.get(SHAPES[shape], SHAPES[shape] + "s")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and word != "one" else "a"


def _check(n: int, seed: int, size: int, split: str, shift: str | None, **shares: float) -> None:
    if not isinstance(n, int | np.integer) or n < 0:
        raise ValueError(f"the number of scenes must be a non-negative integer; not {n!r}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer; not {seed!r}")
    if not isinstance(size, int | np.integer) or size < 32 or size % 16:
        raise ValueError(f"size must be a multiple of 16 from 32 on; not {size!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be one of ('train', 'test'); not {split!r}")
    if shift is not None and shift not in SHIFTS:
        raise ValueError(f"shift must be None or one of {SHIFTS}; not {shift!r}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a probability and must lie in [0, 1]; not {share!r}")


def _check_concepts(concepts: Sequence[int]) -> Ints:
    chosen = np.asarray(concepts, dtype=np.int64)
    if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= len(CONCEPTS):
        raise ValueError(
            f"concepts must be indices from 0 to {len(CONCEPTS) - 1}, at least one; not {list(concepts)[:5]}"
        )
    return chosen


def _check_fixed(name: str, value: int | Sequence[int] | Ints, n: int) -> Ints:
    if name not in LEVELS:
        raise ValueError(f"fixed names attributes, each one of {tuple(LEVELS)}; not {name!r}")
    values = np.asarray(value, dtype=np.int64)
    if (
        values.ndim > 1
        or (values.ndim == 1 and len(values) != n)
        or (values.size and not (0 <= values.min() <= values.max() < LEVELS[name]))
    ):
        raise ValueError(
            f"fixed[{name!r}] must be one value, or {n} values, from 0 to {LEVELS[name] - 1}; not {value!r}"
        )
    return np.broadcast_to(values, (n,)).copy()
