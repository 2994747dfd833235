"""The arms of a DIVA experiment: who may move, what stands in for what, and clear refusals."""

import pytest
import torch

from minilib import arms, diva, models, world

RECIPE = diva.Config(steps=2, batch=4, draws=1)


@pytest.fixture(scope="module")
def bench():
    teachers = {
        "captions": models.load_denoiser("toy", device="cpu"),
        "web": models.load_denoiser("toy-web", device="cpu"),
    }
    draw = lambda step, detail, n: world.make_scenes(n, seed=100 + step, detail=detail)  # noqa: E731
    base = models.load_clip("toy-blind", device="cpu")
    return arms.Bench(base, teachers, world.make_scenes(12, seed=0).images, draw, RECIPE)


@pytest.fixture(scope="module")
def toy(bench):
    return arms.run_arm("toy", bench)


def moved(before, after):
    weights = dict(before.model.named_parameters())
    return {name for name, p in after.model.named_parameters() if not torch.equal(p, weights[name])}


@pytest.mark.parametrize(
    "arm", ["web", "reference", "two-stage 15%", "random-unet", "decoder", "contrastive", "captions"]
)
def test_an_arm_moves_the_vision_tower_of_a_copy(bench, arm, monkeypatch):
    monkeypatch.setitem(arms.STAGES, "projector_steps", 2)
    before = {name: p.clone() for name, p in bench.base.model.named_parameters()}
    changed = moved(bench.base, arms.run_arm(arm, bench))
    assert any(name.startswith("visual.") for name in changed)
    assert all(name.startswith("visual.") or name == "logit_scale" for name in changed), (
        "text can still be read as before"
    )
    assert all(torch.equal(p, before[name]) for name, p in bench.base.model.named_parameters())


def test_noise_goes_as_far_as_toy_and_needs_it(bench, toy):
    noise = arms.run_arm("noise", bench, toy)
    start = dict(bench.base.model.named_parameters())
    length = [sum((p - start[name]).square().sum() for name, p in m.model.named_parameters()) for m in (toy, noise)]
    assert torch.isclose(*length, rtol=1e-2)
    with pytest.raises(ValueError, match="run that first and give its result as toy="):
        arms.run_arm("noise", bench)


def test_an_arm_is_the_recipe_with_what_its_table_says(bench, toy):
    """toy is diva.train with the recipe and the gap; shuffled the same with one switch thrown."""
    by_hand, _ = diva.train(bench.base, bench.teachers["captions"], bench.images, RECIPE, gap=bench.gap("captions"))
    assert not moved(by_hand, toy)
    assert moved(toy, arms.run_arm("shuffled", bench))


def test_the_gap_is_that_of_the_captions_a_teacher_read(bench):
    assert bench.gap("images") is None and bench.gap("random") is None
    told = bench.base.encode_texts(world.make_scenes(1000, seed=100, detail=0.05).captions)
    assert torch.allclose(bench.gap("web"), told.mean(0) - bench.base.encode_images(bench.images).mean(0), atol=1e-6)
    assert not torch.allclose(bench.gap("web"), bench.gap("captions"), atol=1e-3)


def test_a_random_teacher_is_the_same_each_time_and_leaves_torch_alone(bench):
    state = torch.get_rng_state()
    a, b = (dict(bench.teacher("random").unet.named_parameters()) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, b[name]) for name, p in a.items())
    trained = dict(bench.teachers["captions"].unet.named_parameters())
    assert any(not torch.equal(p, trained[name]) for name, p in a.items())


def test_unknown_arms_and_missing_teachers_are_named(bench):
    with pytest.raises(ValueError, match=r"arm must be one of toy, no-anchor, .*; not 'tpy'"):
        arms.run_arm("tpy", bench)
    with pytest.raises(ValueError, match="images needs the teacher 'images'; there are captions, web"):
        arms.run_arm("images", bench)


def test_every_arm_has_a_meaning():
    assert set(arms.TRAINED) <= set(arms.ARMS) and "before" not in arms.ARMS
    assert all(len(text) > 10 for text in arms.MEANING.values())
