"""The experiment of chapter 07: what is shipped is complete and adds up, and the arms differ in what they should."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from minilib import plotting, world
from minilib.curate import Matcher

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "feed_experiment.py"
specification = importlib.util.spec_from_file_location("feed_experiment", SCRIPT)
feed = importlib.util.module_from_spec(specification)
specification.loader.exec_module(feed)

HEAD = "spam on the head"


@pytest.fixture(scope="module")
def study() -> dict:
    return json.loads((ROOT / "minilib" / "data" / "feed_experiment.json").read_text("utf8"))


@pytest.fixture(scope="module")
def pool() -> world.Pool:
    return world.make_pool(4000, seed=3, images=False)


@pytest.fixture(scope="module")
def rows(pool) -> dict[str, np.ndarray]:
    return feed.choose_rows(pool.captions, t=10, seed=3)


# --- what is shipped ---


def test_every_declared_run_is_there_once(study) -> None:
    seeds = study["settings"]["seeds"]
    declared = {(v, a, s) for v, arms in study["arms"].items() for a, s in itertools.product(arms, seeds)}
    found = [(r["variant"], r["arm"], r["seed"]) for r in study["runs"]]
    assert len(found) == len(declared) and set(found) == declared
    assert len(seeds) >= 5 and len(set(seeds)) == len(seeds)


def test_the_shipped_file_is_the_scripts_own(study) -> None:
    """The settings, pools, arms, buckets and contrasts in the file are those that the script would run today."""
    assert study["settings"] == feed.SETTINGS and study["pools"] == feed.POOLS and study["arms"] == feed.ARMS
    assert {k: tuple(v) for k, v in study["buckets"].items()} == feed.BUCKETS
    assert [tuple(row) for row in study["contrasts"]] == feed.CONTRASTS


def test_where_and_when_is_recorded(study) -> None:
    assert "thread" in study["hardware"] and study["torch"]
    assert all(r["date"].startswith("20") and r["seconds"] > 0 for r in study["runs"])


def test_no_seed_serves_twice(study) -> None:
    """Pilot, pools and tests draw from different seeds, so no test scene is a training scene."""
    seeds, offset = study["settings"]["seeds"], study["settings"]["test_seed_offset"]
    used = [*seeds, *(offset + s for s in seeds), study["pilot"]["pool_seed"], study["pilot"]["test_seed"]]
    assert len(set(used)) == len(used)


def test_counts_are_possible(study) -> None:
    """Right answers lie in 0 .. tests of a concept; clean, spam and junk add up to the pairs; equal sizes are equal."""
    for r in study["runs"]:
        assert len(r["right"]) == len(r["clean"]) == 80
        assert min(r["right"]) >= 0 and max(r["right"]) <= study["settings"]["test_per_concept"]
        assert sum(r["clean"]) + r["spam"] + r["junk"] == r["pairs"]
    pairs = {(r["variant"], r["seed"], r["arm"]): r["pairs"] for r in study["runs"]}
    for (variant, seed, arm), size in pairs.items():
        if arm in ("random", "matched random"):
            assert size == pairs[variant, seed, "curated"]
        if arm == "raw":
            assert size == study["settings"]["pool"]


def test_summary_follows_from_the_runs(study) -> None:
    """Recomputed another way: percentages by a loop over ranks, intervals by scipy's t distribution."""
    place, per_concept = world.concept_order(), study["settings"]["test_per_concept"]

    def shares(variant: str, arm: str, bucket: str) -> np.ndarray:
        low, high = study["buckets"][bucket]
        of_seed = {r["seed"]: r["right"] for r in study["runs"] if (r["variant"], r["arm"]) == (variant, arm)}
        totals = [sum(of_seed[s][place[rank]] for rank in range(low, high)) for s in study["settings"]["seeds"]]
        return np.array(totals) / ((high - low) * per_concept)

    def agrees(told: dict, x: np.ndarray) -> bool:
        ends = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
        return np.allclose([told["mean"], *told["interval"]], [x.mean(), *ends], atol=2e-5)

    for variant, arms in study["arms"].items():
        for arm, bucket in itertools.product(arms, study["buckets"]):
            assert agrees(study["summary"]["arms"][variant][arm][bucket], shares(variant, arm, bucket))
    for row in study["summary"]["paired"]:
        other = shares(row["variant"], row["other"], row["bucket"])
        assert agrees(row, shares(row["variant"], row["arm"], row["bucket"]) - other)


@pytest.mark.parametrize("variant", feed.POOLS)
def test_the_code_of_today_chooses_the_pairs_of_the_shipped_runs(study, variant: str) -> None:
    """Captions, matching, balancing and hash: a change in any of them shows in the composition of an arm."""
    seed, shape = study["settings"]["seeds"][0], study["pools"][variant]
    drawn = world.make_pool(study["settings"]["pool"], seed=seed, images=False, **shape)
    chosen = feed.choose_rows(drawn.captions, study["settings"]["t"], seed)
    for r in (r for r in study["runs"] if (r["variant"], r["seed"]) == (variant, seed)):
        kinds, concepts = drawn.kinds[chosen[r["arm"]]], drawn.concepts[chosen[r["arm"]]]
        assert ((kinds == "spam").sum(), (kinds == "junk").sum()) == (r["spam"], r["junk"]), r["arm"]
        assert np.bincount(concepts[kinds == "clean"], minlength=80).tolist() == r["clean"], r["arm"]


# --- the arms ---


def test_random_arms_have_the_size_of_the_curated_one_and_repeat_no_pair(rows) -> None:
    for arm in ("random", "matched random"):
        assert len(np.unique(rows[arm])) == len(rows[arm]) == len(rows["curated"])


def test_matched_arms_hold_an_entry_and_the_others_are_their_parts(pool, rows) -> None:
    matcher = Matcher(world.toy_entries(), engine="naive")
    _, offsets = matcher.match(pool.captions)
    assert set(rows["matched"]) == set(np.flatnonzero(np.diff(offsets)))
    for arm in ("matched random", "curated", "t too large"):
        assert set(rows[arm]) < set(rows["matched"]), arm
    assert len(rows["curated"]) < len(rows["t too large"])
    assert len(rows["raw"]) == len(pool) == len(rows["raw, 3 x steps"])


def test_random_arms_follow_the_pool_and_the_curated_one_does_not(pool, rows) -> None:
    """The most frequent concept's share: within 5 standard errors of the pool's for random, far below for curated."""
    top = pool.concepts == world.concept_order()[0]
    share, n = top.mean(), len(rows["random"])
    assert abs(top[rows["random"]].mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert top[rows["curated"]].mean() < share / 2


def test_test_scenes_are_balanced_and_the_same_for_all_arms() -> None:
    settings = feed.SETTINGS | {"test_per_concept": 2}
    test, again = feed.draw_test(settings, 1), feed.draw_test(settings, 1)
    assert np.bincount(test.concepts).tolist() == [2] * 80
    assert (test.images == again.images).all() and (test.images != feed.draw_test(settings, 2).images).any()


def test_arms_of_a_seed_start_from_the_same_weights() -> None:
    first, same, other = (feed.new_clip(feed.SETTINGS, seed).model.state_dict() for seed in (1, 1, 2))
    assert all(bool((first[k] == same[k]).all()) for k in first)
    assert any(bool((first[k] != other[k]).any()) for k in first)


def test_buckets_by_hand() -> None:
    """Only the 16 most frequent concepts are ever right: head 1, middle and tail 0, all 16 / 80."""
    right = np.zeros(80, dtype=int)
    right[world.concept_order()[:16]] = 50
    found = feed.accuracies({"right": right.tolist()}, {"test_per_concept": 50})
    assert found == {"head": 1.0, "middle": 0.0, "tail": 0.0, "all": 0.2, "rarest three": 0.0}


# --- the script ---


@pytest.fixture
def start(monkeypatch, capsys, tmp_path):
    """Run the script, much shortened, on a file of its own; gives what it printed, one line for each run."""

    def run(*seeds: str) -> list[str]:
        command = ["feed_experiment", "--length", "0.005", "--out", str(tmp_path / "deep" / "study.json")]
        monkeypatch.setattr(sys, "argv", [*command, "--seeds", *seeds])
        feed.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_an_interrupted_script_goes_on_and_a_finished_one_changes_nothing(start, tmp_path) -> None:
    """Eight runs are taken out: the second start makes those and no others, and all counts come out as before."""
    out = tmp_path / "deep" / "study.json"
    start("7", "8")
    whole, finished = json.loads(out.read_text()), out.read_bytes()
    assert start("7", "8") == [] and out.read_bytes() == finished
    feed.write(out, {k: v for k, v in whole.items() if k != "summary"} | {"runs": whole["runs"][:-8]})
    assert len(start("7", "8")) == 8

    def lasting(document: dict) -> dict:
        return document | {"runs": [{k: v for k, v in r.items() if k != "seconds"} for r in document["runs"]]}

    assert lasting(json.loads(out.read_text())) == lasting(whole)
    with pytest.raises(ValueError, match=r"holds runs with other settings: give another --out, or remove the file"):
        start("7", "9")


def test_one_seed_is_refused(start, capsys) -> None:
    with pytest.raises(SystemExit):
        start("7")
    assert "two or more different seeds" in capsys.readouterr().err


# --- the chart ---


def test_differences_are_drawn_in_points_and_coloured_by_their_interval() -> None:
    _, ax = plt.subplots()
    plotting.plot_differences(ax, ["up", "down", "open"], [0.2, -0.1, 0.0], [[0.1, 0.3], [-0.2, -0.05], [-0.1, 0.1]])
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2][:3]
    assert [line.get_color() for line in bars] == [plotting.PALETTE[i] for i in (0, 1, 7)]
    assert np.allclose([line.get_xdata() for line in bars], [[10, 30], [-20, -5], [-10, 10]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["up", "down", "open"] and ax.yaxis_inverted()
    plt.close("all")
