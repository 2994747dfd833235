"""Let a frozen denoiser's error teach a CLIP's vision tower (DIVA), in its first, small form.

A picture is noised, and a frozen denoiser must tell the noise, given what CLIP says of the picture. What CLIP leaves
out the denoiser lacks, so the gradient of its error asks CLIP to say more. Only the vision tower moves; no caption is
used.

References: Wang et al. 2025, "Diffusion Feedback Helps CLIP See Better" (ICLR, arXiv:2407.20171), sections 3.2 and
3.3.

Taught in: notebooks/08_diva.ipynb
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.models import Clip, Denoiser
from minilib.training import draw_noise, noise_prediction_loss, optimise


@dataclass(frozen=True)
class Config:
    """How to refine a vision tower. The defaults are the toy world's short run."""

    steps: int = 150
    """Optimiser steps."""
    lr: float = 8e-4
    """Peak learning rate of AdamW, cosine decay."""
    batch: int = 64
    """Pictures a step."""
    draws: int = 2
    """Draws of (timestep, noise) for each picture; each weighs the same."""
    first: int = 300
    """Smallest timestep drawn: where there is less noise, the denoiser sees for itself and asks nothing of CLIP."""
    anchor: float = 0.4
    """Weight of one minus the cosine to the picture's original feature; 0 lets the tower drift freely."""
    wrong_image: bool = False
    """Control: condition each picture's denoising on the next picture of the batch."""
    seed: int = 0
    """Decides the batches, the timesteps and the noise."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "draws", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; not {getattr(self, name)!r}")
        for name in ("anchor", "first"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be zero or positive; not {getattr(self, name)!r}")
        if self.wrong_image and self.batch < 2:
            raise ValueError("wrong_image needs a batch of at least 2, to have another picture; not 1")


def condition(embedding: Tensor, gap: Tensor | None = None) -> Tensor:
    """What a denoiser is told: one token, the unit-norm embedding times the root of its width (``eq-diva-condition``).

    (n, d) -> (n, 1, d), each token with entries of order one. ``gap`` (d,) is added first and the sum brought back to
    unit length: see :func:`modality_gap`. Departs from the paper, which adds projected patch tokens to a constant text
    embedding: here picture and caption share one space, so no projection has to be learnt.

    >>> condition(torch.eye(2)).shape, round(float(condition(torch.eye(2)).norm(dim=-1)[0, 0]), 4)
    (torch.Size([2, 1, 2]), 1.4142)

    Taught in: notebooks/08_diva.ipynb
    """
    moved = embedding if gap is None else F.normalize(embedding + gap, dim=-1)
    return moved[:, None] * embedding.shape[1] ** 0.5


def modality_gap(seen: Tensor, told: Tensor) -> Tensor:
    """The step from where picture features (n, d) lie to where text features (m, d) lie: (d,) (``eq-diva-gap``).

    Objective: mean of ``told`` minus mean of ``seen``. The texts need not belong to the pictures: one constant vector
    comes of them. Source: Liang et al. 2022, "Mind the Gap".

    >>> modality_gap(torch.eye(2), torch.tensor([[1.0, 1.0]])).tolist()
    [0.5, 0.5]

    Taught in: notebooks/08_diva.ipynb
    """
    return told.mean(0) - seen.mean(0)


def feedback_loss(
    denoiser: Denoiser, features: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, gap: Tensor | None = None
) -> Tensor:
    """Error of the frozen denoiser given what CLIP says, one number a draw and picture (``eq-diva-loss``).

    features (n, d) unit-norm, with a gradient; latents (n, c, h, w); noise (draws * n, c, h, w) and timesteps
    (draws * n,), draw by draw, so that CLIP and the latent encoder run once a picture; ``gap`` as in
    :func:`condition`. Returns (draws * n,), each draw weighing the same.

    Raises ValueError when the denoiser's context has another width than the features.

    Taught in: notebooks/08_diva.ipynb
    """
    if features.shape[1] != denoiser.context_width:
        widths = f"the denoiser's context is {denoiser.context_width} wide, the features are {features.shape[1]}"
        raise ValueError(f"{widths}: use a denoiser trained for this CLIP")
    draws = len(noise) // len(latents)
    context = condition(features, gap).repeat(draws, 1, 1)  # (draws * n, 1, d)
    return noise_prediction_loss(denoiser, latents.repeat(draws, 1, 1, 1), context, noise, timesteps)


def train(
    clip: Clip,
    denoiser: Denoiser,
    images: np.ndarray,
    config: Config | None = None,
    *,
    gap: Tensor | None = None,
    on_step: Callable[[int, float, Clip], None] | None = None,
) -> tuple[Clip, list[float]]:
    """Refine a copy of ``clip`` on pictures alone by a frozen denoiser's feedback; return it and each step's loss.

    Minimises mean ``feedback_loss`` plus ``anchor`` times the mean of 1 - cos(feature, original feature).

    Args:
        images: uint8 (N, 3, h, w), N at least ``config.batch``.
        config: see ``Config``.
        gap: (d,) added to each feature before the denoiser reads it, so that it reads a picture as it reads a text.
        on_step: called with (step, loss, the clip in training) after each step, for curves.

    Raises:
        ValueError: too few pictures, another shape, or a denoiser whose context has another width.
        FloatingPointError: a loss that is not finite, with its step.

    Notes:
        Departs from the reference code: draws weigh the same, CLIP runs once a picture, and AdamW with an anchor
        stands in the place of SGD without one.

    Source: Wang et al. 2025, section 3. Taught in: notebooks/08_diva.ipynb
    """
    config = config or Config()
    if len(images) < config.batch:
        raise ValueError(f"a batch of {config.batch} needs at least that many pictures; got {len(images)}")
    if config.first >= denoiser.steps:
        raise ValueError(f"first must be below the denoiser's {denoiser.steps} noise levels; not {config.first}")
    denoiser.eval().requires_grad_(False)
    original, latents = clip.encode_images(images), denoiser.encode(images)
    pool, taught = torch.from_numpy(np.ascontiguousarray(images)), pupil(clip)

    def loss_at(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        rows = torch.randperm(len(pool), generator=rng)[: config.batch]
        features, z = taught.embed_images(pool[rows]), latents[rows.to(latents.device)]
        noise, times = draw_noise(z.repeat(config.draws, 1, 1, 1), denoiser.steps, rng, config.first)
        told = features.roll(1, dims=0) if config.wrong_image else features
        error = feedback_loss(denoiser, told, z, noise, times, gap).mean()
        return error + config.anchor * anchor_loss(features, original[rows.to(original.device)])

    hook = (lambda step, loss: on_step(step, loss, taught)) if on_step else None
    losses = optimise(loss_at, taught.model, steps=config.steps, lr=config.lr, on_step=hook, warmup=10, label="DIVA")
    taught.model.requires_grad_(False)
    return taught, losses


def pupil(clip: Clip) -> Clip:
    """A copy of a CLIP in which only the vision tower may move. Taught in: notebooks/08_diva.ipynb"""
    copied = Clip(copy.deepcopy(clip.model), clip.tokenizer, f"{clip.name}+diva")
    copied.model.requires_grad_(False)
    copied.model.visual.requires_grad_(True)
    return copied


def anchor_loss(features: Tensor, original: Tensor) -> Tensor:
    """Mean of 1 - cosine between unit-norm features (n, d) and what they were before (``eq-diva-anchor``).

    Taught in: notebooks/08_diva.ipynb
    """
    return (1 - (features * original).sum(1)).mean()


def perturb(clip: Clip, refined: Clip, *, seed: int) -> Clip:
    """Control: move each vision tensor of ``clip`` as far as ``refined`` moved it, in a random direction.

    Taught in: notebooks/08_diva.ipynb
    """
    rng = torch.Generator().manual_seed(seed)
    other = Clip(copy.deepcopy(clip.model), clip.tokenizer, f"{clip.name}+noise")
    goal = dict(refined.model.visual.named_parameters())
    with torch.no_grad():
        for name, p in other.model.visual.named_parameters():
            direction = torch.randn(p.shape, generator=rng).to(p)
            p += direction * (goal[name] - p).norm() / direction.norm()
    return other
