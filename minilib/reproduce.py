"""Run the papers' experiments on real models and data, by their protocols, and set the numbers beside the published.

The experiments are :mod:`minilib.trials`, :mod:`minilib.mmvp` and :mod:`minilib.curate`; this module runs them over
seeds, adds intervals, and says in words what was done, on what, and when.

References: Wang et al. 2024 (GDA for CLIP, arXiv:2402.04087) and its code; Wang et al. 2025 (DIVA, arXiv:2407.20171);
Xu et al. 2024 (MetaCLIP, arXiv:2309.16671).

Taught in: notebooks/03_fewshot.ipynb, notebooks/04_beyond.ipynb and notebooks/09_diva.ipynb
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from minilib import __version__, datasets, evaluate, exam, mmvp, models, published, trials, zoo
from minilib.models import Clip
from minilib.trials import HELD_OUT, UNLABELLED, Bench, Scores

SHIFTS = ("imagenet", "imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r")
PATTERNS = {"orientation": "orientation", "presence": "presence", "state": "state", "count": "quantity|count",
            "position": "spatial|position", "colour": "colou?r", "structure": "structur", "text": r"\btext",
            "viewpoint": "camera|perspective|viewpoint"}  # fmt: skip

_ALPHA = "alpha is the first best of 1e-4, 1e-3, ..., 1e2 by accuracy on {where}; test rows choose nothing"
PROTOCOL = {
    "gda-fewshot": "{shots} pictures a class, seeds {seeds}; {views}; class means, KS precision, uniform prior; "
                   "logits s X T' + alpha (X W + b) with CLIP's own s; {alpha}.",
    "gda-base-to-new": "The first half of the classes is base, with {shots} pictures a class, seeds {seeds}; {views}; "
                       "base precision is the plain inverse of S / (N - K), which for equal classes is the mean of "
                       "their covariances; new classes from 64 neighbours and 16 copies of the text; {alpha}, base "
                       "rows only. H is the mean over seeds; H of means is that of the two means.",
    "gda-robustness": "Fitted on ImageNet, {shots} pictures a class, seeds {seeds}; {views}; KS precision; W, b, alpha "
                      "and texts are carried to the target; where it has fewer classes a 0/1 map picks their logits; "
                      "{alpha} of ImageNet.",
    "gda-longtail": "All training pictures of the long-tailed list, {views}; KS precision; the uniform and the "
                    "empirical prior (the paper does not say which is its own); {alpha}.",
    "gda-unsupervised": "EM on training pictures whose labels are not read (all, or 20,000 drawn by the seed), "
                        "{views}; prior of each picture its zero-shot probabilities, means anchored to the texts as by "
                        "4 pictures, inverse Wishart ridge; judged on test pictures. Our own design: the authors' code "
                        "for it is not published.",
    "diva-mmvp": "A pair counts if both statements pick their own picture; score is the mean over patterns; prompt 'a "
                 "photo of ' + statement. Main readout: pooled, the same before and after (the published figures "
                 "compare the class token before with class and local tokens after: see pooled+local).",
    "curate-stats": "Texts are matched by the paper's rule; a match is a text and an entry; head entries have more "
                    "than t = {t} texts; duplicates stay in; texts kept is the expected number at that t. Counts of "
                    "another pool are shown beside the paper's, not compared.",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One row of the ledger, or several that share a model."""

    task: str
    """A key of ``published.TASKS``."""
    dataset: str = ""
    backbone: str = ""
    shots: int | None = None
    seeds: tuple[int, ...] = (1, 2, 3)
    views: int = 10
    """Random crops of each training picture; 0 takes the picture as the model takes test pictures."""
    data_root: str | None = None
    device: str | None = None
    cache: str | None = None
    pretrained: str | None = None
    """A file of weights for the backbone; of ``diva-mmvp`` the model after."""
    before: str | None = None
    """Of ``diva-mmvp``: a file of weights, or a backbone, in the place of the backbone's own."""
    pool: tuple[str, ...] = ()
    metadata: str | None = None
    t: float = 20_000


# --- pairs and curation -----------------------------------------------------------------------------------------------


def picture_pairs(job: Job) -> list[dict[str, Any]]:
    """Results of MMVP-VLM before and, with ``pretrained``, after: by readout, by pattern, and the gain.

    Source: Wang et al. 2025, section 4. Taught in: notebooks/09_diva.ipynb
    """
    pairs = mmvp.read_mmvp(_root(job))
    names = [_pattern(pair.pattern) for pair in pairs]
    won: dict[str, dict[str, NDArray[np.bool_]]] = {"before": mmvp.solved(_before(job), pairs)}
    if job.pretrained:
        won["after"] = mmvp.solved(load(job.backbone, job.device, job.pretrained), pairs)
    results = []
    for when, by_readout in won.items():
        for readout, solved in by_readout.items():
            report = exam.pair_report(solved, names)
            metric = when if readout == "pooled" else f"{when} ({readout})"
            results.append(_pair_result(metric, report, f"bootstrap over {len(pairs)} pairs"))
        report = exam.pair_report(by_readout["pooled"], names)
        for name, part in report["patterns"].items():
            results.append(_pair_result(f"{when}, {name}", part, f"Wilson, {part['n']} pairs"))
    for readout in won.get("after", {}):
        report = exam.compare(won["before"][readout], won["after"][readout], names)
        metric = "gain" if readout == "pooled" else f"gain ({readout})"
        kind = f"paired bootstrap; McNemar p = {report['p']:.3g}"
        results.append(_pair_result(metric, {**report, "pairs": report["gain"]}, kind, "points"))
    return results


def _before(job: Job) -> Clip:
    if job.before is None or Path(job.before).exists():
        return load(job.backbone, job.device, job.before)
    return load(job.before, job.device)


def _pattern(kind: str) -> str:
    """The paper's word for a type of the benchmark; the type itself where it is none of the nine."""
    return next((name for name, words in PATTERNS.items() if re.search(words, kind.lower())), kind.lower())


def _pair_result(metric: str, part: dict[str, Any], kind: str, unit: str = "%") -> dict[str, Any]:
    low, high = part["interval"]
    value = 100 * part["pairs"]
    return result(metric, unit, value, by_seed=[value], interval=[100 * low, 100 * high], kind=kind)


def curation(job: Job) -> list[dict[str, Any]]:
    """Counts over a pool, in two passes that hold one batch at a time: texts, matches, head, expected size.

    Source: Xu et al. 2024, section 3. Taught in: notebooks/06_balance.ipynb
    """
    from minilib import curate, pools, runs, steps  # they need the extra `curate`

    if not job.pool or not job.metadata:
        raise ValueError("curate-stats needs a pool and a list of entries: --pool SHARDS --metadata FILE")
    settings, shards = runs.Settings(t=job.t), tuple(pools.list_shards(job.pool))
    runs.check_first_shard(shards, settings.columns)
    run = runs.Run(Path(), settings, shards, runs.load_languages(job.metadata, by_language=False))

    def batches() -> Iterator[dict[str, NDArray[Any]]]:
        for shard in shards:
            yield from (steps.match_rows(run, rows) for rows in pools.read_rows(shard, settings.columns))

    texts = matched = 0
    counts = np.zeros(run.n_entries, np.int64)
    for batch in batches():
        texts, matched = texts + len(batch["codes"]), matched + int((batch["lengths"] > 0).sum())
        counts += curate.entry_counts(batch["ids"], run.n_entries)
    p, kept = curate.keep_probability(counts, job.t), 0.0
    for batch in batches():
        offsets = np.append(0, np.cumsum(batch["lengths"]))
        kept += float(curate.text_keep_probability(batch["ids"], offsets, p).sum())
    total, head = int(counts.sum()), int(counts[counts > job.t].sum())
    found = {"entries": run.n_entries, "texts": texts, "texts with a match": matched, "texts kept": kept, "t": job.t,
             "matches": total, "head entries": int((counts > job.t).sum()),
             "matches in head entries": head}  # fmt: skip
    results = [result(name, "count", value) for name, value in found.items()]
    if total:
        results.append(result("matches a text", "ratio", total / texts))
        results.append(result("share in head entries", "%", 100 * head / total))
    return results


# --- rows -------------------------------------------------------------------------------------------------------------


def load(name: str, device: str | None = None, pretrained: str | None = None) -> Clip:
    """A backbone by its name in the papers, as :func:`minilib.zoo.load`; a shipped toy; or ARCH/TAG of open_clip.

    Taught in: notebooks/03_fewshot.ipynb
    """
    if backbone(name):
        return zoo.load(name, device=device, pretrained=pretrained)
    arch, _, tag = name.partition("/")
    return models.load_clip(arch, pretrained or tag or None, device)


def backbone(name: str) -> zoo.Backbone | None:
    """What is known of a backbone of the papers; None for the toys and for other models of open_clip.

    >>> backbone("vit-l/14").name, backbone("toy")
    ('OpenAI ViT-L/14', None)

    Taught in: notebooks/03_fewshot.ipynb
    """
    try:
        return zoo.backbone(name)
    except ValueError:
        return None


def result(
    metric: str, unit: str, value: float, *, by_seed: Sequence[float] = (), interval: list[float] | None = None,
    kind: str = "none: a count",
) -> dict[str, Any]:  # fmt: skip
    """One number of a row with its spread over seeds and its interval; what is published of it comes later.

    Taught in: notebooks/03_fewshot.ipynb
    """
    sd = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    return {"metric": metric, "unit": unit, "value": float(value), "sd": sd, "by_seed": [float(v) for v in by_seed],
            "interval": interval, "interval_kind": kind}  # fmt: skip


def summary(runs: Sequence[Scores]) -> list[dict[str, Any]]:
    """Results of one run for each seed: mean, standard deviation and a 95 % interval of every metric.

    Objective: with several seeds a t interval over them. With one run only: Wilson's over its test pictures for an
    accuracy, a percentile bootstrap over them for differences, none for a number that is no mean over pictures.

    >>> [found] = summary([{"top1": np.array([True] * 8 + [False] * 2)}])
    >>> found["value"], [round(end, 1) for end in found["interval"]]
    (80.0, [49.0, 94.3])

    Taught in: notebooks/03_fewshot.ipynb
    """
    results = []
    for metric in runs[0]:
        values = [run[metric] for run in runs]
        numbers = [100 * float(np.mean(v)) if isinstance(v, np.ndarray) else float(v) for v in values]
        interval, kind = _interval(values, numbers)
        unit = "points" if metric.startswith("gain") else "ratio" if metric == "alpha" else "%"
        found = {"by_seed": numbers, "interval": interval, "kind": kind}
        results.append(result(metric, unit, float(np.mean(numbers)), **found))  # type: ignore[arg-type]
    means = {found["metric"]: found["value"] for found in results}
    if "H" in means:
        kind, value = "none: made of two means", published.harmonic(means["base"], means["new"])
        results.append(result("H of means", "%", value, kind=kind))
    return results


def _interval(values: Sequence[Any], numbers: Sequence[float]) -> tuple[list[float] | None, str]:
    if len(numbers) > 1:
        return list(evaluate.mean_interval(numbers)), f"t over {len(numbers)} seeds"
    if not isinstance(values[0], np.ndarray):
        return None, "none: one run"
    n = len(values[0])
    if values[0].dtype == bool:
        ends, kind = evaluate.wilson_interval(int(values[0].sum()), n), "Wilson"
    else:
        ends, kind = evaluate.bootstrap_interval(values[0], seed=0), "bootstrap"
    return [100 * end for end in ends], f"{kind}, {n:,} pictures"


def run(job: Job, benches: dict[Any, Bench] | None = None) -> list[dict[str, Any]]:
    """Do what a job asks for; its rows, each with what is published beside it, ready for ``published.write_row``.

    ``benches`` keeps models and features between jobs: give one dictionary to all. Errors are those of the modules that
    read models and data; ValueError for an unknown task or seeds that are missing.
    Taught in: notebooks/03_fewshot.ipynb
    """
    if job.task not in published.TASKS or not job.seeds:
        raise ValueError(f"task must be one of {', '.join(published.TASKS)}, with a seed at least; not {job}")
    found, protocol = _RUNS[job.task](job, {} if benches is None else benches)
    figures, about = published.read_published(), provenance(job.device)
    return [_row(job, name, results, protocol, figures) | about for name, results in found.items()]


Found = tuple[dict[str, list[dict[str, Any]]], str]  # results by data set, and the protocol in words


def _by_seed(score: Callable[[Bench, int, int], Scores]) -> Callable[[Job, dict[Any, Bench]], Found]:
    def do(job: Job, benches: dict[Any, Bench]) -> Found:
        bench, shots = _bench(job, benches), _shots(job)
        return {job.dataset: summary([score(bench, shots, seed) for seed in job.seeds])}, _words(job, bench)

    return do


def _run_robustness(job: Job, benches: dict[Any, Bench]) -> Found:
    wanted = SHIFTS if job.dataset in ("", "all") else (job.dataset,)
    source = _bench(job, benches, "imagenet")
    targets = [_bench(job, benches, name) for name in wanted]
    by_seed = [trials.robustness(source, targets, _shots(job), seed) for seed in job.seeds]
    return {name: summary([found[name] for found in by_seed]) for name in wanted}, _words(job, source)


def _run_long_tail(job: Job, benches: dict[Any, Bench]) -> Found:
    bench = _bench(job, benches)
    return {job.dataset: summary([trials.long_tail(bench)])}, _words(job, bench)


def _run_unsupervised(job: Job, benches: dict[Any, Bench]) -> Found:
    bench = _bench(job, benches)
    drawn = bench.views > 0 or len(bench.labels("train")) > UNLABELLED  # else every seed is the same run
    seeds = job.seeds if drawn else job.seeds[:1]
    return {job.dataset: summary([trials.unsupervised(bench, seed) for seed in seeds])}, _words(job, bench)


def _run_pairs(job: Job, benches: dict[Any, Bench]) -> Found:
    return {"mmvp-vlm": picture_pairs(job)}, PROTOCOL[job.task]


def _run_curation(job: Job, benches: dict[Any, Bench]) -> Found:
    if not job.dataset:
        return {"web pool": curation(job)}, PROTOCOL[job.task].format(t=f"{job.t:,.0f}")
    X, y = (bench := _bench(job, benches)).whole("test")
    scores = {"zero-shot top1": (X @ bench.texts.T).argmax(1) == y}
    return {job.dataset: summary([scores])}, "Zero-shot: the nearest mean of the set's prompts, on its test split."


_RUNS: dict[str, Callable[[Job, dict[Any, Bench]], Found]] = {
    "gda-fewshot": _by_seed(trials.few_shot), "gda-base-to-new": _by_seed(trials.base_to_new),
    "gda-robustness": _run_robustness, "gda-longtail": _run_long_tail, "gda-unsupervised": _run_unsupervised,
    "diva-mmvp": _run_pairs, "curate-stats": _run_curation,
}  # fmt: skip


def _root(job: Job) -> str:
    if not job.data_root:
        raise ValueError(f"{job.task} needs the folder that holds the data: --data-root FOLDER")
    return job.data_root


def _shots(job: Job) -> int:
    if job.shots is None or job.shots < 1:
        raise ValueError(f"{job.task} needs pictures a class, such as --shots 16; not {job.shots}")
    return job.shots


def _bench(job: Job, benches: dict[Any, Bench], dataset: str | None = None) -> Bench:
    name, clip_key = dataset or job.dataset, (job.backbone, job.pretrained, job.device)
    if not name or not job.backbone:
        raise ValueError(f"{job.task} needs --dataset and --backbone, such as dtd and RN50")
    if (*clip_key, name, job.views) not in benches:
        loaded = [bench.clip for key, bench in benches.items() if key[:3] == clip_key]
        images = datasets.load(name, _root(job))
        clip = loaded[0] if loaded else load(job.backbone, job.device, job.pretrained)
        benches[(*clip_key, name, job.views)] = Bench(clip, images, views=job.views, cache=job.cache)
    return benches[(*clip_key, name, job.views)]


def _words(job: Job, bench: Bench) -> str:
    crops = "random resized crops (50 to 100 % of the area) and mirror images of each, each a row"
    views = f"{job.views} {crops}" if job.views else "each once, prepared as test pictures are"
    own = "the whole validation split"
    rest = f"{HELD_OUT} training pictures a class that are not fitted on (the set has no validation split)"
    alpha = _ALPHA.format(where=own if "val" in bench.images.splits else rest)
    seeds = ", ".join(map(str, job.seeds))
    return PROTOCOL[job.task].format(shots=job.shots, seeds=seeds, views=views, alpha=alpha)


def _row(
    job: Job, dataset: str, results: list[dict[str, Any]], protocol: str, figures: Sequence[published.Figure]
) -> dict[str, Any]:
    """The row without its digest; a backbone with other weights than its own never stands in the paper's place."""
    files = {name: Path(path).name for name in ("pretrained", "before") if (path := getattr(job, name))}
    known = backbone(job.backbone)
    called = known.name if known else job.backbone
    if job.pretrained and job.task != "diva-mmvp":
        called += f" with {files['pretrained']}"
    shots = job.shots if job.task in ("gda-fewshot", "gda-base-to-new", "gda-robustness") else None
    row = {"task": job.task, "dataset": dataset, "backbone": called, "shots": shots, "protocol": protocol}
    key = published.key_of(row)
    compared = [one | _published(one, published.beside(figures, key, one["metric"]), called) for one in results]
    return row | {"results": compared, "settings": files | {"views": job.views}, "seeds": list(job.seeds)}


def _published(one: dict[str, Any], there: dict[str, published.Figure], backbone: str) -> dict[str, Any]:
    """The paper's and the log's number, and the difference from the first there is.

    None between two counts, nor from a number whose backbone is not recorded.
    """
    origin = next((name for name in published.ORIGINS if name in there), None)
    values = {name.replace(" ", "_"): there[name].value if name in there else None for name in published.ORIGINS}
    like = origin is not None and one["unit"] != "count" and there[origin].backbone == backbone
    gap = one["value"] - there[origin].value if origin and like else None
    return values | {"difference": gap, "difference_from": origin if like else None}


def provenance(device: str | None = None) -> dict[str, Any]:
    """Hardware, date, versions, and the commit where minilib runs from a clone (marked where it has changes).

    Taught in: notebooks/03_fewshot.ipynb
    """
    where = models.find_device(device)
    chip = (
        torch.cuda.get_device_name(where) if where.startswith("cuda") else f"CPU, {os.cpu_count()} {platform.machine()}"
    )
    names = ("torch", "open_clip_torch", "numpy", "scikit-learn", "pillow")
    versions = {"minilib": __version__, "python": platform.python_version()} | {n: version(n) for n in names}
    return {"hardware": chip, "date": datetime.date.today().isoformat(), "versions": versions, "commit": commit()}


def clone() -> Path | None:
    """The folder of the clone that minilib runs from; None where it is installed without one.

    Taught in: notebooks/03_fewshot.ipynb
    """
    root = Path(__file__).resolve().parent.parent
    return root if (root / ".git").exists() and (root / "book" / "_toc.yml").is_file() else None


def commit() -> str | None:
    """The clone's commit, with "+ changes" where files differ from it; None outside a clone or without git.

    Taught in: notebooks/03_fewshot.ipynb
    """
    root = clone()
    if root is None:
        return None
    try:
        asked = [["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        head, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head} + changes" if changes else head
