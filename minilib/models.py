"""Open the door to open_clip and diffusers: shipped tiny models and real ones behind the same two functions.

References: Radford et al. 2021 (CLIP, arXiv:2103.00020); Ho et al. 2020 (DDPM, arXiv:2006.11239); Rombach et al. 2022
(latent diffusion, arXiv:2112.10752).

Taught in: notebooks/01_clip.ipynb and notebooks/08_diva.ipynb
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minilib import world

WEIGHTS = Path(__file__).parent / "weights"
TOY_CLIPS = ("toy", "toy-blind")
TOY_DENOISERS = ("toy", "toy-web")
open_clip.add_model_config(WEIGHTS / "minilib-toy.json")  # open_clip's own way to learn of a new architecture


class WordTokenizer:
    """Words of the toy world -> token ids (n, context_length), with the interface of open_clip's tokenizers.

    Letters are lower-cased and marks dropped, as CLIP's own tokenizer does with case; an unknown word becomes one
    token. The end token has the largest id, because open_clip's text tower pools at the maximum.

    >>> WordTokenizer()("A red circle!")[0, :5].tolist() == WordTokenizer()(["a red  circle"])[0, :5].tolist()
    True
    """

    def __init__(self, context_length: int = 24, vocab_size: int = 72) -> None:
        words = ["<pad>", "<unknown>", *world.vocabulary()]
        if len(words) + 2 > vocab_size:
            raise ValueError(f"the vocabulary has {len(words) + 2} tokens, the model room for {vocab_size}")
        self.encoder = {word: i for i, word in enumerate(words)}
        self.context_length, self.vocab_size = context_length, vocab_size
        self.sot_token_id, self.eot_token_id = vocab_size - 2, vocab_size - 1

    def encode(self, text: str) -> list[int]:
        return [self.encoder.get(word, 1) for word in re.findall(r"[a-z]+", text.lower())]

    def decode(self, tokens: Sequence[int]) -> str:
        words = list(self.encoder)
        return " ".join(words[i] for i in tokens if 0 < i < len(words))

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        table = torch.zeros(1 if isinstance(texts, str) else len(texts), length, dtype=torch.long)
        for row, text in zip(table, [texts] if isinstance(texts, str) else texts, strict=True):
            ids = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return table  # (n, length)


class Clip:
    """An open_clip model with its tokenizer and its own preprocessing: pictures and texts to unit vectors.

    ``model`` is the untouched open_clip module; ``name`` is what it was loaded by.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def preprocess(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 (n, 3, h, w) -> the model's normalised float input (n, 3, s, s), resized when h or w differ from s."""
        x = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)
        if x.ndim != 4 or x.shape[1] != 3 or x.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 of shape (n, 3, height, width); not {x.dtype} of shape {tuple(x.shape)}"
            )
        visual = self.model.visual
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        x = x.to(self.device).float() / 255
        if x.shape[2:] != torch.Size(size):
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (visual.image_mean, visual.image_std))
        return (x - mean) / std

    def embed_images(self, images: np.ndarray | Tensor) -> Tensor:
        """Like ``encode_images`` for one batch, keeping the gradient."""
        return F.normalize(self.model.encode_image(self.preprocess(images)).float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Like ``encode_texts`` for one batch, keeping the gradient."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings; got one string: put it in a list")
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)

    @torch.no_grad()
    def encode_images(self, images: np.ndarray | Tensor, batch_size: int = 256) -> Tensor:
        """uint8 pictures (n, 3, h, w) -> unit-norm float32 features (n, d).

        Raises ValueError for another type or shape. Taught in: notebooks/01_clip.ipynb
        """
        starts = range(0, max(len(images), 1), batch_size)
        return torch.cat([self.embed_images(images[i : i + batch_size]) for i in starts])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """n strings -> unit-norm float32 features (n, d). Taught in: notebooks/01_clip.ipynb"""
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts must be a list of at least one string; not {texts!r}")
        return torch.cat([self.embed_texts(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)])


class PatchPCA(nn.Module):
    """Latents without training: each 4 x 4 patch becomes its 16 first principal components.

    ``encode`` (n, 3, h, w) in [0, 1] -> (n, 16, h/4, w/4); ``decode`` goes back, losing what the other components
    held. One scale for all gives them unit variance on average and keeps the strong ones strong, as the scaling factor
    of Stable Diffusion's variational autoencoder does, in whose place this stands.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, channels: int = 16, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("mean", torch.zeros(3 * patch * patch))
        self.register_buffer("basis", torch.zeros(channels, 3 * patch * patch))  # rows orthonormal
        self.register_buffer("scale", torch.ones(()))  # one standard deviation for all

    def fit(self, pixels: Tensor) -> PatchPCA:
        """Learn mean and components from pictures (n, 3, h, w) in [0, 1], in closed form."""
        rows = F.unfold(pixels.double(), self.patch, stride=self.patch).transpose(1, 2).flatten(0, 1)  # (N, 48)
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        k = len(self.basis)
        self.mean.copy_(rows.mean(0))
        self.basis.copy_(vectors.flip(1).T[:k])
        self.scale.copy_(values.flip(0)[:k].mean().sqrt())
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        rows = F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2) - self.mean  # (n, L, 48)
        z = (rows @ self.basis.T / self.scale).transpose(1, 2)  # (n, 16, L)
        return z.unflatten(2, (pixels.shape[2] // self.patch, -1))

    def decode(self, latents: Tensor) -> Tensor:
        rows = latents.flatten(2).transpose(1, 2) * self.scale @ self.basis + self.mean  # (n, L, 48)
        size = (latents.shape[2] * self.patch, latents.shape[3] * self.patch)
        return F.fold(rows.transpose(1, 2), size, self.patch, stride=self.patch)


class Denoiser(nn.Module):
    """A noise predictor with its scheduler and its latents; frozen wherever this book uses it.

    ``unet`` and ``scheduler`` are diffusers' own; ``codec`` is a ``PatchPCA`` or diffusers' ``AutoencoderKL``.
    """

    def __init__(self, unet: Any, scheduler: Any, codec: Any) -> None:
        super().__init__()
        self.unet, self.scheduler, self.codec = unet, scheduler, codec

    @property
    def steps(self) -> int:
        """Number of noise levels of the scheduler."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def context_width(self) -> int:
        """Width of the condition's tokens."""
        return int(self.unet.config.cross_attention_dim)

    @torch.no_grad()
    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 (n, 3, h, w) -> latents: the patches' components, or the autoencoder's mean times its factor."""
        pixels = torch.as_tensor(images).to(next(self.unet.parameters()).device).float() / 255
        if isinstance(self.codec, PatchPCA):
            return self.codec.encode(pixels.to(self.codec.basis.dtype)).to(pixels.dtype)
        mean = self.codec.encode((2 * pixels - 1).to(self.codec.dtype)).latent_dist.mean
        return mean.to(pixels.dtype) * self.codec.config.scaling_factor

    def forward(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict the noise (or v, as the scheduler says): (n, c, h, w), (n,), (n, tokens, width) -> (n, c, h, w).

        Computed in the U-Net's own precision, returned in that of ``noisy``.
        """
        dtype = self.unet.dtype
        return self.unet(noisy.to(dtype), timesteps, encoder_hidden_states=context.to(dtype)).sample.to(noisy.dtype)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What ``forward`` should return: the noise, or v for schedulers of that type."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, timesteps)


def new_clip() -> Clip:
    """The toy architecture with fresh weights (torch's global generator decides them)."""
    return Clip(open_clip.create_model("minilib-toy"), WordTokenizer(), "minilib-toy")


def new_denoiser() -> Denoiser:
    """The toy noise predictor with fresh weights and an unfitted ``PatchPCA``.

    It predicts v, as Stable Diffusion 2.1 does: the error then weighs the noisy steps, where only the condition can
    tell what the picture holds, as much as the clean ones.
    """
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=16, out_channels=16, block_out_channels=(32, 64), layers_per_block=1,
        cross_attention_dim=128, attention_head_dim=2, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, prediction_type="v_prediction")
    return Denoiser(unet, scheduler, PatchPCA())


def load_clip(name: str, pretrained: str | None = None, device: str | None = None) -> Clip:
    """Load a CLIP by name: "toy" or "toy-blind" (shipped), or an open_clip architecture with pretrained weights.

    Args:
        name: "toy", "toy-blind", or a name from ``open_clip.list_models()`` such as "ViT-B-32".
        pretrained: for open_clip architectures, a tag such as "openai" or a local file.
        device: where it shall live; the GPU when there is one, else the CPU.

    Raises:
        ValueError: unknown name, with the known ones; a shipped file whose SHA-256 differs from its card.

    >>> load_clip("toy", device="cpu").encode_texts(["a red circle"]).shape
    torch.Size([1, 128])

    Taught in: notebooks/01_clip.ipynb
    """
    device = device or _device()
    if name in TOY_CLIPS:
        path = _verified(f"clip-{name}") / "open_clip_model.safetensors"
        return Clip(open_clip.create_model("minilib-toy", pretrained=str(path), device=device), WordTokenizer(), name)
    if name not in open_clip.list_models():
        raise ValueError(f"name must be one of {TOY_CLIPS} or of open_clip.list_models(); not {name!r}")
    if pretrained is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(f"{name} needs pretrained=, a local file or one of {tags}: it would have random weights")
    model = open_clip.create_model(name, pretrained=pretrained, device=device)
    return Clip(model, open_clip.get_tokenizer(name), f"{name}/{pretrained}")


def load_denoiser(name: str | Path, device: str | None = None, revision: str | None = None) -> Denoiser:
    """Load a noise predictor: "toy" or "toy-web" (shipped), a folder in diffusers' layout, or a hub id.

    A folder holds ``unet/``, ``scheduler/`` and ``vae/`` (Stable Diffusion 1.x, 2.x) or ``latents.safetensors`` (the
    toy).

    Raises:
        ValueError: a shipped file whose SHA-256 differs from its card.

    Taught in: notebooks/08_diva.ipynb
    """
    source = _verified(f"denoiser-{name}") if name in TOY_DENOISERS else name
    unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet", revision=revision, use_safetensors=True)
    scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler", revision=revision)
    codec: nn.Module
    if (Path(source) / "latents.safetensors").exists():
        codec = PatchPCA()
        codec.load_state_dict(load_file(Path(source) / "latents.safetensors"))
    else:
        codec = AutoencoderKL.from_pretrained(source, subfolder="vae", revision=revision, use_safetensors=True)
    return Denoiser(unet.float(), scheduler, codec).eval().requires_grad_(False).to(device or _device())


def save_clip(clip: Clip, folder: Path, card: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write the weights, in float16 unless asked, as ``open_clip.create_model(pretrained=...)`` reads, and a card."""
    folder.mkdir(parents=True, exist_ok=True)
    state = clip.model.state_dict()
    state = {k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype).contiguous() for k, v in state.items()}
    save_file(state, folder / "open_clip_model.safetensors")
    _write_card(folder, card)


def save_denoiser(denoiser: Denoiser, folder: Path, card: dict[str, Any]) -> None:
    """Write UNet (float16), scheduler and latents in diffusers' layout, and their card."""
    folder.mkdir(parents=True, exist_ok=True)
    denoiser.unet.half().save_pretrained(folder / "unet")
    denoiser.unet.float()
    denoiser.scheduler.save_pretrained(folder / "scheduler")
    save_file({k: v.cpu().contiguous() for k, v in denoiser.codec.state_dict().items()}, folder / "latents.safetensors")
    _write_card(folder, card)


def read_card(name: str) -> dict[str, Any]:
    """The card of a shipped model folder ("clip-toy", "denoiser-toy", ...): data, seed, steps, metrics, SHA-256."""
    return json.loads((WEIGHTS / name / "card.json").read_text())


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "card.json")
    sums = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
    (folder / "card.json").write_text(json.dumps(card | {"sha256": sums}, indent=2) + "\n")


def _verified(name: str) -> Path:
    """The folder of a shipped model, each file compared with the card."""
    for file, expected in read_card(name)["sha256"].items():
        found = _sha256(WEIGHTS / name / file)
        if found != expected:
            raise ValueError(f"{name}/{file} is damaged: its SHA-256 is {found}, the card says {expected}; "
                             "restore it with `git checkout minilib/weights` or reinstall minilib")  # fmt: skip
    return WEIGHTS / name


def _sha256(path: Path) -> str:
    if not path.exists():
        return "that of no file: it is missing"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
