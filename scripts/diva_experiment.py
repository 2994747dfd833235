"""When does a denoiser's feedback help? Five bases with teachers of their own, every arm beside its controls.

Each seed makes a blind base (the shipped one, its last block and projection made anew) and three teachers from one
start, then refines the base once for each arm, with the same pictures and steps. Models are kept in --work, so an
interrupted run goes on; the results file is replaced in one move. Made for one CPU thread:

    OMP_NUM_THREADS=1 python scripts/diva_experiment.py

Taught in: notebooks/09_diva.ipynb
"""

import argparse
import copy
import datetime
import json
import os
import platform
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from minilib import arms, diva, evaluate, exam, mmvp, models, training, world

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "minilib" / "data" / "diva_experiment.json"
SETTINGS = {
    "seeds": [1, 2, 3, 4, 5],
    "base": {"steps": 500, "batch": 128, "lr": 1e-3, "weight_decay": 0.05, "detail": 0.01},
    "teacher": {"start": 600, "steps": 700, "batch": 48, "lr": 2e-3, "ema": 0.99, "period": 400},
    "pictures": 9600,
    "recipe": {"steps": 150, "batch": 64, "draws": 2, "lr": 8e-4, "anchor": 0.4, "first": 300},
    "arms": ["before", "toy", "noise", "shuffled", "web", "images", "contrastive", "captions", "decoder"],
    "more_arms": ["two-stage", "random-unet", "no-anchor", "reference", "two-stage 15%", "two-stage 100%",
                  "two-stage 30%"],
    "test_seed": 880_000, "test": {"pairs": 200, "test": 2000, "train": 2000},
}  # fmt: skip
TEACHERS = {  # share of pictures among the contexts, and share of details that captions mention
    "captions": {"image_share": 0.4, "detail": 0.9},
    "web": {"image_share": 0.4, "detail": 0.05},
    "images": {"image_share": 1.0, "detail": 0.05},
}
PLAN = {
    "date": "2026-11-25",
    "primary": "toy against noise: after 150 steps of feedback by a teacher that read detailed captions, more pairs "
    "are solved than after a random change of each tensor by as much. Supported if the 95 % bootstrap interval over "
    "seeds and pairs lies above zero.",
    "secondary": "all other contrasts below; read as descriptions, since there are many.",
    "tuned": "The recipe (steps, batch, draws, rate, anchor, first timestep) was chosen on the shipped models of "
    "minilib/weights with pairs of seeds that are not used here. Nothing was tuned on the five seeds. How long bases "
    "and teachers are trained was set by the time at hand, before any of their results was seen.",
    "order": "All seeds take the first arms; then as many as time allows take the others, and each row says how many.",
    "varied": "Each seed has its own last block and projection of the vision tower, teachers, pictures, DIVA run, and "
    "test pairs. The text tower and the three lower blocks are the shipped ones in all.",
    "discarded": "A first version made the whole vision tower anew in 1,200 steps. Its base named colour and shape of "
    "31 % of the scenes, no CLIP worth refining, so bases were made as above before any arm had been run.",
}
CONTRASTS = [  # the first is the primary hypothesis; "web noise" is a random change as long as that of the arm web
    ("toy", "noise"), ("toy", "before"), ("toy", "shuffled"), ("toy", "web"), ("toy", "images"), ("web", "web noise"),
    ("images", "images noise"), ("toy", "random-unet"), ("toy", "decoder"), ("toy", "contrastive"),
    ("captions", "toy"), ("captions", "contrastive"), ("no-anchor", "toy"), ("reference", "reference noise"),
    ("two-stage", "two-stage noise"), ("two-stage", "two-stage 15%"), ("two-stage", "two-stage 30%"),
    ("two-stage", "two-stage 100%"), ("toy", "two-stage"),
]  # fmt: skip
STREAM = 100_000_000  # seeds of scenes: each part of each experiment seed draws from a stretch of its own


def scene_seed(seed: int, part: int) -> int:
    return seed * STREAM + part * 1_000_000


SHIPPED = (
    "conv1",
    "class_embedding",
    "positional_embedding",
    "ln_pre",
    *(f"transformer.resblocks.{i}." for i in range(3)),
)


def make_base(settings: dict, seed: int, folder: Path) -> models.Clip:
    """The shipped blind CLIP with a new last block and projection, which hardly ever read of details."""
    clip, file = models.load_clip("toy-blind"), folder / "base.safetensors"
    torch.manual_seed(seed)
    fresh = models.new_clip().model.visual.state_dict()
    new = {name: value for name, value in fresh.items() if not name.startswith(SHIPPED)}
    clip.model.visual.load_state_dict(clip.model.visual.state_dict() | new)
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
    start.to(clip.device)
    start.unet.to(memory_format=torch.channels_last)
    pictures = world.make_scenes(2000, seed=scene_seed(seed, 1)).images
    start.codec.fit(torch.from_numpy(pictures).to(clip.device).float() / 255)
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


def make_bench(settings: dict, seed: int, folder: Path) -> arms.Bench:
    """Everything that the arms of a seed share; nothing is trained again that ``folder`` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    base = make_base(settings, seed, folder)
    teachers = make_teachers(settings, seed, base, folder)
    for teacher in teachers.values():
        teacher.unet.to(memory_format=torch.channels_last)  # a sixth faster on this machine
    images = world.make_scenes(settings["pictures"], seed=scene_seed(seed, 6)).images
    draw = lambda step, detail, n: world.make_scenes(n, seed=scene_seed(seed, 7) + step, detail=detail)  # noqa: E731
    return arms.Bench(base, teachers, images, draw, diva.Config(**settings["recipe"], seed=seed))


def one_run(arm: str, bench: arms.Bench, results: dict[str, models.Clip], settings: dict, seed: int) -> dict:
    """Train and examine an arm; its own noise control is examined on the pairs alone."""
    begun = time.perf_counter()
    clip = bench.base if arm == "before" else arms.run_arm(arm, bench, results.get("toy"))
    seconds = time.perf_counter() - begun
    if arm == "toy":
        results["toy"] = clip
    report = exam.examine(clip, settings["test_seed"] + seed, readouts=["pooled"], **settings["test"])
    found = report["readouts"]["pooled"]
    record = {k: found[k] for k in ("pairs", "interval", "zero_shot", "probe_mean")}
    record |= {"solved": pack(found["solved"]), "linear": {k: v["linear"] for k, v in found["probes"].items()}}
    record |= {"by_pattern": {k: v["pairs"] for k, v in found["patterns"].items()}, "seconds": round(seconds, 1)}
    record = {"seed": seed, "arm": arm, "date": datetime.date.today().isoformat()} | record
    if arm not in ("before", "noise"):
        other = diva.perturb(bench.base, clip, seed=seed)
        record |= {
            "solved_noise": pack(spell(solve(other, settings, seed))),
            "moved": moved(bench.base, clip, bench.images),
        }
    return record


def solve(clip: models.Clip, settings: dict, seed: int) -> np.ndarray:
    pairs = world.make_pairs(settings["test"]["pairs"], seed=3 * (settings["test_seed"] + seed))  # as exam.examine
    return mmvp.solved(clip, pairs, ["pooled"])["pooled"]


def moved(base: models.Clip, clip: models.Clip, images: np.ndarray) -> float:
    """Mean of one minus the cosine between a picture's features before and after."""
    before, after = (m.encode_images(images[:500]) for m in (base, clip))
    return float(diva.anchor_loss(after, before))


def spell(won: np.ndarray) -> str:
    return "".join("01"[int(x)] for x in won)


def pack(solved: str) -> str:
    """A string of 0 and 1 in hexadecimal, most significant bit first; 2,000 answers become 500 letters."""
    return f"{int(solved, 2):0{-(-len(solved) // 4)}x}"


def unpack(text: str, n: int) -> np.ndarray:
    return exam.read_solved(f"{int(text, 16):0{n}b}")


@torch.no_grad()
def teacher_errors(bench: arms.Bench, seed: int) -> dict:
    """Each teacher's error told a detailed caption, the base's own feature, and another picture's caption."""
    scenes = world.make_scenes(1000, seed=scene_seed(seed, 8), split="test", detail=0.9)
    z, rng = bench.teacher("captions").encode(scenes.images), torch.Generator().manual_seed(seed)
    noise, times = training.draw_noise(z, 1000, rng)
    told, seen = bench.base.encode_texts(scenes.captions), bench.base.encode_images(scenes.images)
    contexts = {"caption": told, "picture": seen, "other caption": told.roll(1, 0)}
    return {
        name: {k: round(diva.feedback_loss(t, c, z, noise, times).mean().item(), 5) for k, c in contexts.items()}
        for name, t in bench.teachers.items()
    }


def summarise(runs: list[dict], settings: dict) -> dict:
    """Mean and t-interval over seeds of each arm, and the paired contrasts with a bootstrap over seeds and pairs.

    An arm's seeds are those that ran it; a contrast's, those that ran both. Rows of fewer than two seeds are left out.
    """
    patterns = [name for name in world.PATTERNS for _ in range(settings["test"]["pairs"])]
    table = {(r["arm"], r["seed"]): r for r in runs}

    def seeds_of(*names: str) -> list[int]:
        return [s for s in settings["seeds"] if all((name.removesuffix(" noise"), s) in table for name in names)]

    def answers(arm: str, seed: int) -> np.ndarray:
        key = "solved_noise" if arm.endswith(" noise") else "solved"
        return unpack(table[arm.removesuffix(" noise"), seed][key], len(patterns))

    by_arm, contrasts = {}, []
    for arm in settings["arms"] + settings["more_arms"]:
        rows = [table[arm, seed] for seed in seeds_of(arm)]
        if len(rows) > 1:
            by_arm[arm] = {"seeds": len(rows)} | {name: spread([f(r) for r in rows]) for name, f in MEASURES.items()}
    for arm, other in CONTRASTS:
        pairs = [(answers(arm, seed), answers(other, seed)) for seed in seeds_of(arm, other)]
        if len(pairs) > 1:
            found = exam.combine([a.astype(int) - b.astype(int) for a, b in pairs], patterns)
            p = [float(f"{evaluate.mcnemar(b, a):.3g}") for a, b in pairs]
            contrasts.append({"arm": arm, "other": other} | rounded(found) | {"mcnemar": p})
    return {"arms": by_arm, "contrasts": contrasts}


MEASURES = {
    "pairs": lambda run: run["pairs"],
    "zero_shot": lambda run: run["zero_shot"],
    "linear": lambda run: run["probe_mean"]["linear"],
    "gda": lambda run: run["probe_mean"]["gda"],
    "moved": lambda run: run.get("moved", 0.0),
}


def spread(values: list[float]) -> dict:
    return rounded({"mean": float(np.mean(values)), "interval": list(evaluate.mean_interval(values))})


def rounded(value):
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def load_or_begin(path: Path, settings: dict) -> dict:
    """The file's document when it belongs to these settings, else a new one; another experiment's file is refused."""
    fresh = json.loads(json.dumps({"plan": PLAN, "settings": settings, "contrasts": CONTRASTS}))
    if not path.exists():
        machine = f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else machine
        return fresh | {"hardware": machine, "torch": torch.__version__, "teachers": {}, "runs": []}
    found = json.loads(path.read_text(encoding="utf8"))
    other = [name for name, value in fresh.items() if found.get(name) != value]
    if other:
        raise ValueError(f"{path} holds runs with other {', '.join(other)}: give another --out, or remove the file")
    return found


def write(path: Path, document: dict) -> None:
    """One line a run, so that a difference between two files can be read; replaced in one move."""
    head = json.dumps({k: v for k, v in document.items() if k != "runs"}, indent=1)
    runs = ",\n".join("  " + json.dumps(rounded(run)) for run in document["runs"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(f'{head[:-2]},\n "runs": [\n{runs}\n ]\n}}\n', encoding="utf8")
    os.replace(part, path)


def run_seed(settings: dict, seed: int, names: list[str], work: Path, part: Path) -> None:
    """The arms of a seed that its file lacks, written one by one."""
    document = load_or_begin(part, settings)
    missing = [arm for arm in names if arm not in {r["arm"] for r in document["runs"]}]
    if not missing:
        return
    bench, results = make_bench(settings, seed, work / f"seed-{seed}"), {}
    document["teachers"][str(seed)] = teacher_errors(bench, seed)
    if "noise" in missing and "toy" not in missing:  # noise is measured by the weights of toy, which no file holds
        results["toy"] = arms.run_arm("toy", bench)
    for arm in missing:
        record = one_run(arm, bench, results, settings, seed)
        document["runs"].append(record)
        write(part, document)
        print(seed, arm, *(round(record[k], 4) for k in ("pairs", "zero_shot", "seconds")), flush=True)


def merge(settings: dict, parts: list[Path], out: Path) -> None:
    """One file of those that seeds have of their own, with its summary."""
    document, order = load_or_begin(out, settings), settings["arms"] + settings["more_arms"]
    for found in (load_or_begin(part, settings) for part in parts if part.exists()):
        document["teachers"] |= found["teachers"]
        new = {(r["seed"], r["arm"]) for r in found["runs"]}
        document["runs"] = [r for r in document["runs"] if (r["seed"], r["arm"]) not in new] + found["runs"]
    document["runs"].sort(key=lambda r: (r["seed"], order.index(r["arm"])))
    document["summary"] = summarise(document["runs"], settings)
    write(out, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / ".training" / "diva")
    parser.add_argument("--seeds", type=int, nargs="*", default=SETTINGS["seeds"], help="these only; none: merge alone")
    parser.add_argument("--length", type=float, default=1.0, help="scale all steps and sizes: 0.01 to try it")
    args = parser.parse_args()
    settings = scaled(SETTINGS, args.length)
    unknown = sorted(set(args.seeds) - set(settings["seeds"]))
    if unknown:
        parser.error(f"--seeds must be among {settings['seeds']}; not {unknown}")
    parts = {seed: args.work / f"seed-{seed}.json" for seed in settings["seeds"]}
    for names, seed in product((settings["arms"], settings["more_arms"]), args.seeds):
        run_seed(settings, seed, names, args.work, parts[seed])
    merge(settings, list(parts.values()), args.out)


def scaled(settings: dict, length: float) -> dict:
    """Steps, batches and sizes times ``length``; rates, shares and seeds as they are."""
    grows = {"steps", "start", "batch", "period", "pictures", "pairs", "test"}

    def scale(name: str, value):
        if isinstance(value, dict):
            return {k: scale(k, v) for k, v in value.items()}
        return max(4, round(value * length)) if name in grows and length != 1 else value

    return {k: scale(k, v) for k, v in settings.items()}


if __name__ == "__main__":
    main()
