"""When does a denoiser's feedback help? Five bases with teachers of their own, every arm beside its controls.

Each seed makes a blind base (a fresh vision tower under the shipped text tower) and three teachers from one start, then
refines the base once for each arm, with the same pictures and steps. Models are kept in --work, so an interrupted run
goes on; the results file is replaced in one move after every arm. Made for one CPU thread:

    OMP_NUM_THREADS=1 python scripts/diva_experiment.py

Taught in: notebooks/09_diva.ipynb
"""

import argparse
import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minilib import models, training, world

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "minilib" / "data" / "diva_experiment.json"
SETTINGS = {
    "seeds": [1, 2, 3, 4, 5],
    "base": {"steps": 1200, "batch": 128, "lr": 2e-3, "weight_decay": 0.05, "detail": 0.01},
    "teacher": {"start": 600, "steps": 700, "batch": 48, "lr": 2e-3, "ema": 0.99, "period": 400},
}  # fmt: skip
TEACHERS = {  # share of pictures among the contexts, and share of details that captions mention
    "captions": {"image_share": 0.4, "detail": 0.9},
    "web": {"image_share": 0.4, "detail": 0.05},
    "images": {"image_share": 1.0, "detail": 0.05},
}
STREAM = 100_000_000  # seeds of scenes: each part of each experiment seed draws from a stretch of its own


def scene_seed(seed: int, part: int) -> int:
    return seed * STREAM + part * 1_000_000


def make_base(settings: dict, seed: int, folder: Path) -> models.Clip:
    """A CLIP whose text tower is the shipped one and whose eye, from fresh weights, hardly ever read of details."""
    clip, file = models.load_clip("toy-blind", device="cpu"), folder / "base.safetensors"
    torch.manual_seed(seed)
    clip.model.visual.load_state_dict(models.new_clip().model.visual.state_dict())
    if file.exists():
        clip.model.load_state_dict(load_file(file))
        return clip
    own = dict(settings["base"])
    batch, detail = own.pop("batch"), own.pop("detail")
    training.train_clip(
        clip, lambda step: world.make_scenes(batch, seed=scene_seed(seed, 0) + step, detail=detail), freeze_text=True,
        checkpoint=folder / "base.pt", **own,
    )  # fmt: skip
    save_file(clip.model.state_dict(), file)
    return clip


def make_teachers(settings: dict, seed: int, clip: models.Clip, folder: Path) -> dict[str, models.Denoiser]:
    """Teachers that read detailed captions, sparse ones, none: equally long, from one start that read none."""
    torch.manual_seed(seed)
    start = models.new_denoiser()
    start.unet.to(memory_format=torch.channels_last)
    pictures = world.make_scenes(2000, seed=scene_seed(seed, 1)).images
    start.codec.fit(torch.from_numpy(pictures).float() / 255)
    own, first = settings["teacher"], {"image_share": 1.0, "detail": 0.05}
    _train_teacher(start, clip, first, own | {"steps": own["start"]}, scene_seed(seed, 2), folder / "start")
    teachers = {}
    for part, (name, kind) in enumerate(TEACHERS.items()):
        teachers[name] = copy.deepcopy(start)
        _train_teacher(teachers[name], clip, kind, own, scene_seed(seed, 3 + part), folder / name)
    return teachers


def _train_teacher(denoiser, clip, kind: dict, own: dict, first_scene: int, file: Path) -> None:
    done = file.with_suffix(".safetensors")
    if done.exists():
        denoiser.load_state_dict(load_file(done))
        return
    training.train_denoiser(
        denoiser, clip, lambda step: world.make_scenes(own["batch"], seed=first_scene + step, detail=kind["detail"]),
        seed=first_scene % 2**31, image_share=kind["image_share"], period=own["period"], steps=own["steps"],
        lr=own["lr"], ema=own["ema"], checkpoint=file.with_suffix(".pt"),
    )  # fmt: skip
    save_file({name: value.contiguous() for name, value in denoiser.state_dict().items()}, done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / ".training" / "diva")
    parser.add_argument("--seeds", type=int, nargs="+", default=SETTINGS["seeds"])
    args = parser.parse_args()
    for seed in args.seeds:
        folder = args.work / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        make_teachers(SETTINGS, seed, make_base(SETTINGS, seed, folder), folder)


if __name__ == "__main__":
    main()
