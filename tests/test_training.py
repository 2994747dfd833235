"""The training loop: losses by hand, resumption bit for bit, and who may move."""

import math

import pytest
import torch
from torch import nn

from minilib import models, training, world


@pytest.mark.equation("eq-clip-loss")
def test_contrastive_loss_by_hand():
    """Two pairs at scale s, partners orthogonal to the others: each row's softmax is e^s / (e^s + 1)."""
    loss = training.contrastive_loss(torch.eye(2), torch.eye(2), 3.0)
    assert math.isclose(float(loss), -math.log(math.exp(3) / (math.exp(3) + 1)), rel_tol=1e-6)


@pytest.mark.equation("eq-clip-loss")
def test_contrastive_loss_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    a, b = (nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    p = torch.softmax(2 * a @ b.T, dim=1).diag().log().mean()
    q = torch.softmax(2 * a @ b.T, dim=0).diag().log().mean()
    assert torch.allclose(training.contrastive_loss(a, b, 2.0), -(p + q) / 2)


class Oracle(nn.Module):
    """Stands for a denoiser that knows the latents, so it can compute the noise exactly."""

    def __init__(self, latents, prediction_type="epsilon"):
        super().__init__()
        from diffusers import DDPMScheduler

        self.scheduler, self.latents = DDPMScheduler(prediction_type=prediction_type), latents
        self.target = lambda z, e, t: models.Denoiser.target(self, z, e, t)

    def forward(self, noisy, timesteps, context):
        a = self.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (noisy - a.sqrt() * self.latents) / (1 - a).sqrt() + context.view(-1, 1, 1, 1)


@pytest.mark.equation("eq-diva-noise")
def test_a_denoiser_that_knows_the_latent_errs_by_its_bias_alone():
    """With the exact noise plus a constant c, the mean squared error of a sample is c squared."""
    z, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    bias = torch.tensor([0.0, 0.5, 2.0]).view(3, 1, 1)
    loss = training.noise_prediction_loss(Oracle(z), z, bias, noise, torch.tensor([200, 500, 900]))
    assert torch.allclose(loss, torch.tensor([0.0, 0.25, 4.0]), atol=1e-4)


def quadratic(seed=0):
    torch.manual_seed(seed)
    module = nn.Linear(4, 1)

    def loss_at(step):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    return module, loss_at


def test_optimise_reaches_the_minimum():
    module, loss_at = quadratic()
    losses = training.optimise(loss_at, module, steps=400, lr=0.05)
    assert len(losses) == 400 and losses[-1] < 1e-3
    assert torch.allclose(module.weight, torch.ones(1, 4), atol=0.05)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path, ema):
    options = {"steps": 30, "lr": 0.05, "ema": ema, "save_every": 4}
    whole, loss_at = quadratic()
    expected = training.optimise(loss_at, whole, **options)
    module, loss_at = quadratic()

    def dies(step):
        if step == 14:
            raise KeyboardInterrupt
        return loss_at(step)

    with pytest.raises(KeyboardInterrupt):
        training.optimise(dies, module, checkpoint=tmp_path / "run.pt", **options)
    module, loss_at = quadratic(seed=99)
    losses = training.optimise(loss_at, module, checkpoint=tmp_path / "run.pt", **options)
    assert losses == expected and torch.equal(module.weight, whole.weight)


def test_a_loss_that_is_not_finite_stops_with_its_step():
    module, loss_at = quadratic()
    with pytest.raises(FloatingPointError, match="loss of step 3 is nan"):
        training.optimise(lambda i: loss_at(i) * (float("nan") if i == 3 else 1), module, steps=9, lr=0.1)
    assert torch.isfinite(module.weight).all()


def test_only_the_tower_that_is_taught_moves():
    clip = models.load_clip("toy", device="cpu")
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    moved = lambda: {k for k, v in clip.model.state_dict().items() if not torch.equal(v, before[k])}  # noqa: E731
    scenes = world.make_scenes(8, seed=0)
    training.train_clip(clip, lambda i: scenes, steps=2, lr=1e-3, freeze_text=True)
    assert moved() and all(k.startswith("visual.") or k == "logit_scale" for k in moved())
    assert not any(p.requires_grad for p in clip.model.parameters())
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    training.train_words(clip, lambda i: (scenes.captions, scenes.captions), steps=2, lr=1e-3)
    assert moved() and not any(k.startswith("visual.") for k in moved())


def test_training_learns_on_a_small_scale():
    torch.manual_seed(0)
    clip, scenes = models.new_clip(), world.make_scenes(32, seed=0, detail=0.9)
    losses = training.train_clip(clip, lambda i: scenes, steps=30, lr=2e-3)
    assert losses[-1] < 0.7 * losses[0]


def test_denoiser_training_leaves_the_clip_alone_and_lowers_the_error():
    torch.manual_seed(0)
    clip, denoiser, scenes = models.load_clip("toy", device="cpu"), models.new_denoiser(), world.make_scenes(16, seed=0)
    denoiser.codec.fit(torch.from_numpy(scenes.images).float() / 255)
    before = [p.clone() for p in clip.model.parameters()]
    losses = training.train_denoiser(denoiser, clip, lambda i: scenes, seed=0, steps=25, lr=3e-3, ema=0.5)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(torch.equal(a, b) for a, b in zip(before, clip.model.parameters(), strict=True))
