"""The journal: no step twice, nothing lost, and the same numbers for TensorBoard."""

import builtins
import json
import warnings

import pytest

from minilib.journal import Journal


@pytest.fixture(autouse=True)
def quiet():
    """Whether or not tensorboard is installed, these tests say nothing of it unless they ask."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tensorboard is not installed")
        yield


def write(folder, name, steps, first=0, value=0.0):
    journal = Journal(folder, name, first)
    for step in steps:
        journal.write(step, {"loss": value + step})
    journal.close()


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf8").splitlines()]


def test_one_object_a_line_as_it_was_told(tmp_path):
    folder = tmp_path / "new" / "run"
    write(folder, "tower", range(3))
    assert lines(folder) == [{"stage": "tower", "step": s, "loss": float(s)} for s in range(3)]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    journal = Journal(tmp_path, "tower")
    journal.write(0, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1
    journal.close()


def test_going_on_drops_later_lines_of_the_same_stage_only(tmp_path):
    write(tmp_path, "projection", range(4))
    write(tmp_path, "tower", range(5))
    write(tmp_path, "tower", range(2, 4), first=2, value=100.0)
    found = [(e["stage"], e["step"], e["loss"]) for e in lines(tmp_path)]
    assert found[:4] == [("projection", s, float(s)) for s in range(4)]
    assert found[4:] == [("tower", 0, 0.0), ("tower", 1, 1.0), ("tower", 2, 102.0), ("tower", 3, 103.0)]


@pytest.mark.parametrize("left", [1, 10, 30])
def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path, left):
    write(tmp_path, "tower", range(2))
    path = tmp_path / "log.jsonl"
    last = path.read_text().splitlines()[-1]
    path.write_text(path.read_text() + last[:left])
    write(tmp_path, "tower", [2], first=2)
    assert [e["step"] for e in lines(tmp_path)] == [0, 1, 2]


def test_a_line_that_lacks_only_its_end_does_not_swallow_the_next(tmp_path):
    write(tmp_path, "tower", range(2))
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write(tmp_path, "tower", [2], first=2)
    assert [e["step"] for e in lines(tmp_path)] == [0, 1, 2]


def test_tensorboard_shows_the_same_numbers_of_each_stage_once(tmp_path):
    """Also after going on, and though both stages count their steps from zero."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    write(tmp_path, "projection", range(4))
    write(tmp_path, "tower", range(5))
    write(tmp_path, "tower", range(2, 6), first=2, value=100.0)
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = {run: [(e.step, e.value) for e in board.Scalars(run, "loss")] for run in ("projection", "tower")}
    assert shown["projection"] == [(s, float(s)) for s in range(4)]
    assert shown["tower"] == [(e["step"], e["loss"]) for e in lines(tmp_path) if e["stage"] == "tower"]


def test_without_tensorboard_it_says_so_and_writes_the_log(tmp_path, monkeypatch):
    real = builtins.__import__

    def lacks(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacks)
    with pytest.warns(UserWarning, match=r"tensorboard is not installed.*minilib\[gpu\]"):
        journal = Journal(tmp_path, "tower")
    journal.write(0, {"loss": 1.0})
    journal.close()
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"] and lines(tmp_path)[0]["loss"] == 1.0
