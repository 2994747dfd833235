"""Write what a curation did as a page for people, JSON for programs and a table with a row for each entry.

Taught in: notebooks/06_balance.ipynb
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minilib.plotting import plot_cumulative, plot_rank_count
from minilib.pools import atomic

POINTS, TOP, NEVER = 300, 100, 1000  # of a curve, of the table of large entries, of the list of unseen ones
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; background: #fff; } h2 { margin-top: 2.5rem; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; } caption { text-align: left; font-weight: bold; padding: .5rem 0; }
.wide { overflow-x: auto; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #1b1b1b; } img { background: #fff; } }
"""


def write_report(summary: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.html``, ``report.json`` and ``entries.csv`` into the folder, each whole or not at all.

    ``summary`` is what `minilib.pipeline` knows at its end: ``n_rows``, ``n_kept``, ``expected_size``,
    ``expected_spread``, ``dropped`` (reason to rows), ``t`` (language to threshold), ``entries`` (M names) with
    ``counts_before``, ``counts_expected`` and ``counts_after`` (M,), ``dead`` (names that can never match),
    ``shards``, ``seconds``, ``rates``, ``settings``.
    The page is one file and asks for no other.

    Taught in: notebooks/06_balance.ipynb
    """
    before, expected, after = (np.asarray(summary[f"counts_{when}"]) for when in ("before", "expected", "after"))
    numbers = {
        key: value for key, value in summary.items() if not key.startswith("counts_") and key not in ("entries", "dead")
    }
    top = np.argsort(-before, kind="stable")[:TOP]
    unseen = [summary["entries"][e] for e in np.flatnonzero(before == 0)[:NEVER]]
    details = {
        "n_entries": len(before),
        "n_seen": int((before > 0).sum()),
        "matches": int(before.sum()),
        "curves": {"before": curve(before), "expected": curve(expected), "after": curve(after)},
        "top": [_row(summary["entries"][e], before[e], expected[e], after[e]) for e in top],
        "never_matched": unseen,
        "n_dead": len(summary["dead"]),
        "dead": list(summary["dead"][:NEVER]),
    }
    _save(folder / "report.json", json.dumps({**numbers, **details}, indent=1, ensure_ascii=False, default=str) + "\n")
    _save(folder / "entries.csv", _entries_csv(summary["entries"], before, expected, after))
    _save(folder / "report.html", _page({**numbers, **details}, before, expected, after))


def curve(counts: np.ndarray) -> dict[str, list[float]]:
    """Rank, count and the running sum of counts at up to 300 ranks, evenly spread on a logarithmic axis.

    >>> curve(np.array([1, 5, 0, 2]))
    {'rank': [1, 2, 3], 'count': [5.0, 2.0, 1.0], 'cumulative': [5.0, 7.0, 8.0]}

    Taught in: notebooks/06_balance.ipynb
    """
    ordered = np.sort(counts[counts > 0])[::-1].astype(float)
    if not len(ordered):
        return {"rank": [], "count": [], "cumulative": []}
    ranks = np.unique(np.geomspace(1, len(ordered), POINTS).round().astype(int))
    sums = np.cumsum(ordered)
    return {"rank": ranks.tolist(), "count": ordered[ranks - 1].tolist(), "cumulative": sums[ranks - 1].tolist()}


def _row(entry: str, before: float, expected: float, after: float) -> dict[str, Any]:
    return {"entry": entry, "before": int(before), "expected": round(float(expected), 2), "after": int(after)}


def _entries_csv(entries: Sequence[str], before: np.ndarray, expected: np.ndarray, after: np.ndarray) -> str:
    lines = io.StringIO(newline="")
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["entry", "before", "expected", "after"])
    numbers = zip(before.tolist(), np.round(expected, 3).tolist(), after.tolist(), strict=True)
    table.writerows([entry, *row] for entry, row in zip(entries, numbers, strict=True))
    return lines.getvalue()


def _page(report: Mapping[str, Any], before: np.ndarray, expected: np.ndarray, after: np.ndarray) -> str:
    title = f"{report['n_kept']:,} of {report['n_rows']:,} rows kept"
    curves = {"before": before, "after (expected)": expected, "after (observed)": after}
    t = set(report["t"].values())
    line = t.pop() if len(t) == 1 else None
    pieces = [
        f"<h1>{title}</h1>",
        _table("Size", ["", "rows"], _sizes(report)),
        _table("Dropped, by reason", ["reason", "rows"], report["dropped"].items()),
        _table("Threshold", ["language", "t"], [(name or "all", t) for name, t in report["t"].items()]),
        "<h2>Head and tail</h2>",
        *_charts(report, curves, line),
        f"<h2>Entries</h2><p>{report['n_seen']:,} of {report['n_entries']:,} were seen; entries.csv has them all.</p>",
        _table("The largest", ["entry", "before", "expected", "after"], [list(row.values()) for row in report["top"]]),
        f"<h3>Never matched</h3><p>{html.escape(', '.join(report['never_matched'][:100])) or 'none'}</p>",
        f"<h3>Dead: {report['n_dead']:,} can never match</h3>",
        f"<p>{html.escape(', '.join(report['dead'][:100])) or 'none'}</p>",
        _table("Shards", ["shard", "rows", "kept", "damage"],
               [(s["shard"], s["rows"], s["kept"], s["damage"] or "") for s in report["shards"][:500]]),
        _table("Time", ["step", "seconds"], report["seconds"].items()),
        f"<h2>Settings</h2><pre>{html.escape(json.dumps(report['settings'], indent=1, default=str))}</pre>",
    ]  # fmt: skip
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = "\n".join(pieces)
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>{body}</body></html>\n'


def _charts(report: Mapping[str, Any], curves: Mapping[str, np.ndarray], t: float | None) -> list[str]:
    if not report["matches"]:
        return ["<p>No entry was matched, so there is nothing to draw.</p>"]
    return [
        _picture(lambda ax: plot_rank_count(ax, curves, t=t), _say_curves(report)),
        _picture(lambda ax: plot_cumulative(ax, curves), "The same counts, added up from the largest entry on."),
    ]


def _sizes(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    spread = max(report["expected_spread"], 1e-12)
    apart = abs(report["n_kept"] - report["expected_size"])
    return [
        ("in the pool", report["n_rows"]),
        ("kept, expected before the draw", f"{report['expected_size']:,.1f} ± {report['expected_spread']:,.1f}"),
        ("kept, observed", report["n_kept"]),
        ("distance in standard deviations", f"{apart / spread if apart > 1e-6 else 0:.2f}"),
    ]


def _say_curves(report: Mapping[str, Any]) -> str:
    before, after = report["curves"]["before"]["count"], report["curves"]["after"]["count"]
    fall = f"The largest entry falls from {before[0]:,.0f} rows to {after[0] if after else 0:,.0f}"
    kept = "an entry of at most t rows keeps all of them"
    return f"Rows that hold an entry, by the entry's rank, on logarithmic axes. {fall}; {kept}."


def _table(name: str, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(_shown(value))}</{tag}>" for value in cells) + "</tr>"

    body = "".join(map(line, rows))
    head_line = f"<thead>{line(head, 'th')}</thead>"
    return f'<div class="wide"><table><caption>{name}</caption>{head_line}<tbody>{body}</tbody></table></div>'


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if isinstance(value, float) else str(value)


def _picture(draw: Callable[[Axes], Any], alt: str) -> str:
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    draw(figure.subplots())
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p><p>{html.escape(alt)}</p>'


def _save(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode("utf8", "surrogatepass"))
