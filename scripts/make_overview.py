"""Draw book/_static/overview.png, the picture of the preface and the README: adapt it, feed it, make it see.

A diagram, not a result: the points and bars are made up to show the idea. Run: python scripts/make_overview.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from minilib.plotting import INK, PALETTE, use_theme

TARGET = Path(__file__).resolve().parent.parent / "book" / "_static" / "overview.png"
BLUE, RED, GREEN, ORANGE, *_, GREY = PALETTE


def adapt(ax: Axes) -> None:
    """Three classes with one covariance: their boundaries are straight."""
    rng = np.random.default_rng(3)
    means = np.array([[-2.0, -0.8], [1.9, -1.2], [0.3, 1.7]])
    covariance = np.array([[0.9, 0.45], [0.45, 0.5]])
    precision = np.linalg.inv(covariance)
    grid = np.stack(np.meshgrid(np.linspace(-5, 5, 500), np.linspace(-4, 4, 400)), axis=-1)
    scores = grid @ precision @ means.T - 0.5 * np.einsum("kd,de,ke->k", means, precision, means)
    for k in range(3):
        lead = scores[..., k] - np.delete(scores, k, axis=-1).max(-1)
        ax.contour(grid[..., 0], grid[..., 1], lead, levels=[0], colors=INK, linewidths=1.5)
    for mean, colour in zip(means, (BLUE, RED, GREEN), strict=True):
        ax.scatter(*rng.multivariate_normal(mean, covariance, 16).T, s=26, color=colour, alpha=0.75, linewidth=0)
        ax.scatter(*mean, s=150, color=colour, marker="*", edgecolor="white", linewidth=1.2, zorder=3)
    ax.set(xlim=(-4.6, 4.6), ylim=(-3.4, 3.6), xticks=[], yticks=[])


def feed(ax: Axes) -> None:
    """A long tail of entries: the tail stays whole, the head is thinned towards t (other entries keep some)."""
    counts, threshold = 100 / np.arange(1, 23) ** 0.95, 22
    ranks = np.arange(len(counts))
    ax.bar(ranks, counts, color="#D9D9D9", width=0.8)
    kept = np.where(counts > threshold, threshold + 0.12 * (counts - threshold), counts)
    ax.bar(ranks, kept, color=[ORANGE if c > threshold else GREEN for c in counts], width=0.8)
    ax.axhline(threshold, color=INK, linestyle="--", linewidth=1.5)
    ax.text(len(counts) - 0.6, threshold + 2, "t", fontsize=15, style="italic", ha="right")
    ax.text(3.2, 72, "seen too often:\nthinned", fontsize=11)
    ax.text(11, 12, "rare: kept whole", fontsize=11, ha="left")
    ax.set(xticks=[], yticks=[], xlabel="entries, the most frequent first", ylabel="captions")


def box(ax: Axes, x: float, y: float, text: str, colour: str, width: float = 2.6, height: float = 1.25) -> None:
    """A rounded box with its centre at (x, y)."""
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.08,rounding_size=0.2")
    shape.set(facecolor=colour, edgecolor="none")
    ax.add_patch(shape)
    ax.text(x, y, text, ha="center", va="center", fontsize=11, color="white", weight="bold")


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str, at: tuple[float, float], **style
) -> None:
    """An arrow and what it carries."""
    look = {"color": INK, "linewidth": 1.8, "arrowstyle": "-|>", "mutation_scale": 16} | style
    ax.add_patch(FancyArrowPatch(start, end, **look))
    ax.text(*at, text, ha="center", va="center", fontsize=10.5, color=look["color"])


def make_it_see(ax: Axes) -> None:
    """The condition goes from CLIP to the frozen denoiser; the error's gradient comes back and changes CLIP alone."""
    box(ax, 1.5, 5.0, "picture", GREY)
    box(ax, 7.2, 5.0, "CLIP's eye\n(learns)", BLUE)
    box(ax, 7.2, 1.2, "denoiser\n(frozen)", GREEN)
    arrow(ax, (2.95, 5.0), (5.75, 5.0), "", (0, 0))
    arrow(ax, (1.5, 4.2), (5.7, 1.2), "+ noise", (1.6, 2.2), connectionstyle="arc3,rad=0.3")
    arrow(ax, (6.6, 4.2), (6.6, 2.0), "condition", (5.5, 3.1))
    arrow(ax, (8.0, 2.0), (8.0, 4.2), "error", (8.75, 3.1), color=RED, linestyle="--")
    ax.set(xlim=(0, 9.6), ylim=(0.2, 6.2))
    ax.axis("off")


def main() -> None:
    use_theme()
    panels = {"Adapt it": adapt, "Feed it": feed, "Make it see": make_it_see}
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.7), width_ratios=[1, 1, 1.15])
    for ax, (title, draw) in zip(axes, panels.items(), strict=True):
        draw(ax)
        ax.grid(False)
        ax.set_title(title, fontsize=15, loc="left", pad=10)
    fig.get_layout_engine().set(wspace=0.06)
    fig.savefig(TARGET, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
