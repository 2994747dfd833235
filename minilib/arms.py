"""The arms of a DIVA experiment in the toy world: recipes, teachers, controls and the upper bound, one call for each.

References: Wang et al. 2025 (DIVA, arXiv:2407.20171); Ma et al. 2025 (GenHancer, arXiv:2503.19480), for two stages with
the class token alone.

Taught in: notebooks/09_diva.ipynb
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minilib import diva, models, training
from minilib.loop import optimise
from minilib.models import Clip, Denoiser
from minilib.world import Scenes

STAGES: dict[str, Any] = {"condition": "add", "projector_steps": 100}
TRAINED: dict[str, dict[str, Any]] = {  # arms that train by a denoiser's error: teacher, and what the config changes
    "toy": {},
    "no-anchor": {"anchor": 0.0},
    "web": {"teacher": "web"},
    "images": {"teacher": "images"},
    "reference": {"condition": "add", "tokens": "all", "optimiser": "sgd", "lr": 1e-4, "anchor": 0.0, "first": 0},
    "two-stage": STAGES | {"tokens": "class"},
    "two-stage 15%": STAGES | {"tokens": "random(0.15)"},
    "two-stage 30%": STAGES | {"tokens": "random(0.3)"},
    "two-stage 100%": STAGES | {"tokens": "all"},
    "shuffled": {"wrong_image": True},
    "random-unet": {"teacher": "random"},
}
MEANING = {
    "before": "frozen: no step at all",
    "toy": "the toy recipe with the teacher that read detailed captions",
    "no-anchor": "the same without the anchor",
    "web": "the teacher that read sparse captions",
    "images": "the teacher that read none, only the base's own image features",
    "reference": "the reference's recipe: all tokens projected and added, SGD at 1e-4, no anchor",
    "two-stage": "projection first, then the tower; class token alone",
    "two-stage 15%": "the same with 15 % of the local tokens",
    "two-stage 30%": "the same with 30 % of the local tokens",
    "two-stage 100%": "the same with all local tokens",
    "shuffled": "control: each picture is denoised under the next picture's condition",
    "random-unet": "control: a denoiser that was never trained",
    "decoder": "control: a small network that draws the latent from the feature, in the denoiser's place",
    "contrastive": "control: as many steps of contrastive training on sparse captions",
    "captions": "upper bound: as many steps of contrastive training on detailed captions",
    "noise": "control: each tensor moved as far as by the toy recipe, in a random direction",
}
ARMS = tuple(MEANING)[1:]  # all but before


@dataclass(frozen=True)
class Bench:
    """What the arms of one seed share."""

    base: Clip
    """The CLIP that every arm starts from."""
    teachers: Mapping[str, Denoiser]
    """At least "captions"; "web" and "images" for the arms of those names."""
    images: np.ndarray
    """uint8 (N, 3, h, w): the pictures to learn from."""
    draw: Callable[[int, float, int], Scenes]
    """(step, share of details told, number) -> scenes with captions, for the contrastive arms and the gaps."""
    config: diva.Config = field(default_factory=diva.Config)
    """The toy recipe; arms change what ``TRAINED`` says."""

    def gap(self, teacher: str) -> Tensor | None:
        """The modality gap as the teacher knows it; none for a teacher that read no captions."""
        if teacher in ("images", "random"):
            return None
        told = self.base.encode_texts(self.draw(0, 0.05 if teacher == "web" else 0.9, 1000).captions)
        return diva.modality_gap(self.base.encode_images(self.images[:2000]), told)

    def teacher(self, name: str) -> Denoiser:
        """A teacher by name; "random" has the latents and the schedule of "captions", and fresh weights."""
        if name != "random":
            return self.teachers[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            fresh = models.new_denoiser()
        fresh.codec = self.teachers["captions"].codec
        return fresh.to(self.base.device)


def run_arm(arm: str, bench: Bench, toy: Clip | None = None) -> Clip:
    """Train one arm, from ``bench.base``; ``toy`` is the result of the arm of that name, which "noise" needs.

    Every arm takes ``bench.config.steps`` steps; contrastive arms read twice the pictures a step, since a contrastive
    loss lives on its batch. ValueError for an unknown arm, a missing teacher, or "noise" without ``toy``.

    Taught in: notebooks/09_diva.ipynb
    """
    if arm in TRAINED:
        return _by_feedback(arm, bench)
    if arm == "noise":
        if toy is None:
            raise ValueError("noise is measured by the arm toy: run that first and give its result as toy=")
        return diva.perturb(bench.base, toy, seed=bench.config.seed)
    if arm == "decoder":
        return _by_decoder(bench)
    if arm in ("contrastive", "captions"):
        return _by_captions(bench, 0.9 if arm == "captions" else 0.05)
    raise ValueError(f"arm must be one of {', '.join(ARMS)}; not {arm!r}")


def _by_feedback(arm: str, bench: Bench) -> Clip:
    changes = dict(TRAINED[arm])
    name = changes.pop("teacher", "captions")
    if name != "random" and name not in bench.teachers:
        raise ValueError(
            f"{arm} needs the teacher {name!r}; there are {', '.join(bench.teachers)}: give it in teachers"
        )
    config = replace(bench.config, **changes)
    if config.condition == "joint":
        text, gap = None, bench.gap(name)
    else:  # the constant text, as the denoiser's one token of it
        text, gap = diva.condition(bench.base.encode_texts(["a photo of a"]))[0], None
    return diva.train(bench.base, bench.teacher(name), bench.images, config, text=text, gap=gap)[0]


def _by_captions(bench: Bench, detail: float) -> Clip:
    clip = copy.deepcopy(bench.base.model)
    taught = Clip(clip, bench.base.tokenizer, f"{bench.base.name}+captions")
    count, c = 2 * bench.config.batch, bench.config
    training.train_clip(
        taught,
        lambda step: bench.draw(1 + step, detail, count),
        freeze_text=True,
        steps=c.steps,
        lr=c.lr,
        warmup=c.warmup,
    )
    return taught


def _by_decoder(bench: Bench) -> Clip:
    """A frozen decoder of the base's features to latents, and then the tower that lowers its error, anchored."""
    c, device = bench.config, bench.base.device
    features = bench.base.encode_images(bench.images)
    codec = bench.teachers["captions"]
    latents = torch.cat([codec.encode(bench.images[i : i + 256]) for i in range(0, len(bench.images), 256)]).flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.seed)
        decoder = nn.Sequential(nn.Linear(features.shape[1], 512), nn.GELU(), nn.Linear(512, latents.shape[1]))
    decoder.to(device)
    taught, scale = diva.pupil(bench.base), features.shape[1] ** 0.5

    def rows(step: int, count: int) -> Tensor:
        rng = torch.Generator().manual_seed(c.seed * 1_000_003 + step)
        return torch.randperm(len(features), generator=rng)[:count]

    def error(x: Tensor, chosen: Tensor) -> Tensor:
        return (decoder(scale * x) - latents[chosen]).square().mean()

    def decode(step: int) -> Tensor:
        chosen = rows(step, 4 * c.batch)
        return error(features[chosen], chosen)

    def look(step: int) -> Tensor:
        chosen = rows(step, c.batch)
        seen = taught.embed_images(bench.images[chosen.numpy()])
        return error(seen, chosen) + c.anchor * diva.anchor_loss(seen, features[chosen])

    optimise(decode, decoder, steps=4 * c.steps, lr=2e-3, warmup=c.warmup, label="decoder")
    decoder.requires_grad_(False)
    optimise(look, taught.model, steps=c.steps, lr=c.lr, warmup=c.warmup, label="tower by decoder")
    taught.model.requires_grad_(False)
    return taught
