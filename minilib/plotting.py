"""Turn arrays into matplotlib axes in the book's one style: one chart a function, drawn on the ``ax`` it is given.

Nothing here computes a result or knows a model. Colours follow Okabe and Ito (2008), which readers with the common kinds of
colour blindness can tell apart, on an opaque light ground that also stands on a dark page.

Taught in: notebooks/01_clip.ipynb
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

#: Blue, vermilion, green, orange, purple, sky, yellow, grey: the order in which charts use them.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#6B6B6B")
GROUND = "#FFFFFF"
INK = "#222222"


def use_theme() -> None:
    """Set the book's look for every figure drawn afterwards.

    Changes matplotlib's global settings (``plt.rcdefaults()`` undoes it): seaborn's white grid, the colour-blind-safe
    :data:`PALETTE`, no top and right spines, figures of 7 x 4 inches that stay sharp on dense screens.

    Taught in: notebooks/01_clip.ipynb
    """
    sns.set_theme(context="notebook", style="whitegrid", palette=list(PALETTE))
    plt.rcParams.update(
        {
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "figure.facecolor": GROUND,
            "figure.figsize": (7.0, 4.0),
            "grid.color": "#E3E3E3",
            "legend.frameon": False,
            "savefig.dpi": 110,
            "savefig.facecolor": GROUND,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )


def plot_fates(axes: Iterable[Axes], images: ArrayLike, captions: Sequence[str], fates: Sequence[str]) -> None:
    """Pictures (n, 3, h, w) uint8, one on each axes, under their captions and their fates: "kept" blue, others grey.

    Taught in: notebooks/03_curation.ipynb
    """
    for ax, image, caption, fate in zip(axes, np.asarray(images), captions, fates, strict=True):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        colour = PALETTE[0] if fate == "kept" else PALETTE[7]
        ax.set_title(fate, color=colour, fontsize=11, loc="center")
        ax.set_xlabel(textwrap.fill(caption, 18), fontsize=9)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color=colour, linewidth=3)


def plot_rank_count(ax: Axes, counts: Mapping[str, ArrayLike], t: float | None = None) -> Axes:
    """Counts of entries from the largest to the smallest on two logarithmic axes, a curve for each label; a line at t.

    Taught in: notebooks/03_curation.ipynb
    """
    for (label, values), style in zip(counts.items(), ("-", "--", ":", "-."), strict=False):
        positive = np.sort(np.asarray(values)[np.asarray(values) > 0])[::-1]
        ax.plot(np.arange(1, len(positive) + 1), positive, style, label=label, linewidth=2)
    if t is not None:
        ax.axhline(t, color=PALETTE[7], linewidth=1)
        ax.annotate(f"t = {t:,}", (1, t), xytext=(0, 4), textcoords="offset points", color=PALETTE[7])
    ax.set(xscale="log", yscale="log", xlabel="rank of the entry", ylabel="captions that hold it")
    ax.legend()
    return ax


def plot_tail_share(ax: Axes, counts: Mapping[str, ArrayLike], share: float) -> Axes:
    """Share of all matches that fall in entries below a threshold, over the threshold; a line at the share wanted.

    Taught in: notebooks/03_curation.ipynb
    """
    for (label, values), style in zip(counts.items(), ("-", "--", ":", "-."), strict=False):
        ordered = np.sort(np.asarray(values)[np.asarray(values) > 0])
        below = np.append(0, np.cumsum(ordered)) / ordered.sum()  # share of the matches in the k smallest entries
        ax.step(np.append(ordered, ordered[-1] + 1), below, style, where="pre", label=label, linewidth=2)
    ax.axhline(share, color=PALETTE[7], linewidth=1)
    ax.annotate(f"{share:.0%}", (1, share), xytext=(0, 4), textcoords="offset points", color=PALETTE[7])
    ax.set(xscale="log", xlabel="threshold t", ylabel="share of matches in entries below t", ylim=(0, 1.02))
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
    return ax


def plot_sizes(
    ax: Axes, thresholds: ArrayLike, expected: ArrayLike, observed: ArrayLike, ceiling: ArrayLike, matched: int
) -> Axes:
    """Size of the curated set over the threshold: expected (k,), observed (seeds, k), sum of capped counts (k,).

    Taught in: notebooks/03_curation.ipynb
    """
    ax.plot(thresholds, ceiling, ":", color=PALETTE[1], label="sum of min(count, t)", linewidth=2)
    ax.plot(thresholds, expected, "-", color=PALETTE[0], label="expected", linewidth=2)
    for k, sizes in enumerate(np.asarray(observed)):
        ax.plot(thresholds, sizes, "o", color=PALETTE[3], markersize=5, label="observed, each seed" if k == 0 else None)
    ax.axhline(matched, color=PALETTE[7], linewidth=1)
    ax.annotate("all captions with a match", (np.min(thresholds), matched), xytext=(0, 4), textcoords="offset points")
    ax.set(xscale="log", yscale="log", xlabel="threshold t", ylabel="captions kept")
    ax.legend(loc="lower right")
    return ax
