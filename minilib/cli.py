"""The command ``minilib``: one function for each subcommand.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import argparse
import errno
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilib import __version__, cli_diva, cli_models, cli_reproduce

if TYPE_CHECKING:
    from minilib.runs import Run, Settings

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DRY_ROWS, WORK_BYTES = 100_000, 80  # rows that are tried; working files, for each row


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit code.

    0 if done, 1 for damage under ``--strict`` or a loss that is not finite, 2 for bad input, 130 where interrupted.

    Taught in: notebooks/06_balance.ipynb
    """
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        return _say("stopped: start the same command again to go on", 130)
    except OSError as error:
        return _say(_os_error(error), 2)
    except ImportError as error:
        return _say(f"{error}: install the extra, minilib[curate] or [gpu] or, for --executor, minilib[scale]", 2)
    except (ValueError, MemoryError) as error:
        return _say(str(error), 2)
    except FloatingPointError as error:
        return _say(str(error), 1)
    except Exception as error:
        from minilib.pools import Damage

        if not isinstance(error, Damage):
            raise
        return _say(str(error), 1)


def curate(args: argparse.Namespace) -> None:
    """``minilib curate``: keep a balanced part of a pool."""
    from minilib.runs import Settings

    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    if args.dry_run:
        return _dry_run(args, settings)
    if args.executor:
        return _at_scale(args, settings)
    from minilib.pipeline import curate_pool

    options = {"n_threads": args.threads, "keep_work": args.keep_work, "progress": not args.quiet}
    _summary(curate_pool(args.pool, args.metadata, args.out, settings, **options), args.out)


def lint(args: argparse.Namespace) -> None:
    """``minilib lint``: list entries that are dead, stand twice, or need two spaces in a row."""
    from minilib.metadata import lint_entries, load_entries

    entries = load_entries(args.metadata)
    found = lint_entries(entries)
    for finding in found:
        print(f"{finding.kind}\t{finding.entry!r}\t{finding.reason}")
    print(f"{len(entries):,} entries: {_kinds(found)}")


def _at_scale(args: argparse.Namespace, settings: Settings) -> None:
    from minilib.scale import curate_at_scale

    options = dict(_option(text) for text in args.option)
    options |= {"executor": args.executor, "tasks": args.tasks, "n_threads": args.threads or 1}
    curate_at_scale(args.pool, args.metadata, args.out, settings, **options)
    manifest = Path(args.out) / "manifest.json"
    if manifest.exists():
        _summary(json.loads(manifest.read_text(encoding="utf8")), args.out)
    else:
        print(f"submitted; logs in {Path(args.out) / 'logs'}")


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _summary(found: dict[str, Any], out: str) -> None:
    print(f"{found['n_rows']:,} rows in, {found['n_kept']:,} kept; expected {_around(found)}")
    print(f"t: {', '.join(f'{name} {t:,}'.strip() for name, t in found['t'].items())}")
    for reason, rows in found["dropped"].items():
        print(f"  dropped, {reason}: {rows:,}")
    print(f"shards: {Path(out) / 'kept'}; report: {Path(out) / 'report.html'}")


def _around(found: dict[str, Any]) -> str:
    return f"{found['expected_size']:,.0f} ± {found['expected_spread']:,.0f}"


def _dry_run(args: argparse.Namespace, settings: Settings) -> None:
    """Check all that can be checked without writing, match the first rows, and say what lies ahead."""
    from minilib.metadata import lint_entries
    from minilib.runs import plan

    run, identity = plan(args.pool, args.metadata, args.out, settings, n_threads=args.threads)
    size = sum(shard["bytes"] for shard in identity["pool"]) / 1e9
    sound, rows = _inspect(run)
    print(f"pool: {len(run.shards):,} shards, {size:,.2f} GB, about {rows:,} rows")
    for name, entries in run.languages.items():
        print(f"metadata{' ' * bool(name)}{name}: {len(entries):,} entries: {_kinds(lint_entries(entries))}")
    folder = next(parent for parent in (run.folder, *run.folder.parents) if parent.exists())
    free, needed = shutil.disk_usage(folder).free / 1e9, size + rows * WORK_BYTES / 1e9
    print(f"disk: {free:,.2f} GB free; at most {needed:,.2f} GB are needed{'' if free > needed else ': TOO LITTLE?'}")
    _try_rows(run, sound, rows)


def _inspect(run: Run) -> tuple[list[Path], int]:
    """The shards that can be opened, and about how many rows they hold; the others are named."""
    from minilib.pools import DamagedShard, check_columns, estimate_rows

    sound, rows = [], 0
    for shard in run.shards:
        try:
            check_columns(shard, run.settings.columns)
            rows += estimate_rows(shard)
            sound.append(shard)
        except DamagedShard as damage:
            print(f"damaged: {damage}")
    return sound, rows


def _try_rows(run: Run, shards: Sequence[Path], total: int) -> None:
    from minilib.pipeline import try_rows

    rows, matched, seconds = try_rows(run, shards, DRY_ROWS)
    share, rate = matched / max(rows, 1), rows / max(seconds, 1e-9)
    print(f"first {rows:,} rows: {share:.1%} match an entry; {rate:,.0f} rows/s")
    print(f"about {2 * total / max(rate, 1) / 60:,.1f} minutes for the whole pool on this machine; nothing was written")


def _kinds(found: Sequence[Any]) -> str:
    counts = Counter(finding.kind for finding in found)
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in ("dead", "duplicate", "spaces"))


def _say(message: str, code: int) -> int:
    print(f"minilib: {message}", file=sys.stderr)
    return code


def _os_error(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return f"the disk is full{where}: free some space, then start the same command again to go on"
    return f"{error.strerror or error}{where}: check that it is there and may be read or written"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minilib", description="Adapt CLIP, feed it, make it see.")
    parser.add_argument("--version", action="version", version=f"minilib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_curate(commands.add_parser("curate", help="keep a balanced part of a pool", description=curate.__doc__))
    command = commands.add_parser("lint", help="find entries that cannot match", description=lint.__doc__)
    command.add_argument("metadata", help="a JSON list, or a text file with one entry a line")
    command.set_defaults(run=lint)
    text = "refine a CLIP by a denoiser's feedback, and test it"
    cli_diva.add_commands(commands.add_parser("diva", help=text, description=f"DIVA: {text}."))
    text = "run a paper's experiment on real models and data, beside its published numbers"
    cli_reproduce.add_commands(commands.add_parser("reproduce", help=text, description=f"{text[0].upper()}{text[1:]}."))
    cli_models.add_commands(commands)
    return parser


def _add_curate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("pool", nargs="+", help="shards (.parquet, .jsonl, .jsonl.gz, .tar), or folders of shards")
    add("--metadata", required=True, help="list of entries; with --language a folder with <language>.json or .txt")
    add("--out", required=True, help="folder for shards, manifest and report")
    dial = command.add_mutually_exclusive_group(required=True)
    dial.add_argument("--t", type=_number, help="count above which an entry is thinned out, such as 20000")
    dial.add_argument("--size", type=int, help="rows to keep on average: t is solved for")
    dial.add_argument("--tail-share", type=float, help="share of matches in entries below t, such as 0.06")
    add("--text", default="text", help="column of captions (default: %(default)s)")
    add("--id", help="column of ids (default: none; a row is known by url and caption)")
    add("--url", default="url", help="column of urls, used where it exists (default: %(default)s)")
    add("--language", help="column of languages, for one list of entries a language")
    add("--reference", default="en", help="language that t is meant for (default: %(default)s)")
    add("--seed", type=int, default=0, help="number that decides the draws (default: %(default)s)")
    add("--threads", type=int, help="threads (default: all cores)")
    for flag, meaning in _FLAGS.items():
        add(flag, action="store_true", help=meaning)
    add("--executor", choices=("local", "slurm", "ray"), help="run the steps as datatrove tasks")
    add("--tasks", type=int, default=1, help="tasks of the executor (default: %(default)s)")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the executor; repeatable")
    command.set_defaults(run=curate)


_FLAGS = {
    "--normalize": "space the marks of entries as those of captions, so that U.S. can match",
    "--keep-duplicates": "keep rows with the url and caption of an earlier one",
    "--strict": "stop at the first damaged row or shard",
    "--dry-run": "check, match the first rows, project the time; write nothing",
    "--keep-work": "leave the working files in OUT/work",
    "--quiet": "no progress bars",
}


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


if __name__ == "__main__":
    sys.exit(main())
