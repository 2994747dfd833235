"""scale: several ranks give the bytes of one process, also after a rank died; Slurm and Ray get the same chain."""

import json
import os
import signal
from pathlib import Path

import pytest
from test_pipeline import files, make_pool, metadata, run

pytest.importorskip("datatrove", reason="the extra scale has it")
from minilib import scale
from minilib.runs import Run, Settings, start
from minilib.scale import CurateStep, curate_at_scale, executors

SETTINGS = Settings(t=20)


@pytest.fixture
def pool(tmp_path: Path) -> list[Path]:
    """Six shards of all formats, and beside them what one process makes of them, in ``calm``."""
    shards = make_pool(tmp_path / "pool", (".parquet", ".jsonl", ".jsonl.gz", ".tar", ".parquet", ".jsonl"), n=60)
    run(tmp_path, shards, "calm")
    return shards


def same_bytes(tmp_path: Path) -> bool:
    return files(tmp_path / "out") == {
        **files(tmp_path / "calm"),
        "entries.csv": files(tmp_path / "out")["entries.csv"],
    }


def test_ranks_in_processes_of_their_own_give_the_single_process_bytes(tmp_path: Path, pool: list[Path]) -> None:
    curate_at_scale(pool, metadata(tmp_path), tmp_path / "out", SETTINGS, tasks=3, workers=2)
    assert same_bytes(tmp_path)
    done = sorted(path.name for path in (tmp_path / "out" / "logs" / "count" / "completions").iterdir())
    assert done == ["00000", "00001", "00002"]
    before = files(tmp_path / "out")
    curate_at_scale(pool, metadata(tmp_path), tmp_path / "out", SETTINGS, tasks=3, workers=2)  # nothing left to do
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("step", ["count", "reduce", "sample", "finish"])
@pytest.mark.parametrize("tasks", [2, 6])
def test_a_rank_that_fails_is_rerun_to_the_same_bytes(step: str, tasks: int, tmp_path: Path, pool, monkeypatch) -> None:
    """Each step dies once, in its last shard; the second call skips the ranks that were completed."""
    real, calls = getattr(scale, step), []

    def failing(run: Run, *k: int) -> None:
        calls.append(k)
        if k in ((), (5,)) and calls.count(k) == 1:
            raise RuntimeError("the machine stopped")
        real(run, *k)

    monkeypatch.setattr(scale, step, failing)
    for _ in range(2):
        if not calls:
            with pytest.raises(RuntimeError, match="the machine stopped"):
                curate_at_scale(pool, metadata(tmp_path), tmp_path / "out", SETTINGS, tasks=tasks, workers=1)
        else:
            curate_at_scale(pool, metadata(tmp_path), tmp_path / "out", SETTINGS, tasks=tasks, workers=1)
    assert same_bytes(tmp_path) and calls.count(calls[-1]) == 2 and (calls.count((0,)) == 1 or calls[0] == ())


def test_a_killed_rank_and_a_lost_completion_mark(tmp_path: Path, pool: list[Path]) -> None:
    """A process that counts shards 1, 3, 5 dies by SIGKILL after the first; another rank's mark is lost."""
    first = start(pool, metadata(tmp_path), tmp_path / "out", SETTINGS, n_threads=1)
    if (child := os.fork()) == 0:
        real = scale.count
        scale.count = lambda run, k: real(run, k) if k < 3 else os.kill(os.getpid(), signal.SIGKILL)
        list(CurateStep("count", tmp_path / "out").run(rank=1, world_size=2) or [])
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [path.name for path in sorted((first.folder / "work").glob("count-*[0-9]"))] == ["count-00001"]
    for executor in executors(first, tasks=2, workers=1)[:2]:
        executor.run()
    (tmp_path / "out" / "logs" / "count" / "completions" / "00000").unlink()
    curate_at_scale(pool, metadata(tmp_path), tmp_path / "out", SETTINGS, tasks=2, workers=1)
    assert same_bytes(tmp_path)


def test_a_step_out_of_turn_says_what_is_missing(tmp_path: Path, pool: list[Path]) -> None:
    start(pool, metadata(tmp_path), tmp_path / "out", SETTINGS)
    for step, message in (("reduce", "shard 0, .* is not counted yet"), ("finish", "shard 0, .* is not sampled yet")):
        with pytest.raises(FileNotFoundError, match=message):
            list(CurateStep(step, tmp_path / "out").run())


def test_slurm_gets_four_jobs_each_after_the_one_before(tmp_path: Path, pool: list[Path], monkeypatch) -> None:
    """A stand-in for sbatch notes its arguments and the script, and answers with a job number, as the real one does."""
    tools, log = tmp_path / "bin", tmp_path / "jobs.jsonl"
    tools.mkdir()
    (tools / "sbatch").write_text(
        "#!/usr/bin/env python3\nimport json, sys\n"
        f"log = open({str(log)!r}, 'a+')\nlog.seek(0)\nnumber = 100 + len(log.readlines())\n"
        "log.write(json.dumps([sys.argv[1:-1], open(sys.argv[-1]).read()]) + '\\n')\n"
        "print('Submitted batch job', number)\n"
    )
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    options = {"time": "01:00:00", "partition": "cpu", "cpus_per_task": 4}
    curate_at_scale(pool, metadata(tmp_path), tmp_path / "out", SETTINGS, executor="slurm", tasks=6, **options)
    jobs = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [(arguments, script) for arguments, script in jobs if "launch_pickled_pipeline" in script]
    waits = [[a for a in arguments if a.startswith("--dependency")] for arguments, _ in steps]
    numbers = [100 + jobs.index([arguments, script]) for arguments, script in steps]
    assert waits == [[], *([f"--dependency=afterok:{number}"] for number in numbers[:3])]
    for name, array, (_, script) in zip(("count", "reduce", "sample", "finish"), (5, 0, 5, 0), steps, strict=True):
        assert f"--job-name=minilib-{name}\n" in script and f"--array=0-{array}\n" in script
        assert "--partition=cpu\n" in script and "--cpus-per-task=4\n" in script


def test_ray_gets_the_same_chain(tmp_path: Path, pool: list[Path]) -> None:
    from datatrove.executor import RayPipelineExecutor

    run = start(pool, metadata(tmp_path), tmp_path / "out", SETTINGS)
    chain = executors(run, executor="ray", tasks=6, cpus_per_task=2)
    assert all(isinstance(made, RayPipelineExecutor) and made.cpus_per_task == 2 for made in chain)
    assert [made.tasks for made in chain] == [6, 1, 6, 1] and [made.depends for made in chain] == [None, *chain[:3]]
    assert [made.pipeline[0].step for made in chain] == ["count", "reduce", "sample", "finish"]


def test_bad_arguments(tmp_path: Path, pool: list[Path]) -> None:
    run = start(pool, metadata(tmp_path), tmp_path / "out", SETTINGS)
    with pytest.raises(ValueError, match="executor must be one of local, slurm, ray; not 'spark'"):
        executors(run, executor="spark")
    with pytest.raises(ValueError, match="tasks must be at least 1"):
        executors(run, tasks=0)
