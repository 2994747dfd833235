"""scripts/gpu.py: every part on a CPU with tiny models, what it writes, and what it does when something fails."""

import json
import sys
from importlib import util

import pytest
import torch

from minilib import cost

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def gpu():
    from conftest import ROOT

    found = util.spec_from_file_location("gpu_script", ROOT / "scripts" / "gpu.py")
    module = sys.modules["gpu_script"] = util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def document(gpu, tmp_path_factory):
    """What one run of everything writes."""
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main(["--tiny", "--device", "cpu", "--out", str(folder / "gpu.json"), "--work", str(folder / "work")])
    return cost.read_results(folder / "gpu.json")


def test_every_row_is_written(document):
    assert {(row["part"], row["name"]) for row in document["rows"]} == {(p, n) for p, r in cost.ROWS.items() for n in r}
    assert {"hardware", "versions", "date", "commit", "python", "tiny"} <= set(document)
    assert document["tiny"], "a trial must not be taken for a measurement"


def test_a_cpu_measures_all_but_cuda_graphs(document):
    failed = {row["name"]: row.get("error", row["status"]) for row in document["rows"] if row["status"] != "measured"}
    assert failed == {"CUDA graphs": "RuntimeError: CUDA graphs need a GPU"}


def test_levers_add_up_and_a_failed_one_is_left_out(document):
    rows = [row for row in document["rows"] if row["part"] == "real" and row["status"] == "measured"]
    names = [row["name"] for row in rows]
    assert [row["levers"] for row in rows[:2]] == [[names[0]], [names[1]]]
    assert all(row["levers"] == names[2 : i + 3] for i, row in enumerate(rows[2:]))
    assert "CUDA graphs" not in rows[-1]["levers"]


def test_shares_are_arithmetic_over_rate(document):
    rows = {row["name"]: row for row in document["rows"]}
    for name in cost.ROWS["real"]:
        if rows[name]["status"] == "measured":
            row = rows[name]
            assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"], rel=1e-4)
            done = row["flops_per_image"] * row["images_per_second"] / rows["matrix product"]["rate"]
            assert row["share_of_rate"] == pytest.approx(done, rel=1e-4)
    literal, once, cached = (rows[cost.ROWS["real"][i]]["flops_per_image"] for i in (1, 2, -1))
    assert literal > once > cached


def steps(gpu, levers, precision="float32"):
    """The gradient of one step, before it is clipped, with all tokens: nothing but noise is drawn."""
    bench = gpu.Bench(gpu.TINY | {"tokens": "all"}, "cpu", precision, 3, False, levers)
    bench.step() if gpu.ONCE in levers else bench.literal_step()
    return torch.cat([p.grad.flatten() for p in bench.weights])


def test_all_levers_leave_the_gradient_as_it_is(gpu):
    """The literal schedule and ours, told the same noise, agree in float32; so neither does less than the other."""
    literal = steps(gpu, [gpu.LITERAL])
    assert literal.norm() > 0
    for levers in ([gpu.ONCE], [gpu.ONCE, gpu.CONSTANTS, gpu.HALF, gpu.CHANNELS, gpu.FUSED, gpu.CACHED]):
        torch.testing.assert_close(steps(gpu, levers), literal, rtol=1e-3, atol=1e-6)


def test_half_precision_is_the_same_step_up_to_rounding(gpu):
    levers = [gpu.ONCE, gpu.CONSTANTS, gpu.HALF]
    exact, cast = steps(gpu, levers), steps(gpu, levers, "bfloat16")
    assert torch.nn.functional.cosine_similarity(exact, cast, dim=0) > 0.99


def test_full_memory_halves_the_batch_and_is_told(gpu):
    def call(batch):
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return {"seconds": 1.0}

    assert gpu.smaller(call, 8) == {"seconds": 1.0, "batch": 2, "out_of_memory_at": [8, 4]}

    def never(batch):
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        gpu.smaller(never, 2)


def report(gpu, tmp_path, minutes=1.0):
    return gpu.Report(tmp_path / "gpu.json", {"hardware": "none"}, minutes)


def test_failures_and_lack_of_time_are_rows(gpu, tmp_path):
    def broken():
        raise RuntimeError("the driver said no")

    kept = report(gpu, tmp_path)
    assert not kept.measure("real", "reference", broken)
    assert kept.measure("toy", "seeds", lambda: {"seeds": 1}) and not kept.measure("toy", "seeds", broken)
    kept.ends = 0
    assert not kept.measure("fit", "late", lambda: {"seconds": 1})
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == [
        {"part": "real", "name": "reference", "status": "failed", "error": "RuntimeError: the driver said no"},
        {"part": "toy", "name": "seeds", "status": "measured", "seeds": 1, "then": "RuntimeError: the driver said no"},
        {"part": "fit", "name": "late", "status": "cut off", "error": "no time left: give more --minutes"},
    ]


def test_a_run_that_is_killed_keeps_what_it_has(gpu, tmp_path):
    def killed():
        raise KeyboardInterrupt

    kept = report(gpu, tmp_path)
    kept.measure("rate", "matrix product", lambda: {"rate": 1.0})
    with pytest.raises(KeyboardInterrupt):
        kept.measure("real", "reference", killed)
    assert len(cost.read_results(tmp_path / "gpu.json")["rows"]) == sum(map(len, cost.ROWS.values()))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_without_a_gpu_it_says_so(gpu, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "no GPU was found" in said and "--tiny" in said


def test_small_cards_get_recomputing_and_a_batch_that_fits(gpu, capsys):
    """A card of 16 MB stands in for one of 16 GB: the tiny models take about as much of it."""
    setting = gpu.make_setting(True, "cpu", 16_000_000)
    assert setting.checkpointing and 1 <= setting.batch <= gpu.TINY["batch"]
    assert "largest batch" in capsys.readouterr().out
    assert gpu.make_setting(True, "cpu", None).batch == gpu.TINY["batch"]
