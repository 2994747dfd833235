"""What the papers and their code's own logs report, as a table, and the runs of this library that stand beside it.

The facts are ``data/published.csv``. A run is a JSON file that ``minilib reproduce --ledger`` writes; the book's ledger
page is made of the two and of nothing else.

References: Wang et al. 2024 (GDA for CLIP, arXiv:2402.04087) and the logs of its code; Wang et al. 2025 (DIVA,
arXiv:2407.20171); Xu et al. 2024 (MetaCLIP, arXiv:2309.16671).

Taught in: notebooks/03_fewshot.ipynb and notebooks/09_diva.ipynb
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "data" / "published.csv"
ORIGINS = ("paper", "reference log")
UNITS = ("%", "points", "count", "ratio")
TASKS = {
    "gda-fewshot": "Few-shot classification",
    "gda-base-to-new": "Base-to-new classes",
    "gda-robustness": "Out of distribution",
    "gda-longtail": "Long tails",
    "gda-unsupervised": "Without labels",
    "diva-mmvp": "Picture pairs (MMVP-VLM)",
    "curate-stats": "Curation",
}
ELEVEN = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc", "sun397",
          "dtd", "eurosat", "ucf101")  # fmt: skip
AVERAGE = "average of 11"
BESIDE = re.compile(r"after \(\w+\)|entries: .*|.* \(1 B pairs\)")  # figures that no command of ours measures
FIELDS: dict[str, type | tuple[type, ...]] = {
    "task": str, "dataset": str, "backbone": str, "shots": (int, type(None)), "results": list, "protocol": str,
    "settings": dict, "seeds": list, "hardware": str, "date": str, "versions": dict, "commit": (str, type(None)),
    "digest": str,
}  # fmt: skip
RESULT: dict[str, type | tuple[type, ...]] = {
    "metric": str, "unit": str, "value": (int, float), "sd": (int, float, type(None)), "by_seed": list,
    "interval": (list, type(None)), "interval_kind": str, "paper": (int, float, type(None)),
    "reference_log": (int, float, type(None)), "difference": (int, float, type(None)),
    "difference_from": (str, type(None)),
}  # fmt: skip
HEADER = ("Set", "Backbone", "Shots", "Metric", "Paper", "Reference log", "Ours", "95 % interval", "Difference", "Run")

Key = tuple[str, str, str, str]  # task, dataset, backbone, shots ("" where there are none)


@dataclass(frozen=True)
class Figure:
    """One published number."""

    task: str
    """The command that measures it, a key of ``TASKS``."""
    dataset: str
    backbone: str
    """As the papers write it; empty where the number has none, or where it is not recorded."""
    shots: str
    """Pictures a class; empty where there are none."""
    metric: str
    value: float
    unit: str
    """One of ``UNITS``; a percentage is a number up to 100."""
    origin: str
    """``paper`` or ``reference log``: the authors' own code's logs."""
    source: str

    @property
    def key(self) -> Key:
        return self.task, self.dataset, self.backbone, self.shots


def read_published(path: str | Path = TABLE) -> list[Figure]:
    """The published figures, in the file's order.

    ValueError, with the line, for other columns, an unknown task, unit or origin, a value that is no number, or a
    figure that stands twice.

    >>> [f.value for f in read_published() if f.key == ("gda-fewshot", "imagenet", "RN50", "16") and f.metric == "top1"]
    [63.8233]

    Taught in: notebooks/03_fewshot.ipynb
    """
    with open(path, newline="", encoding="utf8") as file:
        table = csv.DictReader(file)
        names = [field.name for field in fields(Figure)]
        if table.fieldnames != names:
            raise ValueError(f"{path} must have the columns {names}; it has {table.fieldnames}")
        figures, seen = [], set()
        for line, row in enumerate(table, 2):
            figure = _figure(row, f"{path}, line {line}")
            if (mark := (*figure.key, figure.metric, figure.origin)) in seen:
                raise ValueError(f"{path}, line {line}: {mark} stands twice: keep one")
            seen.add(mark)
            figures.append(figure)
    return figures


def _figure(row: Mapping[str, str], where: str) -> Figure:
    for name, known in (("task", tuple(TASKS)), ("unit", UNITS), ("origin", ORIGINS)):
        if row[name] not in known:
            raise ValueError(f"{where}: {name} must be one of {', '.join(known)}; not {row[name]!r}")
    try:
        value = float(row["value"])
    except ValueError as error:
        raise ValueError(f"{where}: value must be a number; not {row['value']!r}") from error
    return Figure(**{**row, "value": value})  # type: ignore[arg-type]


def key_of(row: Mapping[str, Any]) -> Key:
    """What a run stands beside: task, dataset, backbone, shots as text."""
    shots = "" if row["shots"] is None else str(row["shots"])
    return row["task"], row["dataset"], row["backbone"], shots


def beside(figures: Iterable[Figure], key: Key, metric: str) -> dict[str, Figure]:
    """The figures published of a metric, by origin; where the paper's backbone is not recorded, those without one.

    A variant of ours, ``top1 (uniform prior)``, stands beside the published ``top1``.

    >>> figures = read_published()
    >>> beside(figures, ("gda-longtail", "places-lt", "RN50", ""), "top1 (uniform prior)")["paper"].value
    42.07

    Taught in: notebooks/04_beyond.ipynb
    """
    plain = re.sub(r" \([^)]*\)$", "", metric)
    keys = [key, (key[0], key[1], "", key[3])]
    found = [f for f in figures if f.key in keys and f.metric in (metric, plain)]
    return {figure.origin: figure for figure in sorted(found, key=lambda f: (f.metric == metric, f.key == key))}


# --- files of runs ----------------------------------------------------------------------------------------------------


def digest(row: Mapping[str, Any]) -> str:
    """SHA-256 of a row without its own ``digest``: it catches a slip of the hand, and is no proof against intent.

    Taught in: notebooks/03_fewshot.ipynb
    """
    content = {name: value for name, value in row.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def seal(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its digest, after every check that the page will make.

    Taught in: notebooks/03_fewshot.ipynb
    """
    sealed = {**row, "digest": digest(row)}
    check_row(sealed, "the row")
    return sealed


def check_row(row: Any, where: str) -> None:
    """ValueError for a row that lacks a field, has one of another type, or another digest than its content has.

    Taught in: notebooks/03_fewshot.ipynb
    """
    remedy = "rows are written by `minilib reproduce --ledger`, never by hand: run it again"
    _check_fields(row, FIELDS, where, remedy)
    if row["task"] not in TASKS:
        raise ValueError(f"{where}: task must be one of {', '.join(TASKS)}; not {row['task']!r}")
    if not row["results"]:
        raise ValueError(f"{where} has no results: {remedy}")
    for result in row["results"]:
        _check_fields(result, RESULT, f"{where}, a result", remedy)
        if not math.isfinite(result["value"]):
            raise ValueError(f"{where}: {result['metric']} is {result['value']}, not a number: {remedy}")
    if row["digest"] != digest(row):
        raise ValueError(f"{where}: its digest is not that of its content, so it was changed after the run: {remedy}")


def _check_fields(row: Any, known: Mapping[str, Any], where: str, remedy: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be a JSON object; not {type(row).__name__}: {remedy}")
    if missing := [name for name in known if name not in row]:
        raise ValueError(f"{where} lacks {', '.join(missing)}: {remedy}")
    if unknown := [name for name in row if name not in known]:
        raise ValueError(f"{where} has the unknown field {', '.join(unknown)}: {remedy}")
    if wrong := [name for name, kind in known.items() if not isinstance(row[name], kind)]:
        raise ValueError(f"{where}: {wrong[0]} has the wrong type, {type(row[wrong[0]]).__name__}: {remedy}")


def row_file(row: Mapping[str, Any], folder: str | Path) -> Path:
    """Where a row lies in a folder: a name made of its task, dataset, backbone and shots.

    >>> row_file({"task": "gda-fewshot", "dataset": "dtd", "backbone": "ViT-B/16", "shots": 4}, "rows").name
    'gda-fewshot--dtd--ViT-B-16--4.json'

    Taught in: notebooks/03_fewshot.ipynb
    """
    parts = [re.sub(r"[^\w.]+", "-", part).strip("-") for part in key_of(row) if part]
    return Path(folder) / f"{'--'.join(parts)}.json"


def write_row(row: Mapping[str, Any], folder: str | Path) -> Path:
    """Seal a row and write it, whole or not at all, over an earlier run of the same; its file.

    Taught in: notebooks/03_fewshot.ipynb
    """
    sealed, path = seal(row), row_file(row, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, sealed)


def write_whole(path: Path, document: Any) -> Path:
    """Write JSON in one move: the whole file, or the one that was there; the path.

    Taught in: notebooks/03_fewshot.ipynb
    """
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf8")
    os.replace(part, path)
    return path


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a folder, sorted by file; none where there is no folder. ValueError, by file, as `check_row`.

    Taught in: notebooks/03_fewshot.ipynb
    """
    rows: dict[Key, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}): run `minilib reproduce --ledger` again") from error
        check_row(row, str(path))
        if key_of(row) in rows:
            raise ValueError(f"{path}: there is a second row of {key_of(row)}: keep one of the files")
        rows[key_of(row)] = row
    return list(rows.values())


# --- the page ---------------------------------------------------------------------------------------------------------


def page(figures: Sequence[Figure], rows: Sequence[dict[str, Any]]) -> str:
    """The ledger in Markdown: how much has been run, then a table a task. Nothing in it is typed.

    Taught in: notebooks/03_fewshot.ipynb
    """
    done = {key_of(row): row for row in rows}
    known = dict.fromkeys(figure.key for figure in figures if figure.dataset != AVERAGE)
    run = sum(key in done for key in known)
    state = f"{run} of them have been run" if run else "none of them has been run yet"
    extra = len(done) - run
    more = f" {extra} further runs have no published figure under the same name." if extra else ""
    lines = [f"{len(known)} settings have published figures; {state}.{more}", ""]
    for task, title in TASKS.items():
        lines += [f"## {title}", "", f"Command: `minilib reproduce {task}`", ""]
        lines += [*_table(list(_body(task, figures, done))), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows under their header, without columns in which nothing stands."""
    kept = [i for i in range(len(HEADER)) if any(row[i] for row in rows)]
    return [_line([row[i] for i in kept]) for row in (HEADER, ["---"] * len(HEADER), *rows)]


def _body(task: str, figures: Sequence[Figure], done: Mapping[Key, dict[str, Any]]) -> Iterator[list[str]]:
    for key in dict.fromkeys([f.key for f in figures if f.task == task] + [k for k in done if k[0] == task]):
        row = done.get(key) or _average(key, done)
        published = dict.fromkeys(f.metric for f in figures if f.key == key and not f.metric.endswith(" sd"))
        ours = {result["metric"]: result for result in row["results"]} if row else {}
        for metric in dict.fromkeys([*published, *ours]):
            yield [*key[1:], metric, *_cells(figures, key, metric, ours.get(metric), row)]


def _cells(figures: Sequence[Figure], key: Key, metric: str, ours: dict[str, Any] | None, row: Any) -> list[str]:
    there, spread = beside(figures, key, metric), beside(figures, key, f"{metric} sd")
    cells = [_number(there[o].value, there[o].unit, spread.get(o)) if o in there else "" for o in ORIGINS]
    if ours is None:
        return [*cells, "no command" if BESIDE.fullmatch(metric) else "not run", "", "", ""]
    value = _short(ours["value"], ours["unit"]) + (f" ± {ours['sd']:.2f}" if ours["sd"] is not None else "")
    span = ours["interval"]
    interval = f"{span[0]:.2f} to {span[1]:.2f}, {ours['interval_kind']}" if span else ours["interval_kind"]
    gap = "" if ours["difference"] is None else f"{ours['difference']:+.2f} ({ours['difference_from']})"
    return [*cells, value, interval, gap, f"{row['date']}, {row['hardware']}"]


def _average(key: Key, done: Mapping[Key, dict[str, Any]]) -> dict[str, Any] | None:
    """The mean over the eleven sets, once all of them have been run; None before."""
    rows = [done.get((key[0], name, *key[2:])) for name in ELEVEN]
    if key[1] != AVERAGE or None in rows:
        return None
    by_metric: dict[str, list[float]] = {}
    for result in (result for row in rows if row for result in row["results"]):
        if result["unit"] == "%":
            by_metric.setdefault(result["metric"], []).append(result["value"])
    means = {metric: sum(v) / len(v) for metric, v in by_metric.items() if len(v) == len(ELEVEN)}
    if "base" in means:
        means["H of averages"] = harmonic(means["base"], means["new"])
    kept = {"unit": "%", "sd": None, "interval": None, "interval_kind": "none: a mean of means", "difference": None}
    results = [{"metric": metric, "value": value, **kept} for metric, value in means.items()]
    return {"results": results, "date": "all 11 sets", "hardware": "see their rows"}


def harmonic(first: float, second: float) -> float:
    """Harmonic mean of two accuracies; 0 where both are 0.

    >>> harmonic(60.0, 40.0)
    48.0

    Taught in: notebooks/04_beyond.ipynb
    """
    return 2 * first * second / (first + second) if first + second else 0.0


def _number(value: float, unit: str, spread: Figure | None) -> str:
    return _short(value, unit) + (f" ± {spread.value:.2f}" if spread else "")


def _short(value: float, unit: str) -> str:
    return f"{value:,.0f}" if unit == "count" else f"{value:.4g}" if unit == "ratio" else f"{value:.2f} {unit}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
