"""Paint scenes from their attributes: shapes, real handwritten digits, floor and sky, in integers.

Shapes are polynomial inequalities sampled finely and averaged; everything after that is integer arithmetic, so that
every machine paints the same bytes. ``world`` decides what is painted.

Taught in: notebooks/01_clip.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from sklearn.datasets import load_digits

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

SHIFTS = ("palette", "background", "noise", "blur")
JITTERS = 10  # uniform numbers that a scene's painting takes
RGB = np.array([(220, 40, 40), (240, 135, 20), (235, 215, 40), (40, 160, 60), (50, 200, 210), (45, 75, 215),
                 (135, 55, 175), (245, 130, 185)], dtype=np.int64)  # fmt: skip


def paint(
    attributes: Mapping[str, Ints],
    jitter: Floats,
    grain: np.random.Generator,
    *,
    size: int = 32,
    split: str = "train",
    shift: str | None = None,
    chunk: int = 256,
) -> Bytes:
    """Paint n scenes -> (n, 3, size, size) uint8.

    ``attributes`` maps the names of ``world.LEVELS`` to (n,) values; ``jitter`` (n, 10) uniforms in [0, 1) decide
    everything that no caption tells; ``grain`` gives the pixels' noise. ``split`` says which digits may appear,
    ``shift`` which other world it is.

    Taught in: notebooks/01_clip.ipynb
    """
    n = len(jitter)
    out = np.empty((n, 3, size, size), dtype=np.uint8)
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        values = {name: v[part] for name, v in attributes.items()}
        noise = np.frombuffer(grain.bytes(out[part].size), dtype=np.uint8).reshape(out[part].shape)
        out[part] = _paint(values, jitter[part], noise, size, split, shift)
    return out


def _paint(v: Mapping[str, Ints], u: Floats, noise: Bytes, size: int, split: str, shift: str | None) -> Bytes:
    ink, stripe, dark = _alphas(v, u, size, split)  # three coverages (n, h, w), 0-255
    image = _background(v["viewpoint"], u, size, shift)  # (n, 3, h, w) uint16
    colour = RGB[v["colour"]]
    if shift == "palette":
        colour = (colour * 2 + 3 * 40) // 5  # washed towards dark grey
    colour = np.minimum(colour * (220 + pick(u[:, 5], 60))[:, None] // 256, 255)
    _blend(image, colour, ink)
    _blend(image, colour * 2 // 5, stripe)
    _blend(image, np.full_like(colour, 240 if shift == "background" else 15), dark)
    if shift == "blur":
        image = _blur(image)
    amplitude = 49 if shift == "noise" else 6
    grained = image.astype(np.int16) + (noise.astype(np.int16) * (2 * amplitude + 1) >> 8) - amplitude
    return np.clip(grained, 0, 255).astype(np.uint8)


def _blend(image: NDArray[np.uint16], colour: Ints, alpha: Bytes) -> None:
    """Cover ``image`` (n, 3, h, w) in place by ``colour`` (n, 3) with coverage ``alpha`` (n, h, w)."""
    a = alpha[:, None].astype(np.uint16)
    image[...] = (image * (255 - a) + colour[:, :, None, None].astype(np.uint16) * a + 127) // 255


def _background(viewpoint: Ints, u: Floats, size: int, shift: str | None) -> NDArray[np.uint16]:
    """Sky over a darker floor; the horizon is high when the scene is seen from above, low from below."""
    level = (30 if shift == "background" else 165) + pick(u[:, 6], 60)
    tint = np.stack([pick(u[:, 7], 24), pick(u[:, 7] * 24 % 1, 24), pick(u[:, 7] * 576 % 1, 24)], axis=1)  # (n, 3)
    sky = np.minimum(level[:, None] + tint, 255)
    floor = sky * (140 + pick(u[:, 8], 40))[:, None] // 256
    high = size * (3 + pick(u[:, 9], 5)) // 32
    horizon = np.where(viewpoint == 0, high, size - high)
    below = np.arange(size)[None, :] >= horizon[:, None]  # (n, h)
    rows = np.where(below[:, None], floor[:, :, None], sky[:, :, None])  # (n, 3, h)
    return np.repeat(rows[..., None].astype(np.uint16), size, axis=3)


def _blur(image: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """3 x 3 box blur with repeated borders."""
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    h, w = image.shape[2:]
    windows = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.add.reduce(windows) // 9


def _alphas(v: Mapping[str, Ints], u: Floats, size: int, split: str) -> Bytes:
    """Place the cluster of shapes at one side and the digit at the other -> coverages (3, n, h, w)."""
    large, small = _sprites(size)
    kind = np.ravel_multi_index([v["shape"], v["direction"], v["hollow"], v["striped"], v["dot"], pick(u[:, 0], 2)],
                                (10, 4, 2, 2, 2, 2))  # fmt: skip
    order = np.array([0, 2, 3, 1])  # the quadrants fill along the diagonal first
    drawn = order[None, :] <= v["count"][:, None]  # (n, 4)
    tiled = np.tile(small[kind], (1, 1, 2, 2)).reshape(len(kind), 3, 2, small.shape[-1], 2, small.shape[-1])
    tiled = (tiled * drawn.reshape(-1, 1, 2, 1, 2, 1)).reshape(len(kind), *large.shape[1:])
    cluster = np.where((v["count"] == 0)[:, None, None, None], large[kind], tiled)  # (n, 3, B, B)
    glyph = _digits(size, split)[v["digit"], pick(u[:, 1], 1 << 20) % _digit_counts(split)[v["digit"]]]  # (n, g, g)
    across, spread = size - large.shape[-1], size - glyph.shape[-1]
    first = v["position"] % 2 == 0  # left of, above: the cluster comes first along the axis
    along = np.where(first, 0, across), np.where(first, spread, 0)
    free = pick(u[:, 2], across + 1), pick(u[:, 3], spread + 1)
    sideways = v["position"] < 2
    alphas = np.zeros((3, len(kind), size, size), dtype=np.uint8)
    for patch, a, f in ((cluster, along[0], free[0]), (glyph, along[1], free[1])):
        box = np.arange(patch.shape[-1])
        y = np.where(sideways, f, a)[:, None, None] + box[:, None]
        x = np.where(sideways, a, f)[:, None, None] + box[None, :]
        who = np.arange(len(kind))[:, None, None]
        for layer in (0, 1, 2) if patch is cluster else (2,):
            alphas[layer, who, y, x] = cluster[:, layer] if patch is cluster else glyph
    return alphas


@lru_cache(maxsize=4)
def _sprites(size: int) -> tuple[Bytes, Bytes]:
    """Coverages of every drawing in both box sizes: (640, 3, B, B) large and (640, 3, B/2, B/2) small.

    Index: shape, direction, hollow, striped, dot, scale. Layers: colour, stripe in a darker shade, black dot.
    """
    box = 2 * (size * 10 // 32)
    fine = max(2, 128 // size)  # sub-pixels a side
    made = []
    for side, outline in ((box, size * 1.8 / 32), (box // 2, size * 0.8 / 32)):
        drawings = [
            _sprite(_inside(shape, side * fine, scale), turn, hollow, striped, dot, side, fine, size, outline)
            for shape in range(10) for turn in range(4) for hollow in (0, 1) for striped in (0, 1) for dot in (0, 1)
            for scale in (0.85, 0.97)
        ]  # fmt: skip
        made.append(np.stack(drawings))
    return made[0], made[1]


def _sprite(
    body: NDArray[np.bool_],
    turn: int,
    hollow: int,
    striped: int,
    dot: int,
    side: int,
    fine: int,
    size: int,
    outline: float,
) -> Bytes:
    """One drawing's three coverages (3, side, side) from its fine outline mask."""
    body = np.rot90(body, -turn)
    if hollow:
        body = body & ~binary_erosion(body, iterations=max(1, round(outline * fine)))
    band = np.arange(side * fine) * 16 // (size * fine) % 2  # two pixels at size 32
    stripe = np.broadcast_to(((band == 1) & bool(striped))[:, None], body.shape)
    grid = _grid(side * fine)
    spot = (grid[0] ** 2 + grid[1] ** 2 < 0.27**2) & bool(dot)
    layers = np.stack([body & ~stripe, body & stripe, spot])
    share = layers.reshape(3, side, fine, side, fine).mean(axis=(2, 4))
    return (share * 255 + 0.5).astype(np.uint8)


def _grid(side: int) -> tuple[Floats, Floats]:
    """Pixel centres in [-1, 1]: x to the right (1, side), y upwards (side, 1)."""
    centres = (2 * np.arange(side) + 1) / side - 1
    return centres[None, :], -centres[:, None]


@lru_cache(maxsize=64)
def _inside(shape: int, side: int, scale: float) -> NDArray[np.bool_]:
    """Which fine pixels lie in a shape that faces up: polynomial inequalities only, so every machine agrees."""
    x, y = (axis / scale for axis in _grid(side))
    ax, ay = abs(x), abs(y)
    inside = (
        x * x + y * y < 0.85,
        np.maximum(ax, ay) < 0.8,
        ax + ay < 1,
        (np.minimum(ax, ay) < 0.3) & (np.maximum(ax, ay) < 0.95),
        ax + ay + 1.1 * np.sqrt(ax * ay) < 1.05,
        (y > -0.75) & (ax < (0.95 - y) * 0.55),
        ((y > 0) & (ax < 0.95 - y)) | ((y <= 0) & (y > -0.95) & (ax < 0.32)),
        (1.4 * x * x + (1.15 * y + 0.1) ** 2 - 1) ** 3 < 1.4 * x * x * (1.15 * y + 0.1) ** 3,
        (x * x + y * y < 0.9) & (x * x + (y - 0.7) ** 2 > 0.4),
        ((y > 0.4) & (y < 0.9) & (ax < 0.95)) | ((y <= 0.4) & (y > -0.95) & (ax < 0.3)),
    )
    return np.broadcast_to(inside[shape], (side, side))


@lru_cache(maxsize=1)
def _digit_images() -> dict[str, list[Bytes]]:
    """scikit-learn's handwritten digits by split and class; the last quarter (mostly other writers) is "test"."""
    images, labels = load_digits(return_X_y=True)
    ink = (images.reshape(-1, 8, 8) * 255 / 16 + 0.5).astype(np.uint8)
    edge = 1347
    parts = {"train": slice(0, edge), "test": slice(edge, None)}
    return {name: [ink[part][labels[part] == d] for d in range(10)] for name, part in parts.items()}


def _digit_counts(split: str) -> Ints:
    return np.array([len(images) for images in _digit_images()[split]], dtype=np.int64)


@lru_cache(maxsize=8)
def _digits(size: int, split: str) -> Bytes:
    """Every digit image of a split, enlarged to the glyph's box: (10, most, g, g), short classes padded by nothing."""
    box = size * 12 // 32
    counts = _digit_counts(split)
    table = np.zeros((10, counts.max(), box, box), dtype=np.uint8)
    for d, images in enumerate(_digit_images()[split]):
        table[d, : len(images)] = _enlarge(images, box)
    return table


def _enlarge(images: Bytes, box: int) -> Bytes:
    """Bilinear enlargement (n, 8, 8) -> (n, box, box) in integers."""
    place: Ints = np.clip((2 * np.arange(box) + 1) * 8 * 128 // box - 128, 0, 7 * 256 - 1)  # in 1/256 of a source pixel
    low, part = place // 256, place % 256
    source: Ints = images.astype(np.int64)
    rows = source[:, low] * (256 - part)[:, None] + source[:, low + 1] * part[:, None]
    both = rows[:, :, low] * (256 - part) + rows[:, :, low + 1] * part
    return (both // 65536).astype(np.uint8)


def pick(u: Floats, k: int) -> Ints:
    """Uniforms in [0, 1) -> integers from 0 to k - 1."""
    return (u * k).astype(np.int64)
