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
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minilib.feedback import CONDITIONS as CONDITIONS
from minilib.feedback import CONFIGS as CONFIGS
from minilib.feedback import PRECISIONS as PRECISIONS
from minilib.feedback import Config as Config
from minilib.feedback import Feedback as Feedback
from minilib.feedback import anchor_loss as anchor_loss
from minilib.feedback import condition as condition
from minilib.feedback import feedback_loss as feedback_loss
from minilib.feedback import kl_loss as kl_loss
from minilib.feedback import modality_gap as modality_gap
from minilib.journal import Journal
from minilib.loop import optimise
from minilib.lora import add_lora, merge_lora
from minilib.models import Clip, Denoiser, save_clip
from minilib.training import draw_noise


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

    Minimises the mean error of :class:`minilib.feedback.Feedback`, plus ``anchor`` times the mean of 1 - cos(feature,
    original feature), plus ``kl`` times :func:`minilib.feedback.kl_loss`.

    Args:
        images: uint8 (N, 3, h, w), N at least ``config.batch``, whose latents are computed once and kept; or anything
            with a length that gives such an array for an array of rows, such as ``pictures.Pictures``, read as needed.
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
    run.watch(meter, meter_every, on_step)
    try:
        if config.projector_steps:
            run.stage("projection", config.projector_steps, config.projector_lr, tower=False)
        losses = run.stage("tower", config.steps, config.lr, tower=True)
    finally:
        run.store_activations()
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
        self.rank, self.count = _processes(clip.device)
        _check(images, config, denoiser, bank, self.count)
        self.images, self.config, self.folder, self.base = images, config, folder, clip
        self.bank: Any = bank if bank is None else bank.to(clip.device)
        self.scale = clip.model.logit_scale.exp().item()
        self.given = {"denoiser": sum(p.numel() for p in denoiser.parameters())}
        self.given |= {k: _mark(v) for k, v in (("text", text), ("gap", gap), ("bank", bank))}
        self.taught, self.denoiser = pupil(clip), denoiser
        self.updates = (
            add_lora(self.taught.model, self.taught.model.visual, config.lora, seed=config.seed) if config.lora else []
        )
        self.feedback = Feedback(self.taught, denoiser, config, text, gap)
        self.tower = [p for p in self.taught.model.parameters() if p.requires_grad]
        self.anchored = bool(config.anchor or config.kl)
        self.kept: Any = self._encode_all() if isinstance(images, np.ndarray) else None
        self.orders: dict[int, np.ndarray] = {}
        self.ahead: dict[tuple[int, int], Any] = {}
        self.journal: Journal | None = None

    def watch(self, meter, every: int, on_step) -> None:
        self.meter, self.meter_every, self.on_step = meter, every, on_step

    def stage(self, name: str, steps: int, lr: float, *, tower: bool) -> list[float]:
        """Train the tower, or the projection alone; where there is one stage, both together."""
        for p in self.tower:
            p.requires_grad_(tower)
        if self.feedback.condition is not None:
            self.feedback.condition.requires_grad_(not (tower and self.config.projector_steps))
        self.module: Any = nn.parallel.DistributedDataParallel(self.feedback) if self.count > 1 else self.feedback
        where = self.folder / f"checkpoint-{name}.pt" if self.folder else None
        self.name, self.steps, self.clock, c = name, steps, time.perf_counter(), self.config
        identity = {"clip": self.base.name, "pictures": len(self.images), "stage": name} | self.given | asdict(c)
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

    def store_activations(self) -> None:
        """Whatever happened, the denoiser goes back as it came."""
        if self.config.checkpointing:
            self.denoiser.unet.disable_gradient_checkpointing()
            self.taught.model.visual.set_grad_checkpointing(False)

    def finish(self) -> Clip:
        """Plain weights again, frozen, and in the folder."""
        merge_lora(self.updates)
        self.taught.model.requires_grad_(False)
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

    def _batch(self, rows: np.ndarray, step: int, part: int) -> tuple[Tensor, Tensor, Any]:
        if self.kept is None:
            images = self._read_ahead(step, part)
            return self.taught.preprocess(images), *self._encode(images)
        latents, original = self.kept
        return self.taught.preprocess(self.images[rows]), latents[rows], original[rows] if self.anchored else None

    def _encode(self, images: np.ndarray) -> tuple[Tensor, Any]:
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
        if following[0] < self.steps:
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


def _mark(values: Tensor | None) -> str:
    """A short name for a tensor's content, so that a checkpoint is not continued with another."""
    return "" if values is None else hashlib.sha256(values.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]


def _check(images: Any, config: Config, denoiser: Denoiser, bank: Tensor | None, processes: int) -> None:
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3):
        what = f"not {images.dtype} of shape {images.shape}"
        raise ValueError(f"images must be uint8 of shape (n, 3, height, width); {what}")
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


def _processes(device: torch.device) -> tuple[int, int]:
    """(rank, count): of ``accelerate launch`` or torchrun, or (0, 1) alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return state.process_index, state.num_processes
