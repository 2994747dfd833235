"""The toy world: what its pictures and captions say must be true, and a seed must be the whole data set."""

import re
from collections import Counter

import numpy as np
import pytest

from minilib import drawing, world


def pixels_by_colour(image: np.ndarray) -> Counter:
    """How many pixels lie nearest to each named colour, far from grey: an independent look at a picture."""
    flat = image.reshape(3, -1).T.astype(float)
    vivid = flat[np.ptp(flat, axis=1) > 70]
    nearest = ((vivid[:, None] - drawing.RGB[None]) ** 2).sum(2).argmin(1)
    return Counter(world.COLOURS[k] for k in nearest)


def test_shapes_types_and_ranges():
    scenes = world.make_scenes(50, seed=3)
    assert scenes.images.shape == (50, 3, 32, 32) and scenes.images.dtype == np.uint8
    assert len(scenes) == len(scenes.captions) == 50
    for name, levels in world.LEVELS.items():
        values = scenes.attributes[name]
        assert values.shape == (50,) and values.dtype == np.int64 and set(values) <= set(range(levels))


def test_longer_draw_begins_with_the_shorter_one():
    few, many = world.make_scenes(7, seed=11), world.make_scenes(300, seed=11)
    assert np.array_equal(few.images, many.images[:7]) and few.captions == many.captions[:7]


def test_seeds_and_splits_differ_and_seeds_repeat():
    a, b = world.make_scenes(5, seed=1), world.make_scenes(5, seed=2)
    assert not np.array_equal(a.images, b.images)
    assert np.array_equal(a.images, world.make_scenes(5, seed=1).images)
    assert not np.array_equal(a.images, world.make_scenes(5, seed=1, split="test").images)


def test_chunks_leave_no_seam():
    """A picture at a chunk's border equals the same picture when the chunks fall elsewhere."""
    draws = world._uniforms(5, world._SCENES, 20, 20)
    attributes, jitter = world._draw(draws), draws[:, 10:]
    whole, parts = (drawing.paint(attributes, jitter, world._stream(5, 2), chunk=c) for c in (256, 6))
    assert np.array_equal(whole, parts)


def test_attributes_are_uniform_and_independent():
    attributes = world.make_scenes(8000, seed=0).attributes
    for name, levels in world.LEVELS.items():
        share = np.bincount(attributes[name], minlength=levels) / 8000
        expected = np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6]) if name == "count" else np.full(levels, 1 / levels)
        spread = np.sqrt(expected * (1 - expected) / 8000)
        assert (abs(share - expected) < 4.5 * spread).all(), name
    names = list(world.LEVELS)
    correlation = np.corrcoef([attributes[n] for n in names])
    assert abs(correlation - np.eye(len(names))).max() < 4.5 / np.sqrt(8000)


def test_the_named_colour_is_the_colour_seen():
    plain = {"hollow": 0, "striped": 0, "dot": 0, "count": 0}
    scenes = world.make_scenes(200, seed=4, fixed=plain)
    seen = [pixels_by_colour(image).most_common(1)[0][0] for image in scenes.images]
    said = [world.COLOURS[c] for c in scenes.attributes["colour"]]
    assert np.mean([s == t for s, t in zip(seen, said, strict=True)]) > 0.97


@pytest.mark.parametrize("position", range(4))
def test_the_shape_stands_where_the_caption_says(position):
    scenes = world.make_scenes(60, seed=5, fixed={"position": position, "hollow": 0, "striped": 0, "colour": 0})
    red = (scenes.images[:, 0].astype(int) - scenes.images[:, 1]) > 70  # (n, h, w)
    black = scenes.images.max(axis=1) < 60
    grid = np.arange(32)
    centre = [
        [(m * axis).sum((1, 2)) / m.sum((1, 2)).clip(1) for axis in (grid[None, None, :], grid[None, :, None])]
        for m in (red, black & ~red)
    ]
    (shape_x, shape_y), (digit_x, digit_y) = centre
    if world.LEVELS["dot"]:
        keep = scenes.attributes["dot"] == 0  # dots are black, too
    first = {0: shape_x < digit_x, 1: shape_x > digit_x, 2: shape_y < digit_y, 3: shape_y > digit_y}[position]
    assert first[keep].all()


def test_more_copies_cover_more_of_the_same_small_shape():
    areas = []
    for count in (1, 2, 3):
        fixed = {"count": count, "colour": 0, "hollow": 0, "striped": 0, "dot": 0}
        images = world.make_scenes(100, seed=6, fixed=fixed).images
        areas.append(((images[:, 0].astype(int) - images[:, 1]) > 70).sum())
    ratio = np.array(areas) / areas[0] * 2
    assert abs(ratio - [2, 3, 4]).max() < 0.15


@pytest.mark.parametrize("attribute", [a for a in world.PATTERNS.values()])
@pytest.mark.parametrize("size", [32, 64])
def test_each_attribute_changes_pixels_in_patches_of_four(attribute, size):
    """Changing one attribute moves some 4 x 4 patch mean (at size 32) by more than the grain could."""
    fixed = {"shape": 6} if attribute == "direction" else {}
    a = world.make_scenes(80, seed=7, size=size, fixed=fixed)
    other = (a.attributes[attribute] + 1) % world.LEVELS[attribute]
    b = world.make_scenes(80, seed=7, size=size, fixed={**fixed, **a.attributes, attribute: other})
    gap = a.images.astype(float) - b.images
    p = size // 8
    patches = gap.reshape(80, 3, 8, p, 8, p).mean((3, 5))
    assert (abs(patches).max((1, 2, 3)) > 8).all()


def test_digits_are_the_real_ones_and_splits_share_none():
    from sklearn.datasets import load_digits

    sets = drawing._digit_images()
    train, test = ({image.tobytes() for images in sets[s] for image in images} for s in ("train", "test"))
    assert sum(len(images) for s in sets.values() for images in s) == 1797
    assert not train & test
    raw = load_digits().images[0]  # a zero
    assert np.array_equal(sets["train"][0][0], np.floor(raw * 255 / 16 + 0.5).astype(np.uint8))


def test_enlarging_a_flat_digit_leaves_it_flat():
    assert set(drawing._enlarge(np.full((1, 8, 8), 200, np.uint8), 12).ravel()) == {200}


def test_sparse_captions_always_tell_the_shape_and_rarely_the_rest():
    scenes = world.make_scenes(4000, seed=8, detail=0.05, colour=0.8)
    text = [c.lower() for c in scenes.captions]
    assert all(world.SHAPES[s] in t for s, t in zip(scenes.attributes["shape"], text, strict=True))
    told_colour = np.mean([any(re.search(rf"\b{c}\b", t) for c in world.COLOURS) for t in text])
    told_dot = np.mean(["dot" in t for t in text])
    assert abs(told_colour - 0.8) < 0.03 and abs(told_dot - 0.05) < 0.015


def test_dense_captions_are_true():
    scenes = world.make_scenes(300, seed=9, detail=1.0, colour=1.0)
    for i, caption in enumerate(scenes.captions):
        v, text = {k: int(a[i]) for k, a in scenes.attributes.items()}, caption.lower()
        assert ("without a dot" in text) == (v["dot"] == 0) and ("hollow" in text) == (v["hollow"] == 1)
        assert ("striped" in text) == (v["striped"] == 1) and world.POSITIONS[v["position"]] in text
        assert world.DIGITS[v["digit"]] in text.split(world.POSITIONS[v["position"]])[1]
        assert ("facing " + world.DIRECTIONS[v["direction"]] in text) == (v["shape"] in world.DIRECTED)
        assert text.count("seen from above") == (v["viewpoint"] == 0)


def test_captions_come_in_several_templates_cases_and_marks():
    captions = world.make_scenes(2000, seed=10).captions
    assert any(c.isupper() for c in captions) and any(c[0].isupper() and not c.isupper() for c in captions)
    assert {c[-1] for c in captions} >= {".", "!"} and any(c.startswith("a photo of") for c in captions)


def test_vocabulary_holds_every_word_of_every_caption():
    words = {w for c in world.make_scenes(3000, seed=12, detail=0.7).captions for w in re.findall("[a-z]+", c.lower())}
    words |= {w for p in world.make_pairs(50, seed=1) for w in re.findall("[a-z]+", p.statement_a)}
    assert words <= set(world.vocabulary())


def test_pairs_differ_in_one_attribute_and_share_the_rest():
    pairs = world.make_pairs(30, seed=13)
    assert [p.pattern for p in pairs[::30]] == list(world.PATTERNS)
    for p in pairs:
        assert p.image_a.shape == (3, 32, 32) and p.statement_a != p.statement_b
        assert not np.array_equal(p.image_a, p.image_b)
        if p.pattern in ("presence", "structure", "state", "colour", "glyph"):  # one box
            rows, columns = np.nonzero((p.image_a != p.image_b).any(0))
            assert np.ptp(rows) < 21 and np.ptp(columns) < 21


def test_orientation_pairs_use_shapes_that_have_a_direction():
    shapes = {world.SHAPES[s] for s in world.DIRECTED}
    for p in world.make_pairs(40, seed=14)[:40]:
        assert p.pattern == "orientation" and any(s in p.statement_a for s in shapes)


def test_pool_follows_its_law():
    pool = world.make_pool(30_000, seed=15, images=False)
    rank = np.empty(80, int)
    rank[world.concept_order()] = np.arange(80)
    clean = pool.kinds == "clean"
    count = np.bincount(rank[pool.concepts[clean]], minlength=80)
    expected = np.arange(1, 81) ** -1.4 / (np.arange(1, 81) ** -1.4).sum() * clean.sum()
    assert (abs(count - expected) < 4.5 * np.sqrt(expected) + 1).all()
    for kind in ("junk", "spam"):
        assert abs((pool.kinds == kind).mean() - 0.2) < 0.01


def test_spam_names_another_concept_than_its_picture_shows_and_junk_none():
    pool = world.make_pool(3000, seed=16)
    entries = world.toy_entries()
    heads = {world.CONCEPTS[c] for c in world.concept_order()[:3]}
    for kind, caption, concept in zip(pool.kinds, pool.captions, pool.concepts, strict=True):
        named = [e for e in entries if f" {e} " in f" {caption} "]
        if kind == "junk":
            assert not named
        if kind == "spam":
            lure = next(e for e in named if e in world.CONCEPTS)
            assert lure in heads and lure != world.CONCEPTS[concept]
    assert pool.images is not None and pool.images.shape == (3000, 3, 32, 32)


def test_spam_can_sit_in_the_tail():
    pool = world.make_pool(500, seed=17, images=False, spam_on="tail")
    tails = {world.CONCEPTS[c] for c in world.concept_order()[-3:]}
    spam = [c for c, k in zip(pool.captions, pool.kinds, strict=True) if k == "spam"]
    assert spam and all(any(t in c for t in tails) for c in spam)


def test_pool_without_pictures_has_the_same_captions():
    assert world.make_pool(200, seed=18).captions == world.make_pool(200, seed=18, images=False).captions


def test_base_and_new_concepts_share_shapes_and_colours_but_no_concept():
    base, new = world.base_new_concepts()
    assert len(base) == len(new) == 40 and not set(base) & set(new)
    for part in (base, new):
        assert set(part // 10) == set(range(8)) and set(part % 10) == set(range(10))


def test_concepts_restrict_the_draw():
    assert set(world.make_scenes(300, seed=19, concepts=[3, 47]).concepts) == {3, 47}


@pytest.mark.parametrize("shift", world.SHIFTS)
def test_a_shift_changes_pictures_and_nothing_else(shift):
    plain, shifted = world.make_scenes(40, seed=20), world.make_scenes(40, seed=20, shift=shift)
    assert plain.captions == shifted.captions
    assert abs(plain.images.astype(float) - shifted.images).mean() > 2


def test_blur_of_a_flat_picture_is_flat():
    assert set(drawing._blur(np.full((1, 3, 5, 5), 77, np.uint16)).ravel()) == {77}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": -1}, "non-negative integer; not -1"),
        ({"seed": -3}, "seed must be a non-negative integer; not -3"),
        ({"size": 40}, "multiple of 16 from 32 on; not 40"),
        ({"split": "val"}, "split must be one of ('train', 'test'); not 'val'"),
        ({"detail": 1.5}, "detail is a probability and must lie in [0, 1]; not 1.5"),
        ({"shift": "fog"}, "not 'fog'"),
        ({"concepts": [80]}, "indices from 0 to 79"),
        ({"fixed": {"colour": 8}}, "from 0 to 7; not 8"),
        ({"fixed": {"color": 1}}, "not 'color'"),
        ({"fixed": {"dot": [0, 1]}}, "or 4 values"),
    ],
)
def test_bad_arguments_name_what_came_and_what_was_expected(arguments, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        world.make_scenes(**({"n": 4, "seed": 0} | arguments))


def test_an_empty_draw_is_empty():
    scenes = world.make_scenes(0, seed=0)
    assert scenes.images.shape == (0, 3, 32, 32) and scenes.captions == []
