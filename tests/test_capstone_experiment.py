"""The capstone over several pools: what is shipped is whole and says what chapter 11 says; the cells are its own."""

import json

import capstone_experiment as capstone
import numpy as np
import pytest
from scipy import stats

TOWERS = {"raw pool", "curated pool", "+ DIVA", "+ random change", "as many at random"}


def interval(values) -> tuple[float, float]:
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


@pytest.fixture(scope="module")
def study() -> dict:
    return json.loads(capstone.OUT.read_text("utf8"))


def test_every_seed_is_there_once_with_every_tower(study):
    assert [run["seed"] for run in study["runs"]] == list(capstone.SEEDS)
    for run in study["runs"]:
        assert set(run["scores"]) == TOWERS and 0 < run["kept"] < 60_000
        assert all(0 < share < 1 for scores in run["scores"].values() for share in scores.values())
    assert all(run["hardware"] and run["torch"] and run["date"] for run in study["runs"])


@pytest.mark.parametrize(
    ("after", "before", "column", "sign"),
    [
        ("curated pool", "raw pool", "naming", 1),
        ("as many at random", "raw pool", "naming", -1),
        ("curated pool", "raw pool", "pairs", -1),
        ("as many at random", "raw pool", "pairs", -1),
        ("curated pool", "as many at random", "pairs", 1),
        ("+ DIVA", "curated pool", "pairs", 1),
        ("+ DIVA", "+ random change", "pairs", 1),
    ],
)
def test_the_chapters_words_stand_on_the_seeds(study, after, before, column, sign):
    """Worse, gains, costs: each such word is a difference whose t interval leaves zero out."""
    low, high = interval([run["scores"][after][column] - run["scores"][before][column] for run in study["runs"]])
    assert sign * low > 0 and sign * high > 0


def test_diva_leaves_names_alone_and_labels_add_a_little(study):
    runs = [run["scores"] for run in study["runs"]]
    low, high = interval([run["+ DIVA"]["naming"] - run["curated pool"]["naming"] for run in runs])
    assert low < 0 < high and high - low < 0.02
    for tower in ("curated pool", "+ DIVA"):
        low, high = interval([run[tower]["labels"] - run[tower]["naming"] for run in runs])
        assert low > 0 and high < 0.05


def test_the_cells_are_the_chapters_with_another_seed_and_a_control():
    sources = [cell.source for cell in capstone.cells(23)]
    text = "\n".join(sources)
    assert "T, SEED = 60_000, 300, 23" in text and text.count('towers["as many at random"]') == 1
    assert "def gain(" not in text and sources[-1] == capstone.DUMP
    assert (
        text.index("raw, fed = train(")
        < text.index("as many at random")
        < text.index("for name, clip in towers.items()")
    )


def test_a_chapter_that_has_moved_on_is_named(monkeypatch):
    monkeypatch.setattr(capstone, "LAST", "a line that is not there")
    with pytest.raises(ValueError, match="adapt scripts/capstone_experiment"):
        capstone.cells(7)
