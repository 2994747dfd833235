"""Minimise a loss step by step: one loop for every model of this library, that stops and goes on without a trace.

Every random choice of step i comes from (seed, i), so an interrupted run goes on bit for bit where it stopped.

Reference: Loshchilov and Hutter 2019 (AdamW and the cosine rate, arXiv:1711.05101, arXiv:1608.03983).

Taught in: notebooks/01_clip.ipynb and notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

LOWER = "lower batch, or raise accumulate, set checkpointing=True, precision='bfloat16' or draws=1"


def optimise(
    loss_at: Callable[..., Tensor],
    module: nn.Module,
    *,
    steps: int,
    lr: float,
    optimiser: str = "adamw",
    weight_decay: float = 0.0,
    warmup: int = 50,
    parts: int = 1,
    half: bool = False,
    ema: float | None = None,
    checkpoint: Path | None = None,
    save_every: int = 200,
    identity: dict[str, Any] | None = None,
    on_step: Callable[[int, float, float, float], None] | None = None,
    label: str = "training",
    quiet: bool = False,
) -> list[float]:
    """Minimise ``loss_at(step)`` over what may move in ``module``: cosine rate, gradient norm at most 1.

    Args:
        loss_at: step -> scalar loss; must draw its randomness from the step. With ``parts``, (step, part) -> its loss.
        steps, lr, weight_decay, warmup: length, peak rate, decay, steps of linear warm-up.
        optimiser: "adamw", or "sgd" with momentum 0.9, as DIVA's reference code has it.
        parts: parts of a step whose gradients are averaged, to save memory.
        half: scale the loss, so that gradients in float16 do not vanish; a step that overflows is left out, and the
            scale halved.
        ema: decay of an exponential average of the weights, which replaces them at the end.
        checkpoint: file to go on from when it exists, written every ``save_every`` steps and at the end.
        identity: what the run is; a checkpoint of another is refused.
        on_step: called with (step, loss, learning rate, gradient norm) after each step.
        label, quiet: name of the progress bar, and whether it is hidden.

    Returns:
        The loss of every step, those before an interruption included.

    Raises:
        FloatingPointError: a loss or gradient that is not finite, with its step; the module then still holds the last
            finite state, and so does the checkpoint.
        ValueError: an unknown optimiser, or a checkpoint of another run, with what differs.
        MemoryError: the GPU's memory is full, with the settings that lower it.

    Taught in: notebooks/01_clip.ipynb
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    state = _State(module, weights, _optimiser(optimiser, weights, lr, weight_decay), steps, warmup, ema, half)
    state.resume(checkpoint, identity or {})
    call = loss_at if parts > 1 else lambda step, part: loss_at(step)
    for step in tqdm(
        range(len(state.losses), steps), label, steps, initial=len(state.losses), mininterval=5, disable=quiet
    ):
        with _memory_watched(label, step):
            loss = state.gradients(call, step, parts)
            norm = state.norm() if math.isfinite(loss) else math.nan
        bad = next((k for k, v in (("loss", loss), ("gradient norm", norm)) if not math.isfinite(v)), None)
        if bad == "loss" or (bad and state.scaler.get_scale() <= 1):  # above 1 the scale may be at fault: it is lowered
            state.save(checkpoint, identity or {})
            value = loss if bad == "loss" else norm
            raise FloatingPointError(
                f"{label}: the {bad} of step {step} is {value}; lower lr (now {lr}) or look at that batch"
            )
        with _memory_watched(label, step):
            rate = state.move(loss)
        if on_step:
            on_step(step, loss, rate, norm)  # before the checkpoint: a step that is in it has been told of
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state.save(checkpoint, identity or {})
    state.moves.zero_grad(set_to_none=True)
    if state.average:
        state.average.copy_to(weights)
    return state.losses


@contextmanager
def _memory_watched(label: str, step: int) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(f"{label}: the GPU's memory is full in step {step}: {LOWER} ({error})") from error


class _State:
    """Everything that a step changes."""

    def __init__(self, module, weights, moves, steps, warmup, ema, half) -> None:
        self.module, self.weights, self.moves = module, weights, moves
        self.losses: list[float] = []
        self.rate = torch.optim.lr_scheduler.LambdaLR(moves, lambda i: _cosine(i, steps, min(warmup, steps // 5)))
        self.average = EMAModel(weights, decay=ema) if ema else None
        self.scaler = torch.amp.GradScaler(weights[0].device.type, enabled=half)

    def gradients(self, loss_at: Callable[[int, int], Tensor], step: int, parts: int) -> float:
        """The step's gradient, the mean over its parts, left in the weights; returns the loss."""
        self.moves.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(parts):
            loss = loss_at(step, part) / parts
            total += loss.item()
            if not math.isfinite(total):
                break  # a gradient would be of no use
            self.scaler.scale(loss).backward()
        return total

    def norm(self) -> float:
        self.scaler.unscale_(self.moves)
        return nn.utils.clip_grad_norm_(self.weights, 1.0).item()

    def move(self, loss: float) -> float:
        """One step of the optimiser; returns the rate it was taken with."""
        rate = float(self.rate.get_last_lr()[0])
        self.scaler.step(self.moves)
        self.scaler.update()
        self.rate.step()
        if self.average:
            self.average.step(self.weights)
        self.losses.append(loss)
        return rate

    def save(self, checkpoint: Path | None, identity: dict[str, Any]) -> None:
        """Written whole or not at all. Frozen weights are not in it: whoever goes on brings them."""
        if checkpoint is None or os.environ.get("RANK", "0") != "0":
            return  # of several processes only the first writes
        frozen = {name for name, p in self.module.named_parameters() if not p.requires_grad}
        state: dict[str, Any] = {"module": {k: v for k, v in self.module.state_dict().items() if k not in frozen}}
        state |= {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"losses": self.losses, "identity": json.dumps(identity)}
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(checkpoint)

    def resume(self, checkpoint: Path | None, identity: dict[str, Any]) -> None:
        if checkpoint is None or not checkpoint.exists():
            return
        state = torch.load(checkpoint, weights_only=True, map_location=self.weights[0].device)
        _check_identity(checkpoint, json.loads(state["identity"]), json.loads(json.dumps(identity)))
        self.module.load_state_dict(state["module"], strict=False)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.losses = state["losses"]

    def _parts(self) -> dict[str, Any]:
        parts = {"moves": self.moves, "rate": self.rate, "scaler": self.scaler}
        return parts | {"average": self.average} if self.average else parts


def _check_identity(checkpoint: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = [f"{k} {found.get(k)!r}, now {wanted.get(k)!r}" for k in found | wanted if found.get(k) != wanted.get(k)]
    if other:
        raise ValueError(f"{checkpoint} is of another run: {'; '.join(other)}. Go on as it began, or use a new folder")


def _optimiser(name: str, weights: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=weight_decay)
    raise ValueError(f"optimiser must be one of adamw, sgd; not {name!r}")


def _cosine(step: int, steps: int, warmup: int) -> float:
    return min((step + 1) / max(warmup, 1), (1 + math.cos(math.pi * min(step / steps, 1))) / 2)
