"""Let a frozen denoiser's error teach a CLIP's vision tower (DIVA), for any tower and any Stable Diffusion 1.x or 2.x.

A picture is noised, and a frozen denoiser must tell the noise, given what CLIP says of the picture. What CLIP leaves
out the denoiser lacks, so the gradient of its error asks CLIP to say more. Only the vision tower moves; no caption is
used.

References: Wang et al. 2025, "Diffusion Feedback Helps CLIP See Better" (ICLR, arXiv:2407.20171), sections 3.2 and
3.3; Ma et al. 2025, "GenHancer" (arXiv:2503.19480), for the two stages.

Taught in: notebooks/09_diva.ipynb and notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import copy
import datetime
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.journal import Journal
from minilib.loop import optimise
from minilib.models import Clip, Denoiser, save_clip
from minilib.towers import Condition, Selection, select_tokens, visual_tokens
from minilib.training import draw_noise, noise_prediction_loss

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
    """Decides the batches, the timesteps, the noise, the tokens and the projection's first weights."""

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
            features = F.normalize(self.model.encode_image(pixels).float(), dim=-1)
            return condition(features, self.gap), features
        tokens = visual_tokens(self.model, pixels)
        context = self.condition(select_tokens(tokens, self.config.tokens, generator=generator))
        return context, F.normalize(tokens.pooled.float(), dim=-1)

    def forward(
        self,
        pixels: Tensor,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Errors (draws * n,), draw by draw, and features (n, d); shapes as in :func:`feedback_loss`."""
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype != torch.float32):
            context, features = self.told(pixels, generator)
            context = context.roll(1, dims=0) if self.config.wrong_image else context
            return _error(self.denoiser, context, latents, noise, timesteps), features


def train(
    clip: Clip,
    denoiser: Denoiser,
    images: Any,
    config: Config | None = None,
    *,
    text: Tensor | None = None,
    gap: Tensor | None = None,
    bank: Tensor | None = None,
    folder: str | Path | None = None,
    meter: Callable[[Clip], dict[str, float]] | None = None,
    meter_every: int = 50,
    on_step: Callable[[int, float, Clip], None] | None = None,
) -> tuple[Clip, list[float]]:
    """Refine a copy of ``clip`` on pictures alone by a frozen denoiser's feedback; return it and each step's loss.

    Minimises the mean error of :class:`Feedback`, plus ``anchor`` times the mean of 1 - cos(feature, original
    feature), plus ``kl`` times :func:`kl_loss`.

    Args:
        images: uint8 (N, 3, h, w), N at least ``config.batch``, whose latents are computed once and kept; or anything
            with a length that gives such an array for an array of rows, such as ``datasets.Pictures``, read as needed.
        config: see ``Config``.
        text, gap: see ``Feedback``.
        bank: (K, d) unit-norm text features, for ``kl``.
        folder: keeps ``log.jsonl``, TensorBoard's events and a checkpoint, from which the same call goes on; at the
            end ``open_clip_model.safetensors``, which ``open_clip.create_model(name, pretrained=...)`` loads, and a
            card.
        meter: called with the clip in training every ``meter_every`` steps; what it returns is logged in the folder.
            See ``exam``.
        on_step: called with (step, loss, the clip in training) after each step of the tower, for curves.

    Returns:
        The refined clip, and the losses of the tower's steps.

    Raises:
        ValueError: too few pictures, another shape, parts that do not fit, or a folder with another run's checkpoint.
        FloatingPointError: a loss or gradient that is not finite, with step and pictures; the last good checkpoint
            stays.
        MemoryError: the GPU's memory is full, with the settings that lower it.

    Notes:
        Departs from the reference code: draws weigh the same, CLIP runs once a picture, frozen parts are cast once,
        and constants are computed once. Several processes (``accelerate launch``) share each batch; the step is that
        of one process, up to rounding, except for the draw of random tokens.

    Source: Wang et al. 2025, section 3. Taught in: notebooks/09_diva.ipynb
    """
    config = config or Config()
    run = _Run(clip, denoiser, images, config, text, gap, bank, Path(folder) if folder else None)
    run.meter, run.meter_every, run.on_step = meter, meter_every, on_step
    if config.projector_steps:
        run.stage("projection", config.projector_steps, config.projector_lr, tower=False)
    losses = run.stage("tower", config.steps, config.lr, tower=True)
    return run.finish(), losses


def pupil(clip: Clip) -> Clip:
    """A copy of a CLIP in which only the vision tower may move. Taught in: notebooks/09_diva.ipynb"""
    copied = Clip(copy.deepcopy(clip.model), clip.tokenizer, f"{clip.name}+diva")
    copied.model.requires_grad_(False)
    copied.model.visual.requires_grad_(True)
    return copied


def perturb(clip: Clip, refined: Clip, *, seed: int) -> Clip:
    """Control: move each vision tensor of ``clip`` as far as ``refined`` moved it, in a random direction.

    Taught in: notebooks/09_diva.ipynb
    """
    rng = torch.Generator().manual_seed(seed)
    other = Clip(copy.deepcopy(clip.model), clip.tokenizer, f"{clip.name}+noise")
    goal = dict(refined.model.visual.named_parameters())
    with torch.no_grad():
        for name, p in other.model.visual.named_parameters():
            direction = torch.randn(p.shape, generator=rng).to(p)
            p += direction * (goal[name] - p).norm() / direction.norm()
    return other


class _Run:
    """One call of :func:`train`: who moves, which pictures come next, what is written."""

    def __init__(self, clip, denoiser, images, config, text, gap, bank, folder) -> None:
        self.rank, self.count = _processes()
        _check(images, config, denoiser, bank, self.count)
        self.images, self.config, self.folder, self.base = images, config, folder, clip
        self.bank = bank if bank is None else bank.to(clip.device)
        self.scale = clip.model.logit_scale.exp().item()
        self.taught, self.denoiser = pupil(clip), denoiser
        self.adapter = _add_lora(self.taught, config.lora) if config.lora else None
        self.feedback = Feedback(self.taught, denoiser, config, text, gap)
        self.tower = [p for p in self.taught.model.parameters() if p.requires_grad]
        self.anchored = bool(config.anchor or config.kl)
        self.kept = self._encode_all() if isinstance(images, np.ndarray) else None
        self.orders: dict[int, np.ndarray] = {}
        self.ahead: dict[tuple[int, int], Any] = {}
        self.journal: Journal | None = None

    def stage(self, name: str, steps: int, lr: float, *, tower: bool) -> list[float]:
        """Train the tower, or the projection alone; where there is one stage, both together."""
        for p in self.tower:
            p.requires_grad_(tower)
        if self.feedback.condition is not None:
            self.feedback.condition.requires_grad_(not (tower and self.config.projector_steps))
        self.module = nn.parallel.DistributedDataParallel(self.feedback) if self.count > 1 else self.feedback
        where = self.folder / f"checkpoint-{name}.pt" if self.folder else None
        self.name, self.clock, c = name, time.perf_counter(), self.config
        identity = {"clip": self.base.name, "pictures": len(self.images), "stage": name} | asdict(c)
        options = {"optimiser": c.optimiser, "warmup": c.warmup, "parts": c.accumulate, "ema": c.ema}
        with ThreadPoolExecutor(1) as self.reader:
            try:
                return optimise(
                    self._loss_at, self.feedback, steps=steps, lr=lr, half=c.precision == "float16", checkpoint=where,
                    save_every=c.save_every, identity=identity, on_step=self._after, label=f"DIVA {name}",
                    quiet=self.rank > 0, **options,
                )  # fmt: skip
            except FloatingPointError as error:
                rows = self._rows(self.step).tolist()
                kept = f"; the last good state is in {where}" if where else ""
                raise FloatingPointError(f"{error}; its pictures are rows {rows}{kept}") from error
            finally:
                self.ahead.clear()
                if self.journal:
                    self.journal.close()
                    self.journal = None

    def finish(self) -> Clip:
        """Plain weights again, frozen, and in the folder."""
        if self.adapter is not None:
            self.adapter.merge_and_unload()
        self.taught.model.requires_grad_(False)
        if self.config.checkpointing:
            self.denoiser.unet.disable_gradient_checkpointing()
            self.taught.model.visual.set_grad_checkpointing(False)
        if self.folder and self.rank == 0:
            card = {"name": self.taught.name, "date": datetime.date.today().isoformat(), "pictures": len(self.images)}
            save_clip(self.taught, self.folder, card | {"config": asdict(self.config)}, torch.float32)
        return self.taught

    def _loss_at(self, step: int, part: int = 0) -> Tensor:
        """The loss on this process's share of a part of step's batch; all randomness comes from (seed, step)."""
        self.step, c = step, self.config
        rows = self._share(self._rows(step), part)
        pixels, latents, original = self._batch(rows, step, part)
        rng = torch.Generator().manual_seed(c.seed * 1_000_003 + step)
        like = torch.empty(c.draws * c.batch, *latents.shape[1:])
        noise, times = (
            torch.cat([self._share(x, part) for x in drawn.chunk(c.draws)]).to(latents.device)
            for drawn in draw_noise(like, self.denoiser.steps, rng, c.first, c.timesteps)
        )
        tokens = torch.Generator(latents.device).manual_seed(int(rng.initial_seed() * 10_007 + rows[0]))
        waits = self.count > 1 and part + 1 < c.accumulate
        with self.module.no_sync() if waits else nullcontext():  # gradients meet in the last part only
            errors, features = self.module(pixels, latents, noise, times, tokens)
        loss = errors.mean()
        if c.anchor:
            loss = loss + c.anchor * anchor_loss(features, original)
        if c.kl:
            loss = loss + c.kl * kl_loss(features, original, self.bank, self.scale)
        return loss

    def _rows(self, step: int) -> np.ndarray:
        """Rows of a step's batch: epoch after epoch, each in an order of its own."""
        n, at = len(self.images), np.arange(step * self.config.batch, (step + 1) * self.config.batch)
        epochs = at // n
        return np.concatenate([self._order(int(e))[at[epochs == e] % n] for e in np.unique(epochs)])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:
            rng = np.random.default_rng([self.config.seed, epoch])
            self.orders = {k: v for k, v in self.orders.items() if k == epoch - 1}
            self.orders[epoch] = rng.permutation(len(self.images))
        return self.orders[epoch]

    def _share(self, whole: Any, part: int) -> Any:
        size = self.config.batch // (self.count * self.config.accumulate)
        first = (self.rank * self.config.accumulate + part) * size
        return whole[first : first + size]

    def _batch(self, rows: np.ndarray, step: int, part: int) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.kept is None:
            images = self._read_ahead(step, part)
            return self.taught.preprocess(images), *self._encode(images)
        latents, original = (x if x is None else x[rows] for x in self.kept)
        return self.taught.preprocess(self.images[rows]), latents, original

    def _encode(self, images: np.ndarray) -> tuple[Tensor, Tensor | None]:
        return self.denoiser.encode(images), self.base.encode_images(images) if self.anchored else None

    def _encode_all(self) -> tuple[Tensor, Tensor | None]:
        chunks = [self._encode(self.images[i : i + 256]) for i in range(0, len(self.images), 256)]
        latents, original = zip(*chunks, strict=True)
        return torch.cat(latents), torch.cat(original) if self.anchored else None

    def _read_ahead(self, step: int, part: int) -> np.ndarray:
        """Pictures of this part, read while the part before it was computed."""

        def start(step: int, part: int) -> Any:
            return self.reader.submit(self.images.__getitem__, self._share(self._rows(step), part))

        ahead = self.ahead.pop((step, part), None) or start(step, part)
        last = part + 1 == self.config.accumulate
        following = (step + 1, 0) if last else (step, part + 1)
        self.ahead[following] = start(*following)
        return ahead.result()

    def _after(self, step: int, loss: float, rate: float, norm: float) -> None:
        if self.folder and self.rank == 0:
            self.journal = self.journal or Journal(self.folder, self.name, step)
            now = time.perf_counter()
            speed, self.clock = self.config.batch / (now - self.clock), now
            numbers = {"loss": loss, "lr": rate, "gradient_norm": norm, "images_per_second": speed}
            due = self.meter and (step + 1) % self.meter_every == 0
            self.journal.write(step, numbers | (self.meter(self.taught) if due else {}))
        if self.on_step and self.name == "tower":
            self.on_step(step, loss, self.taught)


def _error(denoiser: Denoiser, context: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    draws = len(noise) // len(latents)
    return noise_prediction_loss(
        denoiser, latents.repeat(draws, 1, 1, 1), context.repeat(draws, 1, 1), noise, timesteps
    )


def _check(images: Any, config: Config, denoiser: Denoiser, bank: Tensor | None, processes: int) -> None:
    if len(images) < config.batch:
        raise ValueError(f"a batch of {config.batch} needs at least that many pictures; got {len(images)}")
    if config.first >= denoiser.steps:
        raise ValueError(f"first must be below the denoiser's {denoiser.steps} noise levels; not {config.first}")
    if config.kl and bank is None:
        raise ValueError(
            "kl needs bank=, the unit-norm text features whose probabilities it keeps: see class_embeddings"
        )
    if config.batch % (processes * config.accumulate):
        parts = f"{processes} processes with {config.accumulate} parts each"
        raise ValueError(f"a batch of {config.batch} cannot be split evenly over {parts}: change batch or accumulate")


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


def _add_lora(clip: Clip, rank: int) -> Any:
    """Low-rank updates of every linear and attention layer in the tower's blocks; the weights themselves stay."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("lora needs peft: install the extra, minilib[gpu]") from error
    visual = clip.model.visual
    attentions = [name for name, layer in visual.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    linear = [name for name, layer in visual.named_modules() if isinstance(layer, nn.Linear)]
    inside = tuple(f"{name}." for name in attentions)  # these are read by the attention itself
    targets = attentions + [name for name in linear if not name.startswith(inside)] if inside else linear
    return get_peft_model(visual, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


def _processes() -> tuple[int, int]:
    """(rank, count): of ``accelerate launch`` or torchrun, or (0, 1) alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes
