"""The commands ``minilib diva train``, ``eval`` and ``controls``: one function for each.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilib import __version__

if TYPE_CHECKING:
    from minilib.arms import Bench
    from minilib.diva import Config
    from minilib.models import Clip, Denoiser

PRESETS = ("toy", "reference", "two-stage")
READOUTS = ("pooled", "local", "pooled+local")
ARMS = ("toy", "noise", "shuffled", "reference", "two-stage", "two-stage 15%", "two-stage 30%", "two-stage 100%",
        "no-anchor", "web", "random-unet", "decoder", "contrastive", "captions")  # fmt: skip
TEST_SEED = 660_000  # the test world of eval and controls; pictures to learn from have seeds from TRAIN_SEED on
TRAIN_SEED = 700_000_000
SIZES = {"pairs": 100, "test": 2000, "train": 2000, "shots": 16}
SETTINGS: dict[str, tuple[type, str]] = {  # a flag for each field of diva.Config
    "steps": (int, "optimiser steps"),
    "lr": (float, "peak learning rate"),
    "batch": (int, "pictures a step, over all processes"),
    "draws": (int, "draws of timestep and noise for each picture"),
    "first": (int, "smallest timestep drawn"),
    "timesteps": (str, "uniform or logit-normal"),
    "condition": (str, "joint, add, concat or visual"),
    "tokens": (
        str,
        "local tokens: all, class, random(76), pooled(7), ...; code or paper: the backbone's published ones",
    ),
    "projector_steps": (int, "steps for the projection alone, before the tower; 0: both together"),
    "projector_lr": (float, "peak learning rate of these"),
    "optimiser": (str, "adamw or sgd"),
    "warmup": (int, "steps of linear warm-up"),
    "anchor": (float, "weight that holds features to the original ones"),
    "kl": (float, "weight that holds zero-shot probabilities over --captions to the original ones"),
    "lora": (int, "rank of low-rank updates; 0 trains all weights"),
    "ema": (float, "decay of an average of the weights"),
    "precision": (str, "float32, bfloat16 or float16"),
    "checkpointing": (bool, "less memory for a third more arithmetic"),
    "accumulate": (int, "parts that a batch is split into, to save memory"),
    "save_every": (int, "steps between checkpoints"),
    "wrong_image": (bool, "control: condition on another picture"),
    "seed": (int, "decides batches, timesteps, noise, tokens, crops and first weights"),
}


def train(args: argparse.Namespace) -> None:
    """``minilib diva train``: refine a CLIP's vision tower on pictures alone. A run that was stopped goes on.

    Taught in: notebooks/10_gpu.ipynb
    """
    from minilib import diva
    from minilib.models import load_denoiser
    from minilib.pictures import Pictures

    device = args.device or _own_gpu()
    config, clip = _config(args, args.clip), _clip(args.clip, device, args.visual)
    denoiser = load_denoiser(args.denoiser, device, args.revision)
    size = _side(denoiser) if args.size is None else args.size
    images = Pictures(args.pictures, size=size, seed=config.seed, threads=args.threads)
    parts = _parts(args, config, clip, denoiser, images)
    refined, losses = diva.train(clip, denoiser, images, config, folder=args.out, **parts)
    if os.environ.get("RANK", "0") == "0":
        print(f"{refined.name}: {len(images):,} pictures of {size} px, {len(images.skipped):,} skipped; "
              f"loss {losses[0]:.4f} in the first step, {losses[-1]:.4f} in the last")  # fmt: skip
        print(f"weights: {Path(args.out) / 'open_clip_model.safetensors'}; log: {Path(args.out) / 'log.jsonl'}")


def evaluate(args: argparse.Namespace) -> None:
    """``minilib diva eval``: pairs, zero-shot and probes of a CLIP, alone or beside another.

    Taught in: notebooks/10_gpu.ipynb
    """
    out, names = _writable(args.out), {"before": args.before, "clip": args.clip}
    report: dict[str, Any] = {"settings": _settings(args, "clip", "before", "visual", "mmvp", "readout", "seed")}
    look = _on_mmvp(args) if args.mmvp else _on_toys(args)
    for role, name in names.items():
        if name:
            report[role] = look(_clip(name, args.device, args.visual if role == "clip" else None))
            for readout, found in report[role].items():
                print(f"{name}, {readout}: {_line(found)}")
    if args.before:
        report["comparison"] = {readout: _compared(report, readout, args.seed) for readout in args.readout}
    _write(out, report)


def controls(args: argparse.Namespace) -> None:
    """``minilib diva controls``: DIVA and its controls on the shipped toy models, from the same pictures and steps.

    Taught in: notebooks/10_gpu.ipynb
    """
    from minilib import exam

    seeds, arms, out = _several(args.seeds, "seeds", int), _several(args.arms, "arms", str), _writable(args.out)
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ValueError(f"arms must be of {', '.join(ARMS)}; not {', '.join(unknown)}")
    settings, sizes = _plan(args) | {"seeds": seeds, "arms": arms}, _sizes(args)
    base = _clip("toy-blind", args.device)

    def look(clip: Clip) -> dict[str, Any]:
        return exam.examine(clip, args.test_seed, readouts=["pooled"], **sizes)["readouts"]["pooled"]

    before = look(base)
    print(f"before: {_line(before)}")
    found: dict[str, dict[int, Any]] = {arm: {} for arm in arms}
    for seed in seeds:
        for arm, clip in _refined(arms, _bench(args, base, seed)):
            found[arm][seed] = look(clip)
            print(f"{arm}, seed {seed}: {_line(found[arm][seed])}", flush=True)
    _write(out, {"settings": settings, "before": before} | {arm: _over(found[arm], before) for arm in arms})


# --- train ------------------------------------------------------------------------------------------------------------


def _config(args: argparse.Namespace, backbone: str) -> Config:
    """The preset with the fields that were given; ``tokens`` may name the backbone's published choice."""
    from minilib.diva import CONFIGS
    from minilib.towers import PRESETS as PUBLISHED
    from minilib.towers import preset

    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    if args.preset == "reference" and backbone in PUBLISHED:
        given = {"tokens": "code"} | given
    if given.get("tokens") in ("code", "paper"):
        given["tokens"] = str(preset(backbone, given["tokens"]))
    return replace(CONFIGS[args.preset], **given)


def _parts(args: argparse.Namespace, config: Config, clip: Clip, denoiser: Denoiser, images: Any) -> dict[str, Any]:
    """The constants that the condition and the options need: text, gap, bank."""
    from minilib import diva, models, world

    toy = args.denoiser in models.TOY_DENOISERS
    parts: dict[str, Any] = {}
    captions = _lines(args.captions) if args.captions else []
    if toy and not captions:
        captions = world.make_scenes(1000, seed=TRAIN_SEED, detail=0.9).captions
    if config.condition in ("add", "concat") and toy:
        parts["text"] = diva.condition(clip.encode_texts([args.prompt or "a photo of a"]))[0]
    elif config.condition in ("add", "concat"):
        parts["text"] = models.embed_prompt(args.denoiser, args.prompt, args.revision)
    if captions and (config.kl or config.condition == "joint"):
        told = clip.encode_texts(captions)
        parts |= {"bank": told} if config.kl else {}
        if config.condition == "joint":
            parts["gap"] = diva.modality_gap(clip.encode_images(images[:2000]), told)
    return parts


def _lines(path: str) -> list[str]:
    found = [line for line in Path(path).read_text(encoding="utf8").splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no caption: give a text file with one a line")
    return found


def _side(denoiser: Denoiser) -> int:
    """Side in pixels of the pictures that the denoiser was trained on."""
    from minilib.models import PatchPCA

    codec = denoiser.codec
    factor = codec.patch if isinstance(codec, PatchPCA) else 2 ** (len(codec.config.block_out_channels) - 1)
    return int(denoiser.unet.config.sample_size) * factor


def _own_gpu() -> str | None:
    """Under ``accelerate launch`` or torchrun, this process's own GPU."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and torch.cuda.is_available() else None


# --- eval -------------------------------------------------------------------------------------------------------------


def _on_mmvp(args: argparse.Namespace) -> Callable[[Clip], dict[str, Any]]:
    from minilib import exam, mmvp

    pairs = mmvp.read_mmvp(args.mmvp)
    patterns = [pair.pattern for pair in pairs]

    def look(clip: Clip) -> dict[str, Any]:
        won = mmvp.solved(clip, pairs, args.readout)
        return {readout: exam.pair_report(won[readout], patterns, seed=args.seed) for readout in args.readout}

    return look


def _on_toys(args: argparse.Namespace) -> Callable[[Clip], dict[str, Any]]:
    from minilib import exam

    sizes = _sizes(args)
    return lambda clip: exam.examine(clip, TEST_SEED + args.seed, readouts=args.readout, **sizes)["readouts"]


def _patterns(report: dict[str, Any]) -> list[str]:
    """The pattern of each pair: they come pattern by pattern, in the toy world and in the benchmark."""
    return [name for name, row in report["patterns"].items() for _ in range(row["n"])]


def _compared(report: dict[str, Any], readout: str, seed: int) -> dict[str, Any]:
    from minilib import exam

    before, after = report["before"][readout], report["clip"][readout]
    first, second = (exam.read_solved(found["solved"]) for found in (before, after))
    found = exam.compare(first, second, _patterns(before), seed=seed)
    low, high = found["interval"]
    print(f"{readout}: gain {found['gain']:+.1%} [{low:+.1%}, {high:+.1%}], {found['won']} pairs won, {found['lost']} "
          f"lost, McNemar p = {found['p']:.3g}")  # fmt: skip
    return found


# --- controls ---------------------------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace, base: Clip, seed: int) -> Bench:
    """Pictures and teachers of a seed; by default each picture is seen once."""
    from minilib import arms, models, world

    teachers = {k: models.load_denoiser(v, args.device) for k, v in (("captions", "toy"), ("web", "toy-web"))}
    first = TRAIN_SEED + (seed + 1) * 1_000_000
    count = args.steps * args.batch if args.pictures is None else args.pictures
    images = world.make_scenes(max(count, args.batch), seed=first).images

    def draw(step: int, detail: float, n: int) -> world.Scenes:
        return world.make_scenes(n, seed=first + 1 + step, detail=detail)

    return arms.Bench(base, teachers, images, draw, _recipe(args, seed))


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """What the file says of how it came about."""
    recipe = {k: v for k, v in asdict(_recipe(args, 0)).items() if k not in ("steps", "batch", "seed")}
    shipped = {"base": "toy-blind", "teacher": "toy", "web": "toy-web"}
    given = _settings(args, "steps", "batch", "pictures", "test_seed")
    return given | _sizes(args) | shipped | {"recipe": recipe}


def _recipe(args: argparse.Namespace, seed: int) -> Config:
    from minilib.diva import Config

    return Config(steps=args.steps, batch=args.batch, seed=seed)


def _refined(arms: Sequence[str], bench: Bench) -> Iterator[tuple[str, Clip]]:
    """Each arm's name and result; the arm toy comes before the noise that it measures, even if not asked for."""
    from minilib.arms import run_arm

    toy = run_arm("toy", bench) if {"toy", "noise"} & set(arms) else None
    for arm in arms:
        yield arm, toy if toy and arm == "toy" else run_arm(arm, bench, toy)


def _over(by_seed: dict[int, dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """One arm: means over its seeds, with intervals over seeds and pairs, and each seed's own report."""
    import numpy as np

    from minilib import exam

    reports, patterns = list(by_seed.values()), _patterns(before)
    won = np.stack([exam.read_solved(report["solved"]) for report in reports]).astype(float)
    level = exam.combine(list(won), patterns)
    gain = exam.combine(list(won - exam.read_solved(before["solved"])), patterns)
    kept = ("gain", "interval", "student", "by_seed", "patterns")
    probes = {
        name: {k: float(np.mean([report["probes"][name][k] for report in reports])) for k in values}
        for name, values in before["probes"].items()
    }
    return {
        "pairs": level["gain"],
        "interval": level["interval"] if len(reports) > 1 else reports[0]["interval"],
        "zero_shot": float(np.mean([report["zero_shot"] for report in reports])),
        "probes": probes,
        "gain": {k: gain[k] for k in kept},
        "seeds": {str(seed): report for seed, report in by_seed.items()},
    }


def _several(text: str, name: str, kind: type) -> list[Any]:
    """A list with commas, each value once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        values = [kind(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"{name} must be whole numbers with commas between them; not {text!r}") from error
    if not values:
        raise ValueError(f"{name} must name at least one; not {text!r}")
    if len(set(values)) < len(values) or (kind is int and min(values) < 0):
        what = "each once" if len(set(values)) < len(values) else "from 0 on"
        raise ValueError(f"{name} must be named {what}; not {text!r}")
    return values


# --- shared -----------------------------------------------------------------------------------------------------------


def _clip(text: str, device: str | None, visual: str | None = None) -> Clip:
    """NAME or NAME/TAG; the tag may be a file, or a folder that ``minilib diva train`` wrote."""
    from minilib.models import load_clip

    name, _, tag = text.partition("/")
    return load_clip(name, tag or None, device, visual=visual)


def _line(report: dict[str, Any]) -> str:
    low, high = report["interval"]
    seen = f"pairs {report['pairs']:.1%} [{low:.1%}, {high:.1%}] (chance {report['chance']:.0%})"
    if "zero_shot" not in report:
        return seen
    return f"{seen}, zero-shot {report['zero_shot']:.1%}, linear probes {report['probe_mean']['linear']:.1%}"


def _settings(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    import torch

    from minilib.models import find_device

    where = find_device(args.device)
    hardware = torch.cuda.get_device_name(where) if where.startswith("cuda") else "CPU"
    today = datetime.date.today().isoformat()
    versions = {"date": today, "minilib": __version__, "torch": torch.__version__, "hardware": hardware}
    return versions | {name: getattr(args, name) for name in names}


def _sizes(args: argparse.Namespace) -> dict[str, int]:
    sizes = {name: getattr(args, name) for name in SIZES}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; not {value}")
    return sizes


def _writable(path: str) -> Path:
    """Said before the work begins, not after it."""
    out = Path(path)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"out must be a file in a folder that exists; not {path}")
    return out


def _write(out: Path, document: dict[str, Any]) -> None:
    """The whole file, or the one that was there."""
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf8")
    os.replace(part, out)
    print(f"written: {out}")


# --- flags ------------------------------------------------------------------------------------------------------------


def add_commands(diva: argparse.ArgumentParser) -> None:
    """``train``, ``eval`` and ``controls`` below ``minilib diva``; nothing heavy is imported for it.

    Taught in: notebooks/10_gpu.ipynb
    """
    commands = diva.add_subparsers(required=True, metavar="COMMAND")
    for name, run, add, text in (
        ("train", train, _add_train, "refine a CLIP on pictures alone"),
        ("eval", evaluate, _add_eval, "pairs, zero-shot and probes, before and after"),
        ("controls", controls, _add_controls, "DIVA beside its controls, on the toy models"),
    ):
        command = commands.add_parser(name, help=text, description=(run.__doc__ or "").split("\n\n")[0])
        add(command.add_argument)
        command.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
        command.set_defaults(run=run)


def _add_train(add: Any) -> None:
    add("pictures", nargs="+", help="folders of pictures, .tar shards, or globs of them")
    add("--clip", required=True, metavar="NAME[/TAG]", help="such as ViT-L-14/openai, toy-blind, or NAME/FILE")
    add("--denoiser", required=True, help="a folder in diffusers' layout, a hub id, toy or toy-web")
    add("--out", required=True, help="folder for weights, log and checkpoints")
    add("--preset", choices=PRESETS, default="toy", help="where the settings begin (default: %(default)s)")
    add("--visual", help="a file whose vision tower replaces that of --clip")
    add("--revision", help="revision of the denoiser's hub id")
    add("--prompt", default="", help="constant text of the condition (default: empty, as in the paper)")
    add("--captions", help="text file, a caption a line: tells where texts lie (condition joint, --kl)")
    add("--size", type=int, help="side of the pictures in pixels (default: the denoiser's own)")
    add("--threads", type=int, default=4, help="pictures decoded at a time (default: %(default)s)")
    for name, (kind, meaning) in SETTINGS.items():
        options: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        add(f"--{name.replace('_', '-')}", help=f"{meaning} (default: the preset's)".replace("%", "%%"), **options)


def _add_eval(add: Any) -> None:
    add("--clip", required=True, metavar="NAME[/TAG]", help="such as ViT-L-14/openai, toy-blind, or NAME/FILE")
    add("--before", metavar="NAME[/TAG]", help="the model to compare with, on the same pairs")
    add("--visual", help="a file whose vision tower replaces that of --clip")
    add("--mmvp", help="folder of MMVP-VLM (default: the toy world)")
    add("--readout", nargs="+", choices=READOUTS, default=["pooled"], help="default: pooled")
    add("--seed", type=int, default=0, help="decides the toy world's pairs, and bootstraps (default: %(default)s)")
    add("--out", required=True, help="JSON file, replaced in one move")
    _add_sizes(add)


def _add_controls(add: Any) -> None:
    add("--steps", type=int, default=150, help="steps of every arm (default: %(default)s)")
    add("--seeds", default="0", help="numbers with commas: batches, noise, pictures (default: %(default)s)")
    add(
        "--arms", default="toy,noise,shuffled", help=f"of {', '.join(ARMS)} (default: %(default)s)".replace("%,", "%%,")
    )
    add("--out", required=True, help="JSON file, replaced in one move")
    add("--batch", type=int, default=64, help="pictures a step (default: %(default)s)")
    add("--pictures", type=int, help="pictures to learn from (default: each step's are new)")
    add("--test-seed", type=int, default=TEST_SEED, help="the test world, the same for all (default: %(default)s)")
    _add_sizes(add)


def _add_sizes(add: Any) -> None:
    meaning = {"pairs": "toy pairs a pattern", "test": "toy scenes asked about", "train": "toy scenes for probes",
               "shots": "scenes a class of the few-shot probe"}  # fmt: skip
    for name, value in SIZES.items():
        add(f"--{name}", type=int, default=value, help=f"{meaning[name]} (default: %(default)s)")
