"""The commands ``minilib models`` and ``minilib fetch``: what there is, what is here, and how to get the rest.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import argparse
import json
from typing import Any

COLUMNS = ("name", "open_clip or hub id", "px", "parameters", "download", "fp16", "fp32", "licence", "cached")


def models(args: argparse.Namespace) -> None:
    """``minilib models``: the backbones of the papers and Stable Diffusions; opens no socket.

    Memory is that of the weights alone. A download's size is from the manifest, or, with ~, that of the weights in
    float32.

    Taught in: notebooks/10_gpu.ipynb
    """
    rows = _rows()
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def fetch(args: argparse.Namespace) -> None:
    """``minilib fetch``: download what is missing, and verify it; with ``--list``, show what there is.

    Taught in: notebooks/10_gpu.ipynb
    """
    from minilib import assets

    if args.list:
        return _list(args.names)
    if not args.names:
        raise ValueError("fetch needs names, as `minilib fetch --list` shows them")
    names = [_asset_name(name) for name in args.names]
    for name in names:
        print(f"{name}: {assets.fetch(name, True if args.offline else None, quiet=args.quiet)}")
        if args.verify:
            for part, digest in assets.verify(name).items():
                print(f"  {part}: SHA-256 {digest}")


def _rows() -> list[dict[str, Any]]:
    from minilib import zoo

    clips = [(b.name, b.asset, b.asset, b) for b in zoo.BACKBONES.values()]
    denoisers = [(name, d.ids[0][0], d.asset, d) for name, d in zoo.STABLE_DIFFUSION.items()]
    return [_row(name, known_as, asset, found) for name, known_as, asset, found in [*clips, *denoisers]]


def _row(name: str, known_as: str, asset: str, found: Any) -> dict[str, Any]:
    from minilib import assets, zoo

    entry = assets.asset(asset)
    stand_in = entry.fallback if entry.kind == "weights" and entry.fallback != assets.TOY else None  # the same weights
    cached = assets.find(asset) or (assets.find(stand_in) if stand_in else None)
    memory = {dtype: zoo.memory(name, dtype) for dtype in ("float16", "float32")}
    return {"name": name, "id": known_as, "asset": asset, "px": found.size, "parameters": found.params,
            "bytes": entry.size, "memory": memory, "licence": entry.licence, "revision": entry.revision,
            "cached": str(cached) if cached else None}  # fmt: skip


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    half, full = (f"{row['memory'][dtype] / 1e9:.2f} GB" for dtype in ("float16", "float32"))
    size = f"{row['bytes'] / 1e9:.2f} GB" if row["bytes"] else f"~{full}"
    millions = f"{row['parameters'] / 1e6:.1f} M"
    licence, cached = row["licence"] or "unknown", "yes" if row["cached"] else "no"
    return row["name"], row["id"], str(row["px"]), millions, size, half, full, licence, cached


def _list(names: list[str]) -> None:
    from minilib import assets

    chosen = [assets.asset(_asset_name(name)) for name in names] or assets.manifest().values()
    for entry in chosen:
        here = "here" if assets.find(entry.name) else "by hand" if not (entry.urls or entry.parts) else "to fetch"
        print(f"{entry.name}\t{entry.kind}\t{here}\t{entry.licence or 'licence unknown'}\t{entry.title}")


def _asset_name(name: str) -> str:
    """A name of the manifest; those of backbones and Stable Diffusions in the papers' words will do, too."""
    from minilib import assets, zoo

    if name in assets.manifest():
        return name
    if name in zoo.STABLE_DIFFUSION:
        return zoo.STABLE_DIFFUSION[name].asset
    try:
        return zoo.backbone(name).asset
    except ValueError:
        return assets.asset(name).name  # its error names what is near


def add_commands(commands: Any) -> None:
    """``models`` and ``fetch`` among the subcommands of ``minilib``; nothing heavy is imported for it.

    Taught in: notebooks/10_gpu.ipynb
    """
    text = "list backbones and Stable Diffusions: size, licence, memory, what is cached"
    command = commands.add_parser("models", help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("--json", action="store_true", help="the same as JSON, with sizes in bytes")
    command.set_defaults(run=models)
    text = "download weights, image sets and splits, and verify them"
    command = commands.add_parser("fetch", help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("names", nargs="*", metavar="NAME", help="as --list shows them, or a backbone's name")
    command.add_argument("--offline", action="store_true", help="open no socket: only say where things are, or fail")
    command.add_argument("--list", action="store_true", help="show names, kinds, licences and what is here")
    command.add_argument("--verify", action="store_true", help="hash all of it again, and show the SHA-256")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.set_defaults(run=fetch)
