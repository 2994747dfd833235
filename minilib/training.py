"""Train the toy models: one loop for all of them, and the two losses they need.

Every random choice of step i comes from (seed, i), so an interrupted run goes on bit for bit where it stopped.

References: Radford et al. 2021 (contrastive loss); Ho et al. 2020 (noise prediction).

Taught in: notebooks/01_clip.ipynb and notebooks/08_diva.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

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

    Taught in: notebooks/08_diva.ipynb
    """
    noisy = denoiser.scheduler.add_noise(latents, noise, timesteps)
    error = denoiser(noisy, timesteps, context) - denoiser.target(latents, noise, timesteps)
    return error.square().flatten(1).mean(1)


def optimise(
    loss_at: Callable[[int], Tensor],
    module: nn.Module,
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    warmup: int = 50,
    ema: float | None = None,
    checkpoint: Path | None = None,
    save_every: int = 200,
    on_step: Callable[[int, float], None] | None = None,
    label: str = "training",
) -> list[float]:
    """Minimise ``loss_at(step)`` over what may move in ``module``: AdamW, cosine rate, gradient norm at most 1.

    Args:
        loss_at: step -> scalar loss; must draw its randomness from the step.
        steps, lr, weight_decay, warmup: length, peak rate, decay, steps of linear warm-up.
        ema: decay of an exponential average of the weights, which replaces them at the end.
        checkpoint: file to go on from when it exists, written every ``save_every`` steps.
        on_step: called with (step, loss) after each step.

    Returns:
        The loss of every step, those before an interruption included.

    Raises:
        FloatingPointError: a loss that is not finite, with its step; the module then still holds the last finite state.

    Taught in: notebooks/01_clip.ipynb
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: _cosine(i, steps, min(warmup, steps // 5)))
    average = EMAModel(weights, decay=ema) if ema else None
    losses = _resume(checkpoint, module, adam, rate, average)
    for step in tqdm(range(len(losses), steps), desc=label, initial=len(losses), total=steps, mininterval=5):
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{label}: the loss of step {step} is {loss.item()}; lower lr (now {lr}) or look at that batch"
            )
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        rate.step()
        if average:
            average.step(weights)
        losses.append(loss.item())
        if checkpoint and (step + 1) % save_every == 0:
            _save(checkpoint, module, adam, rate, average, losses)
        if on_step:
            on_step(step, losses[-1])
    if average:
        average.copy_to(weights)
    return losses


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

    Taught in: notebooks/08_diva.ipynb
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


def draw_noise(latents: Tensor, levels: int, rng: torch.Generator, first: int = 0) -> tuple[Tensor, Tensor]:
    """Normal noise like ``latents`` and timesteps (n,), uniform from ``first`` to ``levels - 1``.

    Drawn on the CPU, so that every device gets the same.
    """
    noise = torch.randn(latents.shape, generator=rng).to(latents)
    return noise, torch.randint(first, levels, (len(latents),), generator=rng).to(latents.device)


def _scale(clip: Clip) -> Tensor:
    return clip.model.logit_scale.exp().clamp(max=100)


def _finish(clip: Clip, losses: list[float]) -> list[float]:
    clip.model.eval().requires_grad_(False)
    return losses


def _cosine(step: int, steps: int, warmup: int) -> float:
    return min((step + 1) / max(warmup, 1), (1 + math.cos(math.pi * min(step / steps, 1))) / 2)


def _save(checkpoint: Path, module, adam, rate, average, losses) -> None:
    state = {"module": module.state_dict(), "adam": adam.state_dict(), "rate": rate.state_dict(), "losses": losses}
    state["average"] = average.state_dict() if average else None
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_suffix(".part")
    torch.save(state, part)
    part.replace(checkpoint)


def _resume(checkpoint: Path | None, module, adam, rate, average) -> list[float]:
    if checkpoint is None or not checkpoint.exists():
        return []
    state = torch.load(checkpoint, weights_only=True, map_location=next(module.parameters()).device)
    module.load_state_dict(state["module"])
    adam.load_state_dict(state["adam"])
    rate.load_state_dict(state["rate"])
    if average:
        average.load_state_dict(state["average"])
    return state["losses"]
