"""Measure DIVA on one GPU, from a Colab T4 to an H200, and write every figure as it comes: `make gpu`.

Five parts, in this order: the card's own rate at matrix products; DIVA at real size with random weights, first as the
reference schedules it and then with our levers switched on one after another; whether a batch of 16 fits; the toy
experiment at greater length; the same in a larger toy world. What fails is written down with its message, and so is
what there was no time for. The memory plan of minilib.cost is printed first. No time includes the loading of pictures.

    python scripts/gpu.py --minutes 25 --only rate real fit

Taught in: notebooks/10_gpu.ipynb
"""

import argparse
import copy
import dataclasses
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from importlib import metadata, util
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel

from minilib import cost, diva, exam, models, training, world
from minilib.towers import select_tokens, visual_tokens

ROOT = Path(__file__).resolve().parent.parent
UNFUSED, LITERAL, ONCE, CONSTANTS, HALF, CHANNELS, FUSED, TOKENS, COMPILE, GRAPHS, CACHED = cost.ROWS["real"]
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
REAL: dict[str, Any] = {
    "clip": "ViT-L-14", "unet": cost.DIFFUSION["sd-2.1"]["unet"], "vae": cost.DIFFUSION["sd-2.1"]["vae"],
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
             "hidden_act": "gelu", "max_position_embeddings": 77, "vocab_size": 49408},
    "pixels": 512, "tokens": "random(76, replace)", "count": 77, "batch": 16, "draws": 2, "side": 8192, "steps": 8,
}  # fmt: skip
TINY: dict[str, Any] = {  # the same families and code, for a CPU
    "clip": "minilib-toy",
    "unet": {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 24,
             "norm_num_groups": 8, "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    "vae": {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "scaling_factor": 0.18215,
            "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
    "text": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "max_position_embeddings": 77, "vocab_size": 64},
    "pixels": 16, "tokens": "random(5, replace)", "count": 6, "batch": 4, "draws": 2, "side": 64, "steps": 1,
}  # fmt: skip
TOY = {"base": {"steps": 2600, "batch": 256}, "teacher": {"start": 1500, "steps": 4000, "batch": 128},
       "recipe": {"steps": 600}}  # fmt: skip
LARGE: dict[str, Any] = {
    "size": 64, "pool": 40_000, "words": 800, "steps": 4000, "batch": 256, "teacher": 6000, "lr": 2e-3, "test": 2000,
    "clip": {"embed_dim": 192,
             "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 32, "patch_size": 8},
             "text_cfg": {"context_length": 24, "vocab_size": 72, "width": 192, "heads": 6, "layers": 3}},
    "channels": (64, 128), "recipe": {"steps": 300, "batch": 64}, "pairs": 200, "shots": 16,
}  # fmt: skip
SMALL = {"size": 32, "pool": 64, "words": 2, "steps": 2, "batch": 16, "teacher": 2, "channels": (16, 32),
         "recipe": {"steps": 2, "batch": 16}, "pairs": 4, "test": 400, "shots": 2}  # fmt: skip


class Report:
    """The file of results: replaced in one move after every row, so that a run that is cut off keeps what it has."""

    def __init__(self, path: Path, head: dict[str, Any], minutes: float) -> None:
        self.path, self.ends = path, time.monotonic() + 60 * minutes
        self.document = head | {"rows": []}

    @property
    def late(self) -> bool:
        return time.monotonic() > self.ends

    def add(self, part: str, name: str, status: str, **numbers: Any) -> None:
        row = {"part": part, "name": name, "status": status, **rounded(numbers)}
        self.document["rows"] = [r for r in self.document["rows"] if (r["part"], r["name"]) != (part, name)] + [row]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf8")
        os.replace(partial, self.path)
        print(json.dumps(row), flush=True)

    def measure(self, part: str, name: str, call: Callable[[], dict[str, Any]]) -> bool:
        """Add what ``call()`` measures, or the message of its failure; whether it was measured."""
        if self.late:
            return self._miss(part, name, "cut off", "no time left: give more --minutes")
        try:
            numbers = call()
        except Exception as error:  # whatever a driver, compiler or memory says is a result: it goes into the file
            return self._miss(part, name, "failed", f"{type(error).__name__}: {error}"[:600])
        finally:
            free()
        self.add(part, name, "measured", **numbers)
        return True

    def _miss(self, part: str, name: str, status: str, error: str) -> bool:
        """A row that grows, seed by seed, keeps what it has and says what came then."""
        old = next((r for r in self.document["rows"] if (r["part"], r["name"]) == (part, name)), {})
        self.add(
            **({"part": part, "name": name, "status": status, "error": error} if not old else old | {"then": error})
        )
        return False


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def free() -> None:
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def hardware(device: str) -> dict[str, Any]:
    """What a reader must know of the machine."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "open_clip_torch", "numpy")}
    facts = {"hardware": f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}", "memory": None}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts = {"hardware": card.name, "memory": card.total_memory, "cuda": torch.version.cuda}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return facts | {"versions": versions, "python": platform.python_version(), "date": date, "commit": commit or None}


def working_precision(device: str) -> str:
    """bfloat16 where the card has it, as from Ampere on, else float16; on a CPU, which tries the code out, float32."""
    if device == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"


# --- The card's own rate ----------------------------------------------------------------------------------------------


def matrix_rate(side: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """FLOP/s of a square matrix product: the measure that every share below refers to."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = timed(lambda: a @ b, device, warm=3, steps=20)
    return {
        "side": side,
        "dtype": str(dtype).removeprefix("torch."),
        "rate": 2 * side**3 / seconds["seconds"],
    } | seconds


def timed(step: Callable[[], Any], device: str, warm: int, steps: int) -> dict[str, Any]:
    """Seconds a step: the median of three stretches of ``steps``, with the fastest and the slowest."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(warm):
        step()
    stretches = []
    for _ in range(3):
        wait()
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        stretches.append((time.perf_counter() - begun) / steps)
    return {"seconds": statistics.median(stretches), "fastest": min(stretches), "slowest": max(stretches)}


# --- DIVA at real size ------------------------------------------------------------------------------------------------


class Unmixed(models.Denoiser):
    """A denoiser whose weights are cast: autocast, which would take its norms back to float32, stops at its door."""

    def forward(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        with torch.autocast(noisy.device.type, enabled=False):
            return super().forward(noisy, timesteps, context)


class Bench:
    """Everything a step needs, with random weights, and the step itself for a set of levers."""

    def __init__(
        self, sizes: dict[str, Any], device: str, precision: str, batch: int, checkpointing: bool, levers
    ) -> None:
        torch.manual_seed(0)
        self.sizes, self.device, self.levers, self.dtype = sizes, device, levers, getattr(torch, precision)
        with torch.device(device):
            clip = diva.pupil(models.Clip(open_clip.create_model(sizes["clip"], device=device), None, sizes["clip"]))
            unet, codec = UNet2DConditionModel(**sizes["unet"]), AutoencoderKL(**sizes["vae"])
            self.tower = CLIPTextModel(CLIPTextConfig(**sizes["text"])).eval().requires_grad_(False)
            self.ids = torch.zeros(1, 77, dtype=torch.long)
            self.pictures = torch.randint(256, (batch, 3, sizes["pixels"], sizes["pixels"]), dtype=torch.uint8)
            self.pixels = torch.randn(batch, 3, *clip.model.visual.image_size)
        denoiser = (Unmixed if HALF in levers else models.Denoiser)(unet, DDPMScheduler(**NOISE), codec)
        self.config = diva.Config(
            batch=batch, draws=sizes["draws"], first=0, condition="add", tokens=sizes["tokens"], precision=precision,
            checkpointing=checkpointing, optimiser="sgd", anchor=0,
        )  # fmt: skip
        self.feedback = diva.Feedback(clip, denoiser, self.config, torch.zeros(77, unet.config.cross_attention_dim))
        if HALF not in levers:
            denoiser.float()
        self._prepare(clip, denoiser)

    def _prepare(self, clip: models.Clip, denoiser: models.Denoiser) -> None:
        levers, cuda = self.levers, self.device == "cuda"
        self.weights = [p for p in self.feedback.parameters() if p.requires_grad]
        self.moves = torch.optim.SGD(self.weights, lr=1e-4, momentum=0.9, fused=FUSED in levers)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)
        self.random = torch.Generator(self.device if TOKENS in levers else "cpu").manual_seed(0)
        self.noises = torch.Generator(self.device).manual_seed(1)
        if CHANNELS in levers:
            denoiser.to(memory_format=torch.channels_last)
        if GRAPHS in levers and not cuda:
            raise RuntimeError("CUDA graphs need a GPU")
        if COMPILE in levers or GRAPHS in levers:
            options = {"mode": "reduce-overhead" if GRAPHS in levers else None} if cuda else {"backend": "aot_eager"}
            for network in (denoiser.unet, denoiser.codec.encoder, clip.model.visual):
                network.compile(**options)
        self.read_prompt()
        self.latents = self.encode() if CACHED in levers else None

    def mixed(self) -> Any:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def read_prompt(self) -> None:
        with self.mixed():
            self.feedback.condition.text.copy_(self.tower(self.ids).last_hidden_state[0])

    def encode(self) -> Tensor:
        with nullcontext() if HALF in self.levers else self.mixed():
            latents = self.feedback.denoiser.encode(self.pictures)
        return latents.to(memory_format=torch.channels_last) if CHANNELS in self.levers else latents

    def drawn(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and timesteps for all draws, draw by draw."""
        n, like = self.config.draws * len(latents), {"device": self.device, "generator": self.noises}
        noise = torch.randn(n, *latents.shape[1:], **like)
        noise = noise.to(memory_format=torch.channels_last) if CHANNELS in self.levers else noise
        return noise, torch.randint(self.feedback.denoiser.steps, (n,), **like)

    def literal_step(self) -> None:
        """As the reference goes about it: text again, latents again, and CLIP again for every draw."""
        self.read_prompt()
        latents, model = self.encode(), self.feedback.model
        noise, times = self.drawn(latents)
        for n, t in zip(noise.chunk(self.config.draws), times.chunk(self.config.draws), strict=True):
            with self.mixed():
                chosen = select_tokens(visual_tokens(model, self.pixels), self.config.tokens, generator=self.random)
                told = self.feedback.condition(chosen)
                errors = training.noise_prediction_loss(self.feedback.denoiser, latents, told, n, t)
            self.scaler.scale(errors.mean() / self.config.draws).backward()

    def step(self) -> None:
        """Ours, by ``diva.Feedback``."""
        if CONSTANTS not in self.levers:
            self.read_prompt()
        latents = self.encode() if self.latents is None else self.latents
        errors, _ = self.feedback(self.pixels, latents, *self.drawn(latents), self.random)
        self.scaler.scale(errors.mean()).backward()

    def whole(self) -> None:
        """Gradient, clipped, and the optimiser's move."""
        if GRAPHS in self.levers:
            torch.compiler.cudagraph_mark_step_begin()
        with sdpa_kernel(SDPBackend.MATH) if UNFUSED in self.levers else nullcontext():
            self.step() if ONCE in self.levers else self.literal_step()
        self.scaler.unscale_(self.moves)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.scaler.step(self.moves)
        self.scaler.update()
        self.moves.zero_grad(set_to_none=True)


def schedule(levers: list[str]) -> str:
    return "cached" if CACHED in levers else "once" if ONCE in levers else "reference"


def smaller(call: Callable[[int], dict[str, Any]], batch: int) -> dict[str, Any]:
    """``call(batch)``, with half the batch as often as the card's memory is full; what did not fit is in the result."""
    full: list[int] = []
    while True:
        try:
            return call(batch) | {"batch": batch} | ({"out_of_memory_at": full} if full else {})
        except torch.cuda.OutOfMemoryError:
            full.append(batch)
            if batch == 1:
                raise
        free()
        batch = batch // 2


def count(sizes: dict[str, Any], precision: str) -> cost.Costs:
    """The same architectures without memory, for the plan and the shares."""
    with torch.device("meta"):
        parts = (open_clip.create_model(sizes["clip"], device="meta"), UNet2DConditionModel(**sizes["unet"]),
                 AutoencoderKL(**sizes["vae"]))  # fmt: skip
    return cost.measure_modules(*parts, tokens=sizes["count"], pixels=sizes["pixels"], precision=precision)


def measure_step(setting: "Setting", levers: list[str], batch: int) -> dict[str, Any]:
    """Time, memory and share of the card's rate for one set of levers."""
    bench = Bench(setting.sizes, setting.device, setting.precision, batch, setting.checkpointing, levers)
    found = timed(bench.whole, setting.device, warm=3 if setting.device == "cuda" else 1, steps=setting.sizes["steps"])
    flops = cost.step_flops(setting.costs, setting.sizes["draws"], schedule(levers))
    speed = batch / found["seconds"]
    parts = cost.step_bytes(
        setting.costs, batch, setting.sizes["draws"], schedule(levers), checkpointing=setting.checkpointing
    )
    found |= {
        "images_per_second": speed,
        "flops_per_image": flops,
        "levers": levers,
        "planned_bytes": sum(parts.values()),
    }
    found |= {"draws": setting.sizes["draws"], "precision": setting.precision, "checkpointing": setting.checkpointing}
    if setting.device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found | ({"share_of_rate": flops * speed / setting.rate} if setting.rate else {})


@dataclasses.dataclass
class Setting:
    """What the parts of a run share."""

    sizes: dict[str, Any]
    device: str
    precision: str
    checkpointing: bool
    batch: int
    costs: cost.Costs
    rate: float | None = None


def make_setting(tiny: bool, device: str, memory: int | None) -> Setting:
    """Precision, recomputing and batch that suit the card, and the plan, printed."""
    sizes, precision = (TINY if tiny else REAL), working_precision(device)
    costs, recompute = count(sizes, precision), memory is not None and memory < 40e9
    batch = sizes["batch"]
    for name in cost.SCHEDULES[:2]:
        found = cost.plan(costs, batch, sizes["draws"], name, checkpointing=recompute, memory=memory)
        print(f"plan, {name}: {found.flops / batch / 1e9:,.0f} GFLOP a picture, {found.bytes / 1e9:.1f} GB at batch "
              f"{batch}, largest batch {found.largest}; bytes by part {found.parts}", flush=True)  # fmt: skip
        batch = batch if found.largest is None else max(1, min(batch, found.largest))
    return Setting(sizes, device, precision, recompute, batch, costs)


def run_rate(report: Report, setting: Setting) -> None:
    dtype, (name,) = getattr(torch, setting.precision), cost.ROWS["rate"]
    if report.measure("rate", name, lambda: matrix_rate(setting.sizes["side"], setting.device, dtype)):
        setting.rate = report.document["rows"][-1]["rate"]


def run_real(report: Report, setting: Setting) -> None:
    """The literal schedule twice, then each lever on top of those before it; one that fails is left out of the next."""
    on: list[str] = []
    for name in cost.ROWS["real"]:
        levers = [name] if name in (UNFUSED, LITERAL) else [*on, name]
        call = lambda levers=levers: smaller(lambda n: measure_step(setting, levers, n), setting.batch)  # noqa: E731
        if report.measure("real", name, call) and name not in (UNFUSED, LITERAL):
            on = levers


def run_fit(report: Report, setting: Setting) -> None:
    """The goal's batch without recomputing, without a smaller one in its place."""
    (name,), levers = cost.ROWS["fit"], [ONCE, CONSTANTS, HALF, CHANNELS, FUSED, TOKENS]
    batch = min(16, 4 * setting.sizes["batch"])
    whole = dataclasses.replace(setting, checkpointing=False)

    def one() -> dict[str, Any]:
        found = measure_step(whole, levers, batch) | {"batch": batch}
        return found | ({"within_80_GB": found["peak_bytes"] <= 80e9} if "peak_bytes" in found else {})

    report.measure("fit", name, one)


# --- The toy experiment, and a larger world ---------------------------------------------------------------------------


def experiment() -> Any:
    """scripts/diva_experiment.py, as a module."""
    found = util.spec_from_file_location("diva_experiment", ROOT / "scripts" / "diva_experiment.py")
    module = util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def toy_settings(module: Any, tiny: bool) -> dict[str, Any]:
    """The shipped experiment with longer training everywhere; tiny: one seed and three arms, for a few steps."""
    settings = copy.deepcopy(module.SETTINGS)
    for name, longer in TOY.items():
        settings[name] |= longer
    if not tiny:
        return settings
    few = {"seeds": settings["seeds"][:1], "arms": ["before", "toy", "noise"], "more_arms": [], "pictures": 64}
    return module.scaled(settings, 0.001) | few | {"test": {"pairs": 4, "test": 400, "train": 400}}


def run_toy(report: Report, work: Path, tiny: bool) -> None:
    """Seed after seed, as far as the time goes, by the experiment's own command; a later call goes on from there."""
    (name,), module, out = cost.ROWS["toy"], experiment(), report.path.with_name("gpu_diva_experiment.json")
    module.SETTINGS, begun = toy_settings(module, tiny), time.perf_counter()

    def one(seed: int) -> dict[str, Any]:
        command = ["diva_experiment.py", "--seeds", str(seed), "--out", str(out), "--work", str(work / "toy")]
        with mock.patch.object(sys, "argv", command):
            module.main()
        runs = json.loads(out.read_text(encoding="utf8"))["runs"]
        pairs = {arm: float(np.mean([r["pairs"] for r in runs if r["arm"] == arm])) for arm in {r["arm"] for r in runs}}
        numbers = {"seeds": len({r["seed"] for r in runs}), "pairs": pairs, "file": out.name}
        return numbers | {"hours": (time.perf_counter() - begun) / 3600}

    for seed in module.SETTINGS["seeds"]:
        if not report.measure("toy", name, lambda seed=seed: one(seed)):
            return


def draw_pool(task: tuple[int, int, int]) -> world.Scenes:
    seed, n, size = task
    return world.make_scenes(n, seed=seed, size=size)


class Pool:
    """Scenes drawn once, by all cores; each step takes some of them, with captions of its own."""

    def __init__(self, n: int, size: int) -> None:
        chunk = max(1, min(500, n))
        tasks = [(70_000 + i, min(chunk, n - i), size) for i in range(0, n, chunk)]
        with ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1)) if len(tasks) > 1 else nullcontext() as pool:
            parts = list(pool.map(draw_pool, tasks) if pool else map(draw_pool, tasks))
        self.images = np.concatenate([part.images for part in parts])
        self.truth = {k: np.concatenate([part.attributes[k] for part in parts]) for k in parts[0].attributes}

    def some(self, step: int, batch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rows = np.random.default_rng([5, step]).integers(len(self.images), size=batch)
        return rows, {k: v[rows] for k, v in self.truth.items()}

    def scenes(self, step: int, batch: int, detail: float) -> world.Scenes:
        rows, truth = self.some(step, batch)
        return world.Scenes(self.images[rows], world.make_captions(truth, seed=step, detail=detail), truth)

    def phrases(self, step: int, batch: int) -> tuple[list[str], list[str]]:
        truth = self.some(step, batch)[1]
        return tuple(world.make_captions(truth, seed=90_000 + 2 * step + j, detail=0.6) for j in (0, 1))


def blind_clip(s: dict[str, Any], pool: Pool, device: str, work: Path) -> models.Clip:
    """As the shipped one: its text tower learns words from text, its eye from captions that hold next to no detail."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "minilib-large.json").write_text(json.dumps(s["clip"]), encoding="utf8")
    open_clip.add_model_config(work / "minilib-large.json")
    torch.manual_seed(0)
    clip = models.Clip(open_clip.create_model("minilib-large", device=device), models.WordTokenizer(), "minilib-large")
    own = {"lr": s["lr"], "weight_decay": 0.05}
    training.train_words(clip, lambda i: pool.phrases(i, s["batch"]), steps=s["words"], **own)
    draw = lambda i: pool.scenes(i, s["batch"], 0.01)  # noqa: E731
    training.train_clip(clip, draw, freeze_text=True, steps=s["steps"], checkpoint=work / "clip.pt", **own)
    return clip


def large_teacher(s: dict[str, Any], pool: Pool, clip: models.Clip, work: Path) -> models.Denoiser:
    unet = UNet2DConditionModel(
        sample_size=s["size"] // 4, in_channels=16, out_channels=16, block_out_channels=s["channels"],
        layers_per_block=2, cross_attention_dim=s["clip"]["embed_dim"], attention_head_dim=2, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, prediction_type="v_prediction")
    teacher = models.Denoiser(unet, scheduler, models.PatchPCA())
    teacher.codec.fit(torch.from_numpy(pool.images[:4000]).float() / 255)
    draw = lambda i: pool.scenes(i, s["batch"] // 2, 0.9)  # noqa: E731
    options = {"lr": s["lr"], "ema": 0.998, "period": 300, "checkpoint": work / "teacher.pt"}
    training.train_denoiser(teacher.to(clip.device), clip, draw, seed=1, steps=s["teacher"], **options)
    return teacher


def run_large(report: Report, device: str, work: Path, tiny: bool) -> None:
    """Before, DIVA and a random change as large, in a world of larger pictures, by the shipped recipe."""
    s = LARGE | SMALL if tiny else LARGE
    if tiny:
        s |= {"clip": s["clip"] | {"vision_cfg": s["clip"]["vision_cfg"] | {"image_size": 32, "layers": 1}}}
    kept: dict[str, models.Clip] = {}

    def examined(clip: models.Clip, **numbers: Any) -> dict[str, Any]:
        sizes = {"pairs": s["pairs"], "test": s["test"], "train": s["test"], "shots": s["shots"], "size": s["size"]}
        found = exam.examine(clip, 910_000, readouts=["pooled"], **sizes)["readouts"]["pooled"]
        wanted = ("pairs", "interval", "zero_shot", "probe_mean")
        return numbers | {k: found[k] for k in wanted} | {"size": s["size"], "settings": s}

    def before() -> dict[str, Any]:
        pool = Pool(s["pool"], s["size"])
        kept["before"] = blind_clip(s, pool, device, work)
        teacher = large_teacher(s, pool, kept["before"], work)
        told = kept["before"].encode_texts(pool.scenes(1_000_000, 1000, 0.9).captions)
        gap = diva.modality_gap(kept["before"].encode_images(pool.images[:2000]), told)
        begun = time.perf_counter()
        config = diva.Config(**s["recipe"])
        kept["DIVA"], _ = diva.train(kept["before"], teacher, pool.images[: s["pool"] // 2], config, gap=gap)
        return examined(kept["before"], diva_seconds=time.perf_counter() - begun)

    calls = {"before": before, "DIVA": lambda: examined(kept["DIVA"]),
             "noise": lambda: examined(diva.perturb(kept["before"], kept["DIVA"], seed=0))}  # fmt: skip
    for name in cost.ROWS["large"]:
        if not report.measure("large", name, calls[name]):
            return


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help=f"default {cost.RESULTS.relative_to(ROOT)}, and with --tiny gpu-tiny.json in --work"
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".training" / "gpu", help="checkpoints of the toy parts")
    parser.add_argument("--only", nargs="+", choices=list(cost.ROWS), default=list(cost.ROWS), help="these parts only")
    parser.add_argument("--minutes", type=float, default=600, help="begin nothing new after so long")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny architectures and a few steps, to try it on a CPU")
    args = parser.parse_args(arguments)
    if args.device == "cpu" and not args.tiny:
        parser.error(
            "no GPU was found (torch.cuda.is_available() is False): use a machine with one, or --tiny to try it"
        )
    out = args.out or (args.work / "gpu-tiny.json" if args.tiny else cost.RESULTS)
    facts = hardware(args.device)
    report = Report(out, facts | {"tiny": args.tiny}, args.minutes)
    setting = make_setting(args.tiny, args.device, facts["memory"])
    parts = {"rate": lambda: run_rate(report, setting), "real": lambda: run_real(report, setting),
             "fit": lambda: run_fit(report, setting), "toy": lambda: run_toy(report, args.work, args.tiny),
             "large": lambda: run_large(report, args.device, args.work / "large", args.tiny)}  # fmt: skip
    for name in [name for name in cost.ROWS if name in args.only]:
        parts[name]()
    print(f"written to {out}; rows that failed or were cut off say why", file=sys.stderr)


if __name__ == "__main__":
    main()
