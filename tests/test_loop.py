"""The loop: its steps by hand, parts of a batch, going on bit for bit, and an honest end when something breaks."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from minilib import loop


def problem(seed=0, dtype=torch.float32):
    """A linear model of four inputs, and a loss whose batch comes from the step; part p of two is half of it."""
    torch.manual_seed(seed)
    module = nn.Linear(4, 1).to(dtype)

    def loss_at(step, part=None):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        x = x if part is None else x[4 * part : 4 * part + 4]
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    return module, loss_at


def one_weight(values, dtype=torch.float64):
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor(values, dtype=dtype))
    return module


def run(seed=0, module_and_loss=None, **options):
    module, loss_at = module_and_loss or problem(seed)
    told = []
    options = {"steps": 10, "lr": 0.05, "warmup": 2, "quiet": True} | options
    losses = loop.optimise(loss_at, module, on_step=lambda *step: told.append(step), **options)
    return module, losses, told


def test_sgd_is_momentum_with_the_cosine_rate_by_hand():
    """The gradient of g w is g, here 0.3. Three steps have no warm-up (a fifth of 3 is 0), so the rates are lr times
    (1 + cos(pi i / 3)) / 2 = 1, 3/4, 1/4. The velocities are g, 1.9 g and 2.71 g: each 0.9 of the last, plus g.
    """
    module = one_weight([1.0])
    told = []
    loop.optimise(
        lambda step: 0.3 * module.w.sum(), module, steps=3, lr=0.1, optimiser="sgd", warmup=50, quiet=True,
        on_step=lambda *step: told.append(step),
    )  # fmt: skip
    by_hand = 1 - 0.1 * 0.3 * (1 + 0.75 * 1.9 + 0.25 * 2.71)
    assert math.isclose(module.w.item(), by_hand, rel_tol=1e-12)
    assert [t[2] for t in told] == pytest.approx([0.1, 0.075, 0.025])


def test_adamw_first_step_goes_against_the_sign_by_the_rate():
    """Bias correction makes the first step lr g / (|g| + eps), whatever the size of g."""
    module = one_weight([1.0, 1.0])
    loop.optimise(lambda step: (module.w * torch.tensor([0.5, -0.002])).sum(), module, steps=1, lr=0.1, quiet=True)
    assert torch.allclose(module.w, torch.tensor([0.9, 1.1], dtype=torch.float64), atol=1e-5)


def test_a_long_gradient_is_shortened_to_length_one_and_told_as_it_was():
    """(30, 40) is 50 long; one plain step of rate 0.1 then goes 0.1 along (0.6, 0.8)."""
    module = one_weight([0.0, 0.0])
    told = []
    loop.optimise(
        lambda step: (module.w * torch.tensor([30.0, 40.0])).sum(), module, steps=1, lr=0.1, optimiser="sgd",
        quiet=True, on_step=lambda *step: told.append(step),
    )  # fmt: skip
    assert torch.allclose(module.w, torch.tensor([-0.06, -0.08], dtype=torch.float64), rtol=1e-5)
    assert math.isclose(told[0][3], 50)


def test_the_rate_rises_in_a_line_then_falls_as_a_cosine():
    """Of 20 steps a fifth, 4, may warm up: 1/4, 2/4, 3/4 of the peak, then the cosine."""
    told = run(steps=20, lr=1.0, warmup=50, optimiser="sgd")[2]
    rates = [rate for _, _, rate, _ in told]
    assert rates[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert rates[4:] == pytest.approx([(1 + math.cos(math.pi * i / 20)) / 2 for i in range(4, 20)])


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_batch_in_parts_takes_the_steps_of_the_whole(optimiser):
    whole, losses, _ = run(module_and_loss=problem(dtype=torch.float64), optimiser=optimiser)
    parts, other, _ = run(module_and_loss=problem(dtype=torch.float64), optimiser=optimiser, parts=2)
    assert losses == pytest.approx(other, rel=1e-12)
    assert torch.allclose(whole.weight, parts.weight, rtol=1e-10)


def test_the_average_by_hand():
    """With a decay of 0.05 the average is the first step's weights, then 0.05 of itself and 0.95 of the weights."""
    module, loss_at = problem(dtype=torch.float64)
    seen = []
    loop.optimise(
        loss_at, module, steps=4, lr=0.05, ema=0.05, quiet=True,
        on_step=lambda *step: seen.append(module.weight.detach().clone()),
    )  # fmt: skip
    average = seen[0]
    for weight in seen[1:]:
        average = 0.05 * average + 0.95 * weight
    assert torch.allclose(module.weight, average, rtol=1e-12)
    assert not torch.allclose(module.weight, seen[-1], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"optimiser": "adamw"}, {"optimiser": "sgd"}, {"ema": 0.9}, {"half": True}, {"parts": 2}],
    ids=["adamw", "sgd", "average", "scaled", "parts"],
)
@pytest.mark.parametrize("stop", [1, 5, 7, 9])
def test_stopped_anywhere_it_goes_on_bit_for_bit(tmp_path, options, stop):
    """Whether or not the step before was saved, the steps told of in the end are those of an undisturbed run."""
    options = options | {"save_every": 3}
    whole, expected, all_told = run(**options)
    module, loss_at = problem()
    told = {}

    def stops(step, *numbers):
        told[step] = numbers
        if step == stop:
            raise KeyboardInterrupt

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        loop.optimise(
            loss_at, module, steps=10, lr=0.05, warmup=2, quiet=True, on_step=stops, checkpoint=path, **options
        )
    saved = path.exists()
    module, losses, rest = run(seed=99 if saved else 0, checkpoint=path, **options)
    assert saved == (stop >= 3)
    assert losses == expected and torch.equal(module.weight, whole.weight) and torch.equal(module.bias, whole.bias)
    first = rest[0][0]
    assert first == stop // 3 * 3  # a step is told of before it is saved, so none that is saved was missed
    assert [(s, *told[s]) for s in range(first)] + rest == all_told


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "run.pt"
    module, losses, _ = run(checkpoint=path, ema=0.9)
    again, same, told = run(seed=99, checkpoint=path, ema=0.9)
    assert same == losses and told == [] and torch.equal(again.weight, module.weight)


def test_a_checkpoint_holds_what_moves_and_nothing_half_written(tmp_path):
    module, loss_at = problem()
    module.bias.requires_grad_(False)
    before = module.bias.clone()
    run(module_and_loss=(module, loss_at), checkpoint=tmp_path / "deep" / "run.pt")
    state = torch.load(tmp_path / "deep" / "run.pt", weights_only=True)
    assert set(state["module"]) == {"weight"} and torch.equal(state["module"]["weight"], module.weight)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run.pt"] and torch.equal(module.bias, before)


def test_of_several_processes_only_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run(checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    run(checkpoint=tmp_path / "run.pt")
    assert (tmp_path / "run.pt").exists()


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "run.pt"
    run(checkpoint=path, identity={"lr": 0.05, "clip": "toy", "old": 1})
    with pytest.raises(ValueError) as caught:
        run(checkpoint=path, identity={"lr": 0.1, "clip": "toy", "new": [2]})
    said = str(caught.value)
    for part in (str(path), "lr 0.05, now 0.1", "old 1, now None", "new None, now [2]", "use a new folder"):
        assert part in said
    assert "clip" not in said


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path, value, said):
    """After the cause is gone, the same call goes on from there to the weights of an undisturbed run."""
    whole, expected, _ = run(save_every=100)
    module, loss_at = problem()
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=f"the loss of step 6 is {said}; lower lr"):
        run(module_and_loss=(module, lambda s: loss_at(s) * (value if s == 6 else 1)), checkpoint=path, save_every=100)
    assert torch.isfinite(module.weight).all()
    assert len(torch.load(path, weights_only=True)["losses"]) == 6
    other, losses, _ = run(seed=99, checkpoint=path, save_every=100)
    assert losses == expected and torch.equal(other.weight, whole.weight)


class Spiked(torch.autograd.Function):
    """One forward, a gradient of whatever one likes backward."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.factor, None


def test_a_gradient_that_is_not_finite_stops_before_it_moves_anything(tmp_path):
    module, loss_at = problem()
    weights = []
    with pytest.raises(FloatingPointError, match="the gradient norm of step 2 is nan"):
        loop.optimise(
            lambda s: Spiked.apply(loss_at(s), math.nan if s == 2 else 1.0), module, steps=4, lr=0.1, quiet=True,
            checkpoint=tmp_path / "run.pt", on_step=lambda *step: weights.append(module.weight.detach().clone()),
        )  # fmt: skip
    assert len(weights) == 2 and torch.equal(module.weight, weights[1])
    assert torch.equal(torch.load(tmp_path / "run.pt", weights_only=True)["module"]["weight"], weights[1])


def test_scaling_the_loss_changes_nothing_that_fits():
    """The scale is a power of two, so it comes off the gradient again without rounding."""
    plain, losses, _ = run()
    scaled, other, _ = run(half=True)
    assert losses == other and torch.equal(plain.weight, scaled.weight)


def test_a_scaled_step_that_overflows_is_left_out_but_nothing_goes_on_for_ever():
    """One infinite gradient costs its step. Where every gradient is infinite, halving 65536 to one takes 16 steps."""
    module, loss_at = problem()
    weights = [module.weight.detach().clone()]
    loop.optimise(
        lambda s: Spiked.apply(loss_at(s), math.inf if s == 2 else 1.0), module, steps=4, lr=0.1, half=True, quiet=True,
        on_step=lambda *step: weights.append(module.weight.detach().clone()),
    )  # fmt: skip
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [False, False, True, False]
    module, loss_at = problem()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(FloatingPointError, match="gradient norm of step 16 is"):
        run(module_and_loss=(module, lambda s: Spiked.apply(loss_at(s), math.inf)), steps=40, half=True)
    assert torch.equal(module.weight, before["weight"])


@pytest.mark.parametrize("where", ["loss", "step"])
def test_a_full_memory_names_the_settings_that_lower_it(monkeypatch, where):
    """It may show in the loss, or where the optimiser first asks for room for its moments."""
    module, loss_at = problem()

    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")

    if where == "step":
        monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(MemoryError) as caught:
        run(module_and_loss=(module, full if where == "loss" else loss_at), label="DIVA tower")
    for part in ("DIVA tower", "step 0", "batch", "accumulate", "checkpointing", "precision", "draws", "2 GiB"):
        assert part in str(caught.value)


def test_no_gradient_is_kept_when_it_is_done():
    module, _, _ = run()
    assert all(p.grad is None for p in module.parameters())


def test_an_unknown_optimiser_is_named():
    with pytest.raises(ValueError, match="optimiser must be one of adamw, sgd; not 'adam'"):
        run(optimiser="adam")
