"""pipeline: equal to a curation of all rows at once, in bounded memory, resumable to the byte, frank about damage."""

import doctest
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pools import FORMATS, read_back, write_shard

from minilib import pipeline, pools, runs, steps
from minilib.curate import hash_uniform, language_thresholds
from minilib.keys import row_keys
from minilib.matching import match_naive
from minilib.pipeline import curate_pool
from minilib.pools import REASONS, Damage
from minilib.runs import Settings

ENTRIES = ["cat", "dog", "black cat", "rare", "photo", "never seen"]
TIMED = {"report.json", "report.html"}  # the seconds that the steps took stand there


def captions(rng: np.random.Generator, n: int) -> list[str]:
    """Captions of one to three entries or junk, "photo" in most: many are equal."""
    words = ["cat", "dog", "black cat", "IMG_1"]
    return [" ".join([*rng.choice(words, rng.integers(1, 3)), *(["photo"] * (rng.random() < 0.7))]) for _ in range(n)]


def make_pool(folder: Path, suffixes=FORMATS, n: int = 150) -> list[Path]:
    """Shards of n rows whose ids count on; each fifth row repeats an earlier url, sometimes with another caption."""
    rng, folder_rows = np.random.default_rng(1), []
    folder.mkdir(parents=True, exist_ok=True)
    for k, suffix in enumerate(suffixes):
        texts = captions(rng, n)
        urls = [f"u{k * n + i if i % 5 else rng.integers(0, k * n + i + 1)}" for i in range(n)]
        images = [rng.bytes(int(rng.integers(0, 40))) for _ in range(n)]
        rows = zip(texts, urls, range(k * n, k * n + n), images, strict=True)
        folder_rows.append([dict(zip(("text", "url", "id", "image"), row, strict=True)) for row in rows])
        write_shard(folder / f"{k}{suffix}", folder_rows[-1])
    return sorted(folder.iterdir())


def metadata(folder: Path, entries: list[str] = ENTRIES) -> Path:
    (folder / "entries.json").write_text(json.dumps(entries))
    return folder / "entries.json"


def run(folder: Path, shards: list[Path], out: str = "out", **options) -> dict:
    keep_work = options.pop("keep_work", False)
    settings = Settings(**({"t": 20} if not {"t", "size", "tail_share"} & set(options) else {}), **options)
    return curate_pool(
        shards, metadata(folder), folder / out, settings, progress=False, n_threads=1, keep_work=keep_work
    )


def files(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves that must not differ between runs."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in found.items() if name not in TIMED and not name.startswith("logs/")
    }


def kept_urls(out: Path) -> list[str]:
    return [url for path in sorted((out / "kept").iterdir()) for url, _ in read_back(path)]


@pytest.fixture(autouse=True)
def numbers_only(monkeypatch) -> None:
    """A report without charts, which would take most of these tests' time."""

    def write(summary: dict, folder: Path) -> None:
        (folder / "report.json").write_text(json.dumps(summary, default=np.ndarray.tolist))

    monkeypatch.setattr(pipeline, "write_report", write)


@pytest.fixture
def small(monkeypatch) -> None:
    """Batches, pieces and buckets so small that a toy pool needs many."""
    monkeypatch.setattr(pools, "BATCH_ROWS", 16)
    monkeypatch.setattr(pools, "GROUP_ROWS", 32)
    monkeypatch.setattr(steps, "PIECE_ROWS", 40)
    monkeypatch.setattr(steps, "BUCKET_KEYS", 64)


def test_docstring_examples() -> None:
    for module in (pipeline, runs, steps):
        assert doctest.testmod(module).failed == 0


# --- the outcome ---


def plain(texts: list[str], urls: list[str | None], t: int, seed: int = 0) -> tuple[list[int], list[int], float]:
    """Rows kept, counts and expected size, by loops over all rows: the definition, with nothing of the pipeline's."""
    seen: dict[tuple, int] = {}
    occurrence = [seen.update({pair: seen.get(pair, -1) + 1}) or seen[pair] for pair in zip(urls, texts, strict=True)]
    stays = [o == 0 or not url for o, url in zip(occurrence, urls, strict=True)]
    found = [match_naive(text, ENTRIES) for text in texts]
    counts = [sum(e in held for held, stay in zip(found, stays, strict=True) if stay) for e in range(len(ENTRIES))]
    q = [
        1 - np.prod([1 - t / max(counts[e], t) for e in held]) if stay else 0
        for held, stay in zip(found, stays, strict=True)
    ]
    keys = row_keys(*(pa.array([value or "" for value in column], pa.large_string()) for column in (urls, texts)))
    draws = hash_uniform(keys, seed, np.array(occurrence))
    return [i for i in range(len(texts)) if draws[i] < q[i]], counts, float(sum(q))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("with_urls", [True, False])
def test_pipeline_is_the_plain_curation_of_all_rows(suffix: str, with_urls: bool, tmp_path: Path, small, rng) -> None:
    """Four shards against loops over all rows: kept rows, counts, size; duplicates go where there are urls."""
    texts = captions(rng, 600)
    urls = [f"u{i % 450}" if with_urls else None for i in range(600)]
    for k in range(4):
        part = slice(150 * k, 150 * k + 150)
        rows = [
            {"text": text, "url": url, "image": b"%d" % i}
            for i, text, url in zip(range(600)[part], texts[part], urls[part], strict=True)
        ]
        if not with_urls:
            rows = [{**row, "address": "", "url": None} for row in rows]
        write_shard(tmp_path / f"{k}{suffix}", rows)
    shards = sorted(tmp_path.glob("?.*"))
    done = run(tmp_path, shards)
    kept, counts, expected = plain(texts, urls, t=20)
    found = [int(image) for path in sorted((tmp_path / "out" / "kept").iterdir()) for _, image in read_back(path)]
    assert found == kept and done["n_kept"] == len(kept) < 300
    assert done["expected_size"] == pytest.approx(expected)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["entries"], report["counts_before"]) == (ENTRIES, counts)
    assert done["dropped"].get("duplicate", 0) == (
        sum(texts[i] == texts[i - 450] for i in range(450, 600)) if with_urls else 0
    )
    assert sum(done["dropped"].values()) + done["n_kept"] == done["n_rows"] == 600


def test_equal_captions_without_urls_are_drawn_each_for_itself(tmp_path: Path, small) -> None:
    """2,000 equal rows, t = 500: Binomial(2000, 1/4), standard deviation 19.4.

    One shared draw would keep all or none.
    """
    for k in range(4):
        pq.write_table(pa.table({"text": ["a cat"] * 500}), tmp_path / f"{k}.parquet")
    done = run(tmp_path, [tmp_path], t=500)
    assert done["expected_size"] == pytest.approx(500) and done["expected_spread"] == pytest.approx(
        np.sqrt(2000 * 3 / 16)
    )
    assert abs(done["n_kept"] - 500) < 4 * 19.4


def test_cutting_the_pool_otherwise_changes_nothing(tmp_path: Path) -> None:
    """The same rows as 1 parquet or as 6 lines files keep the same rows."""
    rows = [
        {"text": text, "url": f"u{i}", "image": b""} for i, text in enumerate(captions(np.random.default_rng(3), 300))
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_shard(tmp_path / "a" / "all.parquet", rows)
    for k in range(6):
        write_shard(tmp_path / "b" / f"{k}.jsonl", rows[50 * k : 50 * k + 50])
    run(tmp_path, [tmp_path / "a"], "out-a")
    run(tmp_path, [tmp_path / "b"], "out-b")
    assert kept_urls(tmp_path / "out-a") == kept_urls(tmp_path / "out-b") != []


def test_pieces_and_buckets_do_not_show(tmp_path: Path, monkeypatch) -> None:
    shards = make_pool(tmp_path / "pool")
    run(tmp_path, shards, "whole")
    for module, name, value in ((pools, "BATCH_ROWS", 7), (steps, "PIECE_ROWS", 20), (steps, "BUCKET_KEYS", 9)):
        monkeypatch.setattr(module, name, value)
    run(tmp_path, shards, "cut")
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


def test_ids_name_rows_and_later_copies_are_quarantined(tmp_path: Path, small) -> None:
    """With t above all counts every matched row stays, but not the second row with id 7, nor the one without id."""
    rows = [{"text": "a cat", "id": key} for key in (7, 8, None)], [{"text": "a dog", "id": key} for key in (9, 7, 8)]
    for k, part in enumerate(rows):
        write_shard(tmp_path / f"{k}.jsonl", part)
    done = run(tmp_path, [tmp_path], id="id", t=100)
    assert done["n_kept"] == 3 and done["dropped"] == {"missing id": 1, "duplicate id": 2}
    listed = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    found = [(Path(row["shard"]).name, row["row"], row["reason"]) for row in listed]
    assert found == [("0.jsonl", 2, "missing id"), ("1.jsonl", 1, "duplicate id"), ("1.jsonl", 2, "duplicate id")]


def test_duplicates_stay_where_asked(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.jsonl", [{"text": "cat", "url": "u"}] * 5)
    shards = [tmp_path / "0.jsonl"]
    assert run(tmp_path, shards, t=9)["n_kept"] == 1
    assert run(tmp_path, shards, "both", t=9, keep_duplicates=True)["n_kept"] == 5


def test_size_and_tail_share_choose_t(tmp_path: Path, small) -> None:
    shards = make_pool(tmp_path / "pool")
    done = run(tmp_path, shards, size=120)
    t = done["t"][""]
    sizes = [run(tmp_path, shards, f"t{t}", t=t)["expected_size"] for t in (t - 1, t)]
    assert sizes[0] < 120 <= sizes[1] == done["expected_size"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    counts = np.array(report["counts_before"])
    share = run(tmp_path, shards, "share", tail_share=0.1)["t"][""]
    shares = {value: counts[counts < value].sum() / counts.sum() for value in counts if value}
    assert abs(shares[share] - 0.1) == min(abs(value - 0.1) for value in shares.values())
    with pytest.raises(ValueError, match="size"):
        run(tmp_path, shards, "large", size=10**6)


def test_each_language_has_its_own_list_and_t(tmp_path: Path, small) -> None:
    """German rows match German entries only, with the t of English's tail share; Latin has no list."""
    lists = {"en": ["cat", "dog", "rare"], "de": ["Katze", "dog"], "ja": ["猫"]}
    (tmp_path / "lists").mkdir()
    for language, entries in lists.items():
        (tmp_path / "lists" / f"{language}.txt").write_text("\n".join(entries))
    texts = {"en": ["a cat"] * 60 + ["a dog"] * 30 + ["rare"], "de": ["Katze"] * 40 + ["dog"] * 4, "ja": ["黒猫"] * 3}
    rows = [{"text": text, "lang": name} for name, own in texts.items() for text in own]
    rows += [{"text": "cat", "lang": "la"}, {"text": "cat", "lang": None}]
    np.random.default_rng(0).shuffle(rows)
    write_shard(tmp_path / "0.jsonl", rows[:70])
    write_shard(tmp_path / "1.parquet", rows[70:])
    pool = [tmp_path / "0.jsonl", tmp_path / "1.parquet"]
    settings = Settings(t=31, language="lang")
    done = curate_pool(pool, tmp_path / "lists", tmp_path / "out", settings, progress=False, n_threads=1)
    counts = {"en": [60, 30, 1], "de": [40, 4], "ja": [3]}
    assert done["t"] == language_thresholds(counts, t=31)
    assert done["dropped"]["no metadata for its language"] == 2
    p = {name: [done["t"][name] / max(c, done["t"][name]) for c in own] for name, own in counts.items()}
    assert done["expected_size"] == pytest.approx(
        sum(c * q for name in counts for c, q in zip(counts[name], p[name], strict=True))
    )
    with pytest.raises(ValueError, match="reference language 'fr' has no list"):
        curate_pool(pool, tmp_path / "lists", tmp_path / "fr", Settings(t=1, language="lang", reference="fr"))


def test_occurrences_equal_a_loop(rng: np.random.Generator) -> None:
    keys, times = rng.integers(0, 9, 200).astype(np.uint64), rng.integers(1, 4, 200).astype(np.uint32)
    expected = [int(times[:i][keys[:i] == keys[i]].sum()) for i in range(200)]
    assert steps.occurrences(keys, times).tolist() == expected


# --- damage ---


def damaged_pool(folder: Path) -> list[Path]:
    """Four shards: one with bad rows, and three formats that end too soon."""
    shards = make_pool(folder)
    lines = shards[1].read_bytes().splitlines(keepends=True)
    lines[3], lines[5] = b"{\n", b'{"text": null}\n'
    shards[1].write_bytes(b"".join(lines))
    for shard, share in ((shards[0], 0.5), (shards[2], 0.5), (shards[3], 0.5)):
        os.truncate(shard, int(shard.stat().st_size * share))
    return shards


def test_damage_is_quarantined_and_counted(tmp_path: Path, small) -> None:
    shards = damaged_pool(tmp_path / "pool")
    done = run(tmp_path, shards)
    assert done["damaged_shards"] == 3 and [Path(f["path"]).name for f in done["inputs"] if not f["damage"]] == [
        "1.jsonl"
    ]
    assert [output["name"] for output in done["outputs"]] == ["00001-1.jsonl"] == os.listdir(tmp_path / "out" / "kept")
    assert done["dropped"]["not a JSON object"] == done["dropped"]["missing caption"] == 1
    listed = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [row["row"] for row in listed] == [None, 3, 5, None, None]
    assert "damaged shard: " in listed[0]["reason"] and str(shards[0]) in listed[0]["reason"]
    assert sum(done["dropped"].values()) + done["n_kept"] == done["n_rows"]


def test_strict_stops_at_the_row(tmp_path: Path, small) -> None:
    shards = damaged_pool(tmp_path / "pool")
    with pytest.raises(Damage, match=r"1\.jsonl, row 3: not a JSON object"):
        run(tmp_path, shards[1:2], strict=True)
    with pytest.raises(Damage, match=r"0\.parquet cannot be read"):
        run(tmp_path, shards[:1], "other", strict=True)
    write_shard(tmp_path / "s.jsonl", [{"text": "cat", "id": n % 50} for n in range(60)])
    with pytest.raises(Damage, match=r"s\.jsonl, row 50: duplicate id"):
        run(tmp_path, [tmp_path / "s.jsonl"], "ids", id="id", strict=True)


def test_damage_in_a_picture_column_is_found_while_sampling(tmp_path: Path) -> None:
    """Counting reads captions only, so a broken page of pictures shows up later; the shard is quarantined then."""
    rows = [{"text": f"cat {n}", "image": np.random.default_rng(n).bytes(3000)} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet", compression="gzip")
    content = bytearray((tmp_path / "0.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    (tmp_path / "0.parquet").write_bytes(content)
    done = run(tmp_path, [tmp_path])
    assert (done["n_kept"], done["dropped"], done["outputs"]) == (0, {"damaged shard": 200}, [])


def test_a_pool_where_nothing_matches(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.jsonl", [{"text": "xyz"}] * 3)
    assert run(tmp_path, [tmp_path])["dropped"] == {"no match": 3}


# --- stopped and started again ---


def leave_at(n: int) -> Callable:
    """An `os.replace` that is carried out n times, then fails as if the machine had stopped."""
    real, left = os.replace, n

    def replace(source, target) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(source, target)

    return replace


def test_stopped_at_any_file_it_resumes_to_the_same_bytes(tmp_path: Path, small, monkeypatch) -> None:
    """Every file comes to its name by a rename. Each start gets one rename further than the one before."""
    shards = make_pool(tmp_path / "pool", (".jsonl", ".parquet", ".tar"), n=60)
    run(tmp_path, shards, "calm")
    for stops in range(1000):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", leave_at(stops))
            try:
                run(tmp_path, shards)
                break
            except KeyboardInterrupt:
                continue
    assert stops > 10 and files(tmp_path / "out") == files(tmp_path / "calm")


def test_each_single_stop_is_harmless(tmp_path: Path, small, monkeypatch) -> None:
    shards = make_pool(tmp_path / "pool", (".jsonl.gz",), n=60)
    run(tmp_path, shards, "calm")
    for n in range(1000):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", leave_at(n))
            try:
                run(tmp_path, shards, f"out{n}")
                break
            except KeyboardInterrupt:
                pass
        run(tmp_path, shards, f"out{n}")
        assert files(tmp_path / f"out{n}") == files(tmp_path / "calm"), n
    assert n > 20


KILLED = """
import sys
from pathlib import Path
from minilib import pipeline, pools, steps
from minilib.pipeline import curate_pool
from minilib.runs import Settings
pools.BATCH_ROWS, steps.PIECE_ROWS, steps.BUCKET_KEYS, pools.GROUP_ROWS = 16, 40, 64, 32
pipeline.write_report = lambda summary, folder: None
shards, entries, out = sorted(Path(sys.argv[1]).iterdir()), sys.argv[2], sys.argv[3]
print("ready", flush=True)
curate_pool(shards, entries, out, Settings(t=20), n_threads=1, progress=False)
"""


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path: Path, small, root: Path) -> None:
    """SIGKILL after 0.02, 0.1, 0.3, ... seconds of work, then one start that is left alone."""
    shards = make_pool(tmp_path / "pool")
    run(tmp_path, shards, "calm")
    command = [sys.executable, "-c", KILLED, tmp_path / "pool", metadata(tmp_path), tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = 0
    for wait in (0.02, 0.1, 0.3, 0.5, None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as process:
            assert process.stdout.readline() == b"ready\n"
            if wait is not None:
                time.sleep(wait)
                process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed >= 2 and process.returncode == 0
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    shards = make_pool(tmp_path / "pool", (".jsonl",))
    done = run(tmp_path, shards)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run(tmp_path, shards) == done
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_a_shard_that_changed_in_between_is_refused(tmp_path: Path, monkeypatch) -> None:
    write_shard(tmp_path / "0.jsonl", [{"text": "cat"}] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "reduce", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [tmp_path / "0.jsonl"])
    write_shard(tmp_path / "0.jsonl", [{"text": "dog"}] * 5)  # same size, so only its content tells
    with pytest.raises(ValueError, match=r"0\.jsonl changed since it was counted"):
        run(tmp_path, [tmp_path / "0.jsonl"])


# --- bad input ---


def test_settings_are_checked() -> None:
    for options in ({}, {"t": 1, "size": 2}):
        with pytest.raises(ValueError, match="exactly one of t, size and tail_share"):
            Settings(**options)
    for options in ({"t": 0}, {"t": -1}, {"t": float("nan")}, {"size": 0}, {"tail_share": 1}):
        with pytest.raises(ValueError, match="must be a positive number"):
            Settings(**options)


def test_an_output_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    shards = make_pool(tmp_path / "pool", (".jsonl",))
    run(tmp_path, shards)
    with pytest.raises(
        ValueError, match=r"holds another run \(t: 20 there, 30 now\): go on with the same settings, or name"
    ):
        run(tmp_path, shards, t=30)
    with pytest.raises(ValueError, match=r"holds another run \(pool: other shards"):
        run(tmp_path, make_pool(tmp_path / "more", (".jsonl", ".tar")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    with pytest.raises(ValueError, match=r"not empty and holds no run of minilib \(thesis.doc is there\)"):
        run(tmp_path, shards, "full")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        run(tmp_path, shards, "entries.json")
    with pytest.raises(ValueError, match="write to a folder outside the pool"):
        run(tmp_path, shards, "pool")


def test_bad_metadata_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    shards = make_pool(tmp_path / "pool", (".jsonl",))
    (tmp_path / "none.json").write_text("[]")
    for path, language, message in (
        (tmp_path / "none.json", None, "holds no entry"),
        (tmp_path / "pool", None, "must be one file"),
        (metadata(tmp_path), "lang", "must be a folder with a list for each language"),
    ):
        with pytest.raises(ValueError, match=message):
            curate_pool(shards, path, tmp_path / "out", Settings(t=1, language=language))
    with pytest.raises(ValueError, match="has no column 'nope'"):
        run(tmp_path, shards, text="nope")
    assert not (tmp_path / "out").exists()


# --- resources ---


class Disk:
    """A file on a disk with so many bytes left, shared by all its files."""

    room = 0

    def __init__(self, *arguments) -> None:
        self.file = open(*arguments)  # noqa: SIM115

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def write(self, data) -> int:
        Disk.room -= memoryview(data).nbytes
        if Disk.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


def test_a_full_disk_leaves_no_half_file_and_the_run_goes_on(tmp_path: Path, small, monkeypatch) -> None:
    """Writes fail once so many bytes are written; with room again the bytes are the calm ones."""
    shards = make_pool(tmp_path / "pool", (".parquet", ".tar"), n=60)
    run(tmp_path, shards, "calm")
    for Disk.room in (100, 3000, 10_000, 20_000):
        with monkeypatch.context() as patch:
            patch.setattr(pools, "open", lambda *a: (Disk if a[1] == "wb" else open)(*a), raising=False)
            with pytest.raises(OSError, match="No space left"):
                run(tmp_path, shards)
        halves = [path for path in (tmp_path / "out").rglob("*.part") if path.is_file()]
        assert halves == [] and not (tmp_path / "out" / "manifest.json").exists()
    run(tmp_path, shards)
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_a_small_file_system_that_fills_up(tmp_path: Path) -> None:
    """The same on a real file system of 256 KB, where this machine lets one be mounted."""
    shards = make_pool(tmp_path / "pool", (".jsonl", ".parquet"), n=3000)
    (tmp_path / "disk").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path / "disk"], capture_output=True
    ).returncode:
        pytest.skip("no right to mount")
    try:
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path, shards, "disk/out")
        assert not [path for path in (tmp_path / "disk").rglob("*.part") if path.is_file()]
        subprocess.run(["mount", "-o", "remount,size=64m", tmp_path / "disk"], check=True)
        run(tmp_path, shards, "disk/out")
        run(tmp_path, shards, "calm")
        assert files(tmp_path / "disk" / "out") == files(tmp_path / "calm")
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


MEMORY = """
import resource, sys
from minilib import pools, steps
from minilib.pipeline import curate_pool
from minilib.runs import Settings
pools.BATCH_ROWS, steps.PIECE_ROWS, steps.BUCKET_KEYS = 1024, 8192, 8192
curate_pool([sys.argv[1]], sys.argv[2], sys.argv[3], Settings(t=20), n_threads=1, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_pool(tmp_path: Path, root: Path, rng) -> None:
    """One shard of 20,000 and one of 320,000 rows with pictures of 200 bytes, 80 MB: the peak may differ by 20 MB."""
    peaks = []
    texts = pa.array(captions(rng, 20_000))
    for times in (1, 16):
        folder = tmp_path / f"x{times}"
        folder.mkdir()
        schema = pa.schema([("text", pa.string()), ("url", pa.string()), ("image", pa.binary())])
        with pq.ParquetWriter(folder / "0.parquet", schema) as writer:
            for k in range(times):
                urls = pa.array([f"{k}/{i}" for i in range(20_000)])
                writer.write_table(
                    pa.table([texts, urls, pa.array([rng.bytes(250) for _ in range(20_000)])], schema=schema)
                )
        command = [sys.executable, "-c", MEMORY, folder, metadata(tmp_path), tmp_path / f"out{times}"]
        done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True)
        peaks.append(int(done.stdout) / 1024)
        shutil.rmtree(folder)
    assert peaks[1] - peaks[0] < 20, peaks


def test_reasons_are_distinct() -> None:
    assert len(set(REASONS)) == len(REASONS) < 256
