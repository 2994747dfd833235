"""exam: scores and intervals by hand and against exact distributions, probes by construction, meters on known moves."""

import copy
import doctest
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

from minilib import exam, mmvp, models, world
from minilib.evaluate import few_shot_rows, mcnemar, wilson_interval
from minilib.exam import combine, compare, examine, pair_report, pattern_mean, probe, read_solved, visual_share
from minilib.towers import Condition

SMALL = {"pairs": 4, "test": 200, "train": 400, "shots": 3}


@pytest.fixture(scope="module")
def clip():
    return models.load_clip("toy-blind", device="cpu")


def test_docstring_examples():
    assert doctest.testmod(exam).failed == 0


def survives_json(report) -> bool:
    return json.loads(json.dumps(report)) == report


# Pairs ---------------------------------------------------------------------------------------------------------------


def test_pair_report_by_hand():
    """Dot: 1 of 3. Count: 1 of 1. The score is (1/3 + 1) / 2 = 2/3, not 2 of 4."""
    report = pair_report(torch.tensor([False, True, True, False]), ["dot", "count", "dot", "dot"])
    assert report["pairs"] == pytest.approx(2 / 3) and (report["won"], report["n"]) == (2, 4)
    assert report["chance"] == 0.25 and list(report["patterns"]) == ["dot", "count"]
    dot = report["patterns"]["dot"]
    assert (dot["pairs"], dot["won"], dot["n"]) == (1 / 3, 1, 3)
    assert dot["interval"] == list(wilson_interval(1, 3))
    assert report["solved"] == "0110" and read_solved(report["solved"]).tolist() == [False, True, True, False]
    assert survives_json(report)


def test_published_figures_come_out():
    """Wang et al. 2025: 13.3 13.3 20 20 13.3 53.3 20 6.7 13.3 for OpenAI's ViT-L/14: 26 of 135 pairs, 19.3 %."""
    counts = [2, 2, 3, 3, 2, 8, 3, 1, 2]
    won = np.concatenate([np.arange(15) < k for k in counts])
    report = pair_report(won, np.repeat([f"pattern {i}" for i in range(9)], 15))
    assert report["won"] == 26 and round(100 * report["pairs"], 1) == 19.3
    assert [round(100 * row["pairs"], 1) for row in report["patterns"].values()][5] == 53.3
    assert report["interval"][0] < 0.193 < report["interval"][1]


def test_interval_of_a_score_is_that_of_the_exact_bootstrap():
    """A pattern with k of n, drawn anew, is Binomial(n, k / n): the score's law is the convolution of two of them."""
    n, won = 40, (30, 8)
    law = np.convolve(*(binom.pmf(np.arange(n + 1), n, k / n) for k in won)).cumsum()
    values = np.concatenate([np.arange(n) < k for k in won])
    low, high = pair_report(values, ["a"] * n + ["b"] * n, seed=3)["interval"]
    for end, share in ((low, 0.025), (high, 0.975)):
        k, luck = end * 2 * n, 4 * (0.025 * 0.975 / exam.DRAWS) ** 0.5  # law[k] is P(score <= k / 2n)
        assert law[int(np.ceil(k)) - 1] - luck <= share <= law[int(np.ceil(k))] + luck


def test_pairs_are_drawn_within_their_pattern():
    """All of one pattern and none of the other: nothing can vary, though half of all pairs were lost."""
    won = np.repeat([True, False], 50)
    assert pair_report(won, ["a"] * 50 + ["b"] * 50)["interval"] == [0.5, 0.5]


def test_the_seed_decides_the_interval(rng):
    won, patterns = rng.random(300) < 0.4, ["a"] * 83 + ["b"] * 101 + ["c"] * 116
    assert pair_report(won, patterns, seed=1) == pair_report(won, patterns, seed=1)
    assert pair_report(won, patterns, seed=1)["interval"] != pair_report(won, patterns, seed=2)["interval"]


def test_pattern_mean_counts_patterns_alike():
    """(0.5 + 0 + 1) / 3."""
    assert pattern_mean([1, 0, 0, 1, 1, 1], ["a", "a", "b", "c", "c", "c"]) == 0.5


@pytest.mark.parametrize("won", [[1, 0], [0.5, 0.2], [True], [[True, False]], [True, False, True]])
def test_pair_report_wants_one_boolean_a_pair(won):
    with pytest.raises(ValueError, match="won must be booleans, one for each of 2 patterns; got"):
        pair_report(np.array(won), ["a", "b"])


def test_reports_of_nothing_are_refused():
    with pytest.raises(ValueError, match="one for each of 0 patterns"):
        pair_report(np.zeros(0, dtype=bool), [])
    with pytest.raises(ValueError, match="got 2 for 3 pairs"):
        pattern_mean([1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="made of 0 and 1; not '01x'"):
        read_solved("01x")


# Two models ----------------------------------------------------------------------------------------------------------


def test_compare_by_hand():
    """Pattern a: 5 won, 0 lost of 10, p = 2 / 2^5; b: 1 won, 1 lost of 4, p = 1. Gains 0.5 and 0, mean 0.25.

    Together 6 won and 1 lost: p = 2 (1 + 7) / 2^7. Holm: 2 * 0.0625, then max(0.125, 1 * 1).
    """
    first = np.array([False] * 5 + [True] * 5 + [True, False, True, False])
    second = np.array([True] * 10 + [False, True, True, False])
    report = compare(first, second, ["a"] * 10 + ["b"] * 4)
    assert (report["gain"], report["won"], report["lost"]) == (0.25, 6, 1) and report["p"] == pytest.approx(16 / 128)
    a, b = report["patterns"].values()
    assert (a["gain"], a["won"], a["lost"], a["p"], a["p_holm"]) == (0.5, 5, 0, 0.0625, 0.125)
    assert (b["gain"], b["won"], b["lost"], b["p"], b["p_holm"]) == (0.0, 1, 1, 1.0, 1.0)
    assert survives_json(report)


def test_the_gain_is_paired():
    """Both models agree but on 10 of 200 pairs, all won: the gain is sure, though their own intervals overlap."""
    rng = np.random.default_rng(1)
    first = rng.random(200) < 0.5
    second = first.copy()
    second[np.flatnonzero(~first)[:10]] = True
    report, alone = compare(first, second, ["a"] * 200), [pair_report(x, ["a"] * 200) for x in (first, second)]
    assert report["interval"][0] > 0 and alone[0]["interval"][1] > alone[1]["interval"][0]
    low, high = binom.ppf([0.025, 0.975], 200, 10 / 200) / 200  # drawn anew, the number won is Binomial(200, 1/20)
    assert report["interval"] == pytest.approx([low, high], abs=0.0051)  # one pair


def test_swapping_the_models_turns_the_gain_round(rng):
    a, b = rng.random((2, 90)) < 0.5
    patterns = ["x", "y", "z"] * 30
    there, back = compare(a, b, patterns, seed=5), compare(b, a, patterns, seed=5)
    assert there["gain"] == pytest.approx(-back["gain"])
    assert there["interval"] == pytest.approx([-end for end in back["interval"][::-1]])
    assert there["p"] == back["p"] == mcnemar(a, b) and (there["won"], there["lost"]) == (back["lost"], back["won"])


def test_compare_names_what_is_wrong():
    with pytest.raises(ValueError, match="second_won must be booleans, one for each of 2"):
        compare(np.array([True, False]), np.array([True]), ["a", "b"])


# Several seeds -------------------------------------------------------------------------------------------------------


def test_combine_by_hand():
    """Seeds gain 0.1, 0.2 and 0.3 of 10 pairs: mean 0.2, Student 0.2 -+ 4.303 * 0.1 / sqrt(3)."""
    gains = {seed: np.arange(10) < k for seed, k in ((7, 1), (8, 2), (9, 3))}
    report = combine({seed: g.astype(float) for seed, g in gains.items()}, ["a"] * 10)
    assert report["gain"] == pytest.approx(0.2) and report["by_seed"] == pytest.approx([0.1, 0.2, 0.3])
    assert report["student"] == pytest.approx([0.2 - 0.24841, 0.2 + 0.24841], abs=1e-4)
    assert (report["seeds"], report["n"]) == (3, 10) and report["patterns"]["a"]["gain"] == pytest.approx(0.2)
    assert survives_json(report) and combine(list(gains.values()), ["a"] * 10) == report


def test_patterns_weigh_alike_in_every_seed():
    """Dot 1 of 1, count 0 of 3: 0.5 for a seed; the other seed gains nothing."""
    report = combine([[1, 0, 0, 0], [0, 0, 0, 0]], ["dot", "count", "count", "count"])
    assert report["by_seed"] == [0.5, 0.0] and report["gain"] == 0.25
    assert {name: row["gain"] for name, row in report["patterns"].items()} == {"dot": 0.5, "count": 0.0}


def test_seeds_are_drawn_anew():
    """Nothing varies between pairs. Two seeds, 0 and 1: drawn twice, the mean is 0, 1/2 or 1 with 1/4, 1/2, 1/4."""
    values = np.stack([np.zeros(30), np.ones(30)])
    draws = exam._resampled(values, {"a": np.arange(30)}, 0)[:, 0]
    for value, share in ((0, 0.25), (0.5, 0.5), (1, 0.25)):
        assert (draws == value).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / exam.DRAWS) ** 0.5)
    assert combine(values, ["a"] * 30)["interval"] == [0, 1]


def test_a_pair_that_all_seeds_find_easy_counts_once():
    """Ten equal seeds know no more of other pairs than one does; drawing pairs apart would shrink the interval by 3."""
    row = (np.random.default_rng(2).random(100) < 0.5).astype(float)
    one, ten = (combine([row] * s, ["a"] * 100) for s in (1, 10))
    width = [report["interval"][1] - report["interval"][0] for report in (one, ten)]
    assert width[1] == pytest.approx(width[0], rel=0.1) and one["student"] is None
    assert ten["student"] == pytest.approx([row.mean()] * 2)


def test_spread_of_the_bootstrap_is_that_of_both_levels():
    """Seeds and pairs act additively, g = s + p: the variance of a drawn mean is var(s) / S + var(p) / n, exactly."""
    rng = np.random.default_rng(3)
    s, p = rng.normal(size=(6, 1)), rng.normal(size=(1, 40))
    draws = exam._resampled(s + p, {"a": np.arange(40)}, 0)[:, 0]
    assert draws.var() == pytest.approx(s.var() / 6 + p.var() / 40, rel=4 * (2 / exam.DRAWS) ** 0.5)


def test_one_seed_is_a_paired_comparison(rng):
    a, b = rng.random((2, 60)) < 0.5
    patterns = ["x", "y"] * 30
    report, alone = combine([b.astype(float) - a], patterns, seed=4), compare(a, b, patterns, seed=4)
    assert report["gain"] == pytest.approx(alone["gain"]) and report["interval"] == alone["interval"]
    assert report["patterns"]["x"]["interval"] == alone["patterns"]["x"]["interval"]


@pytest.mark.parametrize(("gains", "said"), [
    ([], "at least one seed"), ([[1.0, 0.0], [1.0]], r"seed number 1 must have 2 finite gains.*\(1,\)"),
    ([[np.nan, 0.0]], "seed number 0"),
])  # fmt: skip
def test_combine_names_what_is_wrong(gains, said):
    with pytest.raises(ValueError, match=said):
        combine(gains, ["a", "b"])


# Probes --------------------------------------------------------------------------------------------------------------


def test_probes_find_what_is_there_and_nothing_else():
    """Feature 0 is the bright attribute; xor is the sign of a product, which no line divides; luck is a coin."""
    rng = np.random.default_rng(0)

    def draw(n):
        x = rng.normal(size=(n, 6))
        x[:, 0] += 8 * np.sign(x[:, 0])
        seen = {"bright": x[:, 0] > 0, "xor": x[:, 1] * x[:, 2] > 0, "luck": rng.random(n) < 0.5}
        return x, {name: v.astype(int) for name, v in seen.items()}

    (x, y), (x_new, y_new) = draw(2000), draw(4000)
    report = probe(x, y, torch.tensor(x_new), {k: torch.tensor(v) for k, v in y_new.items()})
    assert report["bright"]["linear"] == report["bright"]["gda"] == 1
    for name in ("xor", "luck"):
        assert report[name]["linear"] == pytest.approx(0.5, abs=0.05)
        assert report[name]["gda"] == pytest.approx(0.5, abs=0.05)
    assert survives_json(report)


def test_chance_is_the_commonest_training_class_and_rows_without_the_attribute_are_left_out():
    """Training: twice 1, six times 0. Of the four test rows that have it, three are 0. The others would spoil both."""
    x = np.array([[-1.0], [-1.1], [-0.9], [-1.2], [-0.8], [-1.3], [1.0], [1.1], [1.0]])
    y = {"a": np.array([0, 0, 0, 0, 0, 0, 1, 1, -1])}
    new = {"a": np.array([0, 0, 0, 1, -1])}
    report = probe(x, y, [[-1.0], [-1.0], [-1.0], [1.0], [50.0]], new, shots=2)
    assert report == {"a": {"linear": 1.0, "gda": 1.0, "chance": 0.75, "classes": 2}}


def test_scale_of_a_feature_does_not_matter_to_the_linear_probe(rng):
    x, y = rng.normal(size=(300, 4)), {"a": rng.integers(3, size=300)}
    x[np.arange(300), y["a"]] += 1
    scaled = x * [1, 100, 1e-3, 5] + 3
    one, other = (probe(v[:200], {"a": y["a"][:200]}, v[200:], {"a": y["a"][200:]}) for v in (x, scaled))
    assert one["a"]["linear"] == pytest.approx(other["a"]["linear"], abs=0.011) and one["a"]["linear"] > 0.5


def test_few_shots_see_few_rows():
    """All but the rows drawn could be wrong: with one draw, GDA of those rows alone gives the same."""
    rng = np.random.default_rng(5)
    y = rng.integers(2, size=100)
    x = rng.normal(size=(100, 3)) + 2 * y[:, None]
    rows = few_shot_rows(y, 4, seed=9)
    got = probe(x, {"a": y}, x, {"a": y}, shots=4, draws=1, seed=9)["a"]["gda"]
    alone = probe(x[rows], {"a": y[rows]}, x, {"a": y}, shots=4, draws=1, seed=0)["a"]["gda"]
    assert got == alone


@pytest.mark.parametrize(("train", "test", "said"), [
    ({"a": [0, 0, 1, 1]}, {"b": [0, 1]}, r"share their attributes; got \['a'\], \['b'\]"),
    ({"a": [0, 0, 1]}, {"a": [0, 1]}, r"a must have one integer for each row of features \(4, 1\); got int64 \(3,\)"),
    ({"a": [0.0, 0.0, 1.0, 1.0]}, {"a": [0, 1]}, "got float64"),
    ({"a": [0, 0, 0, -1]}, {"a": [0, 1]}, "a has fewer than two classes"),
    ({"a": [0, 0, 0, 1]}, {"a": [0, 1]}, r"a: cannot draw 2 rows of each class; classes with fewer: \[1\]\. Give more"),
])  # fmt: skip
def test_probes_name_what_is_wrong(train, test, said):
    with pytest.raises(ValueError, match=said):
        probe([[0.0], [0.1], [1.0], [1.1]], train, [[0.0], [1.0]], test, shots=2)


# The toy world's examination -----------------------------------------------------------------------------------------


def test_an_examination_is_decided_by_its_seed(clip):
    a, b = (examine(clip, 3, **SMALL) for _ in range(2))
    assert a == b and survives_json(a)
    other = examine(clip, 4, **SMALL, readouts=["pooled"])
    assert list(other["readouts"]) == ["pooled"] and other["readouts"]["pooled"] != a["readouts"]["pooled"]
    assert a["seed"] == 3 and a["sizes"] == SMALL | {"size": 32} and list(a["readouts"]) == list(mmvp.READOUTS)


def test_an_examination_is_what_its_parts_are(clip):
    """Pairs of seed 9, and zero-shot on scenes of seed 10, each counted row by row."""
    report = examine(clip, 3, **SMALL)["readouts"]
    pairs = world.make_pairs(4, seed=9)
    scenes = world.make_scenes(200, seed=10, split="test")
    bank = clip.encode_texts([f"a photo of a {name}" for name in world.CONCEPTS])
    for name, won in mmvp.solved(clip, pairs).items():
        assert read_solved(report[name]["solved"]).tolist() == won.tolist()
        assert report[name]["pairs"] == pytest.approx(won.mean())  # equally many of each pattern
        assert {k: v["won"] for k, v in report[name]["patterns"].items()} == {
            k: sum(w for w, p in zip(won, pairs, strict=True) if p.pattern == k) for k in world.PATTERNS
        }
        best = (mmvp.image_features(clip, scenes.images)[name] @ bank.T).argmax(1).numpy()
        right = int((best == scenes.concepts).sum())
        assert report[name]["zero_shot"] == pytest.approx(right / 200)
        assert report[name]["zero_shot_interval"] == list(wilson_interval(right, 200))
        assert report[name]["zero_shot_chance"] == 1 / 80
        assert set(report[name]["probes"]) == set(world.LEVELS)
        shares = [p["linear"] for p in report[name]["probes"].values()]
        assert report[name]["probe_mean"]["linear"] == pytest.approx(sum(shares) / 10)


def test_direction_is_asked_of_shapes_that_have_one(clip):
    scenes = world.make_scenes(100, seed=0)
    direction = exam._attributes(scenes)["direction"]
    for shape, told, truth in zip(scenes.attributes["shape"], direction, scenes.attributes["direction"], strict=True):
        assert told == (truth if shape in world.DIRECTED else -1)


def test_a_sighted_clip_passes_where_a_blind_one_fails(clip):
    """Same world, captions with details: it must solve more pairs, and its features must hold more."""
    blind, sighted = (
        examine(model, 5, pairs=20, test=400, train=800, shots=4, readouts=["pooled"])["readouts"]["pooled"]
        for model in (clip, models.load_clip("toy", device="cpu"))
    )
    assert sighted["pairs"] > blind["pairs"] + 0.05
    assert sighted["probe_mean"]["linear"] > blind["probe_mean"]["linear"] > blind["probe_mean"]["chance"]


# Meters --------------------------------------------------------------------------------------------------------------


def turned(clip: models.Clip) -> models.Clip:
    """Every pooled feature reversed, by the sign of the projection that ends the tower."""
    other = models.Clip(copy.deepcopy(clip.model), clip.tokenizer, "turned")
    with torch.no_grad():
        other.model.visual.proj.neg_()
    return other


def test_meters_on_a_known_move(clip):
    """Reversed features: cosine -1, so distance 2; a pair is now won where both statements chose wrongly before."""
    pairs, scenes = world.make_pairs(5, seed=0), world.make_scenes(50, seed=1, split="test")
    meter = exam.Drift(clip, pairs, scenes.images, scenes.concepts, world.CONCEPTS, every=2)
    start, other = meter.rows[0], turned(clip)
    assert (start["step"], start["loss"]) == (0, None) and start["distance"] == pytest.approx(0, abs=1e-6)
    won = mmvp.solved(clip, pairs, ["pooled"])["pooled"]
    assert start["pairs"] == pytest.approx(won.mean())
    for step in range(5):
        meter(step, 0.5 - step / 10, other)
    assert [row["step"] for row in meter.rows] == [0, 2, 4] and [r["loss"] for r in meter.rows[1:]] == [0.4, 0.2]
    a, b = (clip.encode_images(np.stack([getattr(p, f"image_{s}") for p in pairs])) for s in "ab")
    say_a, say_b = (clip.encode_texts([mmvp.PROMPT.format(getattr(p, f"statement_{s}")) for p in pairs]) for s in "ab")
    both_wrong = ((say_a * (a - b)).sum(1) < 0) & ((say_b * (a - b)).sum(1) > 0)
    for row in meter.rows[1:]:
        assert row["distance"] == pytest.approx(2, abs=1e-5)
        assert row["pairs"] == pytest.approx(float(both_wrong.float().mean()))
        assert row["zero_shot"] < start["zero_shot"]
    assert survives_json(meter.rows)


def test_meters_leave_training_as_it_was(clip):
    pupil = models.Clip(copy.deepcopy(clip.model), clip.tokenizer, "pupil")
    meter = exam.Drift.toy(clip, 0, pairs=2, test=20, every=1)
    pupil.model.visual.train()
    loss = pupil.embed_images(world.make_scenes(4, seed=0).images).sum()
    loss.backward()
    gradients = [p.grad.clone() for p in pupil.model.visual.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    meter(0, 1.0, pupil)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert pupil.model.visual.training and not pupil.model.training
    for p, gradient in zip(pupil.model.visual.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, gradient) and p.requires_grad
    assert {**meter.rows[1], "step": 0, "loss": None} == meter.rows[0]  # it had not moved


def test_meters_of_folders_and_of_ones_own(tmp_path, clip):
    """Paths in the place of arrays, no labels, and a meter that the reader brings."""
    pairs = [
        mmvp.ImagePair(p.pattern, *(tmp_path / f"{i}{side}.png" for side in "ab"), p.statement_a, p.statement_b)
        for i, p in enumerate(world.make_pairs(1, seed=3))
    ]
    for pair, drawn in zip(pairs, world.make_pairs(1, seed=3), strict=True):
        Image.fromarray(drawn.image_a.transpose(1, 2, 0)).save(pair.path_a)
        Image.fromarray(drawn.image_b.transpose(1, 2, 0)).save(pair.path_b)
    extra = {"scale": lambda model: model.model.logit_scale.exp()}
    meter = exam.Drift(clip, pairs, [p.path_a for p in pairs], readout="local", every=1, extra=extra)
    meter(0, 1.0, clip)
    row = meter.rows[1]
    assert list(row) == ["step", "loss", "pairs", "distance", "scale"]
    assert row["scale"] == pytest.approx(float(clip.model.logit_scale.exp().detach()))
    assert row["pairs"] == mmvp.solved(clip, world.make_pairs(1, seed=3), ["local"])["local"].mean()


@pytest.mark.parametrize("options", [{"every": 0}, {"labels": [0]}, {"names": ["red circle"]}])
def test_meters_refuse_what_cannot_work(clip, options):
    with pytest.raises(ValueError, match=r"every must be at least 1, .* labels and names go together"):
        exam.Drift(clip, world.make_pairs(1, seed=0), world.make_scenes(1, seed=0).images, **options)


def test_visual_share_by_hand(clip):
    """A projection of zeros says nothing, and without a text all is visual; else the two norms, token by token."""
    images, text = world.make_scenes(6, seed=0).images, torch.randn(77, 32, generator=torch.Generator().manual_seed(0))
    condition = Condition(128, 32, text)
    assert visual_share(clip, Condition(128, 32, how="visual"), images) == pytest.approx(1)
    with torch.no_grad():
        tokens = mmvp.visual_tokens(clip.model, clip.preprocess(images))
        rows = (
            torch.cat([tokens.pooled[:, None], tokens.local], 1) @ condition.project.weight.T + condition.project.bias
        )
        v, e = rows.flatten(1).norm(dim=1), (text.mean(0).norm() * 17**0.5)
        assert visual_share(clip, condition, images) == pytest.approx(float((v / (v + e)).mean()), rel=1e-5)
        condition.project.weight.zero_()
        condition.project.bias.zero_()
    assert visual_share(clip, condition, images) == 0
    drawn = [visual_share(clip, Condition(128, 32, how="visual"), images, "random(3)") for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_random_choice_of_tokens_is_the_same_at_every_call(clip):
    torch.manual_seed(0)
    condition, images = Condition(128, 32, torch.ones(77, 32), "concat"), world.make_scenes(3, seed=0).images
    assert visual_share(clip, condition, images, "random(2)") == visual_share(clip, condition, images, "random(2)")


def test_every_subset_of_patterns_is_closed_under_holm():
    """Holm by the closure principle: adjusted p of a pattern is the worst Bonferroni over all sets that hold it."""
    rng = np.random.default_rng(6)
    a, b = rng.random((2, 5, 40)) < np.array([0.5, 0.4])[:, None, None] + np.linspace(0, 0.4, 5)[None, :, None]
    names = list("abcde")
    report = compare(a.ravel(), b.ravel(), np.repeat(names, 40))["patterns"]
    p = {name: row["p"] for name, row in report.items()}
    sets = [s for size in range(1, 6) for s in itertools.combinations(names, size)]
    for name, row in report.items():
        worst = max(min(1.0, len(s) * min(p[k] for k in s)) for s in sets if name in s)
        assert row["p_holm"] == pytest.approx(worst)
