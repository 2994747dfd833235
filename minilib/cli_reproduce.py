"""The command ``minilib reproduce``: a subcommand for each of the papers' experiments, with a plan, a table, a ledger.

Taught in: notebooks/03_fewshot.ipynb and notebooks/09_diva.ipynb
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilib import published

if TYPE_CHECKING:
    from minilib.reproduce import Job

TAILS = ("imagenet-lt", "places-lt")
ALL = {"gda-longtail": TAILS, "gda-robustness": ("all",)}  # what `--dataset all` means; elsewhere the eleven sets
ONCE = ("gda-longtail", "gda-unsupervised")  # tasks whose training pictures are taken once, unless --views says more
DEFAULTS = {"gda-fewshot": ("RN50", "1,2,4,8,16"), "gda-base-to-new": ("ViT-B/16", "16"),
            "gda-robustness": ("ViT-B/16", "16"), "gda-longtail": ("RN50", None),
            "gda-unsupervised": ("RN50", None)}  # fmt: skip
RATES = {"cuda": 20e12, "cpu": 50e9}  # FLOP/s that a plan reckons with unless --tflops says otherwise
MATCHES = 100_000  # texts a second that a plan reckons with
TO_DOWNLOAD = "to download"
BATCH = 256  # pictures that a tower takes at once


def reproduce(args: argparse.Namespace) -> None:
    """``minilib reproduce TASK``: run it, print the table, write JSON and the ledger's rows.

    Taught in: notebooks/03_fewshot.ipynb
    """
    jobs = _jobs(args)
    if args.dry_run:
        for line in plan(jobs, args.tflops):
            print(line)
        return
    from minilib.reproduce import run

    out, folder = _writable(args.out), _ledger(args.ledger)
    rows: list[dict[str, Any]] = []
    benches: dict[Any, Any] = {}
    for job in jobs:
        for row in run(job, benches):
            rows.append(published.seal(row))
            if folder is not None:
                print(f"ledger: {published.write_row(row, folder)}")
    print("\n".join(table(rows)))
    for words in dict.fromkeys(row["protocol"] for row in rows):
        print(f"protocol: {words}")
    if out is not None:
        print(f"written: {published.write_whole(out, {'rows': rows})}")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The results of rows in aligned columns, a header first.

    Taught in: notebooks/03_fewshot.ipynb
    """
    lines = [("set", "backbone", "shots", "metric", "ours", "95 %", "paper", "log", "difference")]
    for row in rows:
        for one in row["results"]:
            ours = _plain(one["value"]) + (f" ± {one['sd']:.2f}" if one["sd"] is not None else "")
            ends = " to ".join(_plain(end) for end in one["interval"] or ())
            gap = "" if one["difference"] is None else f"{one['difference']:+.2f}"
            names = [row["dataset"], row["backbone"], "" if row["shots"] is None else str(row["shots"]), one["metric"]]
            lines.append((*names, ours, ends, _plain(one["paper"]), _plain(one["reference_log"]), gap))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _plain(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 0.1 else f"{value:.2f}"


# --- jobs -------------------------------------------------------------------------------------------------------------


def _jobs(args: argparse.Namespace) -> list[Job]:
    """A job for each data set, backbone and number of shots, in this order."""
    from minilib.reproduce import Job

    given = {name: getattr(args, name) for name in ("device", "cache", "data_root", "pretrained", "before", "metadata")
             if getattr(args, name, None) is not None}  # fmt: skip
    views = getattr(args, "views", None)
    given["views"] = (0 if args.task in ONCE else 10) if views is None else views
    given["seeds"] = tuple(_numbers(getattr(args, "seeds", "0"), "seeds", 0))
    if args.task == "curate-stats":
        given |= {"pool": tuple(args.pool or ()), "t": args.t}
    shots = _numbers(args.shots, "shots", 1) if getattr(args, "shots", None) else [None]
    backbones = _names(getattr(args, "backbone", None) or "", "backbone") or [""]
    known = ALL.get(args.task, published.ELEVEN)
    names = getattr(args, "dataset", None)
    sets = list(known) if names == "all" else _names(names or "", "dataset") or [""]
    return [
        Job(args.task, dataset=name, backbone=backbone, shots=n, **given)
        for name in sets
        for backbone in backbones
        for n in shots
    ]


def _names(text: str, what: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if len(set(names)) < len(names):
        raise ValueError(f"{what} must be named once each; not {text!r}")
    return names


def _numbers(text: str, what: str, least: int) -> list[int]:
    names = _names(text, what)
    if not names or not all(name.isdecimal() and int(name) >= least for name in names):
        raise ValueError(f"{what} must be whole numbers from {least} on, with commas between them; not {text!r}")
    return [int(name) for name in names]


# --- plan -------------------------------------------------------------------------------------------------------------


def plan(jobs: Sequence[Job], tflops: float | None = None) -> Iterator[str]:
    """What jobs need, in lines: downloads, pictures, disk, minutes, memory. Opens no socket and writes nothing.

    Minutes are an estimate: forward passes counted on the pictures that are there, times the tower's counted FLOPs,
    over ``tflops`` (10^12 FLOP/s). Reading and decoding pictures, texts and the classifiers come on top.
    Taught in: notebooks/03_fewshot.ipynb
    """
    sets = yield from _sets(jobs)
    missing = yield from _listed(_downloads(jobs, sets))
    passes: dict[Job, int | None] = {}
    for job in jobs:
        again = any((job.dataset, job.backbone) == (other.dataset, other.backbone) for other in passes)
        passes[job] = n = _passes(job, sets, again)
        yield f"{_title(job)}: {'pictures not there, so not counted' if n is None else f'{n:,} forward passes'}"
        yield from _pool(job)
    yield from _costs({job: n or 0 for job, n in passes.items()}, missing, tflops)
    if uncounted := sum(n is None for n in passes.values()):
        yield f"time and features leave out {uncounted} of {len(passes)} settings, whose pictures are not there"
    yield "nothing was downloaded or written"


def _listed(downloads: Iterable[tuple[str, int | None, str, str]]) -> Generator[str, None, str]:
    """A line for each; returns what is to download, in words."""
    total, untold = 0, 0
    for name, size, about, state in downloads:
        yield f"{name}: {'size not known' if size is None else f'{about}{size:,} bytes'}, {state}"
        if state == TO_DOWNLOAD:
            total, untold = total + (size or 0), untold + (size is None)
    return f"{total / 1e9:,.2f} GB of downloads" + (f", and {untold} of a size that is not known" if untold else "")


def _costs(passes: dict[Job, int], missing: str, tflops: float | None) -> Iterator[str]:
    """Disk, time and memory of forward passes."""
    from minilib import models

    some = next(iter(passes))
    device = models.find_device(some.device)
    rate = RATES[device.split(":")[0]] if tflops is None else tflops * 1e12
    towers = {job.backbone: _tower(job.backbone) for job in passes if job.backbone}
    each = [(n, *towers.get(job.backbone, (0, 0, 0))) for job, n in passes.items()]
    seconds = sum(n * flops for n, flops, *_ in each) / rate
    features = f"{sum(4 * n * width for n, _, width, _ in each) / 1e9:,.2f} GB"
    yield f"disk: {missing}" + (f"; {features} for the cache of features" if some.cache else "")
    speed = f"{rate / 1e12:g} TFLOP/s on {device}"
    yield f"time: an estimate of {seconds / 60:,.1f} minutes for the forward passes counted, at {speed}"
    weights = max(bytes_ for *_, bytes_ in each) / 1e9
    yield f"memory: {weights:,.2f} GB of weights, a batch of {BATCH} pictures, and up to {features} of features"


def _pool(job: Job) -> Iterator[str]:
    """What matching a pool takes, from the size of its shards."""
    if job.pool:
        from minilib.pools import estimate_rows, list_shards

        shards = list_shards(job.pool)
        rows, size = sum(map(estimate_rows, shards)), sum(shard.stat().st_size for shard in shards) / 1e9
        minutes = 2 * rows / MATCHES / 60
        yield f"pool: {len(shards):,} shards, {size:,.2f} GB, about {rows:,} texts"
        yield f"matching them twice: an estimate of {minutes:,.1f} minutes at {MATCHES:,} texts a second"


def _title(job: Job) -> str:
    shots = f"{job.shots} shots" if job.shots else ""
    return ", ".join(part for part in (job.task, job.dataset, job.backbone, shots) if part)


def _named(job: Job) -> list[str]:
    """The image sets that a job reads."""
    if job.task == "gda-robustness":
        from minilib.reproduce import SHIFTS

        return list(SHIFTS) if job.dataset in ("", "all") else list(dict.fromkeys(["imagenet", job.dataset]))
    return [job.dataset] if job.dataset and job.task != "diva-mmvp" else []


def _sets(jobs: Sequence[Job]) -> Generator[str, None, dict[str, Any]]:
    """The sets under the jobs' data root, None for one that cannot be read; a line says why."""
    from minilib import datasets

    found: dict[str, Any] = {}
    for job in jobs:
        for name in _named(job):
            if name in found or not job.data_root:
                continue
            try:
                found[name] = datasets.load(name, job.data_root)
            except (OSError, ValueError) as error:
                found[name] = None
                yield f"{name} is not there: {str(error).splitlines()[0]}"
    return found


def _downloads(jobs: Sequence[Job], sets: dict[str, Any]) -> Iterator[tuple[str, int | None, str, str]]:
    """(asset, bytes, how exactly, state) of what the jobs' models and sets are made of, each once."""
    from minilib import assets, zoo

    sizes = {known.asset: zoo.memory(name) for name, known in zoo.BACKBONES.items()}  # of float32, where none is stated
    for name in dict.fromkeys(name for job in jobs for name in _asset_names(job, assets.manifest())):
        there = sets.get(name.split("/")[0]) is not None
        state = "under --data-root" if there else TO_DOWNLOAD if assets.find(name) is None else "cached"
        stated = assets.asset(name).size
        yield name, stated or sizes.get(name), "" if stated else "about ", state


def _asset_names(job: Job, known: dict[str, Any]) -> list[str]:
    from minilib.reproduce import backbone

    model = backbone(job.backbone)
    names = [model.asset] if model else []
    names += [model.diva] if model and model.diva and "diva" in (job.pretrained, job.before) else []
    sets = [*_named(job), *(["mmvp-vlm"] if job.task == "diva-mmvp" else [])]
    sets += ["imagenet/images"] * (job.dataset == "imagenet-lt")
    parts = [name for each in sets for name in known if name == each or name.startswith(f"{each}/")]
    return [name for name in names + parts if name in known and not known[name].parts]


def _passes(job: Job, sets: dict[str, Any], again: bool) -> int | None:
    """Forward passes of a job's vision tower, test pictures only once a set; None where its pictures are not there."""
    if job.task == "diva-mmvp":
        return _pair_passes(job)
    images = [sets.get(name) for name in _named(job)]
    if not images or None in images:
        return None if images else 0
    first: Any = images[0]
    sizes = {name: len(split.labels) for name, split in first.splits.items()}
    classes, views, seeds = len(first.classnames), max(job.views, 1), len(job.seeds)
    drawn = (job.shots or 0) * classes * views * seeds
    once = 0 if again else sum(len(one.splits["test"].labels) for one in images if one) + sizes.get("val", 0)
    held = 0 if "val" in sizes else 4 * classes * seeds
    return once + {
        "gda-base-to-new": drawn // 2 + held,
        "gda-longtail": sizes.get("train", 0) * views,
        "gda-unsupervised": min(sizes.get("train", 0), 20_000) * views * (seeds if job.views else 1),
        "curate-stats": 0,
    }.get(job.task, drawn + held)


def _pair_passes(job: Job) -> int | None:
    from minilib.mmvp import read_mmvp

    if not job.data_root or not Path(job.data_root).is_dir():
        return None
    return 2 * len(read_mmvp(job.data_root)) * (2 if job.pretrained else 1)


def _tower(name: str) -> tuple[int, int, int]:
    """FLOPs of a picture, width of a feature, bytes of the weights in float32, counted on torch's meta device."""
    import open_clip
    import torch

    from minilib import models, zoo
    from minilib.cost import count_flops
    from minilib.reproduce import backbone

    known = backbone(name)
    arch = known.arch if known else "minilib-toy" if name in models.TOY_CLIPS else name.split("/")[0]
    if arch not in open_clip.list_models():
        raise ValueError(f"backbone must be one of {', '.join(zoo.BACKBONES)}, or ARCH/TAG of open_clip; not {name!r}")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns of random weights; here there are none
    try:
        with torch.device("meta"):
            model: Any = open_clip.create_model(arch, device="meta")
    finally:
        logging.disable(before)
    size = model.visual.image_size
    picture = torch.empty(1, 3, *(size if isinstance(size, tuple) else (size, size)), device="meta")
    with torch.no_grad():
        flops, _ = count_flops(lambda: model.visual(picture))
    width = open_clip.get_model_config(arch)["embed_dim"]
    return flops, width, 4 * sum(weight.numel() for weight in model.parameters())


# --- files ------------------------------------------------------------------------------------------------------------


def _writable(path: str | None) -> Path | None:
    """Said before the work begins, not after it."""
    if path is None:
        return None
    out = Path(path)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"out must be a file in a folder that exists; not {path}")
    return out


def _ledger(given: str | None) -> Path | None:
    """The folder of rows: none unless asked for, the book's own in a clone where none is named."""
    from minilib.reproduce import clone

    if given:
        return Path(given)
    root = clone()
    if given is None:
        return None
    if root is None:
        raise ValueError("--ledger needs a folder here, since minilib does not run from a clone: --ledger FOLDER")
    return root / "book" / "reproductions"


# --- flags ------------------------------------------------------------------------------------------------------------


def add_commands(parser: argparse.ArgumentParser) -> None:
    """A subcommand for each task below ``minilib reproduce``; nothing heavy is imported for it.

    Taught in: notebooks/03_fewshot.ipynb
    """
    commands = parser.add_subparsers(required=True, metavar="TASK")
    for task, title in published.TASKS.items():
        command = commands.add_parser(task, help=title, description=f"{title}: our numbers beside the published.")
        _add_own(command.add_argument, task)
        _add_common(command.add_argument)
        command.set_defaults(run=reproduce, task=task)


def _add_own(add: Any, task: str) -> None:
    """The flags that one task has and another lacks."""
    backbone, shots = DEFAULTS.get(task, (None, None))
    many = task.startswith("gda")
    if task == "curate-stats":
        add("--pool", nargs="+", help="shards (.parquet, .jsonl, .jsonl.gz, .tar), or folders of shards")
        add("--metadata", help="list of entries: JSON, or text with one a line")
        add("--t", type=float, default=20_000, help="count above which an entry is of the head (default: %(default)s)")
    if task == "diva-mmvp":
        add("--before", help="weights or backbone to start from (default: the backbone's own)")
    else:
        default = {"gda-robustness": "all"}.get(task)
        add("--dataset", required=many and default is None, default=default, help="names with commas, or all")
    name = "OpenAI ViT-L/14" if task == "diva-mmvp" else backbone
    add("--backbone", default=name, help="as the papers write it, with commas; or ARCH/TAG (default: %(default)s)")
    what = "the weights after: a DIVA checkpoint" if task == "diva-mmvp" else "a file of weights for the backbone"
    add("--pretrained", help=what)
    if shots:
        add("--shots", default=shots, help="pictures a class, with commas (default: %(default)s)")
    if many:
        add("--seeds", default="1,2,3", help="with commas (default: %(default)s)")
        once = "0, pictures as they are" if task in ONCE else "10"
        add("--views", type=int, help=f"random crops of a training picture; 0: none (default: {once})")


def _add_common(add: Any) -> None:
    add("--data-root", help="folder that holds the image sets; of diva-mmvp the benchmark's own folder")
    add("--device", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
    add("--cache", help="folder for features, so that a second run does not compute them again")
    add("--out", help="JSON file, replaced in one move")
    add("--ledger", nargs="?", const="", metavar="FOLDER", help="write a row a file (default: the clone's own ledger)")
    add("--dry-run", action="store_true", help="say what is needed; open no socket, write nothing")
    add("--tflops", type=float, help="speed that the plan reckons with, 10^12 FLOP/s (default: 20 on a GPU, 0.05 else)")
