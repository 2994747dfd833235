"""Name the CLIP backbones and Stable Diffusions of the three papers, and load them from wherever they are.

References: Wang et al. 2024, "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation" (ICLR,
arXiv:2402.04087); Xu et al. 2024, "Demystifying CLIP Data" (ICLR, arXiv:2309.16671); Wang et al. 2025, "Diffusion
Feedback Helps CLIP See Better" (ICLR, arXiv:2407.20171).

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minilib import assets, hub

if TYPE_CHECKING:
    from minilib.models import Clip, Denoiser

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
RELEASED = "diva"  # as ``pretrained``: the weights that came with the DIVA paper
EXTRA = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's own files hold beside weights


@dataclass(frozen=True)
class Backbone:
    """A CLIP of the papers; sizes are facts of the architecture, and tests count them."""

    name: str
    """As the papers write it, or close to it."""
    arch: str
    """Architecture in open_clip."""
    tag: str
    """Weights in open_clip, whose activation and preprocessing belong to them."""
    size: int
    """Side of its pictures, in pixels."""
    params: int
    """Parameters of both towers."""
    licence: str
    papers: tuple[str, ...]
    """Which of the papers use it: gda, metaclip, diva."""
    diva: str | None = None
    """The asset with its released DIVA weights."""

    @property
    def asset(self) -> str:
        """Its name in the manifest: ARCHITECTURE/TAG, also what ``Clip.name`` is after loading."""
        return f"{self.arch}/{self.tag}"


@dataclass(frozen=True)
class Diffusion:
    """A Stable Diffusion of the 1.x or 2.x family; its hub ids and revisions stand in the manifest."""

    asset: str
    size: int
    """Side of the pictures that it was trained on, in pixels."""
    width: int
    """Width of the tokens that its U-Net attends to."""
    prediction: str
    """``epsilon`` or ``v_prediction``."""
    params: int
    """Parameters of U-Net, autoencoder and text tower."""

    @property
    def ids(self) -> tuple[tuple[str, str | None], ...]:
        """Hub id and revision of each of its homes, in order of preference."""
        entry = assets.asset(self.asset)
        places = (hub.place(url, entry.revision) for url in entry.urls)
        return tuple((place.repo, place.revision) for place in places)


_MIT, _NC, _AMLR, _APACHE = "MIT", "CC-BY-NC-4.0", "Apple AMLR", "Apache-2.0"
_META = "metaclip_fullcc"
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone("RN50", "RN50", "openai", 224, 102_007_137, _MIT, ("gda",)),
        Backbone("RN101", "RN101", "openai", 224, 119_688_033, _MIT, ("gda",)),
        Backbone("ViT-B/32", "ViT-B-32", "openai", 224, 151_277_313, _MIT, ("gda", "metaclip")),
        Backbone("ViT-B/16", "ViT-B-16", "openai", 224, 149_620_737, _MIT, ("gda", "metaclip")),
        Backbone(
            "OpenAI ViT-L/14", "ViT-L-14", "openai", 224, 427_616_513, _MIT, ("metaclip", "diva"), "diva/ViT-L-14"
        ),
        Backbone(
            "OpenAI ViT-L/14-336", "ViT-L-14-336", "openai", 336, 427_944_193, _MIT, ("diva",), "diva/ViT-L-14-336"
        ),
        Backbone("MetaCLIP ViT-B/32", "ViT-B-32-quickgelu", _META, 224, 151_277_313, _NC, ("metaclip",)),
        Backbone("MetaCLIP ViT-B/16", "ViT-B-16-quickgelu", _META, 224, 149_620_737, _NC, ("metaclip",)),
        Backbone(
            "MetaCLIP ViT-L/14", "ViT-L-14-quickgelu", _META, 224, 427_616_513, _NC, ("metaclip", "diva"),
            "diva/MetaCLIP-ViT-L-14",
        ),
        Backbone(
            "MetaCLIP ViT-H/14", "ViT-H-14-quickgelu", _META, 224, 986_109_441, _NC, ("metaclip", "diva"),
            "diva/MetaCLIP-ViT-H-14",
        ),
        Backbone(
            "DFN ViT-H/14", "ViT-H-14-quickgelu", "dfn5b", 224, 986_109_441, _AMLR, ("diva",), "diva/DFN-ViT-H-14"
        ),
        Backbone(
            "DFN ViT-H/14-378", "ViT-H-14-378-quickgelu", "dfn5b", 378, 986_714_881, _AMLR, ("diva",),
            "diva/DFN-ViT-H-14-378",
        ),
        Backbone(
            "SigLIP SO400M/14", "ViT-SO400M-14-SigLIP", "webli", 224, 877_360_306, _APACHE, ("diva",),
            "diva/SigLIP-SO400M-14",
        ),
        Backbone(
            "SigLIP SO400M/14-384", "ViT-SO400M-14-SigLIP-384", "webli", 384, 877_960_498, _APACHE, ("diva",),
            "diva/SigLIP-SO400M-14-384",
        ),
    )
}  # fmt: skip
_ONE, _TWO = 859_520_964 + 83_653_863 + 123_060_480, 865_910_724 + 83_653_863 + 340_387_840
STABLE_DIFFUSION: dict[str, Diffusion] = {
    "Stable Diffusion 1.4": Diffusion("stable-diffusion-1-4", 512, 768, "epsilon", _ONE),
    "Stable Diffusion 1.5": Diffusion("stable-diffusion-1-5", 512, 768, "epsilon", _ONE),
    "Stable Diffusion 2.0 base": Diffusion("stable-diffusion-2-base", 512, 1024, "epsilon", _TWO),
    "Stable Diffusion 2.0": Diffusion("stable-diffusion-2", 768, 1024, "v_prediction", _TWO),
    "Stable Diffusion 2.1 base": Diffusion("stable-diffusion-2-1-base", 512, 1024, "epsilon", _TWO),
}


def backbone(name: str) -> Backbone:
    """The backbone of a name: a key of ``BACKBONES``, or ARCHITECTURE/TAG. Case and marks do not matter.

    "ViT-L/14" without a publisher is OpenAI's. ValueError for another name, with the known ones.

    >>> backbone("vit-l-14/openai").name, backbone("ViT-L/14").asset, backbone("MetaCLIP ViT-H-14").tag
    ('OpenAI ViT-L/14', 'ViT-L-14/openai', 'metaclip_fullcc')

    Taught in: notebooks/10_gpu.ipynb
    """
    wanted = _plain(name)
    for known in BACKBONES.values():
        names = {_plain(known.name), _plain(known.asset)}
        names |= {_plain(f"OpenAI {known.name}"), _plain(known.arch)} if known.tag == "openai" else set()
        if wanted in names:
            return known
    raise ValueError(f"a backbone is one of {', '.join(BACKBONES)}, or ARCHITECTURE/TAG of these; not {name!r}: "
                     "for other models of open_clip use minilib.models.load_clip")  # fmt: skip


def memory(name: str, dtype: str = "float32") -> int:
    """Bytes of the weights of a backbone or Stable Diffusion in one precision: parameters x bytes of a number.

    Activations, gradients and the optimiser come on top. ValueError for an unknown name or precision.

    >>> memory("ViT-B/32", "float16") == 2 * 151_277_313
    True

    Taught in: notebooks/10_gpu.ipynb
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype must be one of {', '.join(BYTES)}; not {dtype!r}")
    found = STABLE_DIFFUSION.get(name) or backbone(name)
    return found.params * BYTES[dtype]


def load(
    name: str, device: str | None = None, pretrained: str | Path | None = None, *, offline: bool | None = None
) -> Clip:
    """A backbone of the papers with its own activation and preprocessing, by :func:`minilib.models.load_clip`.

    Args:
        name: see :func:`backbone`.
        device: the GPU where there is one, else the CPU.
        pretrained: None for the backbone's published weights, cached or downloaded; ``"diva"`` for those released with
            the DIVA paper; a local file or folder for others. A file that holds a vision tower alone replaces that of
            the published weights.
        offline: never open a socket; None as the environment says.

    Returns:
        A ``Clip`` whose ``name`` is ARCHITECTURE/TAG, and then ``+PRETRAINED`` if that was given.

    Raises:
        minilib.assets.Missing: weights that are not here, or cannot be had, with what to run.
        ValueError: an unknown name; no DIVA weights for it; a file of another model.

    Notes:
        A card beside a local file (``card.json``, as :func:`minilib.models.save_clip` writes) says which activation and
        preprocessing hold; else they are the backbone's. OpenAI's own files are TorchScript: their weights are copied
        out once, into ``home()/converted``, after their SHA-256 was verified.

    Taught in: notebooks/10_gpu.ipynb
    """
    from minilib.models import load_clip, load_state, weights_file

    known = backbone(name)
    arch = _with_activation(known)
    file = _own_file(known, offline) if pretrained is None else _given_file(known, pretrained, offline)
    file = weights_file(file)
    if pretrained is not None and all(key.startswith("visual.") for key in load_state(file)):
        clip = load_clip(arch, _own_file(known, offline), device, visual=file)
    else:
        clip = load_clip(arch, file, device)
    if not file.with_name("card.json").exists():
        _set_preprocessing(clip, known)
    clip.name = known.asset + (f"+{pretrained}" if pretrained is not None else "")
    return clip


def load_diffusion(name: str, device: str | None = None, *, offline: bool | None = None) -> Denoiser:
    """A Stable Diffusion by a key of ``STABLE_DIFFUSION``, from the first of its homes that has it.

    For another hub id, revision or folder use :func:`minilib.models.load_denoiser`. Raises ValueError for another name,
    and :class:`minilib.assets.Missing`. Taught in: notebooks/10_gpu.ipynb
    """
    from minilib.models import load_denoiser

    if name not in STABLE_DIFFUSION:
        raise ValueError(f"a Stable Diffusion is one of {', '.join(STABLE_DIFFUSION)}; not {name!r}: for a hub id or "
                         "folder use minilib.models.load_denoiser")  # fmt: skip
    return load_denoiser(assets.fetch(STABLE_DIFFUSION[name].asset, offline), device)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _with_activation(known: Backbone) -> str:
    """The architecture whose name says QuickGELU where the tag's weights want it: a file cannot say so."""
    import open_clip

    quick = bool(open_clip.get_pretrained_cfg(known.arch, known.tag).get("quick_gelu"))
    return f"{known.arch}-quickgelu" if quick and not known.arch.endswith("-quickgelu") else known.arch


def _own_file(known: Backbone, offline: bool | None) -> Path:
    file = assets.fetch(known.asset, offline, fallback=True)  # the fallbacks hold the same weights
    return _without_code(file, known) if known.tag == "openai" and file.suffix == ".pt" else file


def _given_file(known: Backbone, pretrained: str | Path, offline: bool | None) -> Path:
    if pretrained != RELEASED or Path(pretrained).exists():
        return Path(pretrained)
    if known.diva is None:
        having = ", ".join(b.name for b in BACKBONES.values() if b.diva)
        raise ValueError(f"DIVA's weights were released for {having}; not for {known.name}")
    return assets.fetch(known.diva, offline)


def _without_code(file: Path, known: Backbone) -> Path:
    """The weights of a TorchScript archive as safetensors."""
    import torch
    from safetensors.torch import save_file

    target = assets.home() / "converted" / f"{known.arch}-{known.tag}-{file.stat().st_mtime_ns}.safetensors"
    if not target.exists():
        state = torch.jit.load(file, map_location="cpu").state_dict()
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        save_file({k: v.contiguous() for k, v in state.items() if k not in EXTRA}, part)
        part.replace(target)
    return target


def _set_preprocessing(clip: Clip, known: Backbone) -> None:
    """What the tag says; the architecture's tags may differ among themselves, as MetaCLIP's and DFN's H/14 do."""
    import open_clip
    from open_clip.model import set_model_preprocess_cfg

    told = open_clip.get_pretrained_cfg(known.arch, known.tag)
    steps = {k: told[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in told}
    set_model_preprocess_cfg(clip.model, open_clip.get_model_preprocess_cfg(clip.model) | steps)
