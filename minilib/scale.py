"""Curate beyond one machine: the pipeline's steps as datatrove blocks, run by its local, Slurm or Ray executor.

Rank r of w takes shards r, r + w, r + 2w, ... Count and sample run in as many tasks as asked for; reduce and finish are
one task each; each waits for the one before. Pool, metadata and output must lie where every machine can reach them. A
worker needs nothing but the output folder: the run's settings lie there.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from minilib.pipeline import finish
from minilib.runs import Run, Settings, start
from minilib.steps import count, reduce, sample

EXECUTORS = ("local", "slurm", "ray")


class CurateStep(PipelineStep):
    """One of the steps ``"count"``, ``"reduce"``, ``"sample"`` and ``"finish"`` of the run in a folder.

    Documents are passed through as they come; the step's work is in files. Taught in: notebooks/06_balance.ipynb
    """

    type = "minilib"

    def __init__(self, step: str, folder: str | Path, n_threads: int | None = 1) -> None:
        super().__init__()
        self.name, self.step, self.folder, self.n_threads = f"curate: {step}", step, str(folder), n_threads

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if data:
            yield from data
        if self.step == "finish" and (Path(self.folder) / "manifest.json").exists():
            return  # finished before: its working files are gone
        run = Run.load(self.folder, n_threads=self.n_threads)
        if self.step == "reduce":
            reduce(run)
        elif self.step == "finish":
            finish(run)
        else:
            for k in range(rank, len(run.shards), world_size):
                (count if self.step == "count" else sample)(run, k)
                self.stat_update("shards")


def curate_at_scale(
    pool: Iterable[str | Path],
    metadata: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    executor: str = "local",
    tasks: int = 1,
    n_threads: int | None = 1,
    **options: Any,
) -> PipelineExecutor:
    """Curate a pool on many machines: the files that `minilib.pipeline.curate_pool` would write, byte for byte.

    ``options`` go to datatrove's executor: ``workers`` for ``"local"``; ``time``, ``partition``, ``cpus_per_task`` and
    others for ``"slurm"``, which submits the four jobs and returns at once. After a failure call it again: tasks that
    were completed are skipped. Logs lie in ``out/logs``. Returns the last executor.

    Raises ``ValueError`` for another executor and as `minilib.runs.start` does; what a step raises comes through.
    Taught in: notebooks/06_balance.ipynb
    """
    run = start(pool, metadata, out, settings, n_threads=n_threads)
    last = executors(run, executor=executor, tasks=tasks, **options)[-1]
    last.run()
    return last


def executors(run: Run, *, executor: str = "local", tasks: int = 1, **options: Any) -> list[PipelineExecutor]:
    """The executors of count, reduce, sample and finish, each depending on the one before; nothing is submitted.

    Taught in: notebooks/06_balance.ipynb
    """
    if tasks < 1:
        raise ValueError(f"tasks must be at least 1, such as the number of shards; not {tasks}")
    make = _executor(executor)
    chain: list[PipelineExecutor] = []
    for step, wide in (("count", True), ("reduce", False), ("sample", True), ("finish", False)):
        named = {**options, "job_name": f"minilib-{step}"} if executor == "slurm" else options
        made = make(
            pipeline=[CurateStep(step, run.folder, run.n_threads)],
            tasks=tasks if wide else 1,
            logging_dir=str(run.folder / "logs" / step),
            depends=chain[-1] if chain else None,
            **named,
        )
        chain.append(made)
    return chain


def _executor(name: str) -> Any:
    import datatrove.executor as found

    if name not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}; not {name!r}")
    return {
        "local": found.LocalPipelineExecutor,
        "slurm": found.SlurmPipelineExecutor,
        "ray": found.RayPipelineExecutor,
    }[name]
