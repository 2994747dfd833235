"""The capstone over several pools: chapter 11's own cells, run again with other seeds, and one control more.

A seed decides the pool, the choice of pairs, the first weights and the batches; scenes to test on are the same for all.
The control trains on as many pairs as curation kept, drawn at random. The file is written anew after every seed, and a
second start goes on with the seeds that are missing.

Usage: python scripts/capstone_experiment.py [--seeds 7 8 9 10 11] [--out FILE]

Taught in: notebooks/11_capstone.ipynb
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "minilib" / "data" / "capstone_experiment.json"
SEEDS = (7, 8, 9, 10, 11)
LAST = "print(f\"denoiser's error and anchor"  # the line after which all towers are there
CONTROL = """
towers["as many at random"] = train(np.random.default_rng(SEED).choice(N_POOL, len(kept), replace=False))
"""
DUMP = """
import json
right = {"naming": named, "labels": {k: named[f"{k} + labels"] for k in towers}, "pairs": won}
scores = {k: {column: found[k].mean() for column, found in right.items()} for k in towers}
print("RESULT" + json.dumps({"kept": len(kept), "scores": scores}, default=float))
"""


def cells(seed: int) -> list[nbformat.NotebookNode]:
    """The chapter's code up to its table, with this seed, the control, and the scores printed at the end."""
    chapter = nbformat.read(ROOT / "notebooks" / "11_capstone.ipynb", as_version=4)
    sources = [cell.source for cell in chapter.cells if cell.cell_type == "code"]
    end = next(i for i, source in enumerate(sources) if source.startswith("def gain("))
    text = "\n# %%\n".join(sources[:end])
    for old, new in {"T, SEED = 60_000, 300, 7": f"T, SEED = 60_000, 300, {seed}", LAST: CONTROL + LAST}.items():
        if text.count(old) != 1:
            raise ValueError(f"the chapter no longer has one line like {old!r}: adapt scripts/capstone_experiment.py")
        text = text.replace(old, new)
    return [nbformat.v4.new_code_cell(source) for source in [*text.split("\n# %%\n"), DUMP]]


def run(seed: int) -> dict[str, Any]:
    """What one seed scores."""
    notebook = nbformat.v4.new_notebook(cells=cells(seed))
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    said = next(line for line in notebook.cells[-1].outputs[0].text.splitlines() if line.startswith("RESULT"))
    where = {"hardware": f"CPU, {os.cpu_count()} cores, {platform.machine()}", "torch": torch.__version__}
    return {"seed": seed, "date": datetime.date.today().isoformat(), **where, **json.loads(said.removeprefix("RESULT"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    study: dict[str, Any] = {"runs": []}
    if args.out.exists():
        study = json.loads(args.out.read_text(encoding="utf8"))
    for seed in args.seeds:
        if any(row["seed"] == seed for row in study["runs"]):
            continue
        study["runs"].append(run(seed))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".part").write_text(json.dumps(study, indent=1) + "\n", encoding="utf8")
        args.out.with_suffix(".part").replace(args.out)
        print(f"minilib: seed {seed} is in {args.out}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
