"""Train the toy models: the two losses they need, and who may move.

References: Radford et al. 2021 (contrastive loss); Ho et al. 2020 (noise prediction).

Taught in: notebooks/01_clip.ipynb and notebooks/09_diva.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.loop import optimise
from minilib.models import Clip, Denoiser
from minilib.world import Scenes


def contrastive_loss(a: Tensor, b: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy of telling each row's partner from the other rows' (``eq-clip-loss``).

    ``a`` and ``b`` are unit-norm features (n, d), row i of one belonging to row i of the other; ``logit_scale`` is s,
    the inverse temperature. Returns the mean over both directions, in nats. Source: Radford et al. 2021, section 2.3.

    >>> float(contrastive_loss(torch.eye(2), torch.eye(2), 0.0))  # no information: log 2
    0.6931471824645996

    Taught in: notebooks/01_clip.ipynb
    """
    logits = logit_scale * a @ b.T  # (n, n)
    truth = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def noise_prediction_loss(
    denoiser: Denoiser, latents: Tensor, context: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Squared error of what the denoiser predicts, one number a sample (``eq-diva-noise``).

    latents (n, c, h, w), context (n, tokens, width), noise like latents, timesteps (n,) int -> (n,). The noisy latent
    is ``sqrt(abar) z + sqrt(1 - abar) noise``. What is predicted is the noise, or
    ``v = sqrt(abar) noise - sqrt(1 - abar) z``, as the scheduler says; an error in v is that in the noise over abar.
    Source: Ho et al. 2020, equation 14; for v Salimans and Ho 2022.

    Taught in: notebooks/09_diva.ipynb
    """
    noisy = denoiser.scheduler.add_noise(latents, noise, timesteps)
    error = denoiser(noisy, timesteps, context) - denoiser.target(latents, noise, timesteps)
    return error.square().flatten(1).mean(1)


def train_words(clip: Clip, draw: Callable[[int], tuple[list[str], list[str]]], **options) -> list[float]:
    """Teach the text tower from text alone: two captions of one scene are partners. The vision tower stays as it is."""
    clip.model.train().requires_grad_(True)
    clip.model.visual.requires_grad_(False)

    def loss_at(step: int) -> Tensor:
        a, b = draw(step)
        return contrastive_loss(clip.embed_texts(a), clip.embed_texts(b), _scale(clip))

    return _finish(clip, optimise(loss_at, clip.model, label="words", **options))


def train_clip(clip: Clip, draw: Callable[[int], Scenes], *, freeze_text: bool = False, **options) -> list[float]:
    """Contrastive training on the pictures and captions that ``draw(step)`` gives; the text tower frozen on request."""
    clip.model.train().requires_grad_(True)
    if freeze_text:
        clip.model.requires_grad_(False)
        clip.model.visual.requires_grad_(True)
        clip.model.logit_scale.requires_grad_(True)

    def loss_at(step: int) -> Tensor:
        scenes = draw(step)
        return contrastive_loss(clip.embed_images(scenes.images), clip.embed_texts(scenes.captions), _scale(clip))

    return _finish(clip, optimise(loss_at, clip.model, label="contrastive", **options))


def train_denoiser(
    denoiser: Denoiser,
    clip: Clip,
    draw: Callable[[int], Scenes],
    *,
    seed: int,
    image_share: float = 0.4,
    jitter: float = 0.2,
    drop: float = 0.1,
    period: int = 500,
    **options,
) -> list[float]:
    """Teach a denoiser to use one context token: CLIP's joint embedding, of the caption or of the picture itself.

    Each sample's context is the picture's embedding with probability ``image_share``, else the caption's; normal
    noise of norm about ``jitter`` is added to it, and a share ``drop`` of the contexts is set to zero. The CLIP is
    frozen, so after ``period`` steps the same pictures come again, with their features remembered, under fresh noise.

    Taught in: notebooks/09_diva.ipynb
    """
    clip.model.eval().requires_grad_(False)
    denoiser.train().requires_grad_(True)

    @cache
    def features(part: int) -> tuple[Tensor, Tensor, Tensor]:
        scenes = draw(part)
        return denoiser.encode(scenes.images), clip.encode_images(scenes.images), clip.encode_texts(scenes.captions)

    def loss_at(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        z, seen, told = features(step % period)
        n, d = seen.shape
        kind = torch.rand(n, 2, generator=rng).to(seen.device)
        c = torch.where(kind[:, :1] < image_share, seen, told)
        c = c + jitter * torch.randn(n, d, generator=rng).to(c) / d**0.5
        c = F.normalize(c, dim=1) * d**0.5 * (kind[:, 1:] >= drop)
        noise, times = draw_noise(z, denoiser.steps, rng)
        return noise_prediction_loss(denoiser, z, c[:, None], noise, times).mean()

    losses = optimise(loss_at, denoiser, label="denoiser", **options)
    denoiser.eval().requires_grad_(False)
    return losses


def draw_noise(
    latents: Tensor, levels: int, rng: torch.Generator, first: int = 0, timesteps: str = "uniform"
) -> tuple[Tensor, Tensor]:
    """Normal noise like ``latents`` (n, ...) and timesteps (n,) from ``first`` to ``levels - 1``.

    Timesteps are "uniform", or "logit-normal": ``first + (levels - first) sigmoid(u)``, u standard normal, rounded
    down, which prefers the middle (Esser et al. 2024, arXiv:2403.03206). Drawn on the CPU, so that every device gets
    the same. ValueError for another name.

    Taught in: notebooks/09_diva.ipynb
    """
    noise = torch.randn(latents.shape, generator=rng).to(latents)
    if timesteps == "uniform":
        times = torch.randint(first, levels, (len(latents),), generator=rng)
    elif timesteps == "logit-normal":
        share = torch.randn(len(latents), generator=rng).sigmoid()
        times = (first + (levels - first) * share).long().clamp(max=levels - 1)
    else:
        raise ValueError(f"timesteps must be one of uniform, logit-normal; not {timesteps!r}")
    return noise, times.to(latents.device)


def _scale(clip: Clip) -> Tensor:
    return clip.model.logit_scale.exp().clamp(max=100)


def _finish(clip: Clip, losses: list[float]) -> list[float]:
    clip.model.eval().requires_grad_(False)
    return losses
