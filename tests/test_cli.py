"""cli: what a person types, what the command says, and with which code it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline import files, make_pool, metadata, run
from test_pools import write_shard

import minilib
from minilib import cli

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    make_pool(tmp_path / "pool", n=60)
    metadata(tmp_path)
    return tmp_path / "pool"


def command(tmp_path: Path, *more: str, pool: str = "pool", t: str = "20", out: str = "out") -> list[str]:
    given = ["--metadata", tmp_path / "entries.json", "--t", t, "--out", tmp_path / out, "--threads", "1", "--quiet"]
    return ["curate", str(tmp_path / pool), *map(str, given), *more]


def test_it_curates_and_says_what_it_did(tmp_path: Path, pool: Path, capsys) -> None:
    """The command writes what the library call writes, with a report that a browser opens by itself."""
    assert cli.main(command(tmp_path)) == 0
    said = capsys.readouterr().out
    done = json.loads((tmp_path / "out" / "manifest.json").read_text())
    expected, spread = f"{done['expected_size']:,.0f}", f"{done['expected_spread']:,.0f}"
    assert said.startswith(f"240 rows in, {done['n_kept']} kept; expected {expected} ± {spread}\nt: 20\n")
    assert all(f"dropped, {reason}: {rows}\n" in said for reason, rows in done["dropped"].items())
    assert "<html" in (tmp_path / "out" / "report.html").read_text() and "report.html" in said
    run(tmp_path, sorted(pool.iterdir()), "library")
    for name, content in files(tmp_path / "library").items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert not (tmp_path / "out" / "work").exists()


def test_dry_run_writes_nothing_and_says_what_lies_ahead(tmp_path: Path, pool: Path, capsys) -> None:
    (tmp_path / "entries.json").write_text(json.dumps(["cat", "dog", "U.S."]))
    with open(pool / "0.parquet", "r+b") as shard:
        shard.truncate(100)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert cli.main(command(tmp_path, "--dry-run")) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    said = capsys.readouterr().out
    for part in (
        "4 shards",
        "damaged: ",
        "3 entries: 1 dead, 0 duplicate",
        "GB free",
        "first 180 rows",
        "match an entry",
    ):
        assert part in said
    assert "rows/s" in said and "minutes" in said


def test_executor_by_argument(tmp_path: Path, pool: Path, capsys) -> None:
    pytest.importorskip("datatrove", reason="the extra scale has it")
    assert cli.main(command(tmp_path, "--executor", "local", "--tasks", "2", "--option", "workers=1")) == 0
    assert "240 rows in" in capsys.readouterr().out
    assert cli.main(command(tmp_path, out="single")) == 0
    assert files(tmp_path / "out") == files(tmp_path / "single")


def test_version_and_lint(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and minilib.__version__ in capsys.readouterr().out
    (tmp_path / "list.txt").write_text("cat\nU.S.\ncat\n")
    assert cli.main(["lint", str(tmp_path / "list.txt")]) == 0
    said = capsys.readouterr().out
    assert "dead\t'U.S.'" in said and "duplicate\t'cat'" in said and "3 entries: 1 dead, 1 duplicate, 0 spaces" in said


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"t": "0"}, [], "t must be a positive number; not 0"),
        ({"t": "-3"}, [], "t must be a positive number; not -3"),
        ({"t": "nan"}, [], "t must be a positive number; not nan"),
        ({"pool": "nowhere"}, [], "nowhere does not exist"),
        ({"pool": "entries.json"}, [], "holds no shard: expected .parquet"),
        ({}, ["--text", "caption"], "has no column 'caption': it has"),
        ({"out": "entries.json"}, [], "is a file"),
        ({"out": "entries.json/deep"}, [], "check that it is there and may be read or written"),
        ({"out": "pool"}, [], "outside the pool"),
        ({}, ["--language", "lang"], "metadata must be a folder"),
        ({}, ["--executor", "local", "--tasks", "0"], "tasks must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path: Path, pool: Path, options, more, message, capsys) -> None:
    assert cli.main(command(tmp_path, *more, **options)) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("minilib: ") and said.count("\n") == 1


def test_another_run_in_the_folder(tmp_path: Path, pool: Path, capsys) -> None:
    assert cli.main(command(tmp_path)) == 0
    assert cli.main(command(tmp_path, t="21")) == 2
    assert "holds another run (t: 20 there, 21 now)" in capsys.readouterr().err


def test_strict_damage_is_code_1(tmp_path: Path, capsys) -> None:
    metadata(tmp_path)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "0.jsonl").write_text('{"text": "cat"}\n{\n')
    assert cli.main(command(tmp_path, "--strict")) == 1
    assert "0.jsonl, row 1: not a JSON object" in capsys.readouterr().err
    assert cli.main(command(tmp_path, out="lenient")) == 0


def test_an_empty_list_and_a_missing_dial(tmp_path: Path, pool: Path, capsys) -> None:
    (tmp_path / "entries.json").write_text("[]")
    assert cli.main(command(tmp_path)) == 2
    assert "holds no entry" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["curate", str(pool), "--metadata", "m", "--out", "o"])
    assert ended.value.code == 2 and "--t --size --tail-share" in capsys.readouterr().err


def test_an_unwritable_place(tmp_path: Path, pool: Path, capsys) -> None:
    assert cli.main(command(tmp_path, out="../../../../../../../../../../proc/out")) == 2
    assert "may be read or written" in capsys.readouterr().err


def test_interrupted(tmp_path: Path, pool: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("minilib.pipeline.reduce", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(command(tmp_path)) == 130
    assert "start the same command again" in capsys.readouterr().err


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path, root: Path) -> None:
    """The system refuses files above 20 KB; without the limit the same command ends as an undisturbed one."""
    write_shard(tmp_path / "0.jsonl", [{"text": f"cat {n}", "url": f"u{n}"} for n in range(5000)])
    metadata(tmp_path)
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY)); "
    code = "from minilib.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    ends = []
    for before in (limited, "import sys; "):
        line = [sys.executable, "-c", before + code, *command(tmp_path, pool="0.jsonl", t="100")]
        ends.append(subprocess.run(line, capture_output=True, text=True, env=environment))
    assert ends[0].returncode == 2 and "the disk is full" in ends[0].stderr and "Traceback" not in ends[0].stderr
    assert ends[1].returncode == 0, ends[1].stderr
    assert cli.main(command(tmp_path, pool="0.jsonl", t="100", out="calm")) == 0
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_module_and_command_are_one(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-m", "minilib.cli", "--version"], capture_output=True, env=environment)
    assert done.stdout.decode().strip() == f"minilib {minilib.__version__}"
