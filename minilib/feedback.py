"""A frozen denoiser's error as a function of what CLIP says: the config, the condition, the losses, one module.

References: Wang et al. 2025, "Diffusion Feedback Helps CLIP See Better" (ICLR, arXiv:2407.20171), sections 3.2 and
3.3; Liang et al. 2022, "Mind the Gap"; Ma et al. 2025, "GenHancer" (arXiv:2503.19480), for the two stages.

Taught in: notebooks/09_diva.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.models import Clip, Denoiser
from minilib.towers import Condition, Selection, select_tokens, visual_tokens
from minilib.training import noise_prediction_loss

CONDITIONS = ("joint", "add", "concat", "visual")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Config:
    """How to refine a vision tower. The defaults are the toy world's short run; see also ``CONFIGS``."""

    steps: int = 150
    """Optimiser steps."""
    lr: float = 8e-4
    """Peak learning rate, cosine decay."""
    batch: int = 64
    """Pictures a step, over all processes."""
    draws: int = 2
    """Draws of (timestep, noise) for each picture; each weighs the same."""
    first: int = 300
    """Smallest timestep drawn: where there is less noise, the denoiser sees for itself and asks nothing of CLIP."""
    timesteps: str = "uniform"
    """Their distribution from ``first`` on: uniform or logit-normal."""
    condition: str = "joint"
    """joint: one token, the joint embedding. add, concat or visual: projected tokens, see ``towers.Condition``."""
    tokens: str = "class"
    """Local tokens that go with the pooled one, where they are projected; see ``towers.Selection``."""
    projector_steps: int = 0
    """Two stages: so many steps for the projection alone, then the tower alone. 0 trains both together."""
    projector_lr: float = 1e-3
    """Peak learning rate of the first of two stages."""
    optimiser: str = "adamw"
    """adamw, or sgd with momentum 0.9."""
    warmup: int = 10
    """Steps of linear warm-up."""
    anchor: float = 0.4
    """Weight of one minus the cosine to the picture's original feature; 0 lets the tower drift freely."""
    kl: float = 0.0
    """Weight of the divergence from the original model's zero-shot probabilities over ``train``'s ``bank``."""
    lora: int = 0
    """Rank of low-rank updates of the tower's linear and attention layers; 0 trains all its weights."""
    ema: float | None = None
    """Decay of an average of the weights that replaces them at the end."""
    precision: str = "float32"
    """float32, bfloat16 or float16: of the frozen denoiser, and of the tower's arithmetic. Its weights stay float32."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more arithmetic."""
    accumulate: int = 1
    """Parts that a process's share of a batch is split into, to save memory."""
    save_every: int = 200
    """Steps between checkpoints."""
    wrong_image: bool = False
    """Control: condition each picture's denoising on the next picture of the batch."""
    seed: int = 0
    """Decides the batches, the timesteps, the noise, the tokens and the first weights of projection and updates."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "draws", "lr", "projector_lr", "accumulate", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; not {getattr(self, name)!r}")
        for name in ("anchor", "first", "kl", "lora", "projector_steps", "warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be zero or positive; not {getattr(self, name)!r}")
        known = {"condition": CONDITIONS, "timesteps": ("uniform", "logit-normal"), "optimiser": ("adamw", "sgd")}
        for name, options in (known | {"precision": tuple(PRECISIONS)}).items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}; not {getattr(self, name)!r}")
        Selection.parse(self.tokens)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be None or lie between 0 and 1; not {self.ema!r}")
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} cannot be split into {self.accumulate} equal parts: change accumulate"
            )
        if self.wrong_image and self.batch // self.accumulate < 2:
            raise ValueError("wrong_image needs at least 2 pictures in each part of a batch, to have another picture")
        if self.projector_steps and self.condition == "joint":
            raise ValueError("projector_steps needs a projection: choose condition add, concat or visual")


CONFIGS = {
    "toy": Config(),
    "reference": Config(
        steps=4600, lr=1e-4, batch=640, first=0, condition="add", tokens="all", optimiser="sgd", warmup=23, anchor=0,
        precision="bfloat16",
    ),
    "two-stage": Config(
        steps=2300, lr=1e-5, batch=640, first=0, timesteps="logit-normal", condition="add", projector_steps=2300,
        anchor=0, precision="bfloat16",
    ),
}  # fmt: skip
# reference: the published schedule (its tokens differ by backbone: towers.preset); two-stage: GenHancer's idea, with
# the frozen denoiser of DIVA.


def condition(embedding: Tensor, gap: Tensor | None = None) -> Tensor:
    """What a denoiser is told: one token, the unit-norm embedding times the root of its width (``eq-diva-condition``).

    (n, d) -> (n, 1, d), each token with entries of order one. ``gap`` (d,) is added first and the sum brought back to
    unit length: see :func:`modality_gap`. Departs from the paper, which adds projected patch tokens to a constant text
    embedding: here picture and caption share one space, so no projection has to be learnt.

    >>> condition(torch.eye(2)).shape, round(float(condition(torch.eye(2)).norm(dim=-1)[0, 0]), 4)
    (torch.Size([2, 1, 2]), 1.4142)

    Taught in: notebooks/09_diva.ipynb
    """
    moved = embedding if gap is None else F.normalize(embedding + gap, dim=-1)
    return moved[:, None] * embedding.shape[1] ** 0.5


def modality_gap(seen: Tensor, told: Tensor) -> Tensor:
    """The step from where picture features (n, d) lie to where text features (m, d) lie: (d,) (``eq-diva-gap``).

    Objective: mean of ``told`` minus mean of ``seen``. The texts need not belong to the pictures: one constant vector
    comes of them. Source: Liang et al. 2022, "Mind the Gap".

    >>> modality_gap(torch.eye(2), torch.tensor([[1.0, 1.0]])).tolist()
    [0.5, 0.5]

    Taught in: notebooks/09_diva.ipynb
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

    Taught in: notebooks/09_diva.ipynb
    """
    _check_width(denoiser, features.shape[1])
    return _error(denoiser, condition(features, gap), latents, noise, timesteps)


def anchor_loss(features: Tensor, original: Tensor) -> Tensor:
    """Mean of 1 - cosine between unit-norm features (n, d) and what they were before (``eq-diva-anchor``).

    Taught in: notebooks/09_diva.ipynb
    """
    return (1 - (features * original).sum(1)).mean()


def kl_loss(features: Tensor, original: Tensor, bank: Tensor, scale: float) -> Tensor:
    """Mean divergence KL(p0 || p) of the zero-shot probabilities from those of the original features, in nats.

    p is the softmax of ``scale`` times the features' (n, d) products with a bank of texts (K, d), all unit-norm; p0 is
    the same with the original features. Unlike the anchor it lets features move where no text of the bank looks.

    >>> float(kl_loss(torch.eye(2), torch.eye(2), torch.eye(2), 100.0))
    0.0

    Taught in: notebooks/09_diva.ipynb
    """
    now, before = ((scale * x @ bank.T).log_softmax(1) for x in (features, original))
    return F.kl_div(now, before, reduction="batchmean", log_target=True)


class Feedback(nn.Module):
    """Tower, condition and frozen denoiser as one module: pictures in, the denoiser's errors out.

    Objective: that of :func:`feedback_loss`, for each of ``CONDITIONS``. Only the vision tower (or its low-rank
    updates) and the projection may move. With another precision than float32 the denoiser is cast, in place.

    Args:
        clip: the CLIP to refine, itself, not a copy: give ``pupil(clip)``.
        denoiser: frozen here.
        config: of it ``condition``, ``tokens``, ``precision``, ``checkpointing``, ``wrong_image`` and ``seed`` count.
        text: (T, W) constant text embedding, for ``add`` and ``concat``; see ``models.embed_prompt``.
        gap: (d,) for ``joint``; see :func:`condition`.

    Raises:
        ValueError: widths that do not fit, a missing text, or a CLIP and denoiser on different devices.
    """

    def __init__(
        self, clip: Clip, denoiser: Denoiser, config: Config, text: Tensor | None = None, gap: Tensor | None = None
    ) -> None:
        super().__init__()
        where = next(denoiser.unet.parameters()).device
        if where != clip.device:
            raise ValueError(f"CLIP is on {clip.device}, the denoiser on {where}: load both with the same device=")
        self.model, self.config = clip.model, config
        self.gap = gap if gap is None else gap.to(where)
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.dtype = PRECISIONS[config.precision]
        if self.dtype != torch.float32:
            denoiser.to(self.dtype)
        width = _width(clip)
        self.condition = None if config.condition == "joint" else _projection(config, width, denoiser, text, where)
        if self.condition is None:
            _check_width(denoiser, width)
        if config.checkpointing:
            denoiser.unet.enable_gradient_checkpointing()
            clip.model.visual.set_grad_checkpointing(True)

    def told(self, pixels: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Normalised pixels (n, 3, s, s) -> the condition (n, tokens, W) and the unit-norm features (n, d)."""
        if self.condition is None:
            features = F.normalize(_unhalved(self.model.encode_image(pixels)), dim=-1)
            return condition(features, self.gap), features
        tokens = visual_tokens(self.model, pixels)
        context = self.condition(select_tokens(tokens, self.config.tokens, generator=generator))
        return context, F.normalize(_unhalved(tokens.pooled), dim=-1)

    def forward(
        self,
        pixels: Tensor,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Errors (draws * n,), draw by draw, and features (n, d); shapes as in :func:`feedback_loss`."""
        device, mixed = pixels.device.type, self.dtype != torch.float32
        with torch.autocast(device, self.dtype, enabled=mixed):
            context, features = self.told(pixels, generator)
        context = context.roll(1, dims=0) if self.config.wrong_image else context
        with torch.autocast(device, enabled=False):  # the denoiser was cast once; autocast would cast its norms back
            return _error(self.denoiser, context, latents, noise, timesteps), features


def _error(denoiser: Denoiser, context: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    draws = len(noise) // len(latents)
    return noise_prediction_loss(
        denoiser, latents.repeat(draws, 1, 1, 1), context.repeat(draws, 1, 1), noise, timesteps
    )


def _check_width(denoiser: Denoiser, width: int) -> None:
    if width != denoiser.context_width:
        widths = f"the denoiser's context is {denoiser.context_width} wide, the features are {width}"
        raise ValueError(f"{widths}: use a denoiser trained for this CLIP, or condition add, concat or visual")


@torch.no_grad()
def _width(clip: Clip) -> int:
    height, width = clip.model.visual.image_size
    return clip.model.encode_image(torch.zeros(1, 3, height, width, device=clip.device)).shape[1]


def _projection(config: Config, width: int, denoiser: Denoiser, text: Tensor | None, device: torch.device) -> Condition:
    """The new linear layer, its first weights decided by the seed, not by torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Condition(width, denoiser.context_width, text, config.condition).to(device)


def _unhalved(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
