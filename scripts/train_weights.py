"""Train the four shipped models and write their cards: `make weights`, or with --only one of them.

Seeded and resumable: an interrupted run goes on from its last checkpoint. Uses the GPU when there is one.
"""

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from minilib import evaluate, features, models, training, world

SEED = 7
HELD_OUT = 900_001  # a seed that no training step draws from
RECIPES = {  # in the order in which they need each other
    "clip-toy-blind": {"words": 800, "steps": 2600, "batch": 256, "lr": 2e-3, "detail": 0.01, "told": 0.6},
    "clip-toy": {"start": "toy-blind", "steps": 600, "batch": 256, "lr": 1e-3, "detail": 0.1},
    "denoiser-toy": {"steps": 4000, "batch": 128, "lr": 2e-3, "detail": 0.9},
    "denoiser-toy-web": {"steps": 4000, "batch": 128, "lr": 2e-3, "detail": 0.05},
}
STREAMS = {"clip-toy": 0, "clip-toy-blind": 3, "denoiser-toy": 6, "denoiser-toy-web": 9}  # none share a scene


def draw(step: int, recipe: dict, stream: int) -> world.Scenes:
    return world.make_scenes(recipe["batch"], seed=SEED + 10 * step + stream * 10_000_000, detail=recipe["detail"])


def train_clip(recipe: dict, stream: int, device: str, checkpoint: Path) -> tuple[models.Clip, dict]:
    torch.manual_seed(SEED + stream)
    clip = models.load_clip(recipe["start"], device=device) if "start" in recipe else models.new_clip()
    clip.model.to(device)
    log = {}
    options = {"lr": recipe["lr"], "weight_decay": 0.05}
    if "words" in recipe:

        def paraphrases(step: int) -> tuple[list[str], list[str]]:
            truth = draw(step, recipe, stream).attributes
            return tuple(world.make_captions(truth, seed=2 * step + j, detail=recipe["told"]) for j in (0, 1))

        name = checkpoint.with_name(checkpoint.stem + "-words.pt")
        log["words"] = training.train_words(clip, paraphrases, steps=recipe["words"], checkpoint=name, **options)
    log["contrastive"] = training.train_clip(
        clip,
        lambda step: draw(step, recipe, stream + 1),
        freeze_text="words" in recipe,
        steps=recipe["steps"],
        checkpoint=checkpoint,
        **options,
    )
    return clip, log


def train_denoiser(recipe: dict, stream: int, device: str, checkpoint: Path) -> tuple[models.Denoiser, dict]:
    torch.manual_seed(SEED + stream)
    clip, denoiser = models.load_clip("toy-blind", device=device), models.new_denoiser()
    pictures = world.make_scenes(4000, seed=SEED + stream * 10_000_000 - 1).images
    denoiser.codec.fit(torch.from_numpy(pictures).float() / 255)
    log = training.train_denoiser(
        denoiser.to(device), clip, lambda step: draw(step, recipe, stream), seed=SEED + stream, steps=recipe["steps"],
        lr=recipe["lr"], ema=0.998, checkpoint=checkpoint,
    )  # fmt: skip
    return denoiser, {"noise": log}


def clip_metrics(clip: models.Clip) -> dict:
    scenes = world.make_scenes(4000, seed=HELD_OUT, split="test")
    text = features.class_embeddings(clip, world.CONCEPTS)
    metrics = {
        "zero_shot_colour_shape": evaluate.zero_shot_accuracy(clip.encode_images(scenes.images), text, scenes.concepts)
    }
    pairs = world.make_pairs(200, seed=HELD_OUT)
    won = np.asarray(evaluate.pair_accuracy(*features.pair_features(clip, pairs)))
    by_pattern = won.reshape(len(world.PATTERNS), -1).mean(1)
    metrics["pair_accuracy"] = float(won.mean())
    metrics["pair_accuracy_by_pattern"] = {k: float(v) for k, v in zip(world.PATTERNS, by_pattern, strict=True)}
    return metrics


@torch.no_grad()
def denoiser_metrics(denoiser: models.Denoiser, clip: models.Clip) -> dict:
    scenes = world.make_scenes(2000, seed=HELD_OUT, split="test", detail=0.9)
    z, rng = denoiser.encode(scenes.images), torch.Generator().manual_seed(0)
    noise, times = training.draw_noise(z, denoiser.steps, rng)
    context = {"text": clip.encode_texts(scenes.captions), "image": clip.encode_images(scenes.images)}
    metrics = {}
    for kind, c in context.items():
        c = c[:, None] * denoiser.context_width**0.5
        right, wrong = (training.noise_prediction_loss(denoiser, z, x, noise, times).mean() for x in (c, c.roll(1, 0)))
        metrics[kind] = {"right": float(right), "shuffled": float(wrong), "share_saved": float(1 - right / wrong)}
    return {"error": metrics}


def card(name: str, recipe: dict, log: dict, metrics: dict, seconds: float, device: str) -> dict:
    hardware = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"
    )
    tails = {k: float(np.mean(v[-100:])) for k, v in log.items()}
    return {"name": name, "data": "minilib.world scenes, drawn from the seed", "seed": SEED, "recipe": recipe,
            "hardware": hardware, "minutes": round(seconds / 60, 1), "date": datetime.date.today().isoformat(),
            "torch": torch.__version__, "final_losses": tails, "held_out_seed": HELD_OUT, "metrics": metrics,
            "licence": "MIT"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=RECIPES, nargs="*", default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=models.WEIGHTS)
    parser.add_argument("--checkpoints", type=Path, default=Path(".training"))
    parser.add_argument("--length", type=float, default=1.0, help="multiply the steps, e.g. 0.01 to try the script")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in (name for name in RECIPES if name in args.only):
        recipe, stream = RECIPES[name], STREAMS[name]
        recipe = recipe | {k: max(2, int(recipe[k] * args.length)) for k in ("steps", "words") if k in recipe}
        started, checkpoint = time.time(), args.checkpoints / f"{name}.pt"
        train, save = (
            (train_clip, models.save_clip) if name.startswith("clip") else (train_denoiser, models.save_denoiser)
        )
        model, log = train(recipe, stream, device, checkpoint)
        seconds = time.time() - started
        metrics = (
            clip_metrics(model)
            if name.startswith("clip")
            else denoiser_metrics(model, models.load_clip("toy-blind", device=device))
        )
        save(model, args.out / name, card(name, recipe, log, metrics, seconds, device))
        print(name, json.dumps(metrics, indent=1), f"{seconds / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
