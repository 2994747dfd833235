"""Turn arrays into matplotlib axes in the book's one style: one chart a function, drawn on the ``ax`` it is given.

Nothing here computes a result or knows a model. Colours follow Okabe and Ito (2008), which readers with the common
kinds of colour blindness can tell apart, on an opaque light ground that also stands on a dark page.

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

    Taught in: notebooks/06_balance.ipynb
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

    Taught in: notebooks/06_balance.ipynb
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


def plot_cumulative(ax: Axes, counts: Mapping[str, ArrayLike]) -> Axes:
    """Matches held by the r largest entries over r, a curve for each label; logarithmic in r.

    Taught in: notebooks/06_balance.ipynb
    """
    for (label, values), style in zip(counts.items(), ("-", "--", ":", "-."), strict=False):
        ordered = np.sort(np.asarray(values)[np.asarray(values) > 0])[::-1]
        ax.plot(np.arange(1, len(ordered) + 1), np.cumsum(ordered), style, label=label, linewidth=2)
    ax.set(xscale="log", xlabel="the largest r entries", ylabel="matches in them", ylim=(0, None))
    ax.legend(loc="upper left")
    return ax


def plot_tail_share(ax: Axes, counts: Mapping[str, ArrayLike], share: float) -> Axes:
    """Share of all matches that fall in entries below a threshold, over the threshold; a line at the share wanted.

    Taught in: notebooks/06_balance.ipynb
    """
    for (label, values), style in zip(counts.items(), ("-", "--", ":", "-."), strict=False):
        ordered = np.sort(np.asarray(values)[np.asarray(values) > 0])
        below = np.append(0, np.cumsum(ordered)) / ordered.sum()  # share of the matches in the k smallest entries
        ax.step(np.append(ordered, ordered[-1] + 1), below, style, where="pre", label=label, linewidth=2)
    ax.axhline(share, color=PALETTE[7], linewidth=1)
    ax.text(0.01, share + 0.01, f"{share:.0%}", transform=ax.get_yaxis_transform(), color=PALETTE[7])
    ax.set(xscale="log", xlabel="threshold t", ylabel="share of matches in entries below t", ylim=(0, 1.02))
    ax.legend(loc="upper left")
    return ax


def plot_sizes(
    ax: Axes, thresholds: ArrayLike, expected: ArrayLike, observed: ArrayLike, ceiling: ArrayLike, matched: int
) -> Axes:
    """Size of the curated set over the threshold: expected (k,), observed (seeds, k), sum of capped counts (k,).

    Taught in: notebooks/06_balance.ipynb
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


_STYLES, _MARKS = ("-", "--", "-.", ":"), ("o", "s", "^", "D")


def plot_pictures(axes: Iterable[Axes], images: ArrayLike, titles: Sequence[str], right: Sequence[bool]) -> None:
    """Pictures (n, 3, h, w) uint8, one on each axes, under a title: blue where ``right``, else vermilion and slanted.

    Taught in: notebooks/02_gda.ipynb
    """
    for ax, image, title, good in zip(axes, np.asarray(images), titles, right, strict=True):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        colour, style = (PALETTE[0], "normal") if good else (PALETTE[1], "italic")
        ax.set_title(title, loc="center", fontsize=9, color=colour, style=style)
        ax.set(xticks=[], yticks=[])


def plot_gaussians(
    ax: Axes, points: ArrayLike, labels: ArrayLike, means: ArrayLike, covariance: ArrayLike, names: Sequence[str]
) -> Axes:
    """Points (N, 2) of K classes, class means (K, 2) as crosses, and the shared covariance (2, 2) as 2-sigma ellipses.

    Taught in: notebooks/02_gda.ipynb
    """
    rows, centres = np.asarray(points), np.asarray(means)
    values, vectors = np.linalg.eigh(np.asarray(covariance))
    angle = np.linspace(0, 2 * np.pi, 100)
    ring = 2 * (np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.sqrt(values)) @ vectors.T  # (100, 2)
    for k, (mean, name) in enumerate(zip(centres, names, strict=True)):
        mine = rows[np.asarray(labels) == k]
        ax.plot(*mine.T, _MARKS[k % 4], color=PALETTE[k], markersize=4, alpha=0.6, label=name)
        ax.plot(*(mean + ring).T, color=PALETTE[k], linewidth=2)
        ax.plot(*mean, marker="+", color=INK, markersize=14, markeredgewidth=2.5)
    ax.legend(loc="upper left")
    return ax


def plot_regions(ax: Axes, weights: ArrayLike, biases: ArrayLike) -> Axes:
    """Shade where each class of the classifier x W + b wins, for W (2, K) and b (K,), within the limits of ``ax``.

    Taught in: notebooks/02_gda.ipynb
    """
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    ax.set(xlim=(left, right), ylim=(low, high))  # fixed: shading must not widen them
    x, y = np.meshgrid(np.linspace(left, right, 400), np.linspace(low, high, 400))
    winner = (np.stack([x, y], axis=-1) @ np.asarray(weights) + np.asarray(biases)).argmax(axis=-1)  # (400, 400)
    for k in range(np.asarray(biases).size):
        ax.contourf(x, y, winner == k, levels=[0.5, 1.5], colors=[PALETTE[k]], alpha=0.12)
        ax.contour(x, y, winner == k, levels=[0.5], colors=INK, linewidths=1)
    return ax


def plot_eigenvalues(ax: Axes, estimates: Mapping[str, ArrayLike], truth: ArrayLike) -> Axes:
    """Eigenvalues (D,) of a covariance, largest first, for several estimates and the truth; logarithmic.

    Taught in: notebooks/02_gda.ipynb
    """
    for i, (name, values) in enumerate(estimates.items()):
        ax.plot(np.sort(np.asarray(values))[::-1], _STYLES[i % 4], color=PALETTE[i], label=name, linewidth=2)
    ax.plot(np.sort(np.asarray(truth))[::-1], color=INK, linewidth=1.2, label="the truth")
    ax.set(yscale="log", xlabel="eigenvalue, from the largest", ylabel="size")
    ax.legend()
    return ax


def plot_shots(
    ax: Axes,
    shots: Sequence[int],
    curves: Mapping[str, ArrayLike],
    bands: Mapping[str, ArrayLike],
    zero_shot: float | None = None,
) -> Axes:
    """Mean accuracy (shots,) against shots, shares drawn as per cent, with bands (2, shots); a line at zero-shot CLIP.

    Taught in: notebooks/03_fewshot.ipynb
    """
    place = np.arange(len(shots))
    for i, (name, values) in enumerate(curves.items()):
        low, high = 100 * np.asarray(bands[name])
        ax.fill_between(place, low, high, color=PALETTE[i], alpha=0.2, linewidth=0)
        ax.plot(place, 100 * np.asarray(values), _STYLES[i % 4], marker=_MARKS[i % 4], color=PALETTE[i], label=name)
    if zero_shot is not None:
        ax.axhline(100 * zero_shot, color=INK, linewidth=1.5, linestyle=(0, (1, 2)), label="zero-shot")
    ax.set_xticks(place, [str(n) for n in shots])
    ax.set(xlabel="labelled pictures of each class", ylabel="accuracy (%)")
    ax.legend()
    return ax


def plot_alpha(ax: Axes, alphas: ArrayLike, curves: Mapping[str, ArrayLike]) -> Axes:
    """Accuracy (a,) against alpha (a,) on a logarithmic axis, one curve a name, each with a ring at its first best.

    Taught in: notebooks/03_fewshot.ipynb
    """
    for i, (name, values) in enumerate(curves.items()):
        v = 100 * np.asarray(values)
        ax.plot(alphas, v, _STYLES[i % 4], marker=_MARKS[i % 4], color=PALETTE[i], label=name)
        ax.plot(np.asarray(alphas)[v.argmax()], v.max(), "o", ms=14, mfc="none", mec=PALETTE[i], mew=2)
    ax.set(xscale="log", xlabel=r"$\alpha$", ylabel="accuracy (%)")
    ax.legend()
    return ax


def plot_captioned(axes: Iterable[Axes], images: ArrayLike, captions: Sequence[str], width: int = 19) -> None:
    """Pictures (n, 3, h, w) uint8, one on each axes, over their captions.

    Taught in: notebooks/01_clip.ipynb
    """
    for ax, image, caption in zip(axes, np.asarray(images), captions, strict=True):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        ax.set_xlabel(textwrap.fill(caption, width), fontsize=9)
        ax.set(xticks=[], yticks=[])


def plot_similarity(ax: Axes, cosines: ArrayLike) -> Axes:
    """Heat map of cosines (pictures, captions), dark where they are large.

    Taught in: notebooks/01_clip.ipynb
    """
    sns.heatmap(np.asarray(cosines), ax=ax, cmap="crest", square=True, cbar_kws={"label": "cosine"})
    ax.set(xlabel="caption", ylabel="picture")
    return ax


def plot_losses(ax: Axes, curves: Mapping[str, ArrayLike], guess: float | None = None) -> Axes:
    """Loss of each step, a curve for each label; a line at what a guess costs.

    Taught in: notebooks/01_clip.ipynb
    """
    for i, (label, values) in enumerate(curves.items()):
        ax.plot(np.asarray(values), _STYLES[i % 4], color=PALETTE[i], label=label)
    if guess is not None:
        ax.axhline(guess, color=PALETTE[7], linestyle="--", label="guessing")
    ax.set(xlabel="step", ylabel="loss (nats)")
    ax.legend()
    return ax


def plot_patterns(
    ax: Axes,
    groups: Sequence[str],
    values: Mapping[str, ArrayLike],
    intervals: Mapping[str, ArrayLike] | None = None,
    guess: float | None = 0.25,
    ylabel: str = "pairs solved (%)",
) -> Axes:
    """Shares (groups,) as groups of bars with intervals (groups, 2), a colour for each label; a line at a guess.

    For classes with many, medium and few training rows, give ``guess=None`` and a ``ylabel``.

    Taught in: notebooks/01_clip.ipynb
    """
    place, width = np.arange(len(groups)), 0.8 / len(values)
    for i, (label, shares) in enumerate(values.items()):
        v, error = 100 * np.asarray(shares), None
        if intervals is not None:
            low, high = 100 * np.asarray(intervals[label]).T
            error = np.clip([v - low, high - v], 0, None)
        x = place + (i - (len(values) - 1) / 2) * width
        ax.bar(x, v, width, yerr=error, color=PALETTE[i], label=label, error_kw={"ecolor": INK, "elinewidth": 1})
    if guess is not None:
        ax.axhline(100 * guess, color=INK, linestyle="--", linewidth=1, label="a guess")
    ax.set_xticks(place, groups, rotation=25)
    ax.set(ylabel=ylabel, ylim=(0, 100))
    ax.legend(ncols=len(values) + 1, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return ax


def plot_reliability(ax: Axes, confidence: ArrayLike, accuracy: ArrayLike, counts: ArrayLike) -> Axes:
    """Accuracy of each bin over its mean confidence, (bins,) each, as discs that grow with the bin's share of the rows.

    Calibrated is the diagonal; a line joins each disc to it. Empty bins (NaN) are left out.

    Taught in: notebooks/03_fewshot.ipynb
    """
    n, full = np.asarray(counts), np.asarray(counts) > 0
    x, y = (100 * np.asarray(v)[full] for v in (confidence, accuracy))
    ax.plot([0, 100], [0, 100], "--", color=INK, linewidth=1, label="calibrated")
    ax.vlines(x, x, y, color=PALETTE[1], linewidth=2, label="gap")
    ax.scatter(x, y, s=12 + 600 * n[full] / n.sum(), color=PALETTE[0], alpha=0.8, zorder=3, label="rows of a bin")
    ax.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 103), ylim=(-3, 103), aspect="equal")
    ax.legend(loc="upper left", markerscale=0.5)
    return ax


def plot_differences(ax: Axes, names: Sequence[str], means: ArrayLike, intervals: ArrayLike) -> Axes:
    """Differences of shares (k,) drawn as points, with intervals (k, 2), a row for each name, the first on top.

    Blue where the whole interval lies above 0, vermilion where it lies below, grey where it holds 0.

    Taught in: notebooks/07_does_it_matter.ipynb
    """
    ends = 100 * np.asarray(intervals, dtype=np.float64)
    for row, (mean, (low, high)) in enumerate(zip(100 * np.asarray(means), ends, strict=True)):
        colour = PALETTE[0] if low > 0 else PALETTE[1] if high < 0 else PALETTE[7]
        ax.plot([low, high], [row, row], color=colour, linewidth=3)
        ax.plot(mean, row, "o", color=colour, markersize=8)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="difference of accuracies (points)", ylim=(len(names) - 0.5, -0.5))
    return ax


def plot_flow(
    ax: Axes,
    boxes: Mapping[str, tuple[float, float]],
    links: Iterable[tuple[str, str]],
    back: Iterable[tuple[str, str]] = (),
) -> Axes:
    """A method as boxes at (x, y) with arrows from box to box; what flows ``back`` is dashed, in the second colour.

    Taught in: notebooks/02_gda.ipynb
    """
    frame = {"boxstyle": "round,pad=0.5", "fc": GROUND, "ec": PALETTE[7]}
    drawn = {name: ax.text(*at, name, ha="center", va="center", fontsize=11, bbox=frame) for name, at in boxes.items()}
    for arrows, colour, style, bend in ((links, PALETTE[7], "-", 0.0), (back, PALETTE[1], "--", 0.35)):
        for a, b in arrows:
            ends = {"patchA": drawn[a].get_bbox_patch(), "patchB": drawn[b].get_bbox_patch()}
            look = {"arrowstyle": "-|>", "color": colour, "ls": style, "lw": 1.6, "shrinkA": 2, "shrinkB": 2}
            ax.annotate("", boxes[b], boxes[a], arrowprops=look | ends | {"connectionstyle": f"arc3,rad={bend}"})
    x, y = np.array(list(boxes.values())).T
    ax.set(xlim=(x.min() - 0.6, x.max() + 0.6), ylim=(y.min() - 0.5, y.max() + 0.5))
    ax.axis("off")
    return ax
