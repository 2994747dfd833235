"""Read the tokens of any CLIP vision tower, choose among them, and make of them what a denoiser is told.

One path for every backbone, on open_clip's models as they come: its own vision transformers (OpenAI, MetaCLIP, DFN, the
toy) and timm's (SigLIP, EVA). Nothing is patched.

References: Wang et al. 2025, "Diffusion Feedback Helps CLIP See Better" (ICLR, arXiv:2407.20171), section 3.3;
Radford et al. 2021 (CLIP, arXiv:2103.00020); Zhai et al. 2023 (SigLIP, arXiv:2303.15343).

Taught in: notebooks/09_diva.ipynb
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

FORMS = "all, class, random(76), random(0.15), random(76, replace), pooled(7)"
COMBINATIONS = ("add", "concat", "visual")
PRESETS = {
    "ViT-L-14/openai": {"code": "random(76, replace)", "paper": "random(0.15)"},
    "ViT-L-14-336/openai": {"code": "random(76, replace)", "paper": "random(0.3)"},
    "ViT-L-14-quickgelu/metaclip_fullcc": {"code": "all"},
    "ViT-H-14-quickgelu/metaclip_fullcc": {"code": "all"},
    "ViT-H-14-quickgelu/dfn5b": {"code": "all"},
    "ViT-H-14-378-quickgelu/dfn5b": {"code": "random(364, replace)", "paper": "random(0.5)"},
    "ViT-SO400M-14-SigLIP/webli": {"code": "pooled(7)", "paper": "pooled(7)"},
    "ViT-SO400M-14-SigLIP-384/webli": {"code": "pooled(9)", "paper": "pooled(9)"},
}  # keys are Clip.name; see preset()


class Tokens(NamedTuple):
    """What a vision tower says of B pictures: one token for the whole of each, and L local ones, all D wide."""

    pooled: Tensor
    """(B, D), the model's own image feature before it is normalised: from the class token, a mean or attention."""
    local: Tensor
    """(B, L, D), after the final norm and the tower's own projection; row by row of the picture where ``grid`` is."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the local tokens; None where they are not the patches of the whole picture."""


def visual_tokens(model: Any, images: Tensor) -> Tokens:
    """Pooled and local tokens of an open_clip model's vision tower, in one pass and with their gradient.

    Objective: ``pooled`` is ``model.encode_image(images, normalize=False)``; ``local`` are the other tokens of the same
    pass, put through the same final norm and the same projection, if the tower has one. SigLIP has none apart from its
    attention pooling: there they are the trunk's tokens after its final norm, as wide as the pooled one.

    Args:
        model: an open_clip model (``Clip.model``) whose ``visual`` is open_clip's ``VisionTransformer`` or a
            ``TimmModel`` around timm's ``VisionTransformer`` or ``Eva``; training or evaluation mode, any precision.
        images: (B, 3, h, w) in the model's precision, normalised as ``Clip.preprocess`` does, of the tower's own size.

    Returns:
        ``Tokens``. With patch dropout in training mode, and in towers whose attention pooling turns patches into
        queries (CoCa), the local tokens have no grid.

    Raises:
        TypeError: a ResNet or another tower, by name, with those that are supported.
        ValueError: images of another shape or type.

    Notes:
        open_clip's own switch ``visual.output_tokens`` is on for the length of the call, and put back even after an
        error: two threads must not share one model here.

    >>> from minilib.models import load_clip
    >>> pooled, local, grid = visual_tokens(load_clip("toy", device="cpu").model, torch.zeros(2, 3, 32, 32))
    >>> tuple(pooled.shape), tuple(local.shape), grid
    ((2, 128), (2, 16, 128), (4, 4))

    Taught in: notebooks/09_diva.ipynb
    """
    visual: Any = getattr(model, "visual", None)
    if not _is_supported(visual):
        found = type(getattr(visual, "trunk", visual)).__name__ if visual is not None else "none"
        known = "open_clip's VisionTransformer with a pooled token, or a TimmModel of timm's VisionTransformer or Eva"
        raise TypeError(f"{type(model).__name__} has the vision tower {found}; its tokens can be read from {known}: "
                        "give a ViT or SigLIP of open_clip (of a minilib Clip, its .model)")  # fmt: skip
    height, width = visual.image_size
    if not images.is_floating_point() or images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
        what = f"not {images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images must be normalised floats (B, 3, {height}, {width}); {what}: use Clip.preprocess")
    pooled, local, grid = (_timm_tokens if isinstance(visual, TimmModel) else _open_clip_tokens)(visual, images)
    whole = grid is not None and grid[0] * grid[1] == local.shape[1]  # patch dropout leaves fewer
    return Tokens(pooled, local, grid if whole else None)


def _is_supported(visual: Any) -> bool:
    if isinstance(visual, TimmModel):
        return isinstance(visual.trunk, (TimmTransformer, Eva))
    if not isinstance(visual, VisionTransformer):
        return False
    contrastive = visual.attn_pool is not None and visual.attn_pool_contrastive is not None
    return visual.pool_type != "none" or contrastive


def _open_clip_tokens(visual: Any, images: Tensor) -> Tokens:
    with _giving_tokens(visual):
        pooled, local = visual(images)  # (B, D) projected, (B, L, width) not projected
    if visual.final_ln_after_pool and visual.attn_pool is None:
        local = visual.ln_post(local)  # here open_clip norms the pooled token only
    if visual.proj is not None:
        local = local @ visual.proj  # (B, L, D)
    return Tokens(pooled, local, tuple(visual.grid_size) if visual.attn_pool is None else None)


@contextmanager
def _giving_tokens(visual: Any) -> Iterator[None]:
    before = visual.output_tokens
    visual.output_tokens = True
    try:
        yield
    finally:
        visual.output_tokens = before


def _timm_tokens(visual: Any, images: Tensor) -> Tokens:
    trunk = visual.trunk
    x = trunk.forward_features(images)  # (B, prefix + L, width)
    # The final norm stands in forward_features, or after the pooling, as fc_norm; the other is the identity. So are the
    # heads of trunk and adapter in SigLIP; elsewhere one of them is the projection.
    local = trunk.head(trunk.fc_norm(x[:, trunk.num_prefix_tokens :]))
    return Tokens(visual.head(trunk.forward_head(x)), visual.head(local), tuple(trunk.patch_embed.grid_size))


@dataclass(frozen=True)
class Selection:
    """Which local tokens go with the pooled one; as text, ``all``, ``class``, ``random(76)`` and so on.

    >>> Selection.parse("random(0.15)"), str(Selection("random", 76, replace=True))
    (Selection(kind='random', amount=0.15, replace=False), 'random(76, replace)')

    Taught in: notebooks/09_diva.ipynb
    """

    kind: str
    """``all`` local tokens; ``class``, none of them; ``random``, a subset; ``pooled``, averages over a grid."""
    amount: int | float = 0
    """For ``random``, tokens a picture (int) or a share of them (float, at most 1); for ``pooled``, k of k x k."""
    replace: bool = False
    """For ``random``: draw with replacement, as the reference code does, so that a token may come twice."""

    def __post_init__(self) -> None:
        whole = isinstance(self.amount, int)
        sound = {
            "all": self.amount == 0,
            "class": self.amount == 0,
            "random": self.amount >= 1 if whole else 0 < self.amount <= 1,
            "pooled": whole and self.amount >= 1,
        }
        if not sound.get(self.kind, False) or (self.replace and self.kind != "random"):
            raise ValueError(f"how must be one of {FORMS}, with numbers of your own; not {self}")

    def __str__(self) -> str:
        inner = [str(self.amount)] * (self.amount != 0) + ["replace"] * self.replace
        return f"{self.kind}({', '.join(inner)})" if inner else self.kind

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read the text form. ValueError for another, with the known forms."""
        found = re.fullmatch(r"(\w+)(?:\((\d+|\d*\.\d+|\d+\.)(, *replace)?\))?", text.strip())
        if not found:
            raise ValueError(f"how must be one of {FORMS}, with numbers of your own; not {text!r}")
        kind, number, replace = found.groups(default="")
        return cls(kind, float(number) if "." in number else int(number or 0), bool(replace))


def preset(name: str, source: str = "code") -> Selection:
    """The tokens that DIVA's ``code`` or ``paper`` keeps for a backbone, named as ``Clip.name`` is.

    Where the two disagree ``PRESETS`` holds both; where the paper says nothing, it holds the code's alone. Departs from
    the code for SigLIP, which averages runs of 6 (of 10) tokens, across the picture's rows and without the last ones:
    here 7 x 7 (9 x 9) windows of the 16 x 16 (27 x 27) patches, the square closest to so many patches a window.

    Raises ValueError for a backbone or source without a preset. Source: Wang et al. 2025, and its code.

    >>> str(preset("ViT-L-14/openai")), str(preset("ViT-L-14/openai", "paper"))
    ('random(76, replace)', 'random(0.15)')

    Taught in: notebooks/09_diva.ipynb
    """
    if name not in PRESETS:
        raise ValueError(f"there are presets for {', '.join(PRESETS)}; not for {name!r}: give a selection of your own")
    if source not in PRESETS[name]:
        raise ValueError(f"the preset of {name} has {', '.join(PRESETS[name])}; not {source!r}")
    return Selection.parse(PRESETS[name][source])


def select_tokens(tokens: Tokens, how: str | Selection, *, generator: torch.Generator | None = None) -> Tensor:
    """The pooled token of each picture, and after it the local tokens chosen: (B, 1 + n, D), with their gradient.

    Args:
        tokens: from :func:`visual_tokens`.
        how: a ``Selection`` or its text. ``random`` draws each picture a subset of its own, uniform, without
            replacement unless asked, in the order drawn; a share is rounded to at least one token. ``pooled(k)`` cuts
            the grid of patches into k x k windows and averages each: window i covers rows floor(i h / k) to
            ceil((i + 1) h / k) - 1, columns likewise, so none runs from the end of a row into the next.
        generator: decides ``random``; may live on the device of the tokens, to draw there. Without one, torch's global.

    Raises:
        ValueError: an unknown form; more tokens than there are; ``pooled`` of more windows a side than patches, or of
            tokens without a grid.

    >>> patches = torch.arange(4.0).view(1, 4, 1)  # a picture of 2 x 2 patches, one number each
    >>> select_tokens(Tokens(torch.full((1, 1), 9.0), patches, (2, 2)), "pooled(1)").flatten().tolist()
    [9.0, 1.5]

    Source: Wang et al. 2025, section 3.3. Taught in: notebooks/09_diva.ipynb
    """
    how = Selection.parse(how) if isinstance(how, str) else how
    local = tokens.local[:, :0] if how.kind == "class" else tokens.local
    if how.kind == "random":
        local = _drawn(local, how, generator)
    elif how.kind == "pooled":
        local = _averaged(tokens, int(how.amount))
    return torch.cat([tokens.pooled[:, None], local], dim=1)


def _drawn(local: Tensor, how: Selection, generator: torch.Generator | None) -> Tensor:
    pictures, count, width = local.shape
    n = how.amount if isinstance(how.amount, int) else max(1, round(how.amount * count))
    if n > count and not how.replace:
        raise ValueError(f"{how} asks for more than the {count} local tokens: ask for fewer, or random({n}, replace)")
    device = local.device if generator is None else generator.device
    if how.replace:
        chosen = torch.randint(count, (pictures, n), generator=generator, device=device)
    else:
        chosen = torch.rand(pictures, count, generator=generator, device=device).argsort(1)[:, :n]
    return local.gather(1, chosen.to(local.device)[:, :, None].expand(-1, -1, width))  # (B, n, D)


def _averaged(tokens: Tokens, k: int) -> Tensor:
    if tokens.grid is None:
        why = "these have none: attention pooling or patch dropout took it"
        raise ValueError(f"pooled({k}) needs local tokens on a grid; {why}: choose random or all, or model.eval()")
    if k > min(tokens.grid):
        raise ValueError(f"pooled({k}) asks for more windows than the grid of {tokens.grid} patches: take a smaller k")
    plane = tokens.local.transpose(1, 2).unflatten(2, tokens.grid)  # (B, D, h, w)
    return F.adaptive_avg_pool2d(plane, k).flatten(2).transpose(1, 2)  # (B, k * k, D)


def context_width(unet: Any) -> int:
    """Width of the tokens that a diffusers UNet attends to, read from its config.

    ``cross_attention_dim`` may be one number, or one for each block; these must agree, as one condition serves all.
    Raises ValueError when they differ or the UNet has no cross-attention. Taught in: notebooks/09_diva.ipynb
    """
    found = getattr(unet.config, "cross_attention_dim", None)
    widths: set[Any] = set(found) if isinstance(found, (list, tuple)) else {found}
    if len(widths) != 1 or None in widths:
        raise ValueError(f"the UNet's cross_attention_dim must be one width, or equal ones; not {found}: "
                         "take a text-conditioned UNet, such as those of Stable Diffusion 1.x or 2.x")  # fmt: skip
    return int(widths.pop())


class Condition(nn.Module):
    """What the denoiser is told: the tokens, projected to its width, with a constant text embedding.

    Objective, for N projected tokens v and T text tokens e, ``how`` is

    - ``add``: v_i + e_i where N = T, else v_i plus the mean of e over its positions (B, N, W); the reference's way;
    - ``concat``: the text's tokens, then the picture's (B, T + N, W);
    - ``visual``: the picture's alone (B, N, W).

    Only the projection is learnt. The text embedding is a constant: it gets no gradient, and is not part of the saved
    state, since whoever loads the state gives it again.

    Args:
        token_width: D of the tokens.
        context_width: W of the denoiser; see :func:`context_width`.
        text: (T, W) or (1, T, W), from the denoiser's own text tower; not needed, and not used, for ``visual``.
        how: see above.

    Raises:
        ValueError: another ``how``, a text embedding that is missing or misshapen, or widths that differ, with both.

    >>> Condition(8, 4, torch.zeros(77, 4))(torch.zeros(2, 77, 8)).shape
    torch.Size([2, 77, 4])

    Source: Wang et al. 2025, section 3.3, and its code. Taught in: notebooks/09_diva.ipynb
    """

    text: Tensor

    def __init__(self, token_width: int, context_width: int, text: Tensor | None = None, how: str = "add") -> None:
        super().__init__()
        if how not in COMBINATIONS:
            raise ValueError(f"how must be one of {', '.join(COMBINATIONS)}; not {how!r}")
        self.how = how
        self.project = nn.Linear(token_width, context_width)
        constant = torch.zeros(0, context_width) if how == "visual" else _constant(text, context_width, how)
        self.register_buffer("text", constant, persistent=False)  # (T, W)

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The picture's part (B, N, W), and the text's as it meets it: (B, N, W) for ``add``, else (B, T, W)."""
        width = self.project.in_features
        if tokens.ndim != 3 or tokens.shape[2] != width:
            shape = tuple(tokens.shape)
            raise ValueError(f"tokens must be (B, N, {width}), as wide as the projection; not {shape}: match the CLIP")
        visual = self.project(tokens)  # (B, N, W)
        text = self.text.to(visual.dtype)
        if self.how == "add" and len(text) != visual.shape[1]:
            text = text.mean(0).expand(visual.shape[1], -1)  # (N, W)
        return visual, text.expand(len(visual), -1, -1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> the condition (B, N or T + N, W)."""
        visual, text = self.parts(tokens)
        return text + visual if self.how == "add" else torch.cat([text, visual], dim=1)

    @torch.no_grad()
    def visual_share(self, tokens: Tensor) -> Tensor:
        """Drift meter: ``|v| / (|v| + |e|)``, the picture's share of the condition's norm, in [0, 1], for each of B.

        Norms run over all tokens and entries of a part. One is a condition of the picture alone, zero of text alone.
        """
        visual, text = (torch.linalg.vector_norm(part.float(), dim=(1, 2)) for part in self.parts(tokens))
        return visual / (visual + text).clamp_min(torch.finfo(torch.float32).tiny)


def _constant(text: Tensor | None, width: int, how: str) -> Tensor:
    if text is None:
        raise ValueError(f"{how} needs the text embedding, (T, {width}): give text=, or choose how='visual'")
    rows = text[0] if text.ndim == 3 and len(text) == 1 else text
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"text must be one embedding, (T, {width}) or (1, T, {width}); not {tuple(text.shape)}")
    if rows.shape[1] != width:
        what = f"the text embedding is {rows.shape[1]} wide, the denoiser's context {width}"
        raise ValueError(f"{what}: use the text tower that belongs to the denoiser")
    return rows.detach().clone()
