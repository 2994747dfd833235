"""Work out what a step of DIVA costs before it is run: arithmetic, memory, and the least time it can take.

Nothing is computed and nothing allocated: the networks live on torch's meta device, where a tensor has a shape and no
numbers. Arithmetic is counted operation by operation, memory by watching which tensors stay alive.

References: Wang et al. 2025 (DIVA, arXiv:2407.20171), for the schedule; Chen et al. 2016 (arXiv:1604.06174), for
checkpointing; the published configurations of Stable Diffusion 1.5 and 2.1, for the architectures.

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STATES = {"sgd": 1, "adamw": 2}  # numbers an optimiser keeps for each weight that moves
SCHEDULES = ("reference", "once", "cached")
ROWS = {  # what `make gpu` measures, in this order; each row of "real" has the levers of those above it, too
    "rate": ("matrix product",),
    "real": (
        "reference, attention unfused", "reference", "CLIP once, draws batched", "constants cached",
        "frozen parts in half precision", "channels last", "fused optimiser", "tokens drawn on the device",
        "torch.compile", "CUDA graphs", "cached latents (fixes the crop)",
    ),
    "fit": ("batch 16, two draws",),
    "toy": ("experiment at full length",),
    "large": ("before", "DIVA", "noise"),
}  # fmt: skip
RESULTS = Path(__file__).parent / "data" / "gpu.json"

_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
_UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2, "down_block_types": _DOWN, "up_block_types": _UP,
}  # fmt: skip
_VAE: dict[str, Any] = {
    "sample_size": 512, "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "scaling_factor": 0.18215,
}  # fmt: skip
DIFFUSION: dict[str, dict[str, Any]] = {
    "sd-2.1": {
        "unet": _UNET
        | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        "vae": _VAE,
    },
    "sd-1.5": {"unet": _UNET | {"cross_attention_dim": 768, "attention_head_dim": 8}, "vae": _VAE},
}  # sizes alone, as diffusers' constructors take them; at 64 x 64 latents, which are pictures of 512 x 512


@dataclass(frozen=True)
class Network:
    """What one network costs for one sample. Arithmetic in FLOPs, a multiplication and an addition being two."""

    forward: int
    """FLOPs of the forward pass."""
    backward: int
    """FLOPs of the backward pass: to weights and input where it trains, to the condition alone where it is frozen."""
    weights: int
    """How many weights it has."""
    saved: int
    """Bytes that stay for the backward pass, its weights apart; each storage once, however many tensors view it."""
    saved_checkpointed: int
    """The same, when blocks are recomputed in the backward pass."""
    saved_unfused: int
    """The same without recomputing, where attention is not fused: its matrices of scores stay too."""
    peak: int
    """The most bytes alive at once beyond its weights and their gradients: what is saved and what is in the making."""
    peak_checkpointed: int
    """The same, when blocks are recomputed in the backward pass."""


@dataclass(frozen=True)
class Costs:
    """The three networks of a DIVA step, for one picture (CLIP, VAE) or one draw (UNet), at one precision."""

    clip: Network
    unet: Network
    vae: Network
    idle: int
    """Weights of CLIP's text tower, which DIVA loads and does not use."""
    precision: str


def count_flops(call: Callable[[], Tensor]) -> tuple[int, int]:
    """FLOPs of ``call()`` and of the backward pass from the sum of what it returns (0 where nothing asks for one).

    Counted are matrix products, convolutions and attention, whose backward pass is four products of matrices by its
    formula. That a fused kernel computes one product of the forward pass again is not counted: it is no part of the
    result. Nor are elementwise operations and norms: they wait for the memory, not for arithmetic.

    >>> layer, x = nn.Linear(3, 5, device="meta"), torch.empty(2, 3, device="meta")
    >>> count_flops(lambda: layer(x))  # 2 x 2 x 3 x 5, and as much for the weight's gradient
    (60, 60)

    Taught in: notebooks/10_gpu.ipynb
    """
    with FlopCounterMode(display=False) as counter:
        result = call()
        forward = counter.get_total_flops()
        if result.requires_grad:
            result.sum().backward()
        return forward, counter.get_total_flops() - forward


def count_bytes(call: Callable[[], Tensor], module: nn.Module) -> tuple[int, int]:
    """Bytes that ``call()`` keeps for its backward pass, and the most alive at once in both passes.

    The first leaves the weights of ``module`` apart; each storage counts once, however many tensors view it. The second
    is of all that the two passes make: gradients of weights too, unless they were there before. Attention counts as a
    fused kernel computes it, which keeps no matrix of scores.

    >>> layer, x = nn.Linear(3, 5, bias=False, device="meta"), torch.empty(2, 3, device="meta")
    >>> count_bytes(lambda: layer(x).exp(), layer)  # input and result; result, its sum, the gradients of all three
    (64, 148)

    Taught in: notebooks/10_gpu.ipynb
    """
    with _fused_attention(), _Alive() as alive:
        with _saving(module) as kept:
            result = call()
        if result.requires_grad:
            result.sum().backward()
    return sum(kept.values()), alive.peak


@contextmanager
def _saving(module: nn.Module) -> Iterator[dict[int, int]]:
    """Address and bytes of each storage saved for a backward pass; until then none is freed, so addresses differ."""
    weights, kept = {p.untyped_storage()._cdata for p in module.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


class _Alive(TorchDispatchMode):
    """Follows the storages that operations make, by weak references."""

    def __enter__(self) -> _Alive:
        self.refs: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {storage._cdata for storage in _storages((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for key in [key for key, (ref, _) in self.refs.items() if ref.expired()]:
            self.now -= self.refs.pop(key)[1]
        for storage in _storages(result):
            if storage._cdata not in before and storage._cdata not in self.refs:
                self.refs[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return result


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device torch takes attention apart; for the length of a count it is one operation, as on a GPU."""
    plain = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        needs = torch.is_grad_enabled()
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needs, dropout_p, is_causal, scale=options.get("scale")
        )[0]

    F.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def measure_network(module: nn.Module, call: Callable[[], Tensor], checkpoint: Callable[[bool], Any] | None) -> Network:
    """Count one network on the meta device: ``call`` runs it on one sample; ``checkpoint(True)`` makes it recompute.

    With None for ``checkpoint`` (a network without a backward pass) the figures with and without it are equal. The
    count of FLOPs comes first and leaves gradients in the weights that train, so that they are no part of the peak.

    Taught in: notebooks/10_gpu.ipynb
    """
    with _saving(module) as unfused:  # here torch takes attention apart, as it does where it has no kernel for it
        forward, backward = count_flops(call)
    plain = count_bytes(call, module)
    small = plain
    if checkpoint is not None:
        checkpoint(True)
        small = count_bytes(call, module)
        checkpoint(False)
    return Network(forward, backward, _size(module), plain[0], small[0], sum(unfused.values()), plain[1], small[1])


@cache
def measure(
    clip: str = "ViT-L-14", diffusion: str = "sd-2.1", *, tokens: int = 77, pixels: int = 512,
    precision: str = "bfloat16",
) -> Costs:  # fmt: skip
    """Count the parts of a DIVA step for any of open_clip's towers with Stable Diffusion 1.5 or 2.1.

    Args:
        clip: a name of ``open_clip.list_models()``; pictures come at the tower's own size.
        diffusion: one of ``DIFFUSION``; for other sizes see :func:`measure_modules`.
        tokens: tokens of the condition.
        pixels: side of the picture that is denoised, a multiple of 64.
        precision: of activations: float32, bfloat16 or float16.

    Raises:
        ValueError: an unknown name, with the known ones; other pixels.

    Left out, being under 0.1 %: the projection of local tokens and the condition's linear layer.

    Taught in: notebooks/10_gpu.ipynb
    """
    for name, value, known in (("clip", clip, open_clip.list_models()), ("diffusion", diffusion, list(DIFFUSION)),
                               ("precision", precision, list(BYTES))):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; not {value!r}")
    if pixels < 64 or pixels % 64:
        raise ValueError(f"pixels must be a multiple of 64, three halvings of latents 8 times smaller; not {pixels!r}")
    model = _on_meta(lambda: open_clip.create_model(clip, device="meta"))
    unet = _on_meta(lambda: UNet2DConditionModel(**DIFFUSION[diffusion]["unet"]))
    vae = _on_meta(lambda: AutoencoderKL(**DIFFUSION[diffusion]["vae"]))
    return measure_modules(model, unet, vae, tokens=tokens, pixels=pixels, precision=precision)


def measure_modules(model: Any, unet: Any, vae: Any, *, tokens: int, pixels: int, precision: str = "bfloat16") -> Costs:
    """Like :func:`measure`, for modules on the meta device: an open_clip model, diffusers' UNet and autoencoder.

    They are cast to ``precision`` and left frozen, apart from the vision tower. Taught in: notebooks/10_gpu.ipynb
    """
    like = {"device": "meta", "dtype": getattr(torch, precision)}
    visual = _cast(model.visual, like["dtype"], moves=True)
    _cast(unet, like["dtype"]), _cast(vae, like["dtype"])
    side = pixels // 2 ** (len(vae.config.block_out_channels) - 1)
    seen, picture = torch.empty(1, 3, *visual.image_size, **like), torch.empty(1, 3, pixels, pixels, **like)
    latent, time = torch.empty(1, unet.config.in_channels, side, side, **like), torch.empty(1, device="meta").long()
    told = torch.empty(1, tokens, unet.config.cross_attention_dim, **like, requires_grad=True)

    def recompute(on: bool) -> None:
        (unet.enable_gradient_checkpointing if on else unet.disable_gradient_checkpointing)()

    @torch.no_grad()
    def encode() -> Tensor:
        return vae.encode(picture).latent_dist.mean

    return Costs(
        measure_network(visual, lambda: visual(seen), visual.set_grad_checkpointing),
        measure_network(unet, lambda: unet(latent, time, encoder_hidden_states=told).sample, recompute),
        measure_network(vae, encode, None), _size(model) - _size(visual), precision,
    )  # fmt: skip


def tower_flops(clip: str) -> tuple[int, int]:
    """FLOPs of one picture's forward and backward pass through a vision tower of ``open_clip.list_models()``.

    Taught in: notebooks/10_gpu.ipynb
    """
    visual = _on_meta(lambda: open_clip.create_model(clip, device="meta")).visual
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2  # an int in ResNets
    picture = torch.empty(1, 3, *size, device="meta")
    return count_flops(lambda: visual(picture))


def _on_meta(build: Callable[[], Any]) -> Any:
    """Built without memory, and without the warning that a model has random weights."""
    quiet, level = logging.getLogger(), logging.getLogger().level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            return build()
    finally:
        quiet.setLevel(level)


def _cast(module: nn.Module, dtype: torch.dtype, moves: bool = False) -> Any:
    """``Module.to`` itself: that of diffusers warns of casts that lose numbers, and here there are none to lose."""
    return nn.Module.to(module, dtype).requires_grad_(moves)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def step_flops(costs: Costs, draws: int = 2, schedule: str = "once", checkpointing: bool = False) -> int:
    """FLOPs of a step of DIVA for each picture (``eq-diva-cost``).

    Objective: ``r (F_C + G_C) + J (F_U + G_U) + v F_V`` with forward passes F and backward passes G of CLIP, the UNet
    and the autoencoder V, and J draws; r is J for the schedule "reference", which runs CLIP for every draw, and else 1;
    v is 0 for "cached", which keeps latents, and else 1. ``checkpointing`` adds r F_C + J F_U, a little more than is
    recomputed.

    >>> one = Network(1, 2, 0, 0, 0, 0, 0, 0)
    >>> [step_flops(Costs(one, one, one, 0, "float32"), 2, schedule) for schedule in SCHEDULES]
    [13, 10, 9]

    Taught in: notebooks/10_gpu.ipynb
    """
    _check(draws=draws, schedule=schedule)
    clip, unet, runs = costs.clip, costs.unet, draws if schedule == "reference" else 1
    again = runs * clip.forward + draws * unet.forward if checkpointing else 0
    passes = runs * (clip.forward + clip.backward) + draws * (unet.forward + unet.backward)
    return passes + again + (0 if schedule == "cached" else costs.vae.forward)


def step_bytes(
    costs: Costs, batch: int, draws: int = 2, schedule: str = "once", *, checkpointing: bool = False,
    optimiser: str = "sgd",
) -> dict[str, int]:  # fmt: skip
    """Bytes of a step by part; their sum is what a card must hold (``eq-diva-memory``).

    Objective: ``4 w_C (2 + k) + b (w_C + w_U + w_V) + 4 w_T + B max(A_C + J A_U, A_V)``. w counts weights: of the tower
    C in float32, with gradients, k states of the optimiser, and a copy in the working precision of b bytes (none in
    float32); of the frozen UNet U and autoencoder V; of the idle text tower T. A is what a picture or draw needs alive.
    In the schedule "reference" J is 1, since draws come one after another, and the frozen parts stay in float32: 4
    bytes a weight, and b more for the UNet, whose cast copies the backward pass keeps.

    Notes:
        Gradients count throughout, although they are there only from the backward pass on. What the moments of a
        step need is overlaid: the autoencoder is done before CLIP begins. Not counted: the driver's context (about
        0.5 GB), workspaces of kernels, fragments, and that autocast keeps norms of the tower in float32.

    Taught in: notebooks/10_gpu.ipynb
    """
    _check(draws=draws, schedule=schedule, batch=batch, optimiser=optimiser)
    c, u, v, width = costs.clip, costs.unet, costs.vae, BYTES[costs.precision]
    literal, mixed = schedule == "reference", width < 4
    seen, told = (c.saved_checkpointed, u.peak_checkpointed) if checkpointing else (c.saved, u.peak)
    alive = seen + (1 if literal else draws) * told
    frozen = (4 if literal else width) * (u.weights + v.weights) + (width * u.weights if literal and mixed else 0)
    return {
        "tower": 4 * c.weights, "gradients": 4 * c.weights, "optimiser": 4 * STATES[optimiser] * c.weights,
        "tower's copy": width * c.weights * mixed, "frozen UNet and VAE": frozen, "idle text tower": 4 * costs.idle,
        "activations": batch * max(alive, 0 if schedule == "cached" else v.peak),
    }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a step will cost, worked out beforehand; from :func:`plan`."""

    batch: int
    """Pictures a step."""
    flops: int
    """Of the whole step."""
    parts: dict[str, int]
    """Bytes by part, see :func:`step_bytes`."""
    bytes: int
    """Their sum."""
    largest: int | None
    """The largest batch that fits the memory given; 0 where not even one picture does."""
    seconds: float | None
    """The least time of a step at the rate given: no step is faster, most are slower by half."""


def plan(
    costs: Costs, batch: int = 16, draws: int = 2, schedule: str = "once", *, checkpointing: bool = False,
    optimiser: str = "sgd", memory: float | None = None, rate: float | None = None, spare: float = 0.1,
) -> Plan:  # fmt: skip
    """Arithmetic, memory, largest batch and least time of a step of DIVA.

    Args:
        costs: from :func:`measure`.
        batch, draws: pictures a step, and draws of (timestep, noise) for each.
        schedule: "reference" (CLIP for every draw, draws one by one, frozen parts in float32), "once" (CLIP once a
            picture, draws batched) or "cached" (the same, with latents computed beforehand).
        checkpointing: whether blocks are recomputed in the backward pass.
        optimiser: "sgd" with momentum, or "adamw".
        memory: bytes of the card; ``spare`` is the share of it that is left for what is not counted.
        rate: FLOP/s of a matrix product, measured or published.

    Raises:
        ValueError: a number that is not positive, or an unknown schedule or optimiser, with the known ones.

    >>> one = Network(1, 2, 10, 100, 50, 100, 100, 50)
    >>> found = plan(Costs(one, one, one, 0, "float32"), 4, memory=2000, rate=8.0)
    >>> found.flops, found.bytes, found.largest, found.seconds
    (40, 1400, 5, 5.0)

    Taught in: notebooks/10_gpu.ipynb
    """
    _check(memory=1 if memory is None else memory, rate=1 if rate is None else rate)
    if not 0 <= spare < 1:
        raise ValueError(f"spare is a share of the memory, in [0, 1); not {spare!r}")
    flops = batch * step_flops(costs, draws, schedule, checkpointing)
    parts = step_bytes(costs, batch, draws, schedule, checkpointing=checkpointing, optimiser=optimiser)
    fixed = sum(parts.values()) - parts["activations"]
    room = None if memory is None else max(0, int(((1 - spare) * memory - fixed) // (parts["activations"] // batch)))
    return Plan(batch, flops, parts, sum(parts.values()), room, None if rate is None else flops / rate)


def _check(**values: Any) -> None:
    known = {"schedule": SCHEDULES, "optimiser": tuple(STATES)}
    for name, value in values.items():
        if name in known and value not in known[name]:
            raise ValueError(f"{name} must be one of {', '.join(known[name])}; not {value!r}")
        if name not in known and not value > 0:
            raise ValueError(f"{name} must be positive; not {value!r}")


def read_results(path: str | Path = RESULTS) -> dict[str, Any]:
    """What ``make gpu`` measured, or, where it has not run, the same rows with the status "not run".

    Returns the file's document: ``hardware``, ``date`` and so on, or None for each, and ``rows``, at least one for
    each of ``ROWS``, every one with ``part``, ``name`` and ``status`` ("measured", "failed", "cut off" or "not run").
    ValueError for a file that is no such document.

    >>> {row["status"] for row in read_results("no-such-file.json")["rows"]}
    {'not run'}

    Taught in: notebooks/10_gpu.ipynb
    """
    document: dict[str, Any] = {"hardware": None, "date": None, "rows": []}
    if Path(path).exists():
        document = json.loads(Path(path).read_text(encoding="utf8"))
        if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
            raise ValueError(f"{path} must hold what `make gpu` writes, with a list of rows: run it again")
    found = {(row["part"], row["name"]) for row in document["rows"]}
    waiting = [(part, name) for part, names in ROWS.items() for name in names if (part, name) not in found]
    rows = [{"part": part, "name": name, "status": "not run"} for part, name in waiting]
    return document | {"rows": document["rows"] + rows}
