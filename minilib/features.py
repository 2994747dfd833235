"""Turn pictures, prompts and pairs into unit-norm features with a CLIP; plain tensors come out.

Taught in: notebooks/01_clip.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.models import Clip
from minilib.world import Pair


def class_embeddings(clip: Clip, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}",)) -> Tensor:
    """One text embedding a class: the normalised mean over templates, (K, d) (``eq-clip-zeroshot``).

    ``names`` are K class names; each template holds one ``{}``. Source: Radford et al. 2021, section 3.1.4.

    Taught in: notebooks/01_clip.ipynb
    """
    if not templates or any(t.count("{}") != 1 for t in templates):
        raise ValueError(f"each template must hold one '{{}}' for the class name; not {list(templates)}")
    rows = clip.encode_texts([t.format(name) for name in names for t in templates])  # (K * templates, d)
    return F.normalize(rows.unflatten(0, (len(names), -1)).mean(1), dim=1)


def pair_features(
    clip: Clip, pairs: Sequence[Pair], prompt: str = "a photo of {}"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of image a, image b, statement a, statement b of each pair, four times (n, d).

    The prompt is MMVP-VLM's. ``evaluate.pair_accuracy`` takes the four as they come.

    Taught in: notebooks/04_diva.ipynb
    """
    images = [torch.stack([torch.from_numpy(getattr(p, side)) for p in pairs]) for side in ("image_a", "image_b")]
    texts = [[prompt.format(getattr(p, side)) for p in pairs] for side in ("statement_a", "statement_b")]
    a, b = (clip.encode_images(x) for x in images)
    return a, b, clip.encode_texts(texts[0]), clip.encode_texts(texts[1])
