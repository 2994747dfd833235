"""Does curation matter? Train the same small CLIP on differently chosen pairs of one pool, and test all alike.

Each run is one (variant, arm, seed). The seed decides the pool, the choice of pairs, the first weights and the batches,
so that the arms of a seed differ in their pairs alone. The file is written anew, in one move, after every run; a second
start goes on with the runs that are missing. Made for one CPU thread:

    OMP_NUM_THREADS=1 python scripts/feed_experiment.py

Taught in: notebooks/07_does_it_matter.ipynb
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from minilib import curate, evaluate, features, models, training, world

OUT = Path(__file__).resolve().parent.parent / "minilib" / "data" / "feed_experiment.json"
BUCKETS = {"head": (0, 16), "middle": (16, 48), "tail": (48, 80), "all": (0, 80), "rarest three": (77, 80)}  # by rank
TAIL_SHARE = {"t too large": 0.37}
LONGER = {"raw, 3 x steps": 3, "curated, 3 x steps": 3}  # every other arm takes the same number of steps
ARMS = {
    "spam on the head": ["raw", "matched", "random", "matched random", "curated", "t too large", *LONGER],
    "spam on the tail": ["raw", "matched", "random", "curated"],
}
POOLS = {
    "spam on the head": {"spam": 0.2, "spam_on": "head"},
    "spam on the tail": {"spam": 0.01, "spam_on": "tail"},  # rare spam: common spam is no longer in the tail
}
CONTRASTS = [  # variant, better arm by hypothesis, other arm, bucket; fixed before the reported seeds were run
    ("spam on the head", "curated", "random", "all"),
    ("spam on the head", "curated", "matched random", "all"),
    ("spam on the head", "curated", "raw", "all"),
    ("spam on the head", "curated", "raw", "tail"),
    ("spam on the head", "matched", "raw", "all"),
    ("spam on the head", "curated", "t too large", "all"),
    ("spam on the head", "curated", "raw, 3 x steps", "all"),
    ("spam on the tail", "curated", "raw", "all"),
    ("spam on the tail", "curated", "raw", "rarest three"),
]
SETTINGS = {
    "seeds": [1, 2, 3, 4, 5],
    "pool": 60_000, "zipf": 1.4, "junk": 0.2, "t": 60,
    "steps": 600, "batch": 128, "lr": 3e-3, "weight_decay": 0.05,
    "image_tower": [24, 48, 96], "width": 64, "text_layers": 1, "context_length": 16,
    "test_per_concept": 50, "test_seed_offset": 900_000,
}  # fmt: skip
PILOT = {
    "pool_seed": 1000, "test_seed": 1001,
    "tuned": "size and kind of the towers, batch, lr and steps, with the arms curated, raw and matched random",
    "note": "Steps stop where the curated arm's curve flattens; raw still rose, hence the arm with 3 x the steps. "
    "The arm curated, 3 x steps was added after the other arms had been read. "
    "None of the reported seeds was used to choose a setting; each of their runs was made once and is reported.",
}  # fmt: skip


class Eye(nn.Module):
    """A small convolutional image tower: each layer halves the side; uint8 statistics as open_clip's own towers."""

    image_size, image_mean, image_std = 32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    def __init__(self, widths: list[int], out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([3, *widths]):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        side = self.image_size // 2 ** len(widths)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, out))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)  # (n, 3, 32, 32) -> (n, out)


def new_clip(settings: dict, seed: int) -> models.Clip:
    """open_clip's CLIP with a small text tower and an `Eye`: a vision transformer learns too little in 600 steps."""
    torch.manual_seed(seed)
    width, length = settings["width"], settings["context_length"]
    text = {"context_length": length, "vocab_size": 72, "width": width, "heads": 2, "layers": settings["text_layers"]}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}  # replaced below
    model = open_clip.CLIP(embed_dim=width, vision_cfg=vision, text_cfg=text)
    model.visual = Eye(settings["image_tower"], width)
    return models.Clip(model, models.WordTokenizer(length), "feed")


def choose_rows(captions: list[str], t: float, seed: int) -> dict[str, np.ndarray]:
    """Rows of the pool that each arm trains on. Both random arms have exactly the size of the curated one."""
    entries = world.toy_entries()
    result = curate.curate(captions, entries, t=t, seed=seed)
    matched, kept = np.flatnonzero(np.diff(result.offsets)), np.flatnonzero(result.kept)
    large = curate.solve_t(result.counts, tail_share=TAIL_SHARE["t too large"])
    rng = np.random.default_rng([seed, 1])
    return {
        "raw": np.arange(len(captions)),
        "raw, 3 x steps": np.arange(len(captions)),
        "matched": matched,
        "random": np.sort(rng.choice(len(captions), len(kept), replace=False)),
        "matched random": np.sort(rng.choice(matched, len(kept), replace=False)),
        "curated": kept,
        "curated, 3 x steps": kept,
        "t too large": np.flatnonzero(curate.curate(captions, entries, t=large, seed=seed).kept),
    }


def draw_pool(settings: dict, variant: str, seed: int) -> world.Pool:
    shape = {name: settings[name] for name in ("zipf", "junk")}
    return world.make_pool(settings["pool"], seed=seed, **shape, **POOLS[variant])


def draw_test(settings: dict, seed: int) -> world.Scenes:
    """Fresh clean scenes, each concept equally often, ordered by concept; digits that no training scene holds."""
    concepts = np.repeat(np.arange(len(world.CONCEPTS)), settings["test_per_concept"])
    told = {"colour": concepts // len(world.SHAPES), "shape": concepts % len(world.SHAPES)}
    return world.make_scenes(len(concepts), seed=settings["test_seed_offset"] + seed, split="test", fixed=told)


def train(pool: world.Pool, rows: np.ndarray, settings: dict, seed: int) -> tuple[models.Clip, list[float]]:
    """The same number of steps whatever the number of rows; batch i of a seed uses the same uniform numbers."""
    assert pool.images is not None
    images, captions, clip = pool.images, np.array(pool.captions), new_clip(settings, seed)

    def draw(step: int) -> world.Scenes:
        uniform = np.random.default_rng([seed, 2, step]).random(settings["batch"])
        batch = rows[(uniform * len(rows)).astype(np.int64)]
        return world.Scenes(images[batch], captions[batch].tolist(), {})

    options = {name: settings[name] for name in ("steps", "lr", "weight_decay")}
    return clip, training.train_clip(clip, draw, **options)


def count_right(clip: models.Clip, test: world.Scenes) -> list[int]:
    """Test scenes of each concept that zero-shot classification over all 80 names gets right: (80,)."""
    text = features.class_embeddings(clip, world.CONCEPTS)
    right = (clip.encode_images(test.images) @ text.T).argmax(dim=1).cpu().numpy() == test.concepts
    return np.bincount(test.concepts[right], minlength=len(world.CONCEPTS)).tolist()


def run_all(settings: dict, done: set[tuple]) -> Iterator[dict]:
    """One record a run, seed by seed, the longer arms last; those in ``done`` are skipped."""
    for late, seed, variant in product((False, True), settings["seeds"], ARMS):
        arms = [arm for arm in ARMS[variant] if (arm in LONGER) == late and (variant, arm, seed) not in done]
        if not arms:
            continue
        pool, test = draw_pool(settings, variant, seed), draw_test(settings, seed)
        rows = choose_rows(pool.captions, settings["t"], seed)
        for arm in arms:
            own = settings | {"steps": settings["steps"] * LONGER.get(arm, 1)}
            yield {"variant": variant, "arm": arm, "seed": seed} | one_run(pool, rows[arm], test, own, seed)


def one_run(pool: world.Pool, rows: np.ndarray, test: world.Scenes, settings: dict, seed: int) -> dict:
    begun = time.perf_counter()
    clip, losses = train(pool, rows, settings, seed)
    kinds = pool.kinds[rows]
    clean = np.bincount(pool.concepts[rows][kinds == "clean"], minlength=len(world.CONCEPTS))
    return {
        "pairs": len(rows), "spam": int((kinds == "spam").sum()), "junk": int((kinds == "junk").sum()),
        "loss": round(float(np.mean(losses[-50:])), 4), "seconds": round(time.perf_counter() - begun, 1),
        "date": datetime.date.today().isoformat(), "right": count_right(clip, test), "clean": clean.tolist(),
    }  # fmt: skip


def accuracies(record: dict, settings: dict) -> dict[str, float]:
    """Share right in each bucket of `BUCKETS`; a concept's rank is its place in the pool's Zipf law."""
    by_rank = np.array(record["right"])[world.concept_order()] / settings["test_per_concept"]  # (80,)
    return {name: float(by_rank[low:high].mean()) for name, (low, high) in BUCKETS.items()}


def summarise(runs: list[dict], settings: dict) -> dict:
    """Mean and 95 % t-interval over seeds: of each arm's accuracy in each bucket, and of the paired differences."""
    table = {(r["variant"], r["arm"], r["seed"]): accuracies(r, settings) for r in runs}

    def over_seeds(variant: str, arm: str, bucket: str) -> np.ndarray:
        return np.array([table[variant, arm, seed][bucket] for seed in settings["seeds"]])

    arms = {v: {a: {b: describe(over_seeds(v, a, b)) for b in BUCKETS} for a in names} for v, names in ARMS.items()}
    paired = [
        {"variant": v, "arm": a, "other": o, "bucket": b} | describe(over_seeds(v, a, b) - over_seeds(v, o, b))
        for v, a, o, b in CONTRASTS
    ]
    return {"arms": arms, "paired": paired}


def describe(values: np.ndarray) -> dict[str, float | list[float]]:
    return {"mean": round(float(values.mean()), 5), "interval": [round(x, 5) for x in evaluate.mean_interval(values)]}


def write(path: Path, document: dict) -> None:
    """One line a run, so that a difference between two files can be read; replaced in one move."""
    head = json.dumps({k: v for k, v in document.items() if k != "runs"}, indent=1)
    runs = ",\n".join("  " + json.dumps(run) for run in document["runs"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(f'{head[:-2]},\n "runs": [\n{runs}\n ]\n}}\n', encoding="utf8")
    os.replace(part, path)


def load_or_begin(path: Path, settings: dict) -> dict:
    """The file's document when it belongs to these settings, else a new one; another experiment's file is refused."""
    fresh = {"settings": settings, "pools": POOLS, "arms": ARMS, "buckets": BUCKETS, "contrasts": CONTRASTS}
    fresh |= {"tail_share": TAIL_SHARE, "longer": LONGER}
    fresh = json.loads(json.dumps(fresh))  # tuples become lists, as they will in the file
    if not path.exists():
        machine = f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"
        return fresh | {"pilot": PILOT, "hardware": machine, "torch": torch.__version__, "runs": []}
    found = json.loads(path.read_text(encoding="utf8"))
    other = [name for name, value in fresh.items() if found.get(name) != value]
    if other:
        raise ValueError(f"{path} holds runs with other {', '.join(other)}: give another --out, or remove the file")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", type=int, nargs="+", default=SETTINGS["seeds"])
    parser.add_argument("--length", type=float, default=1.0, help="scale pool, t, steps, batch, test: 0.01 to try it")
    args = parser.parse_args()
    if len(set(args.seeds)) < max(2, len(args.seeds)):
        parser.error(f"--seeds must be two or more different seeds, or there is no interval; not {args.seeds}")
    scaled = {k: max(2, round(SETTINGS[k] * args.length)) for k in ("pool", "t", "steps", "batch", "test_per_concept")}
    settings = SETTINGS | scaled | {"seeds": args.seeds}
    document = load_or_begin(args.out, settings)
    runs = document["runs"]
    for record in run_all(settings, {(r["variant"], r["arm"], r["seed"]) for r in runs}):
        runs.append(record)
        write(args.out, document)
        print(*(record[k] for k in ("variant", "arm", "seed", "pairs", "seconds")), accuracies(record, settings))
    document["summary"] = summarise(runs, settings)
    write(args.out, document)


if __name__ == "__main__":
    main()
