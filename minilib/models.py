"""Open the door to open_clip and diffusers: shipped tiny models and real ones behind the same two functions.

References: Radford et al. 2021 (CLIP, arXiv:2103.00020); Ho et al. 2020 (DDPM, arXiv:2006.11239); Rombach et al. 2022
(latent diffusion, arXiv:2112.10752).

Taught in: notebooks/01_clip.ipynb and notebooks/09_diva.ipynb
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from open_clip.transformer import QuickGELU
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minilib import world
from minilib.checkpoints import fill, weights_file
from minilib.checkpoints import load_state as load_state

WEIGHTS = Path(__file__).parent / "weights"
TOY_CLIPS = ("toy", "toy-blind")
TOY_DENOISERS = ("toy", "toy-web")
PREDICTIONS = ("epsilon", "v_prediction")
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
        return torch.cat([in_halves(self.embed_images, images[i : i + batch_size]) for i in starts])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """n strings -> unit-norm float32 features (n, d). Taught in: notebooks/01_clip.ipynb"""
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts must be a list of at least one string; not {texts!r}")
        starts = range(0, len(texts), batch_size)
        return torch.cat([in_halves(self.embed_texts, texts[i : i + batch_size]) for i in starts])


def in_halves(encode: Callable[[Any], Tensor], rows: Any) -> Tensor:
    """``encode(rows)``; where the GPU's memory is full, the same in halves, and in halves of these.

    For functions whose answer for a row does not depend on the others. MemoryError when one row alone is too much.

    >>> in_halves(lambda rows: torch.tensor(rows) * 2, [1, 2, 3]).tolist()
    [2, 4, 6]

    Taught in: notebooks/10_gpu.ipynb
    """
    try:
        return encode(rows)
    except torch.cuda.OutOfMemoryError as error:
        if len(rows) < 2:
            raise MemoryError(f"the GPU's memory is too small for one row alone ({error}): use device='cpu'") from error
    torch.cuda.empty_cache()  # after the handler, whose traceback would hold the tensors
    half = len(rows) // 2
    warnings.warn(f"the GPU's memory is full at {len(rows)} rows: going on with {half} at a time", stacklevel=2)
    return torch.cat([in_halves(encode, part) for part in (rows[:half], rows[half:])])


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
    ValueError for a scheduler that predicts neither noise nor v, and for a UNet that needs no text, or more than text.
    """

    def __init__(self, unet: Any, scheduler: Any, codec: Any) -> None:
        super().__init__()
        _prediction(scheduler)
        _check_unet(unet)
        self.unet, self.scheduler, self.codec = unet, scheduler, codec

    @property
    def steps(self) -> int:
        """Number of noise levels of the scheduler."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def context_width(self) -> int:
        """Width of the condition's tokens."""
        return _widths(self.unet).pop()

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
        if _prediction(self.scheduler) == "epsilon":
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


def load_clip(
    name: str, pretrained: str | Path | None = None, device: str | None = None, *, visual: str | Path | None = None
) -> Clip:
    """Load a CLIP by name: "toy" or "toy-blind" (shipped), or an open_clip architecture with pretrained weights.

    Args:
        name: "toy", "toy-blind", or a name from ``open_clip.list_models()`` such as "ViT-B-32".
        pretrained: for open_clip architectures, a tag such as "openai"; or, for the toy too, a file that
            :func:`minilib.checkpoints.load_state` reads, or a folder that :func:`save_clip` wrote.
        device: where it shall live; the GPU when there is one, else the CPU.
        visual: a file or folder whose vision tower replaces that of ``pretrained``.

    Raises:
        ValueError: unknown name or tag, with the known ones; a file that cannot be read, or holds another model, by
            name and shape; a device that is not there; a shipped file whose SHA-256 differs from its card.

    Notes:
        The activation is that of the tag (OpenAI's is QuickGELU whatever the name says). For a file, activation and
        preprocessing are those on the card beside it, if there is one; else the name must say which ("-quickgelu"),
        and the preprocessing is that of the name's tags where these agree.

    >>> load_clip("toy", device="cpu").encode_texts(["a red circle"]).shape
    torch.Size([1, 128])

    Taught in: notebooks/01_clip.ipynb
    """
    device = find_device(device)
    if name in TOY_CLIPS:
        source = str(weights_file(pretrained or _verified(f"clip-{name}")))
        known_as = name if pretrained is None else f"{name}/{pretrained}"
        clip = Clip(_from_file("minilib-toy", source, device), WordTokenizer(), known_as)
    elif name not in open_clip.list_models():
        raise ValueError(f"name must be one of {TOY_CLIPS} or of open_clip.list_models(); not {name!r}")
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained is None:
            raise ValueError(f"{name} needs pretrained=, a local file or one of {tags}: it would have random weights")
        model = (_from_tag if pretrained in tags else _from_file)(name, str(pretrained), device)
        tokenizer = WordTokenizer() if name == "minilib-toy" else open_clip.get_tokenizer(name)
        clip = Clip(model, tokenizer, f"{name}/{pretrained}")
    if visual is not None:
        file, prefix = weights_file(visual), "visual."
        tower = {k.removeprefix(prefix): v for k, v in load_state(file).items() if k.startswith(prefix)}
        fill(clip.model.visual, tower, name, file)
        clip.name += f"+{visual}"
    return clip


def load_denoiser(name: str | Path, device: str | None = None, revision: str | None = None) -> Denoiser:
    """Load a noise predictor: "toy" or "toy-web" (shipped), a folder in diffusers' layout, or a hub id.

    A folder holds ``unet/``, ``scheduler/`` and ``vae/`` (Stable Diffusion 1.x, 2.x) or ``latents.safetensors`` (the
    toy).

    Raises:
        ValueError: no such folder or hub id, with what was looked for; a scheduler or UNet of another kind (SDXL, for
            one); a device that is not there; a shipped file whose SHA-256 differs from its card.

    Taught in: notebooks/09_diva.ipynb
    """
    device = find_device(device)
    source = _verified(f"denoiser-{name}") if name in TOY_DENOISERS else name
    scheduler = _part(DDPMScheduler, source, "scheduler", revision)
    _prediction(scheduler)
    unet = _part(UNet2DConditionModel, source, "unet", revision, use_safetensors=True)
    codec: nn.Module
    if (Path(source) / "latents.safetensors").exists():
        codec = PatchPCA()
        codec.load_state_dict(load_file(Path(source) / "latents.safetensors"))
    else:
        codec = _part(AutoencoderKL, source, "vae", revision, use_safetensors=True)
    return Denoiser(unet.float(), scheduler, codec).eval().requires_grad_(False).to(device)


@torch.no_grad()
def embed_prompt(source: str | Path, prompt: str = "", revision: str | None = None) -> Tensor:
    """What a Stable Diffusion's own text tower says of a prompt: (T, W) float32 on the CPU, T = 77.

    The constant text that DIVA's condition adds to or begins with. As diffusers' pipeline computes it: the prompt
    padded to T tokens by the tokenizer's own padding, the tower's last hidden state after its final norm. Stable
    Diffusion 2.x wants the last layer but one of its tower; its config says so by having 23 layers, so nothing is
    special here. The paper's prompt is empty, the reference code's "a photo of a .".

    Args:
        source: a folder or hub id with ``text_encoder/`` and ``tokenizer/``; ``revision`` of the hub id.
        prompt: at most T - 2 tokens.

    Raises:
        ValueError: no such folder, hub id or part; a prompt that is too long.

    Source: Rombach et al. 2022; Wang et al. 2025. Taught in: notebooks/10_gpu.ipynb
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    if source in TOY_DENOISERS:
        raise ValueError(
            f"the denoiser {source!r} has no text tower of its own: its context is the toy CLIP's embedding"
        )
    tower = _part(CLIPTextModel, source, "text_encoder", revision, use_safetensors=True).float().eval()
    tokenizer = _part(CLIPTokenizer, source, "tokenizer", revision)
    if len(tokenizer) != tower.config.vocab_size:
        sizes = f"the tokenizer has {len(tokenizer)} tokens, the text tower {tower.config.vocab_size}"
        raise ValueError(f"{sizes}: tokenizer/ and text_encoder/ of {source} must belong together, and be complete")
    length = tower.config.max_position_embeddings
    ids = tokenizer([prompt], padding="max_length", max_length=length, return_tensors="pt").input_ids  # (1, T)
    if ids.shape[1] > length:
        raise ValueError(f"the prompt takes {ids.shape[1]} tokens with its marks, the tower {length}: shorten it")
    return tower(ids).last_hidden_state[0]  # (T, W)


def find_device(name: str | None = None) -> str:
    """The device of that name if it is here; without a name the GPU where there is one, else the CPU.

    Raises ValueError for a name that torch does not know, and for a GPU that is not there.

    >>> find_device("cpu")
    'cpu'

    Taught in: notebooks/10_gpu.ipynb
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(name).type, torch.device(name).index
    except RuntimeError as error:
        raise ValueError(f"device must be a name such as 'cpu' or 'cuda'; not {name!r}") from error
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no GPU here for device={name!r} (found {torch.cuda.device_count()}): use device='cpu', or a "
                         "machine with an NVIDIA GPU and a torch built for it")  # fmt: skip
    return name


def save_clip(clip: Clip, folder: Path, card: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write the weights, in float16 unless asked, as ``open_clip.create_model(pretrained=...)`` reads, and a card.

    The card also says what no weights can: the preprocessing, and whether the activation is QuickGELU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = clip.model.state_dict()
    state = {k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype).contiguous() for k, v in state.items()}
    save_file(state, folder / "open_clip_model.safetensors")
    quick = any(isinstance(layer, QuickGELU) for layer in clip.model.modules())
    _write_card(folder, card | {"preprocess": open_clip.get_model_preprocess_cfg(clip.model), "quick_gelu": quick})


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


def _from_tag(name: str, tag: str, device: str) -> Any:
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    try:
        return open_clip.create_model(name, pretrained=tag, device=device, force_quick_gelu=quick)
    except RuntimeError as error:
        raise ValueError(f"{name}/{tag} cannot be loaded ({error}): check the network, or give a local file") from error


def _from_file(name: str, path: str, device: str) -> Any:
    file = weights_file(path, open_clip.list_pretrained_tags_by_model(name))
    state = load_state(file)
    if all(key.startswith("visual.") for key in state):
        raise ValueError(
            f"{file} holds a vision tower alone: give it as visual=, and a tag or whole CLIP as pretrained="
        )
    card = file.with_name("card.json")
    told = json.loads(card.read_text()) if card.exists() else {}
    steps = told.get("preprocess", _preprocess(name))
    options = {"force_quick_gelu": told.get("quick_gelu", False), "force_preprocess_cfg": steps}
    with _quiet():
        model = open_clip.create_model(name, device=device, pretrained_hf=False, **options)
    return fill(model, state, name, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns of random weights, which are filled in at once."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _preprocess(name: str) -> dict[str, Any]:
    """What an architecture's tags say of preprocessing, as far as all say the same."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    said = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {k: said[0][k] for k in keys if said and all(other.get(k) == said[0].get(k) for other in said)}


def _part(kind: Any, source: str | Path, name: str, revision: str | None, **options: Any) -> Any:
    """One part of a diffusers folder or hub id."""
    folder = Path(source)
    if not folder.exists() and (isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source))):
        wanted = (
            f"one that holds {name}/ in diffusers' layout, a hub id (owner/name), or what is shipped: {TOY_DENOISERS}"
        )
        raise ValueError(f"there is no folder {source}: give {wanted}")
    if folder.exists() and not (folder / name).is_dir():
        raise ValueError(
            f"{source} holds no {name}/: give a folder in diffusers' layout, as of Stable Diffusion 1.x, 2.x"
        )
    try:
        return kind.from_pretrained(source, subfolder=name, revision=revision, **options)
    except (OSError, SafetensorError) as error:
        why = str(error).strip().split("\n")[0]
        raise ValueError(f"{name} of {source} cannot be loaded: {why}") from error


def _prediction(scheduler: Any) -> str:
    found = scheduler.config.prediction_type
    if found not in PREDICTIONS:
        raise ValueError(f"the scheduler's prediction_type must be one of {', '.join(PREDICTIONS)}; not {found!r}")
    return found


def _widths(unet: Any) -> set[Any]:
    found = getattr(unet.config, "cross_attention_dim", None)
    return set(found) if isinstance(found, (list, tuple)) else {found}


def _check_unet(unet: Any) -> None:
    widths, remedy = _widths(unet), "take a text-conditioned UNet, such as those of Stable Diffusion 1.x or 2.x"
    if len(widths) != 1 or None in widths:
        raise ValueError(f"the UNet's cross_attention_dim must be one width; not {sorted(map(str, widths))}: {remedy}")
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if more := getattr(unet.config, name, None):
            raise ValueError(f"the UNet asks for more than text ({name} is {more!r}, as in SDXL): {remedy}")
