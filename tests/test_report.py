"""report: the page, the JSON and the table say the numbers they were given, and the page asks for nothing else."""

import csv
import doctest
import html
import json
import re

import numpy as np
import pytest

from minilib import report as module
from minilib.report import curve, write_report


@pytest.fixture
def summary() -> dict:
    """Four entries, one never seen; names and shards that would break a page if they were not escaped."""
    return {
        "settings": {"t": 2, "seed": 0},
        "n_rows": 1234,
        "n_kept": 7,
        "expected_size": 6.5,
        "expected_spread": 0.5,
        "dropped": {"no match": 1000, "not drawn": 227},
        "t": {"": 2},
        "entries": ["cat", "<b>&", 'a, "b"', "never & ever"],
        "dead": ["U.S."],
        "counts_before": np.array([100, 3, 1, 0]),
        "counts_expected": np.array([4.25, 2.0, 1.0, 0.0]),
        "counts_after": np.array([4, 2, 1, 0]),
        "shards": [{"shard": "<s>.tar", "rows": 1234, "kept": 7, "damage": None}],
        "seconds": {"count": 1.5},
        "rates": {"count, rows/s": 822.7},
    }


def test_docstring_examples() -> None:
    assert doctest.testmod(module).failed == 0


def test_report_says_what_it_was_told(summary, tmp_path) -> None:
    write_report(summary, tmp_path)
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf8"))
    assert (told["n_kept"], told["dropped"], told["n_seen"], told["matches"]) == (7, summary["dropped"], 3, 104)
    assert told["top"][0] == {"entry": "cat", "before": 100, "expected": 4.25, "after": 4}
    assert told["never_matched"] == ["never & ever"] and told["dead"] == ["U.S."]
    with open(tmp_path / "entries.csv", encoding="utf8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == summary["entries"]
    assert [int(row[1]) for row in rows[1:]] == [100, 3, 1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entries.csv", "report.html", "report.json"]


def test_page_is_one_file_with_escaped_names_and_said_pictures(summary, tmp_path) -> None:
    """Distance: |7 - 6.5| is one standard deviation of 0.5."""
    write_report(summary, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf8")
    assert "<b>&" not in page and html.escape("<b>&") in page and html.escape("<s>.tar") in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page
    assert all(len(alt) > 20 for alt in re.findall(r'<img alt="([^"]*)"', page)) and page.count("<img ") == 2
    assert (
        "7 of 1,234 rows kept" in page and "6.5 ± 0.5" in page and "<td>1.00</td>" in page and "<td>1,000</td>" in page
    )


def test_report_of_a_pool_without_a_match(summary, tmp_path) -> None:
    nothing = {f"counts_{when}": np.zeros(4) for when in ("before", "expected", "after")}
    write_report({**summary, **nothing, "n_kept": 0, "expected_size": 0.0, "expected_spread": 0.0}, tmp_path)
    assert "No entry was matched" in (tmp_path / "report.html").read_text(encoding="utf8")


def test_curve_keeps_first_and_last_rank_of_a_long_list(rng) -> None:
    counts = rng.integers(0, 1000, size=50_000)
    points = curve(counts)
    ordered = sorted(counts[counts > 0], reverse=True)
    assert points["rank"][0] == 1 and points["rank"][-1] == len(ordered) and len(points["rank"]) <= module.POINTS
    assert points["cumulative"][-1] == counts.sum()
    assert all(ordered[rank - 1] == count for rank, count in zip(points["rank"], points["count"], strict=True))
