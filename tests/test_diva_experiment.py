"""The DIVA experiment's script: what it writes can be read back, and what it reports follows from what it wrote."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from minilib import evaluate, world

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("diva_experiment", ROOT / "scripts" / "diva_experiment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study(script):
    return json.loads(script.OUT.read_text(encoding="utf8"))


def test_answers_survive_packing(script):
    for text in ("1", "0000", "0001011", "1" * 1801, "0" * 13 + "1"):
        assert "".join("01"[int(x)] for x in script.unpack(script.pack(text), len(text))) == text


def fake_runs(script, settings, better):
    """Every arm solves the first half of each pattern's pairs, but ``better`` all of them."""
    n = settings["test"]["pairs"]
    half, whole = ("1" * (n // 2) + "0" * (n // 2)) * 9, "1" * n * 9
    runs = []
    for seed in settings["seeds"]:
        for arm in settings["arms"] + settings["more_arms"]:
            solved = whole if arm == better else half
            run = {"seed": seed, "arm": arm, "pairs": solved.count("1") / len(solved), "zero_shot": 0.5, "moved": 0.1}
            run |= {"solved": script.pack(solved), "solved_noise": script.pack(half)}
            runs.append(run | {"probe_mean": {"linear": 0.6, "gda": 0.4}})
    return runs


def test_a_difference_put_in_comes_out(script):
    settings = script.SETTINGS | {"test": {"pairs": 4}, "seeds": [1, 2, 3]}
    summary = script.summarise(fake_runs(script, settings, better="toy"), settings)
    assert summary["arms"]["toy"]["pairs"] == {"mean": 1.0, "interval": [1.0, 1.0]}
    for contrast in summary["contrasts"]:
        expected = 0.5 * ((contrast["arm"] == "toy") - (contrast["other"] == "toy"))
        assert contrast["gain"] == expected, contrast
    primary = summary["contrasts"][0]
    assert primary["mcnemar"] == [float(f"{2 * 0.5**18:.3g}")] * 3  # 18 pairs won a seed, none lost


def test_another_experiments_file_is_refused(script, tmp_path):
    path = tmp_path / "x.json"
    script.write(path, script.load_or_begin(path, script.SETTINGS))
    assert script.load_or_begin(path, script.SETTINGS)["runs"] == []
    with pytest.raises(ValueError, match="runs with other settings: give another --out"):
        script.load_or_begin(path, script.scaled(script.SETTINGS, 0.5))


def test_scaling_leaves_rates_and_seeds(script):
    small = script.scaled(script.SETTINGS, 0.1)
    assert small["seeds"] == script.SETTINGS["seeds"] and small["recipe"]["lr"] == script.SETTINGS["recipe"]["lr"]
    assert small["recipe"]["steps"] == 15 and small["test"]["pairs"] == 20


def test_the_shipped_runs_are_complete_and_agree_with_their_answers(script, study):
    settings = study["settings"]
    runs = {(r["seed"], r["arm"]): r for r in study["runs"]}
    assert len(runs) == len(study["runs"])
    planned = {(seed, arm) for seed in settings["seeds"] for arm in settings["arms"] + settings["more_arms"]}
    assert set(runs) == planned and len(settings["seeds"]) >= 5
    n = len(world.PATTERNS) * settings["test"]["pairs"]
    for run in study["runs"]:
        won = script.unpack(run["solved"], n).reshape(len(world.PATTERNS), -1).mean(1)
        assert np.allclose(won, list(run["by_pattern"].values()), atol=1e-5)
        assert abs(won.mean() - run["pairs"]) < 1e-5


def test_the_shipped_summary_follows_from_the_shipped_runs(script, study):
    """By another way than the script's: answers to means to differences, seed by seed."""
    n = len(world.PATTERNS) * study["settings"]["test"]["pairs"]
    runs = {(r["seed"], r["arm"]): r for r in study["runs"]}

    def seeds_of(*arms):
        return [s for s in study["settings"]["seeds"] if all((s, a.removesuffix(" noise")) in runs for a in arms)]

    def share(arm, seed):
        key = "solved_noise" if arm.endswith(" noise") else "solved"
        return script.unpack(runs[seed, arm.removesuffix(" noise")][key], n).mean()

    told = [tuple(c) for c in script.CONTRASTS if len(seeds_of(*c)) > 1]
    assert [(c["arm"], c["other"]) for c in study["summary"]["contrasts"]] == told and told[0] == ("toy", "noise")
    for contrast in study["summary"]["contrasts"]:
        gains = [
            share(contrast["arm"], s) - share(contrast["other"], s)
            for s in seeds_of(contrast["arm"], contrast["other"])
        ]
        assert np.isclose(contrast["gain"], np.mean(gains), atol=1e-5)
        assert np.allclose(contrast["student"], evaluate.mean_interval(gains), atol=1e-5)
        assert contrast["interval"][0] <= contrast["gain"] <= contrast["interval"][1]
    for arm, row in study["summary"]["arms"].items():
        assert np.isclose(
            row["zero_shot"]["mean"], np.mean([runs[s, arm]["zero_shot"] for s in seeds_of(arm)]), atol=1e-5
        )


def test_the_shipped_study_was_planned_as_the_script_says(script, study):
    assert study["plan"] == script.PLAN
    assert study["settings"] == json.loads(json.dumps(script.SETTINGS))
