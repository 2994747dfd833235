"""Train a network by low-rank updates of its weights (LoRA), and leave plain weights behind.

Reference: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR, arXiv:2106.09685).

Taught in: notebooks/10_gpu.ipynb
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations


class _LowRank(nn.Module):
    """W -> W + B A, (m, n) with A (r, n) and B (m, r); B begins at zero, so that W does."""

    def __init__(self, weight: Tensor, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter((torch.randn(rank, columns, generator=rng) / columns**0.5).to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def add_lora(model: nn.Module, part: nn.Module, rank: int, *, seed: int) -> list[tuple[nn.Module, str]]:
    """Update every linear and attention layer in a ``part`` of a frozen ``model`` by B A of a rank; returns where.

    Objective: W becomes W + B A, with B zero and A normal of variance 1 / columns at first, and only A and B may move.
    The seed decides A. Not by peft: its update of ``nn.MultiheadAttention``'s output counts twice in the forward pass
    and once in the gradient, and is added to the frozen weights and taken away again at each call, which rounds them
    (found in peft 0.21).

    Source: Hu et al. 2022, section 4.1. Taught in: notebooks/10_gpu.ipynb
    """
    rng = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [m for m in part.modules() if isinstance(m, (nn.Linear, nn.MultiheadAttention))]
    places = [(layer, name) for layer in layers for name, p in layer.named_parameters(recurse=False) if p.ndim == 2]
    model.requires_grad_(False)
    for layer, name in places:
        register_parametrization(layer, name, _LowRank(getattr(layer, name), rank, rng))
    return places


def merge_lora(places: list[tuple[nn.Module, str]]) -> None:
    """Put each sum W + B A in the place of its weight; the modules are plain again."""
    for layer, name in places:
        remove_parametrizations(layer, name)
