"""DIVA: the condition, the gradient's path through a frozen denoiser, and honest controls."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from minilib import diva, models, training, world


@pytest.fixture(scope="module")
def clip():
    return models.load_clip("toy-blind", device="cpu")


@pytest.fixture(scope="module")
def denoiser():
    return models.load_denoiser("toy", device="cpu")


@pytest.fixture(scope="module")
def images():
    return world.make_scenes(12, seed=0).images


@pytest.mark.equation("eq-diva-condition")
def test_condition_is_one_token_with_entries_of_order_one(clip, images):
    c = diva.condition(clip.encode_images(images))
    assert c.shape == (12, 1, 128)
    assert torch.allclose(c.square().mean(-1), torch.ones(12, 1), atol=1e-5)


@pytest.mark.equation("eq-diva-gap")
def test_the_gap_takes_pictures_to_where_texts_lie():
    """Means (2, 0) and (0, 1) lie (-2, 1) apart; adding the gap moves the pictures' mean exactly onto the texts'."""
    seen, told = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    gap = diva.modality_gap(seen, told)
    assert gap.tolist() == [-2.0, 1.0]
    assert torch.equal((seen + gap).mean(0), told.mean(0))


@pytest.mark.equation("eq-diva-condition")
def test_a_gap_is_added_before_the_length_is_set():
    """(1, 0) + (0, 1) points along the diagonal; scaled by the root of two entries it is (1, 1)."""
    assert torch.allclose(diva.condition(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0])), torch.ones(1, 1, 2))


def test_timesteps_start_where_the_config_says():
    z, rng = torch.zeros(4000, 1, 1, 1), torch.Generator().manual_seed(0)
    _, times = training.draw_noise(z, 1000, rng, first=300)
    assert times.min() == 300 and times.max() == 999
    assert abs(times.double().mean() - 649.5) < 4 * 202 / 4000**0.5


def test_uniform_timesteps_are_those_of_torch_itself():
    """The stream of random numbers is noise first, then times: what was drawn before other distributions came."""
    z = torch.zeros(5, 2, 3, 3)
    noise, times = training.draw_noise(z, 1000, torch.Generator().manual_seed(4), first=300)
    rng = torch.Generator().manual_seed(4)
    assert torch.equal(noise, torch.randn(5, 2, 3, 3, generator=rng))
    assert torch.equal(times, torch.randint(300, 1000, (5,), generator=rng))


@pytest.mark.parametrize("first", [0, 300])
def test_logit_normal_timesteps_prefer_the_middle(first):
    """The sigmoid of a standard normal is symmetric about 1/2, so mean and median of the share are 1/2; its quartiles
    are the sigmoids of -0.6745 and 0.6745. Ends are reached but never passed, for which a wide range has to be tried.
    """
    n, width = 40_000, 1000 - first
    z, rng = torch.zeros(n, 1, 1, 1), torch.Generator().manual_seed(0)
    _, times = training.draw_noise(z, 1000, rng, first, "logit-normal")
    share = (times.double() + 0.5 - first) / width
    assert abs(share.mean() - 0.5) < 4 * 0.21 / n**0.5
    for q, expected in ((0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745)):
        assert abs(share.quantile(q) - 1 / (1 + math.exp(-expected))) < 0.01
    assert times.dtype == torch.int64 and times.min() >= first and times.max() <= 999
    _, few = training.draw_noise(z, first + 3, rng, first, "logit-normal")
    assert few.unique().tolist() == [first, first + 1, first + 2]


def test_an_unknown_distribution_of_timesteps_is_named():
    with pytest.raises(ValueError, match="timesteps must be one of uniform, logit-normal; not 'cosine'"):
        training.draw_noise(torch.zeros(1, 1), 10, torch.Generator(), timesteps="cosine")


def test_kl_is_zero_at_home_and_by_hand_for_two_classes():
    """Over texts (1, 0) and (0, 1) with scale log 3, the picture (1, 0) has logits log 3 and 0: probabilities 3/4 and
    1/4. Moved to (0, 1) it has 1/4 and 3/4. KL is 3/4 log 3 + 1/4 log(1/3) = (log 3) / 2; the mean with a picture that
    stayed is half of that.
    """
    bank, home = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(diva.kl_loss(home, home, bank, math.log(3))) == 0.0
    one_moved = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert math.isclose(float(diva.kl_loss(one_moved, home, bank, math.log(3))), math.log(3) / 4, rel_tol=1e-6)


def test_kl_lets_features_move_where_no_text_looks():
    """Its gradient lies in the span of the bank, here the first two of four axes; the third and fourth cost nothing."""
    bank, home = torch.eye(4)[:2], F.normalize(torch.tensor([[1.0, 2.0, 0.5, 0.0]]))
    moved = F.normalize(torch.tensor([[2.0, 1.0, 0.5, 0.7]])).requires_grad_()
    slope = torch.autograd.grad(diva.kl_loss(moved, home, bank, 10.0), moved)[0]
    assert torch.equal(slope[0, 2:], torch.zeros(2)) and slope[0, :2].abs().min() > 0
    aside = home + torch.tensor([[0.0, 0.0, 3.0, -4.0]])
    assert float(diva.kl_loss(aside, home, bank, 10.0)) == 0.0


def test_kl_agrees_with_the_divergence_written_out():
    rng = torch.Generator().manual_seed(0)
    now, before, bank = (F.normalize(torch.randn(n, 5, generator=rng).double(), dim=1) for n in (7, 7, 3))
    p, p0 = ((9.0 * f @ bank.T).softmax(1) for f in (now, before))
    assert torch.allclose(diva.kl_loss(now, before, bank, 9.0), (p0 * (p0 / p).log()).sum(1).mean(), rtol=1e-10)


@pytest.fixture(scope="module")
def exact(clip, denoiser, images):
    """Everything in float64: vision tower with gradients, denoiser, normalised pixels and latents of three pictures."""
    tower, teacher = copy.deepcopy(clip.model).double(), copy.deepcopy(denoiser).double()
    tower.visual.requires_grad_(True)
    pixels = clip.preprocess(images[:3]).double()
    return tower, teacher, pixels, teacher.codec.encode(torch.from_numpy(images[:3]).double() / 255)


def embed(tower, pixels):
    return torch.nn.functional.normalize(tower.encode_image(pixels), dim=-1)


@pytest.mark.equation("eq-diva-loss")
def test_loss_and_gradient_equal_the_plain_formula_in_float64(exact):
    """Draw by draw and picture by picture, with nothing batched, and every draw weighing the same."""
    tower, teacher, pixels, z = exact
    noise = torch.randn(6, 16, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([100, 400, 700, 50, 950, 300])
    fast = diva.feedback_loss(teacher, embed(tower, pixels), z, noise, times).mean()
    slow = torch.zeros((), dtype=torch.float64)
    for k in range(6):
        i, a = k % 3, teacher.scheduler.alphas_cumprod.double()[times[k]]
        noisy = a.sqrt() * z[i] + (1 - a).sqrt() * noise[k]
        f = tower.encode_image(pixels[i : i + 1])
        guess = teacher.unet(noisy[None], times[k], encoder_hidden_states=(f / f.norm() * 128**0.5)[None]).sample
        truth = a.sqrt() * noise[k] - (1 - a).sqrt() * z[i]  # v
        slow = slow + (guess[0] - truth).square().mean() / 6
    assert torch.allclose(fast, slow, rtol=1e-6)
    visual = list(tower.visual.parameters())
    for a, b in zip(*(torch.autograd.grad(loss, visual) for loss in (fast, slow)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.equation("eq-diva-loss")
def test_gradient_agrees_with_a_finite_difference(exact):
    tower, teacher, pixels, z = exact
    torch.manual_seed(0)
    noise, times, weight = (
        torch.randn(3, 16, 8, 8, dtype=torch.float64),
        torch.tensor([300, 600, 800]),
        tower.visual.proj,
    )
    loss = lambda: diva.feedback_loss(teacher, embed(tower, pixels), z, noise, times).mean()  # noqa: E731
    slope = torch.autograd.grad(loss(), weight)[0]
    direction, h = torch.randn_like(weight), 1e-5
    with torch.no_grad():
        weight += h * direction
        up = loss()
        weight -= 2 * h * direction
        down = loss()
        weight += h * direction
    assert torch.allclose((up - down) / (2 * h), (slope * direction).sum(), rtol=1e-4)


def plain_context(tower, picture, how, project, words):
    """The condition of one normalised picture, written out: every token through the last norm and the projection."""
    visual, caught = tower.visual, []
    handle = visual.transformer.register_forward_hook(lambda module, args, out: caught.append(out))
    pooled = tower.encode_image(picture[None])[0]
    handle.remove()
    if how == "joint":
        return (pooled / pooled.norm() * len(pooled) ** 0.5)[None]
    tokens = [pooled] + [F.layer_norm(x, (128,), visual.ln_post.weight, visual.ln_post.bias, visual.ln_post.eps)
                         @ visual.proj for x in caught[0][0, 1:]]  # fmt: skip
    seen = [project.weight @ token + project.bias for token in tokens]
    if how == "add":
        return torch.stack([token + words.mean(0) for token in seen])  # 17 tokens, 5 words: their mean
    return torch.stack(([*words] if how == "concat" else []) + seen)


@pytest.mark.equation("eq-diva-loss")
@pytest.mark.parametrize("how", diva.CONDITIONS)
def test_feedback_has_loss_and_gradient_of_the_plain_formula_in_float64(clip, denoiser, images, how):
    """Two pictures, three draws: six errors, each computed alone, the loss their plain mean, so that each weighs 1/6;
    the gradient reaches the tower and the projection, and nothing else.
    """
    config = diva.Config(condition=how, tokens="all", draws=3)
    rng = torch.Generator().manual_seed(0)
    words = torch.randn(5, 128, generator=rng).double()
    feedback = diva.Feedback(diva.pupil(clip), copy.deepcopy(denoiser), config, words).double()
    pixels, noise = clip.preprocess(images[:2]).double(), torch.randn(6, 16, 8, 8, generator=rng).double()
    z, times = torch.randn(2, 16, 8, 8, generator=rng).double(), torch.tensor([20, 150, 400, 650, 800, 990])
    errors, features = feedback(pixels, z, noise, times)
    tower, teacher = feedback.model, feedback.denoiser
    project = feedback.condition.project if how != "joint" else None
    slow = []
    for k in range(6):
        i, a = k % 2, teacher.scheduler.alphas_cumprod.double()[times[k]]
        context = plain_context(tower, pixels[i], how, project, words)
        noisy = a.sqrt() * z[i] + (1 - a).sqrt() * noise[k]
        guess = teacher.unet(noisy[None], times[k], encoder_hidden_states=context[None]).sample[0]
        slow.append((guess - (a.sqrt() * noise[k] - (1 - a).sqrt() * z[i])).square().mean())
    assert errors.dtype == features.dtype == torch.float64
    assert torch.allclose(errors, torch.stack(slow), rtol=1e-9)
    moves = [p for p in feedback.parameters() if p.requires_grad]
    expected = [*tower.visual.parameters(), *(project.parameters() if project else [])]
    assert {id(p) for p in moves} == {id(p) for p in expected}
    ours, theirs = (torch.autograd.grad(loss, moves) for loss in (errors.mean(), sum(slow) / 6))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-12) and b.any()


@pytest.mark.equation("eq-diva-anchor")
def test_anchor_is_zero_at_home_one_at_right_angles_two_opposite():
    home = torch.eye(4)[:2]
    for moved, expected in ((home, 0.0), (torch.eye(4)[2:], 1.0), (-home, 2.0)):
        assert float(diva.anchor_loss(moved, home)) == expected


def test_only_the_vision_tower_of_the_copy_moves(clip, denoiser, images):
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    unet = [p.clone() for p in denoiser.parameters()]
    new, losses = diva.train(clip, denoiser, images, diva.Config(steps=2, batch=4))
    assert len(losses) == 2 and all(torch.equal(v, before[k]) for k, v in clip.model.state_dict().items())
    changed = {k for k, v in new.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("visual.") for k in changed)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(unet, denoiser.parameters(), strict=True))


def test_a_seed_decides_everything(clip, denoiser, images):
    config = diva.Config(steps=2, batch=4, seed=5)
    a, b = (diva.train(clip, denoiser, images, config)[0] for _ in range(2))
    other = diva.train(clip, denoiser, images, diva.Config(steps=2, batch=4, seed=6))[0]
    same = lambda x, y: all(torch.equal(p, q) for p, q in zip(x.model.parameters(), y.model.parameters(), strict=True))  # noqa: E731
    assert same(a, b) and not same(a, other)


def test_noise_control_moves_each_tensor_exactly_as_far(clip, denoiser, images):
    refined, _ = diva.train(clip, denoiser, images, diva.Config(steps=2, batch=4))
    control = diva.perturb(clip, refined, seed=0)
    start = dict(clip.model.named_parameters())
    goal, moved = (dict(m.model.named_parameters()) for m in (refined, control))
    for name, p in start.items():
        assert torch.allclose((goal[name] - p).norm(), (moved[name] - p).norm(), rtol=1e-2, atol=1e-6)
        assert name.startswith("visual.") or torch.equal(moved[name], p)


def test_the_wrong_image_costs_more(clip, denoiser):
    """What the teacher was trained for: the right picture's embedding helps it, its neighbour's does not."""
    images = torch.from_numpy(world.make_scenes(64, seed=3).images)
    z = denoiser.encode(images)
    noise, times = training.draw_noise(z, 1000, torch.Generator().manual_seed(0))
    f = clip.encode_images(images)
    right, wrong = (diva.feedback_loss(denoiser, x, z, noise, times).mean() for x in (f, f.roll(1, 0)))
    assert wrong > right


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", 0, "steps must be positive; not 0"),
        ("lr", -1.0, "lr must be positive"),
        ("batch", 0, "batch must be positive"),
        ("draws", 0, "draws must be positive"),
        ("anchor", -0.1, "anchor must be zero or positive"),
        ("first", -1, "first must be zero or positive"),
        ("lr", float("nan"), "lr must be positive; not nan"),
        ("projector_lr", 0, "projector_lr must be positive"),
        ("accumulate", 0, "accumulate must be positive"),
        ("save_every", 0, "save_every must be positive"),
        ("kl", -1.0, "kl must be zero or positive"),
        ("lora", -1, "lora must be zero or positive"),
        ("projector_steps", -1, "projector_steps must be zero or positive"),
        ("warmup", -1, "warmup must be zero or positive"),
        ("condition", "sum", "condition must be one of joint, add, concat, visual; not 'sum'"),
        ("timesteps", "cosine", "timesteps must be one of uniform, logit-normal; not 'cosine'"),
        ("optimiser", "adam", "optimiser must be one of adamw, sgd; not 'adam'"),
        ("precision", "half", "precision must be one of float32, bfloat16, float16; not 'half'"),
        ("tokens", "some", "how must be one of all, class, random"),
        ("ema", 1.0, "ema must be None or lie between 0 and 1; not 1.0"),
        ("ema", 0.0, "ema must be None or lie between 0 and 1; not 0.0"),
        ("accumulate", 3, "batch 64 cannot be split into 3 equal parts: change accumulate"),
        ("projector_steps", 5, "projector_steps needs a projection: choose condition add, concat or visual"),
    ],
)
def test_config_refuses_what_cannot_work(field, value, said):
    with pytest.raises(ValueError, match=said):
        diva.Config(**{field: value})


def test_too_few_pictures_and_a_foreign_denoiser_are_named(clip, denoiser, images):
    with pytest.raises(ValueError, match="batch of 64 needs at least that many pictures; got 12"):
        diva.train(clip, denoiser, images)
    with pytest.raises(ValueError, match="below the denoiser's 1000 noise levels; not 1000"):
        diva.train(clip, denoiser, images, diva.Config(steps=1, batch=4, first=1000))
    narrow = models.new_denoiser()
    narrow.unet.register_to_config(cross_attention_dim=64)
    with pytest.raises(ValueError, match="64 wide, the features are 128"):
        diva.train(clip, narrow, images, diva.Config(steps=1, batch=4))


def test_wrong_image_needs_a_neighbour():
    with pytest.raises(ValueError, match="wrong_image needs at least 2 pictures"):
        diva.Config(batch=1, wrong_image=True)
    with pytest.raises(ValueError, match="wrong_image needs at least 2 pictures in each part"):
        diva.Config(batch=4, accumulate=4, wrong_image=True)
    assert diva.Config(batch=4, accumulate=2, wrong_image=True).wrong_image


def test_presets_are_what_they_are_named_after():
    """reference: one stage, SGD, uniform timesteps from 0, two draws. two-stage: AdamW, the projection first."""
    reference, two = diva.CONFIGS["reference"], diva.CONFIGS["two-stage"]
    assert (reference.optimiser, reference.timesteps, reference.first, reference.draws) == ("sgd", "uniform", 0, 2)
    assert reference.projector_steps == 0 and reference.condition == "add" and reference.lr == 1e-4
    assert two.projector_steps > 0 and two.optimiser == "adamw" and two.timesteps == "logit-normal"
    assert diva.CONFIGS["toy"] == diva.Config()


def test_feedback_lowers_the_error_on_pictures_it_never_saw_and_keeps_zero_shot_near(clip, denoiser):
    """What DIVA minimises goes down where it did not look, more than under a random change of the same size."""
    from minilib import evaluate, features

    new, _ = diva.train(clip, denoiser, world.make_scenes(1000, seed=41_000).images, diva.Config(steps=60))
    held_out = world.make_scenes(600, seed=41_002, split="test")
    z = denoiser.encode(held_out.images)
    noise, times = training.draw_noise(z, denoiser.steps, torch.Generator().manual_seed(0))
    arms = {"before": clip, "diva": new, "random": diva.perturb(clip, new, seed=0)}
    bank, error, zero = features.class_embeddings(clip, world.CONCEPTS), {}, {}
    for name, arm in arms.items():
        f = arm.encode_images(held_out.images)
        with torch.no_grad():
            error[name] = diva.feedback_loss(denoiser, f, z, noise, times).mean().item()
        zero[name] = evaluate.zero_shot_accuracy(f, bank, held_out.concepts)
    assert error["diva"] < min(error["before"], error["random"])
    assert zero["diva"] > zero["before"] - 0.04
